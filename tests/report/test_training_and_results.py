"""Training logs and metrics, whole, broken and odd."""

import json
import math
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from spr.cli import app
from spr.core.errors import RunError
from spr.evaluation.compare import compare, conclude
from spr.evaluation.metrics import Share
from spr.evaluation.result import Result
from spr.evaluation.task import TASKS
from spr.report.charts import result_charts, training_charts
from spr.report.page import write_report
from spr.report.results import Change, read_results
from spr.report.training import read_training, read_trainings, thin
from spr.runs.reader import Run, read_json_lines
from spr.runs.store import dropped_table, write_table


def step(number, **values):
    return {"event": "step", "step": number, **values}


def test_the_last_line_of_a_repeated_step_counts(make_run):
    maker = make_run()
    maker.log_training(
        [step(1, loss=3.0), step(2, loss=9.0), {"event": "checkpoint"}, step(2, loss=1.0), step(3, loss=0.5)]
    )
    log = read_training(Run(maker.write()))
    assert log.steps.tolist() == [1, 2, 3]
    assert log.values["loss"].tolist() == [3.0, 1.0, 0.5]


def test_unreadable_lines_are_counted_and_the_rest_is_shown(make_run):
    maker = make_run()
    lines = [
        step(1, loss=0.7),
        '{"event": "st',
        "[1]",
        '"x"',
        "",
        '{"event": "step", "step": "4"}',
        "\x00",
        step(5, loss=0.6),
    ]
    maker.log_training(lines)
    log = read_training(Run(maker.write()))
    assert log.steps.tolist() == [1, 5]
    # Half an object, a list, a text and a NUL.
    assert log.broken == 4
    assert "4 lines of the log can’t be read" in write_report(maker.write()).read_text(encoding="utf-8")


def test_a_non_finite_loss_leaves_a_gap_and_is_counted(make_run):
    maker = make_run()
    maker.log_training(
        ['{"event": "step", "step": 1, "loss": NaN}', step(2, loss=0.5), step(3, loss=None), step(4, loss=0.4)]
    )
    log = read_training(Run(maker.write()))
    assert log.not_finite("loss") == 2
    (chart,) = training_charts(log)
    assert chart.note == "2 steps without a finite number (loss)."
    assert "nan" not in chart.svg


def test_the_summary_shows_the_mean_of_the_last_tenth_of_the_steps(make_run):
    maker = make_run()
    maker.log_training([step(k, accuracy=1.0 if k > 18 else 0.0) for k in range(1, 21)] + [{"event": "end"}])
    log = read_training(Run(maker.write()))
    assert log.finished
    # Steps 19 and 20 of 20.
    assert log.last("accuracy") == 1.0
    assert log.last("nothing") is None


def test_pairs_that_were_not_trained_on_are_counted_by_reason(make_run):
    maker = make_run()
    maker.log_training([step(1, loss=1)])
    drops = dropped_table("training", "pair", [("0/0", "too_long"), ("1/0", "too_long"), ("2/0", "image_missing")])
    write_table(maker.folder / "training" / "dropped.parquet", drops.drop_columns(["file_name"]))  # as it was before
    named = maker.folder / "trainings" / "fast" / "training"
    named.mkdir(parents=True)
    (named / "log.jsonl").write_text(json.dumps(step(1, loss=1)) + "\n")
    write_table(named / "dropped.parquet", dropped_table("training", "pair", [("3/0", "too_long")], ["/home/me/3.png"]))
    index = write_report(maker.write())
    default, fast = re.split("<h3>fast</h3>", index.read_text(encoding="utf-8"))
    assert "Pairs that were not trained on: 2 too long, 1 image missing." in default
    assert "Pairs that were not trained on: 1 too long." in fast
    dropped = (index.parent / "gallery" / "dropped.js").read_text()
    assert '"stage":"training","kind":"pair","reason":"too_long"' in dropped
    assert '"ids":["0/0","1/0"],"files":[null,null]' in dropped
    assert '"stage":"training fast","kind":"pair","reason":"too_long"' in dropped
    assert '"ids":["3/0"],"files":["3.png"]' in dropped  # without the folders of a machine


