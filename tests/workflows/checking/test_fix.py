"""`--fix` writes every row that it can convert, leaves out the others, and reports what happened to each."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from checking_cases import SAMPLES, write
from spr.core.errors import ConfigError, GroundingError, InputError, RunError
from spr.grounding import DIALECTS, get_dialect, parse
from spr.grounding.coding import Numbers
from spr.workflows.checking.converter import Converter, Refused
from spr.workflows.checking.fix import fix_data
from spr.workflows.checking.layouts.layout import Slot
from spr.workflows.checking.reading import DataFile, read_rows

SIZE = (640, 480)


def converted(text, source, target, kind="answer", size=SIZE):
    return Converter(get_dialect(source), get_dialect(target))(Slot({"text": text}, "text", kind), size)


def fixed(path, source, target, out):
    return fix_data(DataFile(path), get_dialect(source), get_dialect(target), out)


def report(out):
    return [json.loads(line) for line in out.with_name(out.name + ".report.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("text", "source", "target", "expected"),
    [
        (  # only numbers change where both dialects write boxes in the same form
            '```json\n[{"bbox_2d": [64, 48, 644, 476], "label": "dog", "id": 7}]\n```',
            "qwen2_5_vl",
            "qwen3_vl",
            '```json\n[{"bbox_2d": [99, 101, 1000, 1000], "label": "dog", "id": 7}]\n```',
        ),
        ("**Dog** at [0.10, 0.20, 0.30, 0.40]!", "llava_onevision", "ferret", "**Dog** at [100, 200, 300, 400]!"),
        (  # 640 × 480 padded to 640 × 640: 80 rows above the image, so 0.25 of 480 px is (120 + 80) / 640
            "a dog [0.00, 0.25, 0.50, 0.75]",
            "llava_onevision",
            "llava",
            "a dog [0.00, 0.31, 0.50, 0.69]",
        ),
        (
            "a dog [0.10, 0.20, 0.30, 0.40]",
            "llava_onevision",
            "internvl",
            "<ref>a dog</ref><box>[[100, 200, 300, 400]]</box>",
        ),
        ("<ref>a dog</ref><box>(0,0),(999,999)</box> barks", "qwen_vl", "ferret", "a dog [0, 0, 1000, 1000] barks"),
        (
            "The dog is at [0.10, 0.20, 0.30, 0.40].",
            "llava_onevision",
            "glm_v",
            "The dog is at <|begin_of_box|>[[100,200,300,400]]<|end_of_box|>.",
        ),
        (
            "<think>hm</think>\n<answer>[0.10, 0.20, 0.30, 0.40]</answer>",
            "llava_onevision",
            "qwen3_vl",
            '<think>hm</think>\n<answer>[{"bbox_2d": [100, 200, 300, 400]}]</answer>',
        ),
        ("no box (1998) [1]", "llava_onevision", "qwen3_vl", "no box (1998) [1]"),
    ],
)
def test_answers_are_converted(text, source, target, expected):
    assert converted(text, source, target).text == expected


def test_boxes_of_a_prompt_stay_at_their_place():
    prompt = "<image>\nWhat is at [0.10, 0.20, 0.30, 0.40]? Answer in words."
    assert converted(prompt, "llava_onevision", "qwen3_vl", "prompt").text == (
        "<image>\nWhat is at [100, 200, 300, 400]? Answer in words."
    )
    assert converted(prompt, "llava_onevision", "qwen2_vl", "prompt").text == (
        "<image>\nWhat is at <|box_start|>(100,200),(300,400)<|box_end|>? Answer in words."
    )


def test_prompts_of_dialects_that_list_json_have_bare_brackets():
    prompt = "<image>What is in [56, 56, 112, 112]?"
    size = (280, 560)
    assert converted(prompt, "qwen2_5_vl", "qwen3_vl", "prompt", size).text == "<image>What is in [200, 100, 400, 200]?"
    assert converted(prompt, "qwen2_5_vl", "gemini", "prompt", size).text == "<image>What is in [100, 200, 200, 400]?"
    with pytest.raises(Refused):  # y first is not seen from brackets alone
        converted(prompt, "gemini", "qwen3_vl", "prompt", size)


def test_lost_words_are_reported():
    one = converted("The dog is at [0.10, 0.20, 0.30, 0.40].", "llava_onevision", "qwen3_vl")
    assert (one.text, one.lost) == ('[{"bbox_2d": [100, 200, 300, 400], "label": "The dog"}]', "is at.")
    assert converted("a dog [0.10, 0.20, 0.30, 0.40].", "llava_onevision", "qwen3_vl").lost == ""


@pytest.mark.parametrize("target", [key for key in DIALECTS if DIALECTS[key].writes_boxes])
@pytest.mark.parametrize("source", ["llava", "qwen2_5_vl", "paligemma", "kosmos2"])
def test_boxes_move_by_no_more_than_both_roundings(source, target):
    text = get_dialect(source).example
    before = parse(text, source, SIZE).boxes
    after = parse(converted(text, source, target).text, target, SIZE).boxes
    errors = [
        a + b for a, b in zip(get_dialect(source).max_error(SIZE), get_dialect(target).max_error(SIZE), strict=True)
    ]
    assert len(after) == len(before) == 1
    for k in range(4):
        assert abs(after[0][k] - before[0][k]) <= errors[k % 2] + 1e-6


@pytest.mark.parametrize(
    ("text", "source", "reason"),
    [
        ("a dog [0.10, 0.20, 0.30, 1.40]", "llava_onevision", "out of the range 0 to 1: clipped"),
        ("a dog [0.30, 0.20, 0.10, 0.40]", "llava_onevision", "corners swapped"),
        ("a dog [0.1, 0.2, 0.3, 0.4] <box>(1,2),(3,4)</box>", "llava_onevision", "a box is written as pairs"),
        ("a dog [0.1, 0.2, 0.3, 0.4]", "ferret", "implausible_scale"),
        ("a dog [1, 2, 3, 4]", "qwen2_5_vl", "a box is written as brackets"),
        ('[{"bbox_2d": [1, 2, 3, 4]}]', "ferret", "a box is written as bbox_2d"),
        ("a \ud800 dog [100, 200, 300, 400]", "ferret", "not valid Unicode"),
    ],
)
def test_boxes_that_would_be_guessed_are_refused(text, source, reason):
    with pytest.raises(Refused) as caught:
        converted(text, source, "qwen3_vl")
    assert reason in str(caught.value)


def test_unknown_sizes_are_refused_only_where_they_matter():
    assert converted("a dog [0.1, 0.2, 0.3, 0.4]", "llava_onevision", "qwen3_vl", size=None).boxes == 1
    pixels = replace(get_dialect("ferret"), coding=Numbers(units=None))
    for source, target in (("llava_onevision", "llava"), ("llava_onevision", "qwen2_5_vl"), (pixels, "ferret")):
        with pytest.raises(Refused, match="size of the image is not known"):
            converted("a dog [0.1, 0.2, 0.3, 0.4]", source, target, size=None)


def test_a_file_is_converted_row_by_row_and_keeps_everything_else(tmp_path):
    turns = [{"from": "human", "value": "<image>Where?"}, {"from": "gpt", "value": "a dog [100, 200, 300, 400]"}]
    rows = [
        {"id": 1, "image": "a.jpg", "conversations": turns, "other": {"deep": [1, None, "é"]}},
        {"id": 2, "image": "a.jpg", "conversations": turns[:1]},
        {"id": 3, "image": "a.jpg", "conversations": [turns[0], {"from": "gpt", "value": "a dog [1, 2, 3000, 4]"}]},
        {"id": 4, "image": "a.jpg", "conversations": "none"},
    ]
    path, out = tmp_path / "a.json", tmp_path / "new" / "b.json"
    path.write_text(json.dumps(rows))
    before = path.read_bytes()
    result = fixed(path, "ferret", "qwen2_vl", out)
    assert path.read_bytes() == before
    written = json.loads(out.read_text())
    value = "<|object_ref_start|>a dog<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>"
    changed = {**rows[0], "conversations": [turns[0], {"from": "gpt", "value": value}]}
    assert written == [changed, rows[1]]
    assert list(written[0]) == list(rows[0])
    assert result.counts == {"changed": 1, "unchanged": 1, "refused": 2}
    assert result.boxes == 1
    assert [(line["row"], line["status"]) for line in report(out)] == [
        (1, "changed"),
        (2, "unchanged"),
        (3, "refused"),
        (4, "refused"),
    ]
    assert "out of the range" in report(out)[2]["reason"]
    assert report(out)[2]["place"] == "a.json, row 3"
    assert result.first_refused[0].startswith("a.json, row 3: ")


def test_both_answers_of_a_pair_are_converted(tmp_path, lines):
    path = lines(
        {"prompt": "Where?", "chosen": "a dog [1, 2, 3, 4]", "rejected": "a dog [5, 6, 7, 8]", "images": ["a"]}
    )
    fixed(path, "ferret", "cogvlm", tmp_path / "b.jsonl")
    row = json.loads((tmp_path / "b.jsonl").read_text())
    assert (row["chosen"], row["rejected"]) == ("a dog [[001,002,003,004]]", "a dog [[005,006,007,008]]")


@pytest.mark.parametrize("layout", ["llava", "qwen_vl", "qwen_vl_json", "ms_swift", "llamafactory", "trl"])
def test_every_layout_with_texts_is_written_in_its_own_layout(tmp_path, layout):
    path = write(tmp_path, layout)
    source = {"qwen_vl": "qwen_vl", "qwen_vl_json": "qwen3_vl", "ms_swift": "qwen2_vl"}.get(layout, "ferret")
    out = tmp_path / f"out{path.suffix}"
    result = fixed(path, source, "internvl", out)
    assert result.counts == {"changed": 2}
    if layout != "qwen_vl_json":  # which is recognised by its JSON
        assert DataFile(out).layout.name == DataFile(path).layout.name or layout in ("qwen_vl", "ms_swift")
    rows = [row for batch in read_rows(out) for row in batch.rows]
    assert [row.image for row in rows] == [image for image, _, _ in SAMPLES]
    for row, (_, _, box) in zip(rows, SAMPLES, strict=True):
        assert row.numbers[0] == pytest.approx([min(number, 1000) for number in box], abs=1)


def test_objects_of_ms_swift_are_left_to_the_trainer(tmp_path):
    path = write(tmp_path, "ms_swift_objects")
    result = fixed(path, "ferret", "internvl", tmp_path / "b.jsonl")
    assert result.counts == {"unchanged": 2}
    assert "the trainer writes" in report(tmp_path / "b.jsonl")[0]["reason"]


def test_parquet_keeps_its_columns_and_metadata(tmp_path):
    table = pa.table(
        {
            "messages": [[{"role": "assistant", "content": "a dog [1, 2, 3, 4]"}]] * 3,
            "n": pa.array([1, 2, 3], pa.int8()),
        }
    )
    table = table.replace_schema_metadata({"huggingface": '{"info": {}}'})
    pq.write_table(table, tmp_path / "a.parquet")
    fixed(tmp_path / "a.parquet", "ferret", "cogvlm", tmp_path / "b.parquet")
    after = pq.read_table(tmp_path / "b.parquet")
    assert after.schema.equals(pq.read_table(tmp_path / "a.parquet").schema, check_metadata=True)
    assert after["messages"][2].as_py() == [{"role": "assistant", "content": "a dog [[001,002,003,004]]"}]
    assert after["n"].to_pylist() == [1, 2, 3]


def test_nothing_is_written_in_place_or_over_another_file(tmp_path):
    path = write(tmp_path, "llava")
    with pytest.raises(ConfigError, match="--out is the data file"):
        fixed(path, "ferret", "cogvlm", tmp_path / "." / path.name)
    (tmp_path / "taken.json").write_text("mine")
    with pytest.raises(RunError, match="is not a new data file"):
        fixed(path, "ferret", "cogvlm", tmp_path / "taken.json")
    assert (tmp_path / "taken.json").read_text() == "mine"
    with pytest.raises(ConfigError, match="--fix converts boxes in texts"):
        fixed(write(tmp_path, "coco"), "ferret", "cogvlm", tmp_path / "new.json")


def test_a_file_without_a_row_that_can_be_converted_leaves_nothing(tmp_path):
    path = write(tmp_path, "llava")
    with pytest.raises(InputError, match=r"No row of .* could be converted") as caught:
        fixed(path, "llava_onevision", "cogvlm", tmp_path / "new.json")
    assert "outside the range" in caught.value.got
    assert not list(tmp_path.glob("new*"))


def test_a_damaged_file_leaves_nothing(tmp_path):
    path = write(tmp_path, "llava")
    path.write_text(path.read_text()[:-40])
    with pytest.raises((InputError, GroundingError)):
        fixed(path, "ferret", "cogvlm", tmp_path / "new.json")
    assert not list(tmp_path.glob("new*"))
