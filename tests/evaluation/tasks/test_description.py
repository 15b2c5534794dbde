"""Descriptions of regions against values computed by hand, greedy and sampled, from a model and from its file."""

import dataclasses
import json

import pytest
from PIL import Image

from spr.config import DescriberConfig, make_config
from spr.core.errors import ConfigError, InputError, RecordError, RunError
from spr.evaluation.predictions import Answers
from spr.evaluation.task import evaluate
from spr.evaluation.tasks.description import Description, Regions
from spr.grounding import get_dialect
from spr.grounding.matching import names_category
from spr.models.fakes import FakeDescriber
from spr.records import RegionObject, RegionQuery
from spr.records.schemas import to_table
from spr.runs.store import Manifest, StageOutput, StageStore, dropped_table, write_table

DIALECT = get_dialect("llava_onevision")
INSIDE = [("1", "red cup", (0, 0, 20, 20)), ("2", "plate", (40, 0, 60, 20)), ("3", "plate", (60, 60, 80, 80))]


def query(name="7/0", image="7"):
    objects = [RegionObject(key, category, box, inside=True) for key, category, box in INSIDE]
    objects.append(RegionObject("4", "fork", (80, 0, 100, 20), inside=False))
    return RegionQuery(name, image, f"{image}.png", 100, 100, (0, 0, 80, 80), "1", tuple(objects))


def test_the_metrics_of_one_answer_equal_those_worked_out_by_hand():
    # The cup exactly; a plate 20 × 20 moved by 2 px (18 × 20 shared of 440: IoU 0.818); a saucer where the other plate
    # is, 20 × 11 of 20 × 20 (IoU 0.55); the fork, outside the region, exactly; a spoon that does not exist.
    text = (
        "A red cup [0.00, 0.00, 0.20, 0.20], a plate [0.42, 0.00, 0.62, 0.20], a saucer [0.60, 0.60, 0.80, 0.71], "
        "a fork [0.80, 0.00, 1.00, 0.20] and a spoon [0.20, 0.30, 0.40, 0.50]."
    )
    result = Description().score(Regions([query()]), Answers([text], dialect=DIALECT))
    assert result.value("s_loc") == pytest.approx((1 + 360 / 440 + 0.55) / 3)
    assert result.value("recall@0.5") == 1
    assert result.value("recall@0.75") == pytest.approx(2 / 3)
    assert result.value("recall@0.9") == pytest.approx(1 / 3)
    assert result.value("unmatched_boxes") == pytest.approx(1 / 5)  # the fork is an object of the image
    assert result.value("objects_named") == pytest.approx(2 / 3)  # one plate is named once
    assert result.value("objects_placed") == pytest.approx(2 / 3)
    assert (result.value("phrases"), result.value("boxes"), result.value("words")) == (5, 5, 12)


def test_an_answer_without_boxes_locates_nothing_and_has_no_share_of_unmatched_boxes():
    result = Description().score(Regions([query()]), Answers(["A red cup stands on plates."], dialect=DIALECT))
    assert result.value("s_loc") == 0
    assert result.value("recall@0.5") == 0
    assert result.value("unmatched_boxes") is None
    # Without phrases, the whole text is used instead: it names the cup.
    assert result.value("objects_named") == pytest.approx(1 / 3)
    assert result.problems["no_box"] == ["7/0"]
    assert result.to_json()["metrics"]["unmatched_boxes"] == {
        "value": None,
        "ci95": None,
        "no_ci95": "0 images, fewer than 6",
    }


def test_regions_of_held_out_images_are_asked_about_unless_others_are_chosen(tmp_path):
    run, queries = tmp_path / "run", [query(f"{k}/0", str(k)) for k in range(4)]
    queries[1] = dataclasses.replace(queries[1], split="holdout")
    write_run(run, queries)

    def read(source, split="auto"):
        found = Description(split=split).load(source)
        return [query.image_id for query in found.queries], found.split, found.note

    # A run that ends with its regions is not trained on.
    assert read(run) == (["0", "1", "2", "3"], "all", None)
    (run / "pairs").mkdir()
    for source in (run, run / "regions", run / "regions" / "part-00000.parquet"):
        assert read(source) == (["1"], "holdout", None)
    assert read(run, "train") == (["0", "2", "3"], "train", None)
    assert read(run, "all") == (["0", "1", "2", "3"], "all", None)
    other = tmp_path / "other"
    write_run(other, [queries[0], queries[2]])
    assert read(other / "regions" / "part-00000.parquet") == (["0", "2"], "all", None)
    (other / "pairs").mkdir()
    ids, split, note = read(other)
    assert (ids, split) == (["0", "2"], "all")
    assert "holds out no images" in note
    assert "annotations.holdout" in note
    result = Description().score(Description().load(other), Answers([None, None], {"missing": ["0/0", "2/0"]}, DIALECT))
    assert (result.protocol["split"], result.notes) == ("all", (note,))
    assert read(other, "all")[2] is None
    with pytest.raises(InputError, match="has no regions of split holdout") as caught:
        read(other, "holdout")
    assert caught.value.got == "2 regions, 0 of them of held-out images"
    with pytest.raises(ConfigError, match="--split is not known"):
        Description(split="test")


