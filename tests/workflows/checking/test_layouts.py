"""Every layout is recognised, and its rows are read with their image, texts and boxes."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from checking_cases import PROMPT, SAMPLES, expected_numbers
from spr.core.errors import ConfigError, InputError
from spr.workflows.checking.layouts import NAMES
from spr.workflows.checking.reading import DataFile, read_rows

NAME = {"qwen_vl_json": "qwen_vl", "ms_swift_objects": "ms_swift"}
STATED = {"coco": "xywh_pixels", "mdetr": "xywh_pixels", "ms_swift_objects": "xyxy_pixels"}


def all_rows(path, *options, **named):
    batches = list(read_rows(path, *options, **named))
    return [row for batch in batches for row in batch.rows], [p for batch in batches for p in batch.problems]


def test_layouts_are_recognised_and_read(sample):
    layout, path = sample
    data = DataFile(path)
    assert data.layout.name == NAME.get(layout, layout)
    rows, problems = all_rows(path)
    assert problems == []
    assert [row.number for row in rows] == [1, 2]
    for row, (image, label, box) in zip(rows, SAMPLES, strict=True):
        assert row.image == image
        assert row.numbers == (expected_numbers(layout, box),)
        assert row.stated == STATED.get(layout)
        assert row.forms == (("field",) if layout in STATED else row.forms)
        assert str(row.number) in row.place
        assert path.name in row.place
        if layout in STATED and layout != "mdetr":
            assert row.labels == (label,)
        if layout != "coco" and layout != "ms_swift_objects":
            assert PROMPT.format(label) in row.prompt
        if layout in ("coco", "mdetr"):
            assert row.size_wh == (640, 480)


def test_a_named_layout_reads_the_same(sample):
    layout, path = sample
    name = NAME.get(layout, layout)
    assert name in NAMES
    assert all_rows(path, name) == all_rows(path)


def test_batches_hold_the_boxes_of_their_rows(lines):
    rows = [{"image": f"{k}.jpg", "width": 10 + k, "height": 20, "conversations": turns(k)} for k in range(5)]
    (batch,) = read_rows(lines(*rows))
    assert batch.box_rows.tolist() == [1, 2, 2, 3, 3, 3, 4, 4, 4, 4]
    assert batch.boxes.tolist() == [[k, 0, 1, j] for k in range(5) for j in range(k)]
    assert batch.sizes.tolist() == [[10 + k, 20] for k in range(5) for _ in range(k)]


def turns(count):
    answer = " and ".join(f"a dog [{count}, 0, 1, {k}]" for k in range(count))
    return [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": answer}]


def test_boxes_of_prompts_come_first_and_are_counted(lines):
    turns = [
        {"from": "human", "value": "<image>What is in [1, 2, 3, 4]?"},
        {"from": "gpt", "value": "A dog [5, 6, 7, 8]"},
    ]
    ((row,), _) = all_rows(lines({"image": "a.jpg", "conversations": turns}))
    assert row.numbers == ((1, 2, 3, 4), (5, 6, 7, 8))
    assert row.prompt_boxes == 1


def test_several_turns_are_joined_by_speaker(lines):
    turns = [
        {"from": "human", "value": "one"},
        {"from": "gpt", "value": "two"},
        {"from": "human", "value": "three"},
        {"from": "gpt", "value": "four"},
    ]
    ((row,), _) = all_rows(lines({"image": "a.jpg", "conversations": turns}))
    assert (row.prompt, row.answer) == ("one\nthree", "two\nfour")


@pytest.mark.parametrize(
    ("objects", "stated"),
    [
        ({"bbox": [[1, 2, 3, 4]]}, "xyxy_pixels"),
        ({"bbox": [[1, 2, 3, 4]], "bbox_type": "real"}, "xyxy_pixels"),
        ({"bbox": [[0.1, 0.2, 0.3, 0.4]], "bbox_type": "norm1"}, "xyxy_norm1"),
        (json.dumps({"bbox": [[1, 2, 3, 4]]}), "xyxy_pixels"),
    ],
)
def test_ms_swift_objects_state_their_scale(lines, objects, stated):
    row = {"messages": [{"role": "assistant", "content": "<bbox>"}], "images": ["a.jpg"], "objects": objects}
    ((found,), problems) = all_rows(lines(row))
    assert found.stated == stated
    assert problems == []


def test_ms_swift_objects_with_mistakes_are_reported(lines):
    messages = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "<bbox><bbox><bbox>"}]
    bbox = [[1, 2, 3, 4], [1, 2], [1, 2, 3], [1, 2, None, 4], [1e999, 2, 3, 4]]
    row = {"messages": messages, "images": ["a.jpg"], "objects": {"ref": ["x"], "bbox": bbox}}
    ((found,), problems) = all_rows(lines(row))
    assert found.numbers == ((1, 2, 3, 4),)  # [1, 2] is a point
    assert [problem.kind for problem in problems] == ["wrong_box", "wrong_box", "not_finite", "placeholders"]
    assert problems[-1].detail == "3 × <bbox> for 5 in `objects`"
    ((), (problem,)) = all_rows(lines({**row, "objects": {"bbox": bbox, "bbox_type": "norm"}}, name="b.jsonl"))
    assert problem.detail == "`bbox_type` is 'norm' instead of real or norm1"


def test_llamafactory_columns_come_from_its_dataset_info(tmp_path):
    row = {"chat": [{"who": "U", "says": "Where?"}, {"who": "A", "says": "[1, 2, 3, 4]"}], "pictures": ["a.jpg"]}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([row]))
    with pytest.raises(InputError):
        DataFile(path)
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "U", "assistant_tag": "A"}
    entry = {"file_name": "mine.json", "formatting": "sharegpt", "tags": tags}
    entry["columns"] = {"messages": "chat", "images": "pictures"}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"other": {"file_name": "x.json"}, "mine": entry}))
    assert DataFile(path).layout.name == "llamafactory"
    ((found,), _) = all_rows(path)
    assert (found.prompt, found.answer, found.image) == ("Where?", "[1, 2, 3, 4]", "a.jpg")


def test_the_better_answer_of_a_pair_is_checked(lines):
    chosen, rejected = "a dog [1, 2, 3, 4]", "a dog [5, 6, 7, 8]"
    human = [{"from": "human", "value": "<image>Where?"}]
    factory = {"conversations": human, "images": ["a.jpg"]}
    factory |= {"chosen": {"from": "gpt", "value": chosen}, "rejected": {"from": "gpt", "value": rejected}}
    swift = [{"role": "user", "content": "<image>Where?"}, {"role": "assistant", "content": chosen}]
    implicit = [[swift[0], {"role": "assistant", "content": text}] for text in (chosen, rejected)]
    rows = {
        "llamafactory": factory,
        "ms_swift": {"messages": swift, "rejected_response": rejected, "images": ["a.jpg"]},
        "trl": {"prompt": "Where?", "chosen": chosen, "rejected": rejected, "images": ["a.jpg"]},
    }
    rows["trl, turns"] = {"chosen": implicit[0], "rejected": implicit[1], "images": ["a.jpg"]}
    for name, row in rows.items():
        path = lines(row, name=f"{name.replace(', ', '_')}.jsonl")
        assert DataFile(path).layout.name == name.partition(",")[0]
        ((found,), problems) = all_rows(path)
        assert (found.answer, problems) == (chosen, [])


def test_trl_rows_of_parquet_have_sizes_by_their_embedded_images(tmp_path, picture):
    images = [[{"bytes": picture(30, 20), "path": None}], [{"bytes": b"no image", "path": "b.jpg"}]]
    texts = [[{"role": "assistant", "content": "[0.1, 0.2, 0.3, 0.4]"}]] * 2
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"images": images, "messages": texts}), path)
    rows, _ = all_rows(path)
    assert DataFile(path).layout.name == "trl"
    assert [(row.image, row.size_wh, len(row.numbers)) for row in rows] == [(None, (30, 20), 1), ("b.jpg", None, 1)]


@pytest.fixture
def picture():
    import io

    from PIL import Image

    def made(width, height):
        buffer = io.BytesIO()
        Image.new("RGB", (width, height)).save(buffer, "PNG")
        return buffer.getvalue()

    return made


def test_sizes_come_from_the_images_that_rows_dont_describe(tmp_path, lines, picture):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(picture(30, 20))
    turns = [{"from": "gpt", "value": "[1, 2, 3, 4]"}]
    stated = {"image": "a.png", "width": 7, "height": 8, "conversations": turns}
    path = lines(stated, *({"image": name, "conversations": turns} for name in ("a.png", "no.png", "a.png")))
    data = DataFile(path, images=tmp_path / "pictures")
    (batch,) = data.batches()
    assert [row.size_wh for row in batch.rows] == [(7, 8), (30, 20), None, (30, 20)]
    assert data.sizes.missing == 1
    assert "no.png" in data.sizes.first_missing
    (batch,) = DataFile(path).batches()  # the first image that is looked for is not beside the data
    assert [row.size_wh for row in batch.rows] == [(7, 8), None, None, None]
    with pytest.raises(InputError, match="no image folder"):
        DataFile(path, images=tmp_path / "nothing")


def test_images_beside_the_data_are_found_without_being_asked_for(tmp_path, lines, picture):
    (tmp_path / "a.png").write_bytes(picture(30, 20))
    turns = [{"from": "gpt", "value": "[1, 2, 3, 4]"}]
    (batch,) = DataFile(lines({"image": "a.png", "conversations": turns})).batches()
    assert batch.rows[0].size_wh == (30, 20)


def test_coco_keeps_boxes_as_they_are_and_reports_wrong_ones(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg", "width": 10, "height": 10}, {"id": "x", "file_name": 3}, 5, {"id": 2}]
    boxes = [[-1, 2, 30, 4], [1, 2, 3], "box", [1, 2, 3, 4], [5, 6, 7, 8]]
    annotations = [{"image_id": 1, "bbox": box, "category_id": 9} for box in boxes] + [
        7,
        {"image_id": 8, "bbox": [1] * 4},
    ]
    annotations[3]["image_id"] = 2
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"annotations": annotations, "images": images}))
    rows, problems = all_rows(path, "coco")
    assert [(row.number, row.numbers) for row in rows] == [
        (1, ((-1, 2, 30, 4), (5, 6, 7, 8))),
        (4, ((1, 2, 3, 4),)),
    ]
    assert rows[0].labels == ("9", "9")
    assert [(problem.kind, problem.number) for problem in problems if problem.kind != "no_such_image"] == [
        ("wrong_box", 2),
        ("wrong_box", 3),
        ("not_object", 6),
        ("wrong_image", 2),
        ("not_object", 3),
    ]
    assert "no_such_image" in [problem.kind for problem in problems]


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
def test_coco_numbers_that_are_not_finite_are_reported(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(f'{{"images": [{{"id": 1}}], "annotations": [{{"image_id": 1, "bbox": [0, 0, {text}, 1]}}]}}')
    (row,), (problem,) = all_rows(path)
    assert row.numbers == ()
    assert problem.kind == "not_finite"
    assert "annotation 1" in problem.place


@pytest.mark.parametrize(
    ("rows", "got"),
    [
        ([{"text": "hello", "n": 3}], "JSON lines, whose row 1 has text (a text), n (a number)"),
        (["hello"], "JSON lines, whose row 1 is Expecting value: line 1 column 1 (char 0)"),
        (["[1]"], "a JSON list of rows, whose row 1 is a number"),
        (["[]"], "a JSON list of rows, without rows"),
    ],
)
def test_an_unknown_layout_is_an_error_that_lists_what_each_needs(lines, rows, got):
    with pytest.raises(InputError, match=r"layout of .* is not known") as caught:
        DataFile(lines(*rows))
    assert caught.value.got == got
    for name in NAMES:
        assert f"{name}: " in str(caught.value)


def test_a_json_object_without_annotations_is_an_error(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{\n"images": [],\n"other": 1\n}')
    with pytest.raises(InputError, match="has no `annotations`"):
        DataFile(path)


def test_a_layout_that_can_not_be_is_an_error(lines):
    path = lines({"messages": []})
    with pytest.raises(ConfigError, match="--format is not a layout") as caught:
        DataFile(path, "lava")
    assert caught.value.fix == "did you mean `llava`?"
    with pytest.raises(ConfigError, match="does not have the layout `coco`"):
        DataFile(path, "coco")


def test_rows_of_another_layout_are_reported(lines):
    good = {"image": "a.jpg", "conversations": [{"from": "gpt", "value": "[1, 2, 3, 4]"}]}
    other = {"messages": [{"role": "user", "content": "x"}], "images": ["a.jpg"]}
    rows, problems = all_rows(lines(good, other, good, {"conversations": [3]}, "[1]", "{", good))
    assert [row.number for row in rows] == [1, 3, 7]
    assert [(problem.kind, problem.number) for problem in problems] == [
        ("other_layout", 2),
        ("other_layout", 4),
        ("not_object", 5),
        ("not_json", 6),
    ]
    assert problems[0].detail == "`conversations` is not a list; it looks like ms_swift"


def test_hostile_rows_are_read(lines):
    value = "\x1b[31m" + "[[" * 50_000 + "\ud800" + "<loc0001>" * 4
    row = {"image": "a.jpg", "conversations": [{"from": "gpt", "value": value}]}
    text = json.dumps(row)
    (found,), problems = all_rows(lines(text, text.replace("gpt", "\\u001b[2J")))[0][:1], []
    assert found.numbers == ((1, 1, 1, 1),)
    assert problems == []
