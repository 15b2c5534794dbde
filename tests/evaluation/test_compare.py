"""Comparing result files: items are matched by id, and differences between protocols are listed."""

import json
from dataclasses import replace

import numpy as np
import pytest

from spr.core import FORMAT_VERSION
from spr.core.errors import InputError
from spr.evaluation.compare import compare, load_results, table
from spr.evaluation.metrics import Share
from spr.evaluation.result import Result, read_items


def result(right, ids=None, **protocol):
    ids = tuple(ids or map(str, range(len(right))))
    images = tuple(f"image {int(name) // 2}" for name in ids)
    return Result("rec", {"dialect": "ferret", **protocol}, ids, images, {"acc@0.5": Share.mean(right)})


def test_items_are_matched_by_id_in_any_order(tmp_path):
    right = [1, 0, 1, 1, 0, 1, 0, 0]
    result(right).write(tmp_path / "a.json")
    result(right[::-1], [str(k) for k in range(8)][::-1]).write(tmp_path / "b.json")
    (comparison,) = compare([tmp_path / "a.json", tmp_path / "b.json"])
    (row,) = comparison.rows
    assert (row.base, row.other, row.difference.value, row.difference.p) == (0.5, 0.5, 0.0, 1.0)
    assert comparison.changes == ()


def test_the_difference_is_measured_on_the_items_that_both_have(tmp_path):
    # A is right on 0, 1 and wrong on 2, 3; B has 2, 3, 4 and is right on all: on 2 and 3 the difference is 1.
    result([1, 1, 0, 0]).write(tmp_path / "a.json")
    result([1, 1, 1], ["2", "3", "4"]).write(tmp_path / "b.json")
    (comparison,) = compare([tmp_path / "a.json", tmp_path / "b.json"])
    assert (comparison.n, comparison.base_n, comparison.other_n) == (2, 4, 3)
    assert (comparison.rows[0].base, comparison.rows[0].other, comparison.rows[0].difference.value) == (0.0, 1.0, 1.0)
    assert any("only the items that both have: a has 4, b has 3" in line for line in table(comparison))


def test_differences_between_protocols_are_listed_except_the_model(tmp_path):
    result([1, 0], model="m@1", temperature=0).write(tmp_path / "a.json")
    result([1, 0], model="m+adapter", temperature=1.0, dialect="llava").write(tmp_path / "b.json")
    (comparison,) = compare([tmp_path / "a.json", tmp_path / "b.json"])
    assert comparison.changes == ("dialect: ferret → llava", "temperature: 0 → 1.0")
    assert sum("protocols differ" in line for line in table(comparison)) == 2


def test_a_run_is_read_as_a_result_before_and_one_after_training(tmp_path):
    run = tmp_path / "run"
    draw = np.random.default_rng(0)
    before, after = draw.random(200) < 0.5, draw.random(200) < 0.8
    results = {
        when: {"rec": result(right).write(run / "evaluation" / f"{when}-rec.json", root=run)}
        for when, right in (("before", before), ("after", after))
    }
    (run / "metrics.json").write_text(
        json.dumps({"format_version": FORMAT_VERSION, **results, "counts": {}, "seconds": {}})
    )
    (comparison,) = compare([run])
    assert (comparison.base, comparison.other) == ("run before", "run after")
    assert comparison.rows[0].difference.p < 0.01
    assert comparison.rows[0].difference.value == pytest.approx(after.mean() - before.mean())
    assert comparison.to_json()["metrics"]["acc@0.5"]["p"] < 0.01
    result(after).write(tmp_path / "other.json")
    assert [c.other for c in compare([run, tmp_path / "other.json"])] == ["run after", "other"]


def test_results_with_the_same_name_are_numbered(tmp_path):
    for name in ("a", "b"):
        result([1, 0]).write(tmp_path / name / "rec.json")
    (comparison,) = compare([tmp_path / "a" / "rec.json", tmp_path / "b" / "rec.json"])
    assert (comparison.base, comparison.other) == ("rec (1)", "rec (2)")


