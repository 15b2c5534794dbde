"""`spr evaluate`, `spr compare` and `spr lvis-questions` as users see them."""

import json
import subprocess
import sys

import pytest

import warm_python
from spr.cli import main
from spr.evaluation.tasks.rec import Rec
from spr.runs.folder import lock_run


def spr(*arguments, expect=0):
    result = subprocess.run(
        [*warm_python.start(), "-m", "spr", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in result.stderr, result.stderr
    assert result.returncode == expect, (result.returncode, result.stdout, result.stderr)
    return result.stdout, result.stderr


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from spr.embedded.scenes import write_scenes

    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 6, 5)
    return folder


def test_a_model_its_file_and_the_comparison_of_both(data, tmp_path):
    common = ("evaluate", "rec", "--annotations", data / "expressions.json")
    model = ("--images", data / "images", "--model", "embedded/describer")
    output, _ = spr(*common, *model, "--out", tmp_path / "a.json", "describer.batch_size=32")
    assert "acc@0.9" in output
    answers = [json.loads(line) for line in (tmp_path / "a.answers.jsonl").read_text().splitlines()]
    assert answers[0]["prompt"].startswith("Where is the ")
    shuffled = tmp_path / "shuffled.jsonl"
    lines = [{"id": row["id"], "answer": row["answer"]} for row in answers[::-1][1:]]
    shuffled.write_text(
        "".join(json.dumps(row) + "\n" for row in [*lines, lines[0] | {"answer": "?"}, {"id": "x", "answer": 1}])
    )
    output, _ = spr(*common, "--predictions", shuffled, "--dialect", "llava_onevision", "--out", tmp_path / "b.json")
    for line in ("1 missing", "1 doubled", "1 unknown"):
        assert line in output
    output, _ = spr("compare", tmp_path / "a.json", tmp_path / "b.json", "--out", tmp_path / "c.json")
    assert "95 % interval" in output
    assert json.loads((tmp_path / "c.json").read_text())[0]["n"] == len(answers)


def test_results_are_added_to_a_run_under_names_and_kept(data, tmp_path, monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["spr", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, *capsys.readouterr()

    task = Rec()
    names = task.ids(task.load(data / "expressions.json"))
    run = tmp_path / "run"
    with lock_run(run):
        (run / "metrics.json").write_text(
            '{"format_version": 2, "before": {"pope": {"n": 3}}, "seconds": {"before": 1}}'
        )
    common = ("evaluate", "rec", "--annotations", data / "expressions.json", "--dialect", "llava_onevision")

    def add(name, model, expect=0):
        answers = tmp_path / "answers.jsonl"
        rows = [{"id": name_, "answer": "here [0.10, 0.10, 0.50, 0.50]", "model": model} for name_ in names]
        answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
        code, output, errors = call(*common, "--predictions", answers, "--into", run, "--as", name)
        assert code == expect, errors
        return output, errors

    output, _ = add("before", "A")
    assert f"{run}: result before of rec, in {run / 'evaluation' / 'before-rec.json'}" in output
    assert "Replaces" not in output
    add("lr1e-4", "B")
    output, _ = add("lr1e-4", "B")
    assert "Note: Replaces the earlier result lr1e-4 of rec.\n" in output
    output, _ = add("lr1e-4", "C")
    assert "Note: Replaces the earlier result lr1e-4 of rec, of another model: B, now C." in output
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics) == {"format_version", "before", "after", "seconds", "counts", "lr1e-4"}
    assert (metrics["before"]["pope"], metrics["seconds"]) == ({"n": 3}, {"before": 1})
    entry = metrics["lr1e-4"]["rec"]
    assert (entry["items"], entry["n"]) == ("evaluation/lr1e-4-rec.items.parquet", len(names))
    assert (run / entry["items"]).is_file()
    with lock_run(run):
        _, errors = add("after", "A", expect=1)
    assert "is in use by another run" in errors
    assert not (run / "evaluation" / "after-rec.json").exists()
    for name in ("counts", "../x", ""):
        _, errors = add(name, "A", expect=2)
        assert "--as is not a name" in errors
    for options, message in (
        ((), "There is no place for the result"),
        (("--as", "after"), "--as needs --into"),
        (("--into", run), "--into needs --as"),
        (("--into", tmp_path, "--as", "after"), "is not a run folder"),
    ):
        code, _, errors = call(*common, "--predictions", tmp_path / "answers.jsonl", *options)
        assert code in (1, 2)
        assert message in errors
    (run / "adapter").mkdir()
    (run / "adapter" / "adapter_config.json").write_text("{}")
    for model in (run, run / "adapter"):
        code, _, errors = call(*common[:4], "--model", model, "--images", data / "images", "--out", tmp_path / "o.json")
        assert code == 2
        assert "--model is an adapter, not a model" in errors
        assert f"--adapter {run / 'adapter'}" in errors


def test_the_metrics_on_the_terminal_say_why_an_interval_is_missing():
    from spr.commands.evaluate import summary
    from spr.evaluation.metrics import Share
    from spr.evaluation.result import Result

    shares = {"acc@0.5": Share.mean([1, 0, 1]), "acc@0.9": Share.mean([0, 0, 1])}
    assert summary(Result("rec", {}, ("a", "b", "c"), ("1", "1", "2"), shares)) == [
        "rec: 3 items",
        f"  {'acc@0.5':<18} {'0.6667':>9}",
        f"  {'acc@0.9':<18} {'0.3333':>9}",
        "  no interval for acc@0.5, acc@0.9: 2 images, fewer than 6",
    ]


def test_doubtful_results_end_with_exit_code_3_and_nothing_usable_with_1(data, tmp_path, monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["spr", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, *capsys.readouterr()

    common = ("evaluate", "rec", "--annotations", data / "expressions.json")
    ids = [row["id"] for row in json.loads((data / "expressions.json").read_text())["images"]]
    answers, out = tmp_path / "answers.jsonl", tmp_path / "out.json"
    options = ("--predictions", answers, "--dialect", "ferret", "--out", out)
    answers.write_text("".join(json.dumps({"id": k, "text": "[0, 0, 500, 500]", "response": 1}) + "\n" for k in ids))
    code, _, errors = call(*common, *options)
    assert (code, out.exists()) == (1, False)
    assert "--answer-field text or response" in errors
    code, output, _ = call(*common, *options, "--answer-field", "text")
    n = len(ids)
    assert code == 0
    matched = f"matched by `id`: {n} of {n} items (100.0 %), {n} of {n} lines (100.0 %); answers in `text`"
    assert output.splitlines()[0] == matched
    answers.write_text("".join(json.dumps({"question": k, "answer": "[0, 0, 500, 500]"}) + "\n" for k in ids[3:]))
    code, output, _ = call(*common, *options, "--id-field", "question")
    note = f"3 of {n} items ({300 / n:.1f} %) have no usable answer (3 missing)"
    assert code == 3
    assert f"  note: {note}" in output.splitlines()[2]
    assert json.loads(out.read_text())["notes"] == [note]
    code, output, _ = call("compare", out, out)
    assert code == 0
    assert f"note: out (2): {note}" in output
    # Numbers of another dialect's scale.
    answers.write_text("".join(json.dumps({"id": k, "answer": "[0.25, 0.25, 0.5, 0.5]"}) + "\n" for k in ids))
    code, output, _ = call(*common, *options)
    note = f"{n} of {n} answers (100.0 %) have boxes with numbers from 0 to 1, unlike their dialect: check the dialect"
    assert (code, json.loads(out.read_text())["notes"]) == (3, [note])
    assert f"  {n} scale (the numbers of a box fit another scale" in output
    assert call(*common, "--predictions", answers, "--dialect", "llava_onevision", "--out", out)[0] == 0
    # No image: an error before the model is loaded, and no file.
    (tmp_path / "empty").mkdir()
    model = ("--model", "embedded/describer", "--images", tmp_path / "empty")
    code, _, errors = call(*common, *model, "--out", tmp_path / "none.json")
    assert code == 1
    assert "images can be read" in errors
    assert f"the file {tmp_path}/empty/" in errors
    assert not list(tmp_path.glob("none*"))


def test_a_runs_regions_are_described_and_scored(data, tmp_path):
    (tmp_path / "c.yaml").write_text(
        f"annotations: {{path: {data}/instances.json, images: {data}/images, min_area: 60}}\n"
    )
    _, errors = spr("evaluate", "description", "--annotations", tmp_path, "--predictions", "x", "--out", "y", expect=1)
    assert "does not hold a finished stage" in errors
    run = tmp_path / "run"
    spr("run", tmp_path / "c.yaml", "--out", run, "--until", "regions")
    out = tmp_path / "d.json"
    options = ("--samples", 2, "--temperature", 1)
    output, _ = spr("evaluate", "description", "--annotations", run, "--out", out, *options, "describer.backend=fake")
    assert "s_loc" in output
    content = json.loads(out.read_text())
    assert content["n"] == 12
    assert content["protocol"]["samples"] == 2


def test_the_command_line_and_python_give_the_same_files(data, tmp_path):
    from spr.config import DescriberConfig
    from spr.evaluation.task import evaluate
    from spr.evaluation.tasks.description import Description

    (tmp_path / "c.yaml").write_text(f"annotations: {{path: {data}/instances.json, images: {data}/images}}\n")
    spr("run", tmp_path / "c.yaml", "--out", tmp_path / "run", "--until", "regions")
    model = ("--model", "embedded/describer", "--images", data / "images")
    for task, annotations, options, name in (
        ("rec", data / "expressions.json", (), "rec"),
        (Description(samples=2), tmp_path / "run", ("--samples", 2, "--temperature", 1, "--seed", 4), "description"),
    ):
        out = tmp_path / f"cli-{name}.json"
        spr("evaluate", name, "--annotations", annotations, *model, *options, "--out", out)
        seed, temperature = (4, 1.0) if options else (None, 0.0)
        config = DescriberConfig(model="embedded/describer", temperature=temperature)
        result = evaluate(task, annotations, describer=config, images=data / "images", seed=seed)
        result.write(tmp_path / f"python-{name}.json")
        for ending in (".items.parquet", ".answers.jsonl"):
            assert (tmp_path / f"cli-{name}{ending}").read_bytes() == (tmp_path / f"python-{name}{ending}").read_bytes()
        first, second = (json.loads((tmp_path / f"{way}-{name}.json").read_text()) for way in ("cli", "python"))
        assert {**first, "items": "", "answers": ""} == {**second, "items": "", "answers": ""}


def test_an_option_of_another_task_is_an_error_that_names_the_tasks_own(tmp_path):
    files = ("--annotations", "a", "--predictions", "p", "--out", tmp_path / "b")
    for task, option, own in (
        ("rec", ("--parser", "exact"), "--prompt, --protocol, --areas"),
        ("pope", ("--areas", "share"), "--parser, --prompt"),
        ("referring", ("--samples", "2"), "--region"),
        ("description", ("--entities", "x"), "--prompt, --samples, --split"),
        ("phrase-grounding", ("--region", "box"), "--entities, --boxes, --prompt, --protocol"),
        ("detection", ("--areas", "share"), "--categories, --per, --prompt, --confidence, --synonyms"),
        ("multi-rec", ("--areas", "share"), "--prompt, --absent"),
    ):
        _, errors = spr("evaluate", task, *files, *option, expect=2)
        assert f"`spr evaluate {task}` has no such option" in errors
        assert f"the options of this task ({own})" in errors


def test_detection_from_a_file_of_answers_and_the_comparison_of_two(tmp_path):
    images = [{"id": k, "file_name": f"{k}.jpg", "width": 1000, "height": 1000} for k in range(1, 9)]
    objects = [{"id": k, "image_id": k, "category_id": 1, "bbox": [0, 0, 100, 100]} for k in range(1, 9)]
    annotations = tmp_path / "instances.json"
    categories = [{"id": 1, "name": "dog"}]
    annotations.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    boxes = {name: [f"dog [0, 0, 100, {100 - step * k}]" for k in range(1, 9)] for name, step in (("a", 1), ("b", 8))}
    common = ("evaluate", "detection", "--annotations", annotations, "--dialect", "ferret")
    for name, answers in boxes.items():
        path = write_lines(tmp_path / f"{name}.jsonl", [{"id": k, "answer": text} for k, text in enumerate(answers, 1)])
        output, _ = spr(*common, "--predictions", path, "--out", tmp_path / f"{name}.json")
    lines = [line.split() for line in output.splitlines()]
    assert lines[0][:2] == ["matched", "by"]
    # IoU 0.92, 0.84, 0.76, 0.68, 0.6, 0.52, 0.44, 0.36: six boxes at 0.5, in the order of the images.
    assert ["AP50", "0.7525"] in lines  # precision 1 up to a recall of 6/8, which is 76 of 101 levels
    assert ["AR@100", "0.3750"] in lines  # 6, 5, 5, 4, 3, 3, 2, 1, 1 and 0 of 8
    assert "no interval for AP, AP50" in output
    assert ": not a ratio of sums over images" in output
    result = json.loads((tmp_path / "b.json").read_text())
    assert result["metrics"]["AP"]["no_ci95"] == "not a ratio of sums over images"
    assert result["metrics"]["f1"]["value"] == 0.375
    output, _ = spr("compare", tmp_path / "a.json", tmp_path / "b.json", "--out", tmp_path / "c.json")
    compared = json.loads((tmp_path / "c.json").read_text())[0]["metrics"]
    assert compared["AP50"] == {
        "base": 1.0,
        "other": 0.752475,
        "difference": None,
        "p": None,
        "ci95": None,
        "no_ci95": "not a ratio of sums over images",
    }
    assert compared["f1"]["ci95"][1] < 0
    assert "worse" in output
    _, errors = spr(*common, "--predictions", path, "--confidence", "scores", "--out", tmp_path / "d.json", expect=2)
    assert "needs the field `scores`" in errors
    annotations.write_text('{"images": [], "annotations": []}')
    _, errors = spr(*common, "--predictions", path, "--out", tmp_path / "d.json", expect=1)
    assert "add `categories`" in errors


def test_rejection_from_a_file_of_answers(tmp_path):
    row = {"image": "a.jpg", "width": 1000, "height": 1000, "group": "Rejection"}
    rows = [row | {"id": k, "sentence": f"dog {k}", "boxes": [] if k % 2 else [[0, 0, 100, 100]]} for k in range(8)]
    answers = [{"id": k, "answer": "none" if k in (1, 3, 5) else "dog [0, 0, 100, 100]"} for k in range(8)]
    common = ("evaluate", "multi-rec", "--annotations", write_lines(tmp_path / "a.jsonl", rows), "--dialect", "ferret")
    path = write_lines(tmp_path / "answers.jsonl", answers)
    output, _ = spr(*common, "--predictions", path, "--out", tmp_path / "r.json")
    lines = [line.split()[:2] for line in output.splitlines()]
    assert ["rejection_acc", "0.7500"] in lines
    assert ["rejection_precision", "1.0000"] in lines
    assert ["acc@0.9", "0.8750"] in lines
    assert json.loads((tmp_path / "r.json").read_text())["groups"]["Rejection"]["n"] == 8


def test_questions_from_lvis(tmp_path):
    lvis = {
        "images": [{"id": 1, "width": 20, "height": 10, "coco_url": "http://x/1.jpg", "neg_category_ids": [2]}],
        "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 5]}],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "fork"}],
    }
    (tmp_path / "lvis.json").write_text(json.dumps(lvis))
    output, _ = spr("lvis-questions", "--annotations", tmp_path / "lvis.json", "--out", tmp_path / "q.jsonl")
    assert "1 question in" in output
    assert json.loads((tmp_path / "q.jsonl").read_text())["neg_class"] == "fork"


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["evaluate", "reg", "--annotations", "a", "--out", "b"], "did you mean `rec`", 2),
        (["evaluate", "rec", "--annotations", "a", "--out", "b"], "got:      neither", 2),
        (["evaluate", "rec", "--annotations", "a", "--out", "b", "--allow-outside-images"], "without --images", 2),
        (["evaluate", "rec", "--annotations", "a", "--out", "b", "--model", "m", "--predictions", "p"], "both", 2),
        (
            ["evaluate", "rec", "--annotations", "a", "--out", "b", "--predictions", "p", "--dialect", "feret"],
            "did you mean `ferret`",
            1,
        ),
        (["evaluate", "rec", "--annotations", "gone", "--out", "b", "--predictions", "p"], "no such file", 1),
        (["evaluate", "rec", "--annotations", "a", "--out", "b", "describer.modle=x"], "`describer.model`", 2),
        (["evaluate", "rec", "--annotations", "a", "--out", "b", "--model", "m", "seed=1"], "is malformed", 2),
        (["evaluate", "rec", "--annotations", "a", "--out", "b", "--predictions", "p", "seed=1"], "is malformed", 2),
        (["evaluate", "rec", "--annotations", "a", "--out", "b", "--adapter", "c"], "got:      neither", 2),
        (
            ["evaluate", "description", "--annotations", "a", "--out", "b", "--model", "m", "--samples", "2"],
            "--samples needs a --temperature",
            2,
        ),
        (["evaluate", "phrase-grounding", "--annotations", "a", "--out", "b", "--predictions", "p"], "--entities", 2),
        (
            ["evaluate", "rec", "--annotations", "a", "--out", "b", "--predictions", "p", "--areas", "feet"],
            "--areas is not known",
            2,
        ),
        (
            ["evaluate", "rec", "--annotations", "a", "--out", "b", "--predictions", "p", "--adapter", "c"],
            "no effect on a predictions file",
            2,
        ),
        (
            ["evaluate", "rec", "--annotations", "a", "--out", "b", "--predictions", "p", "--temperature", "1"],
            "got:      --temperature",
            2,
        ),
        (["compare", "gone.json"], "no such file", 1),
    ],
)
def test_mistakes_get_one_clear_message(arguments, message, code, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["spr", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == code
    assert message in capsys.readouterr().err
