"""Every command that writes replaces only what the same command made; anything else is left unchanged."""

import json
import os

import pytest
from PIL import Image
from typer.testing import CliRunner

from spr.cli import app
from spr.config import make_config
from spr.core.errors import RunError
from spr.pipeline.runner import run

FAKES = {section: {"backend": "fake"} for section in ("describer", "scorer", "detector")}


def spr(*arguments):
    """Run a command in this process; raises what it raises."""
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output


def content(path):
    """Every file of a folder, or the file, and the files beside it with the same stem."""
    paths = [p for beside in path.parent.glob(f"*{path.stem}*") for p in (beside, *beside.rglob("*"))]
    return {str(p.relative_to(path.parent)): p.read_bytes() for p in paths if p.is_file()}


@pytest.fixture(scope="module")
def place(make_dataset, tmp_path_factory):
    """A folder with a finished run, a benchmark with answers, and two results to compare."""
    place = tmp_path_factory.mktemp("place")
    data = make_dataset(place / "data", images=8)
    run(
        make_config(data.config(**FAKES, annotations={"max_images": 6}, scoring={"ground_truth": "annotations"})),
        place / "run",
    )
    questions = [{"question_id": k, "image": f"{k}.jpg", "text": "Is there a cat?", "label": "yes"} for k in range(9)]
    (place / "pope.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    for name, said in (("a", "yes"), ("b", "no")):
        answers = [{"id": k, "answer": said} for k in range(9)]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
        spr(*evaluate(place, f"{name}.jsonl"), place / f"{name}.json")
    lvis = {
        "images": [
            {
                "id": 1,
                "width": 9,
                "height": 9,
                "file_name": "1.jpg",
                "neg_category_ids": [2],
                "not_exhaustive_category_ids": [],
            }
        ],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25, "segmentation": []}
            for k in range(3)
        ],
        "categories": [
            {"id": k, "name": name, "synonyms": [name], "frequency": "f"} for k, name in ((1, "cat"), (2, "dog"))
        ],
    }
    (place / "lvis.json").write_text(json.dumps(lvis))
    return place


def evaluate(place, answers):
    return "evaluate", "pope", "--annotations", place / "pope.jsonl", "--predictions", place / answers, "--out"


FOLDERS = {
    "run": lambda place: ("run", place / "run" / "config.yaml", "--until", "objects", "--out"),
    "scenes": lambda _: ("scenes", "-n", 2, "--out"),
    "export": lambda place: ("export", place / "run", "--format", "llava", "--out"),
    "report": lambda place: ("report", place / "run", "--out"),
}
FILES = {
    "evaluate": lambda place: evaluate(place, "a.jsonl"),
    "compare": lambda place: ("compare", place / "a.json", place / "b.json", "--out"),
    "lvis-questions": lambda place: ("lvis-questions", "--annotations", place / "lvis.json", "-n", 1, "--out"),
    "draw": lambda place: ("show", place / "run" / "regions", "-n", 1, "--draw"),
}
OTHERS = {  # the same commands with another result, which replaces the first
    "evaluate": lambda place: evaluate(place, "b.jsonl"),
    "compare": lambda place: ("compare", place / "b.json", place / "a.json", "--out"),
    "draw": lambda place: ("show", place / "run" / "regions", "-n", 2, "--draw"),
    "report": lambda place: ("report", place / "run", "--max-pairs", 1, "--out"),
}


@pytest.mark.parametrize("name", [*FOLDERS, *FILES])
def test_what_another_made_is_left_unchanged(name, place, tmp_path):
    out = tmp_path / "out.png"
    command = {**FOLDERS, **FILES}[name](place)
    foreign = {"file": "precious", "JSON": '{"format_version": 2, "task": "mine"}', "list": "[[1]]"}
    for text in foreign.values():
        out.write_text(text)
        with pytest.raises(RunError, match=r"(is not|can't be used as) (a|the)"):
            spr(*command, out)
        assert content(out) == {"out.png": text.encode()}
    out.unlink()
    Image.new("RGB", (8, 8)).save(out)
    before = content(out)
    with pytest.raises(RunError):
        spr(*command, out)
    assert content(out) == before
    out.unlink()
    out.mkdir()
    for text in ("{}", "[]", "\x00", '{"format": "spr report"}'):
        for file in ("spr.json", "export.json", "report.json", "run.json", "instances.json", "config.yaml"):
            (out / file).write_text(text)
        before = content(out)
        with pytest.raises(RunError):
            spr(*command, out)
        assert content(out) == before