def test_results_that_cannot_be_compared_are_refused(tmp_path):
    path = tmp_path / "a.json"
    result([1, 0]).write(path)
    with pytest.raises(InputError, match="There is nothing to compare"):
        compare([path])
    result([1, 0], ["7", "8"]).write(tmp_path / "b.json")
    with pytest.raises(InputError, match="share no items"):
        compare([path, tmp_path / "b.json"])
    with pytest.raises(InputError, match="no such file"):
        load_results(tmp_path)
    for content, message in (
        ("{", "is not JSON"),
        ("[]", "is not a result"),
        ('{"task": "rec", "format_version": 2}', "names no items file"),
        ('{"task": "rec"}', "has another format version"),
        ('{"before": {}, "after": {}, "format_version": 3}', "has another format version"),
        ('{"before": 7, "after": {}, "format_version": 2}', "is not a result"),
        ('{"before": {}, "after": [1], "format_version": 2}', "is not a result"),
        ('{"before": {"rec": 7}, "format_version": 2}', "names no items file"),
        (json.dumps({"task": "rec", "format_version": 2, "items": "9" * 5000}), "is missing"),
        (json.dumps({"task": "rec", "format_version": 2, "items": "a\0b"}), "is missing"),
    ):
        (tmp_path / "c.json").write_text(content)
        with pytest.raises(InputError, match=message):
            load_results(tmp_path / "c.json")
    (tmp_path / "a.items.parquet").unlink()
    with pytest.raises(InputError, match="is missing"):
        load_results(path)


def test_results_of_other_items_are_compared_among_themselves(tmp_path):
    ids = [str(k) for k in range(10, 18)]
    half = [1, 0, 1, 0, 1, 0, 1, 0]
    result(half).write(tmp_path / "val.json")
    result(half, ids).write(tmp_path / "test.json")
    result([1] * 8).write(tmp_path / "val-after.json")
    result([1] * 8, ids).write(tmp_path / "test-after.json")
    # Line numbers that are ids of other images are other items, too.
    replace(result(half), images=tuple("abcdefgh")).write(tmp_path / "alone.json")
    found = compare([tmp_path / f"{name}.json" for name in ("val", "test", "val-after", "alone", "test-after")])
    assert [(c.base, c.other, c.n) for c in found] == [("val", "val-after", 8), ("test", "test-after", 8)]
    assert [c.rows[0].difference.value for c in found] == [0.5, 0.5]
    assert "  note: not compared, because no other result has the same items: alone" in table(found[0])


def test_different_images_under_the_same_ids_are_refused(tmp_path):
    # Ids that are line numbers are the same in any two files.
    result([1, 0, 1]).write(tmp_path / "a.json")
    other = replace(result([1, 0, 1]), images=("image 0", "val/COCO_image 0.jpg", "image 7"))
    other.write(tmp_path / "b.json")
    with pytest.raises(InputError, match=r"a and b are results of different items[\s\S]*id 2: image 1 and image 7"):
        compare([tmp_path / "a.json", tmp_path / "b.json"])
    replace(other, images=("image 0", "val/COCO_image 0.jpg", "image 1")).write(tmp_path / "b.json")
    assert compare([tmp_path / "a.json", tmp_path / "b.json"])[0].n == 3


def test_the_file_of_the_items_and_the_notes_of_both_results_are_shown(tmp_path):
    noted = replace(result([1, 0], annotations="random.json"), notes=("2 of 9 items failed",))
    noted.write(tmp_path / "a.json")
    replace(noted, protocol={"annotations": "popular.json"}, notes=("x", "y")).write(tmp_path / "b.json")
    (comparison,) = compare([tmp_path / "a.json", tmp_path / "b.json"])
    assert comparison.notes == ("a: 2 of 9 items failed", "b: x", "b: y")
    assert comparison.to_json()["notes"] == list(comparison.notes)
    lines = table(comparison)
    assert [line for line in lines if "note" in line] == [f"  note: {note}" for note in comparison.notes]
    assert "  protocols differ: annotations: random.json → popular.json" in lines


