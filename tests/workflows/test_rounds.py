"""Rounds: each describes and trains with the adapter of the round before; how they resume, and when they stop."""

import csv
import json
import re
from collections import Counter
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

import spr
from spr.cli import app
from spr.config import load_config, read_section
from spr.core.errors import ConfigError, InputError, RunError
from spr.core.paths import as_path
from spr.core.randomness import stable_hash
from spr.embedded.scenes import write_scenes
from spr.evaluation.compare import compare
from spr.models.describers.hf import HfDescriber
from spr.pipeline import runner
from spr.report.page import write_report
from spr.report.show import show
from spr.runs.store import StageStore
from spr.runs.trainings import lock_folder
from spr.training.session import Session
from spr.training.stopping import InterruptedTrainingError
from spr.workflows import rounds as workflow
from spr.workflows.evaluations import Evaluation
from spr.workflows.rounds import RoundsEvaluation, rounds, table
from spr.workflows.rounds_table import falls

OVERRIDES = (
    "annotations.crowds=drop",
    "annotations.holdout=0.55",
    "annotations.max_images=12",
    "describer.samples={full: 2, crop: 0, crop_objects: 0}",
    "describer.num_processes=1",
    "scorer={backend: fake}",
    "detector={backend: fake}",
    "scoring.ground_truth=annotations",
    "training.lora={r: 4, lora_alpha: 8}",
    "training.learning_rate=0.02",
    "training.max_steps=1",
    "training.per_device_train_batch_size=4",
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes_in(tmp_path_factory.mktemp("scenes"))


def write_scenes_in(folder):
    write_scenes(folder / "scenes", 24, 5)
    return folder / "scenes"


@pytest.fixture(scope="module")
def config(scenes):
    """Overrides → the embedded describer on a few generated scenes."""

    def make(*changes):
        paths = [f"annotations.path={scenes / 'instances.json'}", f"annotations.images={scenes / 'images'}"]
        return load_config("quickstart", [*paths, *OVERRIDES, *changes])

    return make


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    """Two rounds: their folder, what was reported and the outcome."""
    out, lines = tmp_path_factory.mktemp("done") / "rounds", []
    outcome = rounds(config(), out, n=2, stop="never", report=lines.append)
    return SimpleNamespace(out=out, lines=lines, outcome=outcome, table=(out / "table.json").read_bytes())


def without_times(data):
    return re.sub(rb'"seconds": [\d.]+', b"", data)


def column(run, stage, name):
    return [row for part in StageStore(run / stage).tables() for row in part[name].to_pylist()]


def test_a_round_describes_and_trains_with_the_adapter_of_the_round_before(done, config):
    first, second = done.out / "round-00", done.out / "round-01"
    adapter = str(first / "adapter")
    before, after = (load_config(run / "config.yaml") for run in (first, second))
    assert before == config()  # the first round is an ordinary run
    assert (after.describer.peft_adapter, str(after.training.init_adapter)) == (adapter, adapter)
    assert after.describer.seed == stable_hash(0, "round", "1") >> 1
    # Nothing else differs, and what no adapter changes is taken over.
    plain = after.describer.model_copy(update={"peft_adapter": None, "seed": None})
    assert plain == before.describer
    assert after.training.model_copy(update={"init_adapter": None}) == before.training
    for stage in ("objects", "regions"):
        assert (second / stage / "part-00000.parquet").samefile(first / stage / "part-00000.parquet")
    names = [set(column(run, "candidates", "model")) for run in (first, second)]
    assert [[name.partition("+")[2][:8] for name in found] for found in names] == [[""], ["adapter@"]]
    assert column(first, "candidates", "raw_text") != column(second, "candidates", "raw_text")
    identity = json.loads(pq.read_schema(second / "training" / "reference.parquet").metadata[b"identity"])
    assert identity["init_adapter"].startswith("lora@")


def test_the_table_has_the_numbers_of_each_round_and_paired_differences(done):
    content = json.loads(done.table)
    _, first, second = content["rows"]
    assert [row["name"] for row in content["rows"]] == ["base", "round-00", "round-01"]
    assert (content["metric"], content["stop"], content["stopped_after"]) == ("description:s_loc", "never", None)
    assert (first.get("described_by"), second["described_by"]) == (None, "round-00/adapter")
    regions = column(done.out / "round-00", "regions", "split")
    assert second["pipeline"]["regions"] == len(regions) == 12
    splits = Counter(column(done.out / "round-01", "pairs", "split"))
    assert second["pipeline"]["pairs"] == splits.total()
    assert second["training"]["pairs"] == splits["train"]
    scores = column(done.out / "round-01", "scores", "score")
    assert second["pipeline"]["mean_score"] == pytest.approx(sum(scores) / len(scores), abs=1e-6)
    margins = column(done.out / "round-01", "pairs", "margin")
    assert second["pipeline"]["mean_margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-6)
    # The difference to the round before and to the base, as `spr compare` gives them.
    results = {name: done.out / "results" / f"{name}.description.json" for name in ("base", "round-00", "round-01")}
    assert json.loads(results["base"].read_text())["n"] == Counter(regions)["holdout"]
    for other, differences in (("round-00", second["to_before"]), ("base", second["to_base"])):
        (comparison,) = compare([results[other], results["round-01"]])
        expected = comparison.to_json()["metrics"]["s_loc"]
        found = differences["description"]["s_loc"]
        assert found == {name: value for name, value in expected.items() if name not in ("base", "other")}
    assert first["to_before"] == first["to_base"]
    values = {row["name"]: row["results"]["description"]["s_loc"]["value"] for row in content["rows"]}
    assert len(set(values.values())) == 3  # each round has changed the answers
    assert values[content["best"]] == max(values.values())
    with (done.out / "table.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert float(written[2]["description s_loc"]) == values["round-01"]
    assert float(written[2]["description s_loc to base"]) == second["to_base"]["description"]["s_loc"]["difference"]
    text = "\n".join(table(done.outcome))
    assert "description s_loc (higher is better)" in text
    assert f"{values['round-01']:.4f}" in text


def test_each_round_is_a_run_that_other_commands_read(done):
    run = done.out / "round-01"
    assert any("query_id" in line for line in show(run / "pairs", n=1, skip=0))
    (comparison,) = compare([run])
    expected = json.loads(done.table)["rows"][2]["to_before"]["description"]["s_loc"]["difference"]
    (row,) = [row for row in comparison.rows if row.metric == "s_loc"]
    assert row.difference.value == pytest.approx(expected, abs=1e-6)
    page = write_report(run).read_text(encoding="utf-8")
    assert "s_loc" in page


def test_a_second_call_does_nothing_and_a_greater_n_adds_rounds(config, done, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("a finished round was computed again")

    with monkeypatch.context() as patch:
        for owner, name in ((HfDescriber, "describe"), (Session, "forward"), (workflow, "evaluate")):
            patch.setattr(owner, name, forbidden)
        lines = []
        rounds(config(), done.out, n=2, stop="never", report=lines.append)
    assert "  description: done before" in lines
    assert (done.out / "table.json").read_bytes() == done.table
    outcome = rounds(config(), done.out, n=3, stop="never")
    assert [row.name for row in outcome.rows] == ["base", "round-00", "round-01", "round-02"]
    longer = json.loads((done.out / "table.json").read_text())
    assert longer["rows"][:3] == json.loads(done.table)["rows"]
    assert longer["rows"][3]["described_by"] == "round-01/adapter"
    assert load_config(done.out / "round-02" / "config.yaml").describer.seed == stable_hash(0, "round", "2") >> 1
    # With the old number, the table is the old one, and a line names what it lacks.
    lines.clear()
    rounds(config(), done.out, n=2, stop="never", report=lines.append)
    assert lines[-1].strip() == "Not in the table, because --n is 2: round-02."
    assert (done.out / "table.json").read_bytes() == done.table


def test_interrupted_anywhere_it_resumes_to_the_same_table(config, done, tmp_path, monkeypatch):
    out = tmp_path / "rounds"
    calls = Counter()

    def stopping(owner, name, at, error=KeyboardInterrupt, *, after=False):
        """The ``at``-th call of a function is interrupted, before or after it did its work; later ones are not."""
        plain, key = getattr(owner, name), f"{name} {at} {after}"

        def watched(*arguments, **options):
            calls[key] += 1
            if calls[key] == at and not after:
                raise error("Interrupted")
            result = plain(*arguments, **options)
            if calls[key] == at:
                raise error("Interrupted")
            return result

        return owner, name, watched

    points = [
        (workflow, "_save", 1),  # before anything is written
        (workflow, "evaluate", 1),  # after the regions
        (workflow, "_save", 1),  # a result, of which the state does not know
        (HfDescriber, "describe", 1),  # in the candidates
        (Session, "forward", 2),  # in the training
        (workflow, "train", 1, KeyboardInterrupt, True),  # after the training, before its evaluation
        (workflow, "put", 2),  # between the results of a run
        (HfDescriber, "describe", 1),  # in the second round
        (workflow, "write_atomically", 5),  # at the last table
    ]
    for owner, name, at, *more in points:
        error = more[0] if more else InterruptedTrainingError if owner is Session else KeyboardInterrupt
        with monkeypatch.context() as patch:
            patch.setattr(*stopping(owner, name, at, error, after=len(more) > 1))
            calls.clear()
            with pytest.raises(error):
                rounds(config(), out, n=2, stop="never")
    rounds(config(), out, n=2, stop="never")
    assert without_times((out / "table.json").read_bytes()) == without_times(done.table)
    assert (out / "table.csv").read_bytes().count(b"\n") == 4
    for name in ("round-00", "round-01"):
        ours, theirs = (folder / name / "adapter" / "adapter_model.safetensors" for folder in (out, done.out))
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
    ("change", "message", "got"),
    [
        ("training.beta=0.3", "was made with another config", "training.beta: 1.0 → 0.3"),
        ("regions.min_inside=4", "was made with another config", "regions.min_inside: 5 → 4"),
        ("seed=1", "was made with another config", "seed: 0 → 1"),
    ],
)
def test_a_changed_config_is_refused_by_the_name_of_its_field(change, message, got, config, done):
    with pytest.raises(RunError, match=message) as caught:
        rounds(config(change), done.out, n=2)
    assert caught.value.got == got


def test_other_data_and_a_locked_folder_are_refused_and_runtime_fields_may_change(config, done):
    with pytest.raises(RunError, match="was made with other data"):
        rounds(config(), done.out, n=2, data="fresh")
    with lock_folder(done.out, "x", "wait"), pytest.raises(RunError, match="is in use by another `spr rounds`"):
        rounds(config(), done.out, n=2)
    changed = config("describer.batch_size=7", "training.save_steps=3", "training.eval_steps=1")
    assert len(rounds(changed, done.out, n=1, stop="never").rows) == 2


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        ((), {"n": 0}, "--n is out of range"),
        ((), {"data": "other"}, "--data is unknown"),
        ((), {"stop": "sometimes"}, "--stop is unknown"),
        ((), {"metric": "s_lock"}, "--metric is not a metric"),
        ((), {"metric": "rec:s_loc"}, "--metric is not a metric"),
        ((), {"metric": "words"}, "--metric is not a metric"),
        (("annotations.holdout=0",), {}, "There is nothing to evaluate the rounds on"),
        (("annotations.max_images=null",), {"data": "fresh"}, "--data fresh needs the number of images"),
        (("describer.backend=fake",), {}, "can't load the adapter of the round before"),
        (("describer=null",), {}, "There is no model to train"),
        (("describer.peft_adapter=a",), {}, "Training starts from a model without an adapter"),
        (("training.init_adapter=a",), {}, "answers of another model than the one it starts from"),
        ((), {"evaluations": [Evaluation(task="recc")]}, "recc"),
        ((), {"evaluations": [Evaluation(task="description", options={"sampels": 1})]}, "sampels"),
        ((), {"evaluations": [Evaluation(task="rec"), Evaluation(task="rec")]}, "the same name"),
        ((), {"evaluations": [Evaluation(task="rec", annotations="none.json")]}, "names no file"),
        ((), {"evaluations": [Evaluation(task="description", images="none")]}, "images: none"),
        ((), {"evaluations": [Evaluation(task="rec", images=".")]}, "The evaluation `rec` has no annotations"),
        ((), {"evaluations": [Evaluation(task="description", describer={"batchsize": 2})]}, "batchsize"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(overrides, options, message, config, tmp_path):
    with pytest.raises(ConfigError, match=message):
        rounds(config(*overrides), tmp_path / "rounds", **{"n": 2, **options})
    assert not (tmp_path / "rounds").exists()


def test_without_held_out_regions_it_says_what_to_change_before_a_model_is_loaded(config, tmp_path, monkeypatch):
    monkeypatch.setattr(workflow, "evaluate", lambda *_, **__: pytest.fail("evaluates"))
    with pytest.raises(InputError, match="no held-out regions to evaluate the rounds on") as error:
        rounds(config("annotations.holdout=1e-9"), tmp_path / "rounds", n=1)
    assert "12 regions, 0 of them of held-out images" in str(error.value)
    assert "annotations.holdout or more images, with another --out" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("evaluate: [{task: rec, annotation: a}]", "`evaluate.0.annotation` is not a known key; did you mean"),
        ("evaluate: [{task: rec}, {options: {}}]", "`evaluate.1.task` is missing"),
        ("evaluate: [rec]", "`evaluate.0` is not valid: got 'rec'"),
        ("evaluate: []", "`evaluate` has no entries"),
        (None, "There is no file .*evaluate.yaml"),
    ],
)
def test_mistakes_in_the_file_of_evaluations_are_named(content, message, tmp_path):
    path = tmp_path / "evaluate.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_section(RoundsEvaluation, path)
    assert "2 problems" not in str(error.value)


def test_a_launcher_and_a_folder_of_something_else_are_refused(config, done, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for folder in (tmp_path / "mine", done.out / "round-00"):
        with pytest.raises(RunError, match="is not a folder of `spr rounds`") as error:
            rounds(config(), folder, n=2)
        assert "a folder with " in str(error.value)
    with pytest.raises(ConfigError, match="is in object storage"):
        rounds(config(), as_path("s3://bucket/rounds"), n=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="Rounds run in one process"):
        rounds(config(), tmp_path / "rounds", n=2)


@pytest.mark.parametrize(
    ("value", "interval", "direction", "by_interval", "by_value"),
    [
        (-0.02, [-0.03, -0.01], 1, True, True),
        (-0.02, [-0.05, 0.01], 1, False, True),
        (-0.02, [-0.03, 0.0], 1, False, True),  # 0 is not excluded
        (-0.02, None, 1, False, True),
        (0.02, [0.01, 0.03], 1, False, False),
        (0.02, [0.01, 0.03], -1, True, True),  # lower is better
        (-0.02, [-0.03, -0.01], -1, False, False),
        (0.0, None, 1, False, False),
        (None, None, 1, False, False),
    ],
)
def test_the_rule_looks_at_the_interval_or_at_the_value(value, interval, direction, by_interval, by_value):
    difference = {"difference": value, "ci95": interval}
    assert falls(difference, direction, "interval") is by_interval
    assert falls(difference, direction, "value") is by_value
    assert falls(difference, direction, "never") is False


@pytest.fixture
def quick(monkeypatch):
    """Rounds that compute nothing: differences by round → the numbers of calls."""

    def make(*differences):
        calls = Counter()

        def run(_, out, *, until=None, **__):
            calls[f"run {until}"] += 1
            (out / "adapter").mkdir(parents=True, exist_ok=True)
            (out / "adapter" / "adapter_model.safetensors").write_bytes(out.name.encode())
            return [SimpleNamespace(name=name, rows=4) for name in ("regions", "candidates", "pairs")]

        def train(*_, **__):
            calls["train"] += 1
            return SimpleNamespace(pairs=4, steps=1, seconds=0.5, last={"loss": 0.5}, done_before=False)

        def evaluate(*_, **__):
            calls["evaluate"] += 1
            content = {"metrics": {"s_loc": {"value": 0.5, "ci95": None}}}
            return SimpleNamespace(write=lambda path: path.write_text(json.dumps(content)))

        def paired(_, path):
            number = int(path.name[6:8])
            return {"s_loc": {"difference": differences[number], "ci95": [differences[number] - 0.01] * 2, "p": 0.01}}

        for name, fake in (("train", train), ("evaluate", evaluate), ("paired_differences", paired)):
            monkeypatch.setattr(workflow, name, fake)
        monkeypatch.setattr(workflow.runner, "run", run)
        monkeypatch.setattr(workflow, "_mean", lambda *_: 0.25)
        for name in ("_add_to_run", "_check_held_out"):
            monkeypatch.setattr(workflow._Job, name, lambda *_: None)
        return calls

    return make


def test_a_held_out_score_that_falls_ends_the_rounds_and_says_so(quick, config, tmp_path):
    calls, lines = quick(0.02, -0.02, 0.02), []
    outcome = rounds(config(), tmp_path / "rounds", n=3, report=lines.append)
    assert [row.name for row in outcome.rows] == ["base", "round-00", "round-01"]
    assert (calls["train"], calls["evaluate"]) == (2, 3)
    text = "\n".join(lines)
    assert "Stopped after round-01: description s_loc fell from 0.5000 in round-00 to 0.5000: -0.0200" in text
    assert "repeat the command with --stop never" in text
    content = json.loads((tmp_path / "rounds" / "table.json").read_text())
    assert content["stopped_after"] == "round-01"
    # Repeated, it stops there again without evaluating; told to go on, it goes on.
    again = rounds(config(), tmp_path / "rounds", n=3)
    assert (again.fell, calls["evaluate"]) == ("round-01", 3)
    outcome = rounds(config(), tmp_path / "rounds", n=3, stop="never")
    assert [row.name for row in outcome.rows] == ["base", "round-00", "round-01", "round-02"]
    assert calls["evaluate"] == 4
    assert json.loads((tmp_path / "rounds" / "table.json").read_text())["stopped_after"] is None


def test_a_fall_in_the_last_round_is_reported_too(quick, config, tmp_path):
    quick(-0.02)
    lines = []
    outcome = rounds(config(), tmp_path / "rounds", n=1, report=lines.append)
    assert outcome.fell == "round-00"
    assert "Stopped after round-00" in lines[-1]


def test_fresh_data_are_the_next_images_of_the_sample_until_none_is_left(config, tmp_path, monkeypatch, quick):
    plain = runner.run
    quick(*[0.01] * 4)

    def run(config, out, *, until=None, **options):
        if until is not None:
            return plain(config, out, until=until, **options)
        (out / "adapter").mkdir(parents=True, exist_ok=True)
        (out / "adapter" / "adapter_model.safetensors").write_bytes(b"")
        return [SimpleNamespace(name=name, rows=4) for name in ("regions", "candidates", "pairs")]

    monkeypatch.setattr(workflow.runner, "run", run)
    with pytest.raises(InputError, match="Stage `objects` has no images") as caught:
        rounds(config("annotations.max_images=9"), tmp_path / "rounds", n=4, data="fresh")
    (note,) = caught.value.__notes__
    assert note.startswith("  round-03 was to take 9 images that no round before used: use --n 3, or start again")
    found = [column(tmp_path / "rounds" / f"round-0{k}", "objects", "image_id") for k in range(3)]
    assert list(map(len, found)) == [9, 9, 6]
    assert len({image for images in found for image in images}) == 24
    configs = [load_config(tmp_path / "rounds" / f"round-0{k}" / "config.yaml") for k in range(3)]
    assert [config.annotations.skip_images for config in configs] == [None, 9, 18]


def test_the_command_line_evaluates_as_its_file_says_and_an_interrupt_ends_with_130(
    quick, config, scenes, tmp_path, monkeypatch
):
    quick(0.02, 0.02)
    rec = {"task": "rec", "annotations": str(scenes / "expressions.json"), "images": str(scenes / "images")}
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump({"evaluate": [{"task": "description"}, rec]}))
    (tmp_path / "config.yaml").write_text(config().to_yaml())
    arguments = ["rounds", str(tmp_path / "config.yaml"), "training.beta=0.5", "--n", "1"]
    arguments += ["--out", str(tmp_path / "rounds"), "--evaluate", str(tmp_path / "evaluate.yaml")]
    finished = CliRunner().invoke(app, arguments)
    assert finished.exit_code == 0, finished.output
    assert "description s_loc 0.5000; to base: +0.0200 [+0.0100, +0.0100] *" in finished.output
    assert "table.json" in finished.output
    assert sorted(path.name for path in (tmp_path / "rounds" / "results").iterdir()) == [
        f"{row}.{task}.json" for row in ("base", "round-00") for task in ("description", "rec")
    ]

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(workflow, "train", interrupted)
    stopped = CliRunner().invoke(app, arguments)
    assert stopped.exit_code == 130
    assert "run the same command to resume" in stopped.output


def test_it_is_part_of_the_public_api():
    assert spr.rounds is rounds