@pytest.mark.parametrize("name", [*FOLDERS, *FILES])
def test_the_same_command_may_be_repeated_and_files_beside_it_stay(name, place, tmp_path):
    out = tmp_path / "out.png"
    command = {**FOLDERS, **FILES}[name](place)
    out.mkdir() if name in FOLDERS else out.touch()  # empty is free
    spr(*command, out)
    names = set(content(out))
    if name in FOLDERS:
        (out / "notes.txt").write_text("mine")
        names.add("out.png/notes.txt")
    spr(*command, out)
    assert set(content(out)) == names
    assert not list(tmp_path.rglob(".*.spr-*"))


@pytest.mark.parametrize("name", OTHERS)
def test_an_earlier_result_of_the_same_command_is_replaced(name, place, tmp_path):
    out = tmp_path / "out.png"
    spr(*{**FOLDERS, **FILES}[name](place), out)
    before = content(out)
    spr(*OTHERS[name](place), out)
    assert content(out) != before


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (("scenes", "-n", 2), ("scenes", "-n", 3), "is not a folder with 3 scenes of seed 0"),
        (("scenes", "-n", 2), ("scenes", "-n", 2, "--seed", 1), "is not a folder with 2 scenes of seed 1"),
        (("export", "RUN", "--format", "llava"), ("export", "RUN", "--format", "trl"), "holds another export"),
        (
            ("lvis-questions", "--annotations", "LVIS", "-n", 1),
            ("lvis-questions", "--annotations", "LVIS", "-n", 2),
            "is not the file",
        ),
    ],
)
def test_data_that_others_may_use_already_is_not_replaced(first, second, message, place, tmp_path):
    paths = {"RUN": place / "run", "LVIS": place / "lvis.json"}
    first, second = ([paths.get(part, part) for part in command] for command in (first, second))
    spr(*first, "--out", tmp_path / "out")
    before = content(tmp_path / "out")
    with pytest.raises(RunError, match=message):
        spr(*second, "--out", tmp_path / "out")
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("beside", ["out.items.parquet", "out.answers.jsonl"])
def test_a_users_file_beside_a_result_is_left_unchanged(beside, place, tmp_path):
    (tmp_path / beside).write_text("mine")
    model = ("evaluate", "pope", "--annotations", place / "pope.jsonl", "--model", "embedded/describer", "--out")
    command = evaluate(place, "a.jsonl") if "items" in beside else model
    with pytest.raises(RunError, match=r"is not part of the result out\.json"):
        spr(*command, tmp_path / "out.json")
    assert content(tmp_path / "out.json") == {beside: b"mine"}


def test_an_evaluation_killed_between_its_files_is_completed(place, tmp_path):
    spr(*evaluate(place, "a.jsonl"), tmp_path / "out.json")
    whole = content(tmp_path / "out.json")
    (tmp_path / "out.json").rename(tmp_path / f".out.json.{2**22 + 1}.spr-tmp")
    spr(*evaluate(place, "a.jsonl"), tmp_path / "out.json")
    assert content(tmp_path / "out.json") == whole
    assert not list(tmp_path.glob(".*"))


def test_neither_a_device_nor_a_broken_link_is_replaced(place, tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "fifo")
    for name in FILES:
        for out in (tmp_path / "out", tmp_path / "fifo"):
            with pytest.raises(RunError, match="neither a file nor a folder"):
                spr(*FILES[name](place), out)
    assert (tmp_path / "out").is_symlink()
