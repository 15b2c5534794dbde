"""Files of published benchmarks: a sample of each is recognised, read and scored; others are explained."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark_samples import SAMPLES, mask, mdetr_content, write_json, write_lines, write_parquet
from spr.cli import main
from spr.core.errors import InputError
from spr.evaluation.layouts.coco import ODINW13
from spr.evaluation.layouts.layout import LAYOUTS, open_content
from spr.evaluation.task import TASKS, evaluate
from spr.grounding import get_dialect
from spr.models.protocols import Answer


@pytest.fixture
def sample(tmp_path):
    """A function that writes the sample of a layout."""
    return lambda name: SAMPLES[name](tmp_path)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_scored_by_the_command(name, sample, tmp_path, monkeypatch):
    made = sample(name)
    answers = write_lines(tmp_path / "answers.jsonl", [{"id": k, "answer": v} for k, v in made.answers.items()])
    common = ["spr", "evaluate", made.task, "--annotations", str(made.path), *made.options]
    out = tmp_path / "result.json"
    arguments = [*common, "--predictions", str(answers), "--dialect", "llava_onevision", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    result = json.loads(out.read_text())
    assert result["n"] == len(made.answers)
    values = {key: result["metrics"][key]["value"] for key in made.metrics}
    assert values == pytest.approx(made.metrics, abs=1e-6)
    assert set(made.groups) <= set(result["groups"])


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_fits_its_layout_before_any_other_of_its_task(name, sample):
    made = sample(name)
    content = open_content(made.path, "a sample")
    fitting = [key for key, layout in LAYOUTS.items() if layout.task == made.task and layout.fits(content)]
    assert fitting[0] == name


def test_every_layout_belongs_to_a_task_and_has_keys():
    for layout in LAYOUTS.values():
        assert layout.task in TASKS
        assert layout.keys
        assert layout.forms


class Sees:
    """A model that answers with the colour of the image, and keeps the questions."""

    name, dialect = "sees", get_dialect("llava_onevision")

    def __init__(self):
        self.prompts = []

    def describe(self, requests):
        self.prompts += [request.prompt for request in requests]
        for request in requests:
            colour = np.asarray(request.image).mean(axis=(0, 1))
            yield Answer("red" if colour[0] > colour[2] else "blue")


@pytest.mark.parametrize("name", [name for name in SAMPLES if "lmms" in name or "vlm" in name or "parquet" in name])
def test_a_model_sees_the_images_that_the_file_contains(name, sample):
    made = sample(name)
    model = Sees()
    result = evaluate(made.task, made.path, describer=model)
    assert [record.answer for record in result.predictions] == list(made.colours)


def test_lmms_evals_expressions_are_numbered_as_its_documents(sample):
    items = TASKS["rec"]().load(sample("lmms-eval-refcoco").path)
    assert items.ids == ("0", "1", "2")
    assert items.sentences == ("a cup", "the left cup", "a cat")
    assert items.file_names[0] == items.file_names[1] == "COCO_train2014_000000000001.jpg"
    assert items.sizes_wh == ((200, 100), (200, 100), (100, 200))
    assert items.boxes_xyxy.tolist() == [[20, 10, 60, 50], [20, 10, 60, 50], [50, 100, 100, 200]]


def test_rows_about_the_same_image_in_base64_are_one_unit_of_the_intervals(sample):
    items = TASKS["rec"]().load(sample("vlmevalkit-refcoco").path)
    assert items.sentences == ("a cup", "the left cup", "a cat")
    assert items.file_names[0] == items.file_names[1] != items.file_names[2]
    # (0.1, 0.1, 0.3, 0.5) of 200 × 100 pixels.
    assert items.boxes_xyxy[1].tolist() == pytest.approx([20, 10, 60, 50])


def test_the_answer_format_in_where2places_questions_is_left_out(sample):
    model = Sees()
    evaluate("pointing", sample("where2place-parquet").path, describer=model)
    assert model.prompts == ["Please point out free area."] * 2


def test_the_parts_of_a_split_in_a_folder_are_one_file(tmp_path, sample):
    path = sample("lmms-eval-refcoco").path
    folder = tmp_path / "parts"
    folder.mkdir()
    table = pq.read_table(path)
    for k in range(2):
        pq.write_table(table.slice(k, 1), folder / f"val-0000{k}-of-00002.parquet")
    assert TASKS["rec"]().load(folder).sentences == ("a cup", "the left cup", "a cat")
    pq.write_table(table, folder / "testA-00000-of-00001.parquet")
    with pytest.raises(InputError, match=r"several splits[\s\S]*testA, val"):
        TASKS["rec"]().load(folder)


def load(task, path):
    return TASKS[task]().load(path)


def test_a_file_of_another_layout_is_told_the_nearest_and_what_it_lacks(tmp_path):
    row = {"image": "a.png", "expression": "a cup", "box": [1, 2, 3, 4], "width": 9, "height": 9}
    path = write_lines(tmp_path / "mine.jsonl", [row])
    with pytest.raises(InputError) as caught:
        load("rec", path)
    message = str(caught.value)
    assert "in no layout that `rec` reads" in message
    assert "image, expression, box, width, height" in message  # what was found
    assert "MDETR's JSON (a JSON object: images[].id" in message  # what was expected
    assert "the nearest known layout is SPR's rows of expressions, which has sentence as well" in message


def test_a_file_of_another_task_is_told_which(sample, tmp_path):
    with pytest.raises(InputError, match="this is GroundingME's Parquet: use `spr evaluate multi-rec`"):
        load("rec", sample("groundingme").path)
    pope = write_lines(tmp_path / "pope.json", [{"question_id": 1, "image": "1.jpg", "text": "?", "label": "no"}])
    with pytest.raises(InputError, match="this is POPE's JSON lines: use `spr evaluate pope`"):
        load("rec", pope)


def test_tables_are_not_for_detection(sample):
    with pytest.raises(InputError, match=r"Parquet with id[\s\S]*this is Ref-L4: use `spr evaluate rec`"):
        load("detection", sample("ref-l4").path)
    with pytest.raises(InputError, match=r"TSV with index[\s\S]*use `spr evaluate multi-rec`"):
        load("detection", sample("vlmevalkit-groundingme").path)


def test_the_nearest_layout_may_be_in_another_form(tmp_path, sample):
    table = pq.read_table(sample("ref-l4").path)
    path = write_json(tmp_path / "ref-l4.json", {"rows": table.to_pylist()})
    with pytest.raises(InputError, match=r"got: +a JSON object with rows, rows\[\]\.id"):
        load("rec", path)
    # As a list of rows, the same content is read.
    assert len(load("rec", write_json(tmp_path / "list.json", table.to_pylist()))) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sentence,box\na cup,1\n", "is not valid"),
        ("<html></html>", "is not valid"),
        ("a\tb\n1\t2\n", r"TSV with a, b[\s\S]*convert the file"),
        ('{"images": [{"id": 1,', "is not MDETR's JSON"),
        ("{}", "a JSON object without keys"),
        (" [ ] ", "no rows"),
    ],
)
def test_other_files_are_explained(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        load("rec", path)


def test_damaged_parquet_and_images_are_errors(tmp_path, sample):
    path = sample("lmms-eval-refcoco").path
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"damaged\.parquet can't be read"):
        load("rec", damaged)
    table = pq.read_table(path)
    broken = table.set_column(1, "image", pa.array([{"bytes": b"no image", "path": None}] * 2))
    pq.write_table(broken, path)
    with pytest.raises(InputError, match=r"The `image` of row 0 of .* can't be read"):
        load("rec", path)


def test_a_parquet_row_that_is_not_valid_is_named(sample):
    path = sample("ref-l4").path
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "caption", pa.array(["a", None])).rename_columns(table.column_names), path)
    table = table.set_column(1, "caption", pa.array(["a cup", None]))
    pq.write_table(table, path)
    with pytest.raises(InputError, match=r"Row 1 of .* is not valid[\s\S]*\$\.caption"):
        load("rec", path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("answer", "[10, 20, 30, 40]", r"The answer 5 of .* is not valid[\s\S]*from 0 to 1"),
        ("answer", "the cat", r"The answer 5 of .* is not valid"),
        ("question", "Where is the cat?", r"The question 5 of .* is not valid[\s\S]*<ref>"),
        ("image", "bm8gaW1hZ2U=" * 9, r"The `image` of row 2 of .* can't be read"),
    ],
)
def test_vlmevalkits_rows_are_checked(sample, column, value, message):
    path = sample("vlmevalkit-refcoco").path
    lines = path.read_text().splitlines()
    fields = dict(zip(lines[0].split("\t"), lines[3].split("\t"), strict=True)) | {column: value}
    path.write_text("\n".join([*lines[:3], "\t".join(fields.values())]) + "\n")
    with pytest.raises(InputError, match=message):
        load("rec", path)


def test_a_tsv_row_with_too_few_fields_is_named(sample):
    path = sample("vlmevalkit-refcoco").path
    path.write_text(path.read_text() + "6\tonly two\n")
    with pytest.raises(InputError, match=r"Line 5 of .* is not valid[\s\S]*2 fields"):
        load("rec", path)


def test_a_tsv_field_may_be_quoted_and_longer_than_a_line(sample):
    path = sample("vlmevalkit-refcoco").path
    text = path.read_text().replace("<ref>a cat</ref>", "<ref>a cat</ref>\n\twith quotes")
    header, *rows = text.split("\n", 1)
    question = next(part for part in rows[0].split("\t") if "a cat" in part)
    quoted = rows[0].replace(question + "\twith quotes", f'"{question}\twith ""quotes"""')
    path.write_text(header + "\n" + quoted)
    model = Sees()
    result = evaluate("rec", path, describer=model)
    assert [record.answer for record in result.predictions] == ["red", "red", "blue"]


