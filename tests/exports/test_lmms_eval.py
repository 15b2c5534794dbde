"""The task for lmms-eval: what it asks and how it scores equals `spr evaluate rec` on the same file."""

import importlib.util
import json
import sys

import pytest
import yaml

from benchmark_samples import RIGHT, SAMPLES, WRONG
from spr.cli import main
from spr.core.errors import ConfigError, InputError, RunError
from spr.evaluation.lmms_eval import RecDocuments
from spr.evaluation.task import TASKS, evaluate
from spr.exports.lmms_eval import write_lmms_eval_task
from spr.grounding import get_dialect

datasets = pytest.importorskip("datasets")


def load_as_lmms_eval_does(path):
    """The task's configuration with its functions, as in lmms_eval/utils.py (import_function)."""

    class Loader(yaml.SafeLoader):
        pass

    def function(loader, node):
        module, name = loader.construct_scalar(node).split(".")
        spec = importlib.util.spec_from_file_location(module, path.with_name(f"{module}.py"))
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return getattr(loaded, name)

    Loader.add_constructor("!function", function)
    return yaml.load(path.read_text(), Loader)  # noqa: S506 (a SafeLoader)


@pytest.fixture
def refcoco(tmp_path):
    sample = SAMPLES["lmms-eval-refcoco"](tmp_path)
    data = datasets.Dataset.from_parquet(str(sample.path), cache_dir=str(tmp_path / "cache"))
    return sample.path, data.cast_column("image", datasets.Image())


@pytest.mark.parametrize("answers", [[RIGHT, RIGHT, WRONG], ["none", "<think>a [0,0,1,1]</think>" + RIGHT, "[1, 2]"]])
def test_questions_and_figures_equal_those_of_rec(refcoco, tmp_path, answers):
    path, data = refcoco
    config = load_as_lmms_eval_does(write_lmms_eval_task(tmp_path / "task", dialect="llava_onevision", split="val"))
    docs = config["process_docs"](data)
    assert list(docs["expression"]) == ["a cup", "the left cup", "a cat"]
    _, questions = TASKS["rec"]().questions(TASKS["rec"]().load(path), get_dialect("llava_onevision"), "")
    assert [config["doc_to_text"](doc) for doc in docs] == [question.prompt for question in questions]
    assert config["doc_to_visual"](docs[2])[0].getpixel((0, 0)) == (0, 0, 255)
    # lmms-eval scores documents without their images.
    scored = [
        config["process_results"](doc, [text])
        for doc, text in zip(docs.remove_columns(["image"]), answers, strict=True)
    ]
    predictions = tmp_path / "answers.jsonl"
    predictions.write_text("\n".join(json.dumps({"id": str(k), "answer": text}) for k, text in enumerate(answers)))
    expected = evaluate("rec", path, predictions=predictions, dialect="llava_onevision")
    for metric in config["metric_list"]:
        name = metric["metric"]
        assert metric["aggregation"] == "mean"
        mean = sum(values[name] for values in scored) / len(scored)
        without_box = sum(expected.groups.get("without a box", [])) / len(scored)
        assert mean == pytest.approx(without_box if name == "no_box" else expected.value(name))
    assert set(scored[0]) == {metric["metric"] for metric in config["metric_list"]}


def test_the_dialect_decides_and_not_the_numbers(refcoco, tmp_path):
    data = refcoco[1]
    config = load_as_lmms_eval_does(write_lmms_eval_task(tmp_path / "a", dialect="qwen2_vl", split="val"))
    doc = config["process_docs"](data)[0]
    # The same object in pixels, and from 0 to 1000: only the second is what this dialect means.
    corners = ("(20,10),(60,50)", "(100,100),(300,500)")
    texts = [f"<|object_ref_start|>cup<|object_ref_end|><|box_start|>{box}<|box_end|>" for box in corners]
    assert [config["process_results"](doc, [text])["acc@0.5"] for text in texts] == [0.0, 1.0]
    assert config["process_results"](doc, [])["no_box"] == 1.0


def test_a_yaml_without_its_dialect_is_refused(tmp_path):
    given = {"dialect": "ferret", "split": "testA", "name": "mine", "prompt": "Find {expression}"}
    path = write_lmms_eval_task(tmp_path / "task", **given)
    assert path.name == "mine.yaml"
    assert RecDocuments.from_yaml(path).question("a, b") == "Find a b"  # Ferret's evaluation removes commas
    text = path.read_text()
    path.write_text(text.replace("  dialect: ferret\n", ""))
    with pytest.raises(ConfigError, match=r"has no metadata\.dialect[\s\S]*ferret"):
        load_as_lmms_eval_does(path)
    path.write_text(text.replace("dialect: ferret", "dialect: qwen"))
    with pytest.raises(ConfigError, match=r"metadata\.dialect of"):
        load_as_lmms_eval_does(path)
    path.write_text(text.replace("Find {expression}", "Find it"))
    with pytest.raises(ConfigError, match=r"lacks \{expression\}"):
        load_as_lmms_eval_does(path)


def test_other_data_sets_and_folders_are_refused(tmp_path):
    documents = RecDocuments(get_dialect("ferret"))
    with pytest.raises(InputError, match=r"not RefCOCO in lmms-eval's form[\s\S]*image, bbox as well"):
        documents.process_docs(datasets.Dataset.from_dict({"answer": [["a"]]}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "utils.py").write_text("mine")
    with pytest.raises(RunError, match="other"):
        write_lmms_eval_task(tmp_path / "other", dialect="ferret", split="val")
    with pytest.raises(ConfigError, match="name of the task"):
        write_lmms_eval_task(tmp_path / "new", dialect="ferret", split="val", name="a b")
    with pytest.raises(ConfigError, match="rec needs boxes, and the dialect `molmo` has only points"):
        write_lmms_eval_task(tmp_path / "new", dialect="molmo", split="val")
    assert not (tmp_path / "new").exists()


def test_the_command_says_how_to_run_the_task(tmp_path, monkeypatch, capsys):
    arguments = ["spr", "lmms-eval-task", "--dialect", "qwen2_vl", "--split", "testB", "--out", str(tmp_path / "t")]
    for _ in range(2):  # the second one writes the same files
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 0
    assert "--tasks spr_refcoco_testB" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["spr_refcoco_testB.yaml", "utils.py"]
