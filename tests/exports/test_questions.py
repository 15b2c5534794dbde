"""Questions about absent objects in exports, in drawings and in the report."""

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest

from run_folders import FAKES, rows
from spr.config import make_config
from spr.exports.writing import export
from spr.pipeline.runner import run
from spr.report.contact_sheet import draw_sheet
from spr.report.page import write_report


@pytest.fixture(scope="module")
def asked(make_dataset, tmp_path_factory):
    """A run with questions, some of them about held-out images."""
    folder = tmp_path_factory.mktemp("asked")
    dataset = make_dataset(folder / "data", images=8, ids=range(44, 52))
    dataset.coco["categories"] = [{"id": number, "name": f"thing {number}"} for number in range(1, 31)]
    for entry in dataset.coco["annotations"]:
        entry["category_id"] = 1 + (7 * entry["id"] + entry["image_id"]) % 30
    dataset.write()
    settings = {"min_objects": 3, "holdout": 0.3}
    run(make_config(dataset.config(**FAKES, annotations=settings, pairing={"negatives": 1})), folder / "run")
    return folder / "run"


def exported(folder, split="train"):
    return [row for path in sorted((folder / "data").glob(f"{split}-*")) for row in pq.read_table(path).to_pylist()]


def text(messages):
    return messages[0]["content"][-1]["text"]


def test_trl_has_the_questions_with_null_for_what_they_lack(asked, tmp_path):
    summary = export(asked, tmp_path / "out", "trl")
    made = rows(asked, "negatives")
    assert summary.questions == len(made) > 0
    assert summary.pairs == len(rows(asked, "pairs"))
    assert export(asked, tmp_path / "out", "trl").questions == len(made)  # done before
    found = [row for split in ("train", "test") for row in exported(tmp_path / "out", split)]
    kinds = Counter(row["kind"] for row in found)
    assert kinds == {"answers": summary.pairs, **Counter(row["kind"] for row in made)}
    own = {row["query_id"]: row for row in made}
    for row in found:
        assert (row["margin"] is None) == (row["region"] is None) == (row["query_id"] in own)
        if row["query_id"] in own:
            expected = own[row["query_id"]]
            assert [text(row[name]) for name in ("prompt", "chosen", "rejected")] == [
                expected[name] for name in ("prompt", "chosen", "rejected")
            ]
    assert {row["split"] for row in exported(tmp_path / "out", "test")} == {"holdout"}
    assert "more pairs ask where one object is" in (tmp_path / "out" / "README.md").read_text()


def test_a_converted_question_is_asked_and_answered_as_the_other_models_do(asked, tmp_path):
    export(asked, tmp_path / "out", "trl", dialect="qwen3_vl")
    row = next(row for row in exported(tmp_path / "out") if row["kind"] == "present")
    made = next(own for own in rows(asked, "negatives") if own["query_id"] == row["query_id"])
    name = made["category"]
    assert text(row["prompt"]) == f"Locate the {name}, output its bbox coordinates using JSON format."
    (entry,) = json.loads(text(row["chosen"]))
    (box,) = made["chosen_spans"][0]["boxes"]
    assert entry["label"] == name
    sides = [made["width"], made["height"]] * 2
    assert entry["bbox_2d"] == pytest.approx(
        [1000 * edge / side for edge, side in zip(box, sides, strict=True)], abs=0.51
    )
    assert text(row["rejected"]) == f"There is no {name} in the image."


def test_formats_that_show_descriptions_leave_questions_out(asked, tmp_path):
    summary = export(asked, tmp_path / "out", "label-studio")
    assert summary.questions == 0
    assert summary.left_out["question_not_shown"] == len(rows(asked, "negatives"))


def test_questions_are_drawn_and_counted_in_the_report(asked, tmp_path):
    assert draw_sheet(asked / "negatives", tmp_path / "sheet.png", n=4) == 4
    kinds = Counter(row["kind"] for row in rows(asked, "negatives"))
    page = write_report(asked, tmp_path / "report", images=False).read_text(encoding="utf-8")
    assert f"where {kinds['absent']} absent and {kinds['present']} present objects are" in page
