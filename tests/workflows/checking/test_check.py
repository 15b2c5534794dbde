"""The whole check: the right reading fits, a wrong one is refuted by a row, and nothing is a traceback."""

import json
import random

import pytest

from checking_cases import LAYOUTS, write
from spr.core.errors import ConfigError, InputError, SprError
from spr.workflows.checking.check import check_data
from spr.workflows.checking.fixing import check_options, fix_checked
from spr.workflows.checking.summary import fix_lines, lines

SIZES = ((637, 477), (477, 637), (1021, 763), (801, 801))


def scene(generator):
    """An image size and boxes of square objects in it, xyxy pixels; one in four is cut off by the border."""
    width, height = generator.choice(SIZES)
    boxes = []
    for _ in range(4):
        side = generator.uniform(0.1, 0.5) * min(width, height)
        x, y = generator.uniform(-side / 2, width - side / 2), generator.uniform(-side / 2, height - side / 2)
        boxes.append((max(x, 0), max(y, 0), min(x + side, width), min(y + side, height)))
    return (width, height), boxes


def made(folder, write_box, count=200, **extra):
    generator = random.Random(5)
    rows = []
    for number in range(count):
        (width, height), boxes = scene(generator)
        answer = write_box(boxes, (width, height))
        turns = [{"from": "human", "value": "<image>\nFind them."}, {"from": "gpt", "value": answer}]
        rows.append({"image": f"{number}.jpg", "width": width, "height": height, "conversations": turns, **extra})
    path = folder / "train.json"
    path.write_text(json.dumps(rows))
    return path


def pixels(boxes, _):
    return json.dumps([{"bbox_2d": [round(edge) for edge in box], "label": "dog"} for box in boxes])


def thousandths(boxes, size):
    scaled = [[round(1000 * edge / size[k % 2]) for k, edge in enumerate(box)] for box in boxes]
    return json.dumps([{"bbox_2d": box, "label": "dog"} for box in scaled])


def fractions(boxes, size):
    return " and ".join(f"a dog [{', '.join(f'{e / size[k % 2]:.3f}' for k, e in enumerate(box))}]" for box in boxes)


@pytest.mark.parametrize(
    ("write_box", "dialect", "wrong"),
    [
        (thousandths, "qwen3_vl", ("qwen2_5_vl", "kimi_vl", "pixels")),
        (pixels, "pixels", ("qwen3_vl", "kimi_vl", "qwen2_5_vl:max_pixels=100352")),
        (fractions, "llava_onevision", ("ferret", "pixels", "llava")),
    ],
)
def test_the_right_reading_fits_and_wrong_ones_are_refuted(tmp_path, write_box, dialect, wrong):
    path = made(tmp_path, write_box)
    result = check_data(path, dialect=dialect)
    assert result.refuted == []
    assert result.exit_code == 0
    assert (result.rows, result.boxes) == (200, 800)
    assert result.groups[0].chosen.verdict == "fits"
    assert result.groups[0].candidates[0].verdict == "fits"
    for other in wrong:
        refuted = check_data(path, dialect=other)
        assert refuted.exit_code == 1, other
        assert "train.json, row " in refuted.refuted[0]


@pytest.mark.parametrize(
    ("write_box", "scale"), [(thousandths, "xyxy, 0–1000"), (pixels, "xyxy, pixels"), (fractions, "xyxy, 0–1")]
)
def test_without_a_dialect_the_readings_that_fit_are_named(tmp_path, write_box, scale):
    result = check_data(made(tmp_path, write_box))
    (group,) = result.groups
    assert group.fitting[0].reading.name == scale
    assert group.chosen.reading.name == scale
    assert result.exit_code == 0
    text = "\n".join(lines(result))
    assert f"fits         {scale}" in text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_checked(tmp_path, layout):
    result = check_data(write(tmp_path, layout))
    assert (result.rows, result.boxes, result.exit_code) == (2, 2, 0)
    text = "\n".join(lines(result))
    assert "2 boxes" in text
    json.dumps(result.to_json())