def test_without_a_logged_step_there_are_no_curves(make_run):
    maker = make_run()
    assert read_training(Run(maker.write())) is None
    maker.log_training([{"event": "start", "beta": 0.1}])
    assert read_training(Run(maker.write())) is None
    assert read_json_lines(maker.folder / "nothing") == ([], 0)


def test_held_out_curves_and_further_trainings_are_shown(make_run):
    maker = make_run()
    evaluations = [{"event": "eval", "step": n, "eval_loss": 0.5 / n, "eval_s_loc": 0.1 * n} for n in (2, 4)]
    maker.log_training([step(1, loss=1), step(3, loss=0.5), *evaluations])
    folder = maker.folder / "trainings" / "lr1e-4" / "training"
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text(json.dumps(step(1, loss=0.25)), encoding="utf-8")
    run = maker.write()
    trainings = read_trainings(Run(run))
    assert list(trainings) == [None, "lr1e-4"]
    steps, values = trainings[None].held_out["loss"]
    assert (steps.tolist(), values.tolist()) == ([2.0, 4.0], [0.25, 0.125])
    assert trainings["lr1e-4"].values["loss"].tolist() == [0.25]
    headings = [chart.heading for chart in training_charts(trainings[None])]
    assert headings == ["Loss", "Held out: s_loc"]
    text = write_report(run).read_text(encoding="utf-8")
    assert text.index("<h3>Default training</h3>") < text.index("Held out: s_loc") < text.index("<h3>lr1e-4</h3>")
    assert "held out" in text


def test_a_continued_training_shows_the_settings_of_an_undisturbed_one(make_run):
    start = {"event": "start", "steps": 2, "beta": 0.1}
    settings = []
    for again in ([], [{**start, "first_step": 1}]):
        maker = make_run()
        maker.log_training([{**start, "first_step": 0}, step(1, loss=0.7), *again, step(2, loss=0.6)])
        settings.append(read_training(Run(maker.write())).settings)
    assert settings[0] == settings[1] == {"steps": 2, "beta": 0.1}


def test_long_curves_are_thinned_by_means():
    xs, ys = thin(np.arange(1000.0), np.arange(1000.0) % 2, points=100)
    assert len(xs) == 100
    # Ten neighbours, half of them 0 and half 1.
    assert ys.tolist() == [0.5] * 100


def result(task="rec", n=10, **metrics):
    return {
        "task": task,
        "protocol": {"box": "first"},
        "n": n,
        "metrics": metrics,
        "groups": {},
        "problems": {"missing": {"count": 1, "ids": ["7"]}, "malformed": 2},
    }


def write_metrics(run, before=None, after=None):
    sides = {"format_version": 2, "before": before, "after": after}
    (run / "metrics.json").write_text(json.dumps({k: v for k, v in sides.items() if v is not None}), encoding="utf-8")


IMAGES = tuple(map(str, range(40)))


def measured(folder, name, task="description", **metrics):
    """A result of 40 images with these values per image, written into a folder; its content."""
    shares = {metric: Share.mean(values) for metric, values in metrics.items()}
    return Result(task, {"model": name}, IMAGES, IMAGES, shares).write(folder / f"{name}.json", folder)


def noise(amount):
    """Values that differ from 0.5 by ± ``amount`` in turn: their mean is 0.5."""
    return [0.5 + (amount if k % 2 else -amount) for k in range(40)]