def test_negative_expressions_of_finecops_are_not_for_rec(sample):
    with pytest.raises(InputError, match=r"1 negative expression\b[\s\S]*multi-rec"):
        load("rec", sample("finecops-ref-all").path)


def test_expressions_with_several_boxes_are_for_multi_rec(tmp_path):
    content = mdetr_content()
    content["annotations"].append(content["annotations"][0])
    path = write_json(tmp_path / "many.json", content)
    with pytest.raises(InputError, match=r"2 annotations with this image_id[\s\S]*spr evaluate multi-rec"):
        load("rec", path)
    assert [len(row.boxes) for row in load("multi-rec", path)] == [2, 1]


def test_points_without_masks_are_an_error(sample, tmp_path):
    made = sample("where2place")
    (tmp_path / "masks" / "01.jpg").unlink()
    with pytest.raises(InputError, match=r"The mask 01\.jpg can't be read[\s\S]*--masks"):
        load("pointing", made.path)
    (tmp_path / "masks" / "00.jpg").unlink()
    (tmp_path / "masks").rmdir()
    with pytest.raises(InputError, match="There is no folder of masks"):
        load("pointing", made.path)


def test_another_package_can_add_a_layout(tmp_path):
    from spr.evaluation.expressions import Expressions
    from spr.evaluation.layouts.layout import Layout

    def read(content, task):
        assert task.name == "rec"
        rows = content.rows(dict, "rows")
        names = tuple(row["name"] for row in rows)
        return Expressions(names, names, names, np.array([[0, 0, 1, 1]]), ((2, 2),), ("",))

    LAYOUTS.register("mine", Layout("My rows", "rec", ("JSON lines",), ("name",), read))
    try:
        assert load("rec", write_lines(tmp_path / "mine.jsonl", [{"name": "a"}])).ids == ("a",)
    finally:
        LAYOUTS.unregister("mine")