def test_a_result_has_an_interval_or_the_reason_why_there_is_none():
    # 10 items of 5 images, and 14 of 7; all are right in one of the groups.
    assert result([1, 0] * 5).metrics["acc@0.5"] == {"value": 0.5, "ci95": None, "no_ci95": "5 images, fewer than 6"}
    right = np.arange(14) % 3 > 0
    grouped = replace(result(right), groups={"right": right})
    low, high = grouped.metrics["acc@0.5"]["ci95"]
    assert low < right.mean() < high
    group = grouped.to_json()["groups"]["right"]["metrics"]["acc@0.5"]
    assert group == {"value": 1.0, "ci95": None, "no_ci95": "the same value in all 7 images"}


def test_a_comparison_of_few_images_has_no_interval_and_says_why(tmp_path):
    # Three images with two items each: B is better in two of them, which 4 of 8 exchanges are as well or more so.
    result([0, 0, 0, 0, 1, 1]).write(tmp_path / "a.json")
    result([1, 1, 1, 1, 1, 1]).write(tmp_path / "b.json")
    (comparison,) = compare([tmp_path / "a.json", tmp_path / "b.json"])
    reason = "a difference in 2 of 3 images, fewer than 6"
    assert comparison.to_json()["images"] == 3
    assert comparison.to_json()["metrics"]["acc@0.5"] == {
        "base": 0.333333,
        "other": 1.0,
        "difference": 0.666667,
        "ci95": None,
        "no_ci95": reason,
        "p": 0.5,
    }
    lines = table(comparison)
    assert lines[0] == "rec: a → b, 6 items of 3 images"
    assert lines[-2].split() == ["acc@0.5", "0.3333", "1.0000", "+0.6667", "–", "0.5000"]
    assert lines[-1] == f"  no interval for acc@0.5: {reason}"


def test_a_metric_without_a_value_has_no_difference(tmp_path):
    for name in ("a", "b"):
        shares = {"recall": Share.ratio([0, 0], [0, 0])}
        Result("rec", {}, ("0", "1"), ("0", "1"), shares).write(tmp_path / f"{name}.json")
    (comparison,) = compare([tmp_path / "a.json", tmp_path / "b.json"])
    empty = {"base": None, "other": None, "difference": None, "ci95": None, "p": None}
    assert comparison.to_json()["metrics"]["recall"] == {**empty, "no_ci95": "one of the two has no value"}
    assert table(comparison)[-1].split() == ["recall", "–", "–", "–"]


def test_a_p_value_below_the_last_digit_is_shown_as_a_bound(tmp_path):
    # 20 images that are all better: 2 / 2²⁰.
    result([0] * 40).write(tmp_path / "a.json")
    result([0, 1] * 20).write(tmp_path / "b.json")
    (comparison,) = compare([tmp_path / "a.json", tmp_path / "b.json"])
    assert comparison.rows[0].difference.p == 2 / 2**20
    assert comparison.to_json()["metrics"]["acc@0.5"]["p"] == 0.000002
    assert "<0.0001" in table(comparison)[-2]


def test_the_items_file_has_the_parts_of_every_metric(tmp_path):
    shares = {"recall": Share.ratio([1, 2], [2, 3]), "s_loc": Share.mean([0.25, 1 / 3])}
    Result("description", {}, ("a", "b"), ("1", "1"), shares).write(tmp_path / "d.json")
    ids, images, read = read_items(tmp_path / "d.items.parquet")
    assert (ids, images) == (("a", "b"), ("1", "1"))
    for name, share in shares.items():
        np.testing.assert_array_equal(read[name].parts, share.parts)
        np.testing.assert_array_equal(read[name].wholes, share.wholes)