def test_only_differences_whose_interval_excludes_zero_are_better_or_worse(make_run):
    run = make_run().write()
    flat, up = [0.5] * 40, [0.6 + 0.02 * (k % 2) for k in range(40)]
    base = {"s_loc": flat, "recall@0.5": flat, "unmatched_boxes": flat, "words": flat, "boxes": flat}
    new = {"s_loc": up, "recall@0.5": noise(0.3), "unmatched_boxes": up, "words": up, "boxes": flat}
    before, after = measured(run, "before", **base), measured(run, "after", **new)
    write_metrics(run, {"description": before}, {"description": after})
    (task,) = read_results(Run(run))
    assert task.columns == ["before", "after"]
    assert task.notes == []
    found = {line.name: (line.changes[0].verdict, line.changes[0].style) for line in task.lines}
    assert found == {
        "s_loc": ("better", "better"),
        "recall@0.5": ("same", ""),
        "unmatched_boxes": ("worse", "worse"),
        "words": ("changed", ""),
        "boxes": ("same", ""),
    }
    (change,) = task.lines[0].changes
    assert change.text == "+0.1100"
    low, high = (float(bound) for bound in change.interval.replace("+", "").split(" to "))
    assert 0.1 < low < 0.11 < high < 0.12
    html = write_report(run).read_text(encoding="utf-8")
    assert re.search(r'<td class="n better">\+0\.1100 <small>better</small><br><small>\+0\.10\d+ to \+0\.11\d+', html)
    assert re.search(r'<td class="n">±0\.0000 <small>no significant difference</small>', html)
    assert '<dd class="better">0.610<small>before 0.500, difference +0.1100: better</small></dd>' in html
    # The same conclusion in the terminal.
    lines = conclude(compare([run]), run)
    assert lines[2].split() == ["better", "s_loc", "0.5000", "→", "0.6100"]
    assert lines[3].split() == ["worse", "unmatched_boxes", "0.5000", "→", "0.6100"]
    assert lines[4].split() == ["changed", "words", "0.5000", "→", "0.6100"]
    assert lines[5].split() == ["no", "significant", "change", "recall@0.5,", "boxes"]
    assert len(lines) == 6
    (run / "adapter").mkdir()
    assert conclude(compare([run]), run)[6:] == [
        f"  Adapter: {run / 'adapter'}",
        f"  Next: weigh what got worse, in the answers of {run / 'evaluation'}, before you use the adapter.",
    ]


def test_the_next_step_after_a_comparison_fits_the_run(make_run):
    run = make_run().write()
    flat = [0.5] * 40
    sides = {name: measured(run, name, s_loc=values) for name, values in (("before", flat), ("a", noise(0.3)))}
    up = measured(run, "b", s_loc=[0.6 + 0.02 * (k % 2) for k in range(40)])
    (run / "trainings" / "b" / "adapter").mkdir(parents=True)

    def conclusion(**results):
        content = {"format_version": 2, "counts": {}, **{k: {"description": v} for k, v in results.items()}}
        (run / "metrics.json").write_text(json.dumps(content))
        return conclude(compare([run]), run)

    assert "or measure on more than 40 images (annotations.holdout)." in conclusion(**sides)[-1]
    assert conclusion(before=sides["before"], b=up)[-1] == (
        f"  Next: `spr merge {run} --name b --out FOLDER` makes a whole model of it."
    )
    (run / "trainings" / "a" / "adapter").mkdir(parents=True)
    *_, chance, step = conclusion(**sides, b=up)
    assert "--name NAME --out FOLDER" in step
    assert chance.startswith("  Of 2 differences, about 1 in 20 is significant by chance alone")
    (run / "adapter").mkdir()
    assert f"`spr merge {run} --out FOLDER`" in conclusion(**sides, b=up)[-1]


def test_further_results_of_a_run_are_columns_against_before_and_files_are_shown_without_changing_it(
    make_run, tmp_path
):
    run = make_run().write()
    sides = {name: measured(run, name, **{"acc@0.5": [value] * 40}) for name, value in (("before", 0.5), ("lr", 0.7))}
    (run / "metrics.json").write_text(
        json.dumps({"format_version": 2, "counts": {}, **{name: {"rec": side} for name, side in sides.items()}})
    )
    (task,) = read_results(Run(run))
    assert (task.columns, task.lines[0].changes[0].text) == (["before", "lr"], "+0.2000")
    measured(tmp_path, "A", task="rec", **{"acc@0.5": noise(0.5)})
    measured(tmp_path, "B", task="rec", **{"acc@0.5": noise(0.4)})
    content = (run / "metrics.json").read_bytes()
    CliRunner().invoke(app, ["report", str(run), "--compare", str(tmp_path / "A.json"), str(tmp_path / "B.json")])
    assert (run / "metrics.json").read_bytes() == content
    html = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<th scope="col" class="n">([AB]|before) <small>', html) == ["A", "B"]
    assert "better</small>" not in html
    left = CliRunner().invoke(app, ["report", str(run), str(tmp_path / "A.json")])
    assert "Only one run can be reported" in str(left.exception)