def write_run(run, queries):
    """A run folder with these regions."""
    store = StageStore(run / "regions")
    output = StageOutput(to_table(queries, RegionQuery), dropped_table("regions", "image", []))
    store.save(Manifest("regions", "f", [store.write_shard(0, output, inputs=1)], complete=True))
    config = make_config({"annotations": {"path": "a.json", "images": str(run)}})
    (run / "config.yaml").write_text(config.to_yaml())


def test_boxes_on_another_scale_than_the_dialects_are_a_problem():
    answers = Answers(["a cup [0.1, 0.1, 0.5, 0.5]", "a cup [100, 100, 500, 500]"], dialect="ferret")
    result = Description().score(Regions([query(), query("8/0", "8")]), answers)
    assert result.problems["scale"] == ["7/0"]


def test_recall_counts_the_objects_of_all_answers_together():
    # 3 of 3 objects and 0 of 3, from a missing answer.
    text = " and ".join(
        f"a thing [{x1 / 100}, {y1 / 100}, {x2 / 100}, {y2 / 100}]" for _, _, (x1, y1, x2, y2) in INSIDE
    )
    answers = Answers([text, None], {"missing": ["8/0"]}, DIALECT)
    result = Description().score(Regions([query(), query("8/0", "8")]), answers)
    assert result.value("recall@0.9") == 0.5
    assert result.value("objects_placed") == 0  # no box has the object's name
    assert result.value("boxes") == 1.5


def test_one_box_does_not_place_two_objects():
    two = RegionQuery(
        "q", "1", "1.png", 100, 100, (0, 0, 50, 50), "1",
        (RegionObject("1", "cup", (0, 0, 20, 20), inside=True), RegionObject("2", "cup", (0, 0, 20, 18), inside=True)),
    )  # fmt: skip
    result = Description().score(Regions([two]), Answers(["a cup [0.00, 0.00, 0.20, 0.20]"], dialect=DIALECT))
    assert result.value("recall@0.5") == 1
    assert result.value("objects_placed") == 0.5
    assert result.value("objects_named") == 0.5


@pytest.mark.parametrize(
    ("phrase", "category", "named"),
    [
        ("a red cup", "red cup", True),
        ("a red plastic cup", "red cup", False),
        ("RED CUPS", "red cup", True),
        ("cupboard", "cup", False),
        ("two buses", "bus", True),
        ("a bus", "buses", True),
        ("glasses", "glass", True),
        ("potted plant", "Potted Plant", True),
        ("a table", "Desk/Table", True),
        ("a wine_glass", "wine_glass", True),
        ("", "cup", False),
        ("cup", "", False),
    ],
)
def test_a_phrase_names_a_category_by_whole_words(phrase, category, named):
    assert names_category(phrase, category) == named


@pytest.fixture
def images(tmp_path):
    for name in ("7", "8"):
        Image.new("RGB", (100, 100)).save(tmp_path / f"{name}.png")
    return tmp_path


def test_samples_differ_by_seed_and_their_file_gives_the_same_scores(images):
    regions = Regions([query(), query("8/0", "8")])
    how = {"describer": FakeDescriber(), "images": images}
    result = evaluate(Description(samples=3), regions, **how)
    assert result.ids == ("7/0#0", "7/0#1", "7/0#2", "8/0#0", "8/0#1", "8/0#2")
    assert result.images == ("7",) * 3 + ("8",) * 3
    answers = [p.answer for p in result.predictions]
    assert len(set(answers)) > 2
    assert [p.answer for p in evaluate(Description(samples=3), regions, **how).predictions] == answers
    other = evaluate(Description(samples=3), regions, **how, seed=1)
    assert [p.answer for p in other.predictions] != answers
    written = result.write(images / "out.json")
    again = evaluate(Description(samples=3), regions, predictions=images / written["answers"])
    assert again.metrics == result.metrics


def test_the_question_has_the_region_in_the_models_dialect(images):
    result = evaluate(
        Description(prompt="What is in {region}?"),
        Regions([query()]),
        describer=FakeDescriber(DescriberConfig(backend="fake", dialect="ferret")),
        images=images,
    )
    assert result.predictions[0].prompt == "What is in [0, 0, 800, 800] <region_fea>?"
    with pytest.raises(ConfigError, match=r"lacks \{region\}"):
        evaluate(Description(prompt="What is there?"), Regions([query()]), describer=FakeDescriber(), images=images)


def test_regions_are_read_from_parquet_or_json(tmp_path):
    queries = [query(), query("8/0", "8")]
    write_table(tmp_path / "regions.parquet", to_table(queries, RegionQuery))
    rows = [region.to_row() for region in queries]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("regions.parquet", "list.json", "lines.jsonl"):
        regions = Description().load(tmp_path / name)
        assert regions.queries == queries
        assert regions.images is None


def test_files_without_valid_regions_are_refused(tmp_path):
    path = tmp_path / "regions.json"
    with pytest.raises(InputError, match="no such file"):
        Description().load(path)
    for content, message in (
        ("[]", "no rows"),
        ("{", "Line 1 of .* is not valid"),
        ('[{"query_id": "1"}]', r"in no layout that `description` reads[\s\S]*image_id, file_name"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            Description().load(path)
    path.write_text(json.dumps([{**query().to_row(), "width": 0}]))
    with pytest.raises(RecordError, match="size of image 7"):
        Description().load(path)
    with pytest.raises(RunError, match="does not hold a finished stage"):
        Description().load(tmp_path)