def test_a_box_in_another_form_is_refuted(tmp_path):
    path = made(tmp_path, thousandths)
    result = check_data(path, dialect="qwen2_vl")
    assert "no box of the data is in this form (train.json, row 1: bbox_2d)" in result.refuted[0]


def test_stated_scales_are_tested_whatever_the_dialect_is(lines_of):
    messages = [{"role": "user", "content": "<image>Find it"}, {"role": "assistant", "content": "<bbox>"}]
    rows = []
    generator = random.Random(1)
    for number in range(100):
        size, boxes = scene(generator)
        bbox = [[round(edge / size[k % 2], 3) for k, edge in enumerate(boxes[0])]]
        rows.append({"messages": messages, "images": [f"{number}.jpg"], "width": size[0], "height": size[1]})
        rows[-1]["objects"] = {"bbox": bbox, "bbox_type": "norm1"}
    assert check_data(lines_of(rows)).refuted == []
    for row in rows:
        row["objects"]["bbox_type"] = "real"
    result = check_data(lines_of(rows), dialect="qwen2_5_vl")
    assert "boxes in fields (xyxy pixels): xyxy, pixels: " in result.refuted[0]
    assert "only numbers from 0 to 1" in result.refuted[0]
    assert "rows.jsonl, line 1" in result.refuted[0]


@pytest.fixture
def lines_of(tmp_path):
    def written(rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return written


def test_boxes_in_texts_and_in_fields_are_judged_apart(lines_of):
    objects = {
        "messages": [{"role": "assistant", "content": "<bbox>"}],
        "images": ["a"],
        "objects": {"bbox": [[1, 2, 30, 40]]},
    }
    text = {"messages": [{"role": "assistant", "content": "a dog [100, 200, 300, 400]"}], "images": ["a"]}
    sizes = {"width": 640, "height": 480}
    result = check_data(lines_of([objects | sizes, text | sizes] * 20), dialect="ferret")
    assert sorted((group.stated or "", group.evidence.boxes) for group in result.groups) == [
        ("", 20),
        ("xyxy_pixels", 20),
    ]
    assert result.refuted == []


def test_a_reference_decides(tmp_path):
    path = made(tmp_path, pixels, count=60)
    rows = json.loads(path.read_text())
    images, annotations = [], []
    for number, row in enumerate(rows):
        images.append(
            {"id": number, "file_name": f"some/folder/{row['image']}"}
            | {"width": row["width"], "height": row["height"]}
        )
        for entry in json.loads(row["conversations"][1]["value"]):
            x1, y1, x2, y2 = entry["bbox_2d"]
            annotations.append({"image_id": number, "bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": 1})
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"images": images, "annotations": annotations}))
    group = check_data(path, reference=truth).groups[0]
    assert [one.reading.name for one in group.fitting] == ["xyxy, pixels"]
    assert group.chosen.iou == pytest.approx(1.0)
    images[:] = [image | {"file_name": "x.jpg"} for image in images]
    truth.write_text(json.dumps({"images": images, "annotations": annotations}))
    with pytest.raises(InputError, match="No image of the data is in"):
        check_data(path, reference=truth)


def test_findings_name_the_first_rows(lines_of):
    row = {
        "conversations": [{"from": "gpt", "value": "a dog [0.1, 0.2, 0.3, 0.4] and [0.1, 0.2, 0.3, 0.4]"}],
        "image": "a.jpg",
    }
    empty = {"conversations": [{"from": "gpt", "value": "nothing"}], "image": "b.jpg"}
    result = check_data(lines_of([row, empty, row, {"conversations": 3}, {"conversations": [], "image": "c.jpg"}]))
    found = {finding.kind: finding for finding in result.findings}
    assert (found["no_boxes"].count, found["no_boxes"].of) == (2, 5)
    assert found["no_boxes"].places[0] == "rows.jsonl, line 2"
    assert found["other_layout"].places == ("rows.jsonl, line 4: `conversations` is not a list",)
    assert found["repeated_row"].places == ("rows.jsonl, line 3",)
    assert found["duplicate_box"].count == 2
    assert "line 2" in "\n".join(lines(result))