def test_without_values_per_item_differences_are_shown_without_a_claim(make_run):
    run = make_run().write()
    old, new = {"acc@0.5": {"value": 0.81, "ci95": [0.79, 0.83]}, "n_odd": 5}, {"acc@0.5": {"value": 0.4}, "n_odd": 5}
    new["words"] = {"value": 39.5, "ci95": None, "no_ci95": "5 images, fewer than 6"}
    write_metrics(run, {"rec": result(**old)}, {"rec": {**result(**new), "notes": ["3 of 9 items failed"]}})
    (task,) = read_results(Run(run))
    assert task.problems == {"missing": [1, 1], "malformed": [2, 2]}
    missing = "the values per item (.items.parquet) of one of them are missing"
    assert task.notes == ["after: 3 of 9 items failed", f"differences of before and after are not tested: {missing}"]
    assert [(line.name, line.values[0] and line.values[0].interval, line.changes[0]) for line in task.lines] == [
        ("acc@0.5", "0.7900–0.8300", Change("−0.4100")),
        ("n_odd", "", Change("±0.0000")),
        ("words", None, None),
    ]
    html = write_report(run).read_text(encoding="utf-8")
    assert '<td class="n">−0.4100</td>' in html
    assert "39.50<br><small>no interval: 5 images, fewer than 6</small>" in html


def test_each_task_gives_directions_and_none_to_its_counts():
    directed = {name: {*task.higher_is_better, *task.lower_is_better} for name, task in TASKS.items()}
    assert all(directed.values())
    assert not any(set(task.higher_is_better) & set(task.lower_is_better) for task in TASKS.values())
    # Counts and shares that can be too high or too low have none.
    assert not directed["description"] & {"words", "boxes", "phrases"}
    assert "yes_share" not in directed["pope"]


def test_accuracy_by_iou_is_a_curve_with_intervals(make_run):
    run = make_run().write()
    metrics = {f"acc@{at}": {"value": 1.0 - at, "ci95": [0.9 - at, 1.1 - at]} for at in (0.9, 0.5, 0.7)}
    write_metrics(run, {"rec": result(**metrics)}, {"rec": result(**metrics)})
    (task,) = read_results(Run(run))
    assert [at for at, _ in task.curves["acc"]["after"]] == [0.5, 0.7, 0.9]
    (chart,) = result_charts(task)
    assert chart.heading == "Accuracy by IoU"
    assert chart.svg.count('class="interval') == 6
    assert "before: from 0.5 to 0.1; after: from 0.5 to 0.1" in chart.svg


def test_results_of_one_side_and_unknown_tasks_and_metrics_are_shown(make_run):
    run = make_run().write()
    write_metrics(run, {"new_task": result("new_task", strange=0.25, broken={"value": None}, odd={"value": math.nan})})
    (task,) = read_results(Run(run))
    assert [(line.name, [value and value.text for value in line.values], line.changes) for line in task.lines] == [
        ("strange", ["0.2500"], []),
        ("broken", [None], []),
        ("odd", [None], []),
    ]
    assert "0.2500" in write_report(run).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"before": 3}',
        '{"format_version": 2, "before": {"rec": {"metrics": {"a": {"x": 1}}}}}',
        '{"format_version": 2, "before": {"rec": 5}}',
        "{" * 9999,
    ],
)
def test_damaged_metrics_are_an_error_before_anything_is_written(make_run, text):
    run = make_run().write()
    (run / "metrics.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=r"metrics\.json is damaged(.|\n)*fix:"):
        write_report(run)
    assert not (run / "report").exists()


def test_metrics_of_version_0_1_are_an_error(make_run):
    run = make_run().write()
    (run / "metrics.json").write_text('{"before": {}, "after": {}}', encoding="utf-8")
    with pytest.raises(RunError, match=r"another format version(.|\n)*got: +1 \(none is given\)(.|\n)*expected: 2"):
        write_report(run)