def test_odinw_13_has_13_sets_with_the_names_of_lmms_evals_list():
    # lmms_eval/tasks/odinw13/utils.py
    names = """AerialMaritimeDrone Aquarium CottontailRabbits EgoHands NorthAmericaMushrooms Packages PascalVOC Raccoon
        ShellfishOpenImages VehiclesOpenImages pistols pothole thermalDogsAndPeople"""
    assert sorted(own.name for own in ODINW13) == sorted(names.split())
    assert [len(own.categories) for own in ODINW13 if own.name == "PascalVOC"] == [20]
    assert all(own.folder.startswith(own.name) and own.folder.endswith("valid") for own in ODINW13)


def test_parquet_with_other_columns_is_explained(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"id": [1], "caption": ["a"], "bbox": [[1.0, 2.0, 3.0, 4.0]]})
    with pytest.raises(InputError, match=r"Parquet with id, caption, bbox[\s\S]*nearest known layout is Ref-L4"):
        load("rec", path)


def changed(sample, **columns):
    content = pq.read_table(sample.path).to_pydict()
    return write_parquet(sample.path, content | columns)


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("ref-l4", {"bbox": [[1.0, 1.0, float("inf"), 3.0], [1.0, 2.0, 3.0, 4.0]]}, "expression 7 has no area"),
        ("groundingme", {"bbox": [[1.0, 1.0, 1e300, 1e300], [1.0, 2.0, 3.0, 4.0]]}, "expression 1 has no area"),
        ("pixmo-points", {"masks": [[None], [[[True]], [[True]]]]}, "A mask of the column `masks`"),
        ("pixmo-points", {"masks": [[[]], [[[True]], [[True]]]]}, "A mask of the column `masks`"),
        (
            "pixmo-points",
            {"points": [[{"x": float("nan"), "y": 1.0}], [{"x": 1.0, "y": 1.0}] * 2]},
            r"Row 0[\s\S]*not finite",
        ),
    ],
)
def test_values_that_no_answer_can_meet_are_errors(name, columns, message, sample):
    made = sample(name)
    changed(made, **columns)
    with pytest.raises(InputError, match=message):
        load(made.task, made.path)


def test_a_mask_of_another_size_than_its_image_is_an_error(sample):
    made = sample("where2place-parquet")
    small = {"bytes": mask(100, 50, (10, 5, 30, 25)), "path": None}
    items = load("pointing", changed(made, mask=[small, small]))
    with pytest.raises(InputError, match=r"another size than its image[\s\S]*100x50[\s\S]*200x100"):
        items.rows[0].target.holds([(1, 1)])
    items = load("pointing", changed(made, mask=[None, None]))
    with pytest.raises(InputError, match=r"A `mask` of .* can't be read"):
        items.rows[0].target.holds([(1, 1)])


def test_masks_with_rows_of_different_lengths_are_an_error(sample):
    made = sample("pixmo-points")
    masks = [[[[True, True], [True]]], [[[True]], [[True]]]]
    items = load("pointing", changed(made, masks=masks))
    with pytest.raises(InputError, match="rows of different lengths"):
        items.rows[0].target.holds([(1, 1)])


def test_rejection_is_recognised_in_any_case(sample):
    made = sample("groundingme")
    items = load("multi-rec", changed(made, subtask_l1=["discriminative", "rejection"]))
    assert [len(row.boxes) for row in items] == [1, 0]