def test_data_without_boxes_are_no_error(lines_of):
    result = check_data(lines_of([{"conversations": [{"from": "gpt", "value": "hello"}], "image": "a.jpg"}] * 3))
    assert (result.boxes, result.exit_code) == (0, 0)
    assert "There are no boxes to check." in list(lines(result))


def test_a_file_whose_rows_are_all_unusable_is_told(lines_of):
    path = lines_of([])
    path.write_text('{"conversations": []}\n')
    assert check_data(path).rows == 1
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        check_data(path, context=100)
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        check_data(path, max_length=100)


HOSTILE = [
    "",
    "\0",
    "{",
    "[",
    "[{]",
    "[1, 2",
    '{"images": [{"id": 1}], "annotations": {}}',
    '{"images": 3, "annotations": [1]}',
    '[{"conversations": [[]]}]',
    '{"messages": [{"role": {}, "content": {}}], "images": [[]]}',
    '{"prompt": 1, "completion": [1]}',
    '{"conversations": [{"from": "gpt", "value": "' + "[1,2,3,4" * 10_000 + '"}], "image": "\\u0000"}',
    '{"conversations": [{"from": "gpt", "value": "[1e308, -1e308, 1e308, 5]"}], "width": 1e9, "height": -5}',
    '{"messages": [{"role": "assistant", "content": "<bbox>"}], "images": ["a"], "objects": {"bbox": [[1, 2, 3, 4]]}, '
    '"width": 99999999999999999999, "height": 1}',
    '{"images": [{"id": 1, "file_name": "/etc/../a", "width": 0, "height": 3}], '
    '"annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}]}',
    "[" * 5000,
    '{"conversations": [{"from": "gpt", "value": "\\ud800 [1,2,3,4]"}], "image": "\\ud800"}',
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_files_give_findings_or_clear_errors(tmp_path, text):
    path = tmp_path / "data.json"
    path.write_text(text)
    try:
        result = check_data(path, images=tmp_path)
    except SprError as error:
        assert str(path) in str(error) or path.name in str(error)  # noqa: PT017 (either outcome is right)
    else:
        assert list(lines(result))
        json.dumps(result.to_json())


def test_fix_finds_the_dialect_by_the_reading_and_the_form(tmp_path):
    for name, write_box in (("pixels", pixels), ("thousandths", thousandths), ("fractions", fractions)):
        (tmp_path / name).mkdir()
        path = made(tmp_path / name, write_box, count=120)
        result = check_data(path)
        fixed = fix_checked(result, "internvl", tmp_path / name / "new.json")
        assert fixed.counts["changed"] + fixed.counts["refused"] == 120
        assert fixed.counts["changed"] > 100
        assert f"{fixed.boxes:,} boxes in dialect internvl" in "\n".join(fix_lines(fixed, "internvl"))
        assert check_data(tmp_path / name / "new.json", dialect="internvl").exit_code == 0


def test_fix_needs_a_reading_that_fits(tmp_path):
    path = made(tmp_path, lambda boxes, _: " ".join(f"a dog [{3 * x}, 2, 3, -{y}]" for x, y, *_ in boxes))
    result = check_data(path)
    assert result.exit_code == 1
    with pytest.raises(ConfigError, match="--fix does not know what the numbers mean"):
        fix_checked(result, "internvl", tmp_path / "new.json")


def without_sizes(path):
    rows = [{key: row[key] for key in ("image", "conversations")} for row in json.loads(path.read_text())]
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize(
    ("write_box", "may_be"), [(pixels, "xyxy, pixels"), (fractions, "xyxy, 0–1 of the padded square")]
)
def test_fix_does_not_guess_without_the_sizes_that_other_readings_need(tmp_path, write_box, may_be):
    path, new = without_sizes(made(tmp_path, write_box)), tmp_path / "new.json"
    result = check_data(path)
    assert f"  Not judged, since they need the sizes of the images: {may_be}" in "\n".join(lines(result))
    with pytest.raises(ConfigError, match="--fix does not know what the numbers mean") as caught:
        fix_checked(result, "internvl", new)
    assert may_be in caught.value.got
    assert not new.exists()


def test_numbers_in_tokens_of_a_dialect_need_no_sizes(tmp_path):
    def tokens(boxes, size):
        rows = [[int(1023 * box[k] / size[k % 2]) for k in (1, 0, 3, 2)] for box in boxes]
        return " ; ".join("".join(f"<loc{number:04d}>" for number in row) + " dog" for row in rows)

    result = check_data(without_sizes(made(tmp_path, tokens)))
    assert "Not judged" not in "\n".join(lines(result))
    assert fix_checked(result, "internvl", tmp_path / "new.json").counts["changed"] == 200


def exchanged(boxes, size):
    scaled = [[round(1000 * box[k] / size[k % 2]) for k in (1, 0, 3, 2)] for box in boxes]
    return json.dumps([{"bbox_2d": box, "label": "dog"} for box in scaled])


@pytest.mark.parametrize("dialect", ["qwen3_vl", None])
def test_x_and_y_exchanged_are_seen_also_where_no_dialect_writes_y_first(tmp_path, dialect):
    (group,) = check_data(made(tmp_path, exchanged), dialect=dialect).groups
    verdicts = {one.reading.name: one.verdict for one in group.candidates}
    assert verdicts["yxyx, 0–1000"] == "fits"
    assert verdicts["xyxy, 0–1000"] in ("less likely", "refuted")
    assert group.fitting[0].reading.name == "yxyx, 0–1000"


def test_an_order_that_no_dialect_writes_is_not_proposed_for_right_data(tmp_path):
    (group,) = check_data(made(tmp_path, thousandths)).groups
    assert {one.reading.order for one in group.likely} == {"xyxy"}


@pytest.mark.parametrize(
    ("answer", "problems"),
    [
        ('[{"bbox_2d": [1, 2, 3]}, {"bbox_2d": [1, 2, 30, 40]}]', 1),
        ('[{"box_2d": ["1", "2", "3", "4"]}]', 1),
        ('[{"bbox_2d": [1, 2, 30, 40]}, {"bbox_2d": [10, 20', 1),
        ('[{"bbox_2d" : [1, 2, 30, 40]}]', 0),
        ('[{"bbox_2d": [[1, 2, 30, 40], [1, 2, 3, 5]]}]', 0),
        ('[{"point_2d": [1, 2]}]', 0),
    ],
)
def test_keys_of_boxes_without_four_numbers_are_told(lines_of, answer, problems):
    prompt = 'Answer as {"bbox_2d": [x1, y1, x2, y2]}.'
    turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
    result = check_data(lines_of([{"image": "a.jpg", "conversations": turns}]))
    found = [finding for finding in result.findings if finding.kind == "wrong_box"]
    assert [finding.count for finding in found] == [1] * problems
    assert all("line 1: " in finding.places[0] for finding in found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fix": True, "to": None, "out": "a"}, "--fix needs a dialect and a new file"),
        ({"fix": True, "to": "ferret", "out": None}, "--fix needs a dialect and a new file"),
        ({"fix": False, "to": "ferret", "out": None}, "--to belongs to --fix"),
        ({"fix": True, "to": "feret", "out": "a"}, "Unknown dialect"),
    ],
)
def test_options_of_fix_belong_together(options, message):
    with pytest.raises(SprError, match=message):
        check_options(**options)
