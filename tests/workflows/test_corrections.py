"""The round trip of pairs through Label Studio: exported, corrected there, and read back."""

import copy
import json
import xml.etree.ElementTree as ET

import pyarrow as pa
import pytest

from spr.core.errors import ConfigError, InputError
from spr.exports.writing import export
from spr.runs.reader import Run
from spr.runs.reviews import Reviews
from spr.runs.store import Manifest, StageOutput, StageStore, dropped_table, write_table
from spr.workflows.corrections import import_corrections


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four pairs about images of 100 × 80 px, with the table of objects that exports read licenses from."""
    from spr.records import ImageObject, ImageObjects
    from spr.records.schemas import to_table
    from workflows.conftest import made_run

    maker = made_run(tmp_path_factory.mktemp("made"), 4)
    run = maker.write()
    rows = [
        ImageObjects(str(k), f"{k}.png", 100, 80, (ImageObject("1", "cup", (20, 20, 40, 40)),), "CC BY 4.0", "http://x")
        for k in range(4)
    ]
    store, manifest = StageStore(run / "objects"), Manifest("objects", "by hand", complete=True)
    output = StageOutput(to_table(rows, ImageObjects), dropped_table("objects", "image", []))
    manifest.shards.append(store.write_shard(0, output, inputs=4))
    store.save(manifest)
    drops = [
        ("2", "image", "regions", "no_further_region"),
        ("3/0", "query", "pairs", "chosen_without_box"),
        ("1/0/crop0", "candidate", "candidates", "empty_answer"),
        ("1", "object", "objects", "box_size_zero"),
        ("gone", "image", "objects", "image_missing"),
    ]
    names = ("id", "kind", "stage", "reason")
    write_table(run / "dropped.parquet", pa.table(dict(zip(names, zip(*drops, strict=True), strict=True))))
    return run


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "tasks"
    export(run, out, "label-studio")
    return out


@pytest.fixture
def tasks(exported, run):
    """The tasks as an annotator has submitted them without a change."""
    (run / "reviews.jsonl").unlink(missing_ok=True)
    tasks = json.loads((exported / "tasks-train.json").read_text())
    for number, task in enumerate(tasks):
        result = copy.deepcopy(task["predictions"][0]["result"])
        task |= {"id": number, "annotations": [{"completed_by": 7, "was_cancelled": False, "result": result}]}
    return tasks


def read(run, tmp_path, tasks, **options):
    path = tmp_path / "export.json"
    path.write_text(json.dumps(tasks))
    return import_corrections(run, path, **options)


def results(task, name):
    return [result for result in task["annotations"][0]["result"] if result["from_name"] == name]


def decisions(run, k):
    pairs = [item.pair for shard in Run(run).shards() for item in shard.pairs]
    return Reviews.read(run).of(pairs[k])


def test_tasks_have_numbered_boxes_in_per_cent_and_the_config_their_numbers(exported):
    task = json.loads((exported / "tasks-train.json").read_text())[0]
    assert task["data"]["image"] == "/data/local-files/?d=images/0.png"
    assert (exported / "images" / "0.png").is_file()
    assert task["data"]["chosen"] == "[a cup](1) and [a second cup](2)"
    assert task["data"]["license"] == "CC BY 4.0"
    first, second, text = task["predictions"][0]["result"]
    # (20, 20, 40, 40) and (50, 20, 70, 40) of 100 × 80 px.
    assert first["value"] == {
        "x": 20, "y": 25, "width": 20, "height": 25, "rotation": 0, "rectanglelabels": ["1"]
    }  # fmt: skip
    assert (second["value"]["x"], second["value"]["rectanglelabels"]) == (50, ["2"])
    assert (first["original_width"], first["original_height"]) == (100, 80)
    assert text["value"] == {"text": ["[a cup](1) and [a second cup](2)"]}
    config = ET.fromstring((exported / "config.xml").read_text())  # noqa: S314 (our own file)
    controls = {node.get("name"): node for node in config.iter() if node.get("toName")}
    assert {result["from_name"] for result in (first, second, text)} <= controls.keys()
    assert {result["type"] for result in (first, second, text)} <= {node.tag.lower() for node in controls.values()}
    assert [label.get("value") for label in controls["boxes"]] == [str(k) for k in range(1, 13)]  # 2 and 10 to spare
    shown = {node.get("value")[1:] for node in config.iter() if (node.get("value") or "").startswith("$")}
    assert shown <= task["data"].keys()


def test_what_did_not_change_is_accepted_and_a_second_import_changes_nothing(run, tasks, tmp_path):
    summary = read(run, tmp_path, tasks)
    assert (summary.actions, summary.known, summary.problems) == ({"accept": 4}, 0, [])
    assert decisions(run, 0).keys() == {"label-studio 7"}
    before = (run / "reviews.jsonl").read_bytes()
    again = read(run, tmp_path, tasks)
    assert (again.actions.total(), again.known) == (0, 4)
    assert (run / "reviews.jsonl").read_bytes() == before


def test_the_latest_of_several_annotations_by_one_person_counts(run, tasks, tmp_path):
    first = tasks[0]["annotations"][0]
    rejected = {"from_name": "decision", "type": "choices", "value": {"choices": ["reject"]}}
    late = first | {"updated_at": "2026-05-02T10:00:00Z", "result": [*first["result"], rejected]}
    tasks[0]["annotations"] = [late, first | {"updated_at": "2026-05-01T10:00:00Z"}]
    for expected in (({"reject": 1}, 0, 1), ({}, 1, 1)):
        found = read(run, tmp_path, tasks[:1])
        assert (dict(found.actions), found.known, found.earlier) == expected
    assert len((run / "reviews.jsonl").read_text().splitlines()) == 1


def test_boxes_words_and_decisions_come_back(run, tasks, tmp_path):
    # Pair 0: the first box to (10, 20, 30, 60) px. Pair 1: rejected. Pair 2: the second box deleted, a new box 5.
    results(tasks[0], "boxes")[0]["value"].update(x=10, y=25, width=20, height=50)
    tasks[1]["annotations"][0]["result"].append(
        {"from_name": "decision", "to_name": "image", "type": "choices", "value": {"choices": ["reject"]}}
    )
    second = results(tasks[2], "boxes")[1]
    second["value"].update(x=0, y=0, width=10, height=10, rectanglelabels=["5"])
    results(tasks[2], "text")[0]["value"]["text"] = ["[a mug](1), [a spoon](5) and [a second cup](2)"]
    tasks[3]["annotations"][0]["was_cancelled"] = True
    summary = read(run, tmp_path, tasks, reviewer="ana")
    assert summary.problems == []
    assert (summary.actions, summary.skipped) == ({"edit": 2, "reject": 1}, 1)
    moved, rejected, edited = (decisions(run, k)["ana"] for k in range(3))
    # In thousandths of 100 × 80 px; the second box as the model wrote it.
    assert moved.chosen == "a cup [100, 250, 300, 750] and a second cup [500, 250, 700, 500]"
    assert [span.boxes for span in moved.chosen_spans] == [((10, 20, 30, 60),), ((50, 20, 70, 40),)]
    assert rejected.action == "reject"
    assert edited.chosen == "a mug [200, 250, 400, 500], a spoon [0, 0, 100, 100] and a second cup"
    # An export after the corrections has them, and accepts them as they are.
    out = tmp_path / "again"
    export(run, out, "label-studio")
    later = json.loads((out / "tasks-train.json").read_text())
    assert [task["data"]["pair"] for task in later] == ["0/0", "2/0", "3/0"]
    assert later[0]["data"]["boxes"][0] == [10, 20, 30, 60]
    for task in later:
        task["annotations"] = [
            {"completed_by": {"id": 3, "email": "ben@x.org"}, "result": task["predictions"][0]["result"]}
        ]
    assert read(run, tmp_path, later).actions == {"edit": 2, "accept": 1}
    assert decisions(run, 0)["label-studio ben@x.org"].chosen == moved.chosen


def test_a_rotated_rectangle_gives_the_upright_box_around_it(run, tasks, tmp_path):
    # 20 × 10 px at (50, 20), turned by 90° clockwise around that corner: from (40, 20) to (50, 40).
    results(tasks[0], "boxes")[0]["value"].update(x=50, y=25, width=20, height=12.5, rotation=90)
    read(run, tmp_path, tasks[:1])
    assert decisions(run, 0)["label-studio 7"].chosen_spans[0].boxes == ((40, 20, 50, 40),)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda task: results(task, "boxes")[0].update(image_rotation=90), "the image was rotated"),
        (
            lambda task: results(task, "boxes")[0].update(original_width=80, original_height=100),
            "80 × 100, not 100 × 80",
        ),
        (lambda task: results(task, "boxes")[0]["value"].update(rectanglelabels=["cup"]), "instead of one number"),
        (lambda task: results(task, "boxes")[0]["value"].update(rectanglelabels=["2"]), "two boxes have the number 2"),
        (lambda task: results(task, "boxes")[0]["value"].update(rectanglelabels=["9"]), "Box 9 belongs to no phrase"),
        (lambda task: results(task, "boxes")[0]["value"].update(width=0), "no area"),
        (lambda task: results(task, "boxes")[0]["value"].pop("x"), "no 'x'"),
        (lambda task: task["data"].update(pair="99/0"), "pair 99/0 is not in this run"),
        (lambda task: task["data"].update(pair_sha256="0" * 64), "computed again"),
        (lambda task: task["data"].pop("pair"), "no 'pair'"),
        (lambda task: task["annotations"][0].update(result=[3]), "task 0"),
        (lambda task: task.update(data=3), "task 0"),
    ],
)
def test_what_can_not_be_used_is_listed_and_the_rest_is_read(run, tasks, tmp_path, change, problem):
    change(tasks[0])
    summary = read(run, tmp_path, tasks)
    assert len(summary.problems) == 1
    assert problem in summary.problems[0]
    assert summary.actions == {"accept": 3}


@pytest.mark.parametrize("content", ["", "{", "{}", "[3]", '[{"image": "x"}]', '"text"'])
def test_other_files_are_refused(run, tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(InputError, match="Label Studio"):
        import_corrections(run, path)
    with pytest.raises(InputError, match="no such file"):
        import_corrections(run, tmp_path / "nowhere.json")


def test_what_was_dropped_can_be_looked_at_with_its_region(exported):
    tasks = {task["data"]["dropped"]["id"]: task for task in json.loads((exported / "dropped.json").read_text())}
    # Not the object, whose id is also that of an image, nor an image that the run's tables don't know.
    assert tasks.keys() == {"2", "3/0", "1/0/crop0"}
    assert tasks["1/0/crop0"]["data"]["prompt"] == "candidates dropped candidate 1/0/crop0: the answer is empty"
    assert tasks["3/0"]["data"]["image"] == "/data/local-files/?d=dropped/images/3.png"
    # The region (20, 20, 70, 40) of 100 × 80 px.
    (region,) = tasks["1/0/crop0"]["predictions"][0]["result"]
    assert [region["value"][name] for name in ("x", "y", "width", "height")] == [20, 25, 50, 25]
    assert tasks["2"]["predictions"][0]["result"] == []


def test_texts_for_correction_are_not_converted(run, tmp_path):
    with pytest.raises(ConfigError, match="does not convert"):
        export(run, tmp_path / "out", "label-studio", dialect="qwen3_vl")


# ── FiftyOne ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def samples(run, tmp_path):
    (run / "reviews.jsonl").unlink(missing_ok=True)
    export(run, tmp_path / "fiftyone", "fiftyone")
    assert json.loads((tmp_path / "fiftyone" / "train" / "metadata.json").read_text()) == {"media_type": "image"}
    return json.loads((tmp_path / "fiftyone" / "train" / "samples.json").read_text())["samples"]


def test_samples_have_the_boxes_of_both_answers_as_shares_of_the_image(samples, tmp_path):
    assert [sample["pair"] for sample in samples] == ["0/0", "1/0", "2/0", "3/0"]
    sample = samples[0]
    assert (tmp_path / "fiftyone" / "train" / sample["filepath"]).is_file()
    # (20, 20, 40, 40) and the rejected (20, 20, 40, 36) of 100 × 80 px.
    assert sample["chosen"]["_cls"] == "Detections"
    first = sample["chosen"]["detections"][0]
    assert (first["_cls"], first["label"]) == ("Detection", "1 a cup")
    assert first["bounding_box"] == pytest.approx([0.2, 0.25, 0.2, 0.25])
    assert sample["rejected"]["detections"][0]["bounding_box"] == pytest.approx([0.2, 0.25, 0.2, 0.2])
    assert sample["region"]["detections"][0]["bounding_box"] == pytest.approx([0.2, 0.25, 0.5, 0.25])


def test_boxes_words_and_tags_come_back_from_fiftyone(run, samples, tmp_path):
    samples[0]["chosen"]["detections"][0]["bounding_box"] = [0.1, 0.25, 0.2, 0.5]
    samples[0]["_id"] = {"$oid": "6554d0c4e1b1f1f1f1f1f1f1"}  # as FiftyOne writes it
    samples[1]["tags"] = ["reject"]
    samples[2] |= {"tags": ["accept"]}
    summary = read(run, tmp_path, {"samples": samples}, reviewer="ana")
    assert (summary.problems, summary.skipped) == ([], 1)
    assert summary.actions == {"edit": 1, "reject": 1, "accept": 1}
    moved = decisions(run, 0)["ana"]
    assert moved.chosen == "a cup [100, 250, 300, 750] and a second cup [500, 250, 700, 500]"
    # A deleted box leaves its words, edited words stay, and a new box needs a number in the text.
    del samples[0]["chosen"]["detections"][0]
    samples[3]["chosen_text"] = "[a mug](1) and [a second cup](2)"
    samples[2]["chosen"]["detections"][0]["label"] = "dog"
    again = read(run, tmp_path, {"samples": samples}, reviewer="ana")
    assert len(again.problems) == 1
    assert "label 'dog'" in again.problems[0]
    assert decisions(run, 0)["ana"].chosen == "a cup and a second cup [500, 250, 700, 500]"
    assert decisions(run, 3)["ana"].chosen == "a mug [200, 250, 400, 500] and a second cup [500, 250, 700, 500]"


def test_dropped_samples_are_a_dataset_of_their_own_and_tagged(samples, tmp_path):
    folder = tmp_path / "fiftyone" / "dropped"
    assert (folder / "metadata.json").is_file()
    found = {sample["dropped_id"]: sample for sample in json.loads((folder / "samples.json").read_text())["samples"]}
    assert found.keys() == {"2", "3/0", "1/0/crop0"}
    assert found["3/0"]["tags"] == ["dropped", "chosen_without_box"]
    assert (folder / found["3/0"]["filepath"]).resolve().is_file()
    assert found["3/0"]["region"]["detections"][0]["bounding_box"] == pytest.approx([0.2, 0.25, 0.5, 0.25])
    assert found["2"]["region"]["detections"] == []
    assert len(samples) == 4
