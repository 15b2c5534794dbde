"""What a training says of itself: lines a program reads, lines a person reads, and the figures in them."""

import io
import json

import pytest
import torch
from accelerate import Accelerator

from spr.training.log import Meter, TrainingLog
from spr.training.loss import PairLogps, PairLosses

VALUES = {"loss": 0.5, "margin": 0.25, "accuracy": 1.0, "learning_rate": 1e-5, "tokens_per_second": 1234.0}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_line_is_an_object_with_its_event(tmp_path):
    path = tmp_path / "training" / "log.jsonl"
    with TrainingLog(path, 2, stream=io.StringIO()) as log:
        log.event("start", steps=2)
        log.step(1, VALUES, written=True)
        log.step(2, VALUES, written=False)
        log.event("end", step=2)
    assert lines(path) == [
        {"event": "start", "steps": 2},
        {"event": "step", "step": 1, **VALUES},
        {"event": "end", "step": 2},
    ]


def test_what_is_taken_again_is_taken_out_and_so_is_a_line_cut_short(tmp_path):
    path = tmp_path / "log.jsonl"
    kept = [{"event": "start", "steps": 9}, {"event": "step", "step": 1}, {"event": "checkpoint", "step": 2}]
    gone = [{"event": "step", "step": 3}, {"event": "end", "step": 9}]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept + gone) + '{"event": "step", "st')
    TrainingLog(path, 9, 2, stream=io.StringIO())
    assert lines(path) == kept


def test_the_last_step_is_shown_as_a_plain_line_where_there_is_no_terminal(tmp_path):
    stream = io.StringIO()
    with TrainingLog(tmp_path / "log.jsonl", 3, stream=stream) as log:
        for number in (1, 2, 3):
            log.step(number, VALUES, written=True)
    said = stream.getvalue().splitlines()[-1]
    assert said == "training: 3 of 3 steps, loss 0.5000, margin 0.250, accuracy 1.00, 1,234 tokens/s, 0 s left"


def test_a_line_fits_100_columns_whatever_the_values(tmp_path):
    stream = io.StringIO()
    values = VALUES | {"margin": -123.456, "tokens_per_second": 1e6, "grad_norm": 12.0, "memory_gib": 79.0}
    with TrainingLog(tmp_path / "log.jsonl", 30_000, 29_990, stream=stream) as log:
        log.step(30_000, values, written=False)
    (said,) = stream.getvalue().splitlines()
    assert said.startswith("training: 30,000 of 30,000 steps, loss 0.5000, margin -123.456, accuracy 1.00")
    assert said.endswith(" left")
    assert len(said) <= 100


def test_a_terminal_gets_a_live_line_with_a_bar_and_the_time_left(tmp_path):
    stream = Terminal()
    with TrainingLog(tmp_path / "log.jsonl", 3, stream=stream) as log:
        log.step(3, VALUES, written=True)
        line = log.progress.live_line(120)
    assert line.startswith("training ")
    assert "3 of 3 steps, loss 0.5000, margin 0.250, accuracy 1.00, 1,234 tokens/s" in line
    assert line.endswith("0:00, 0 s left")
    assert stream.getvalue() == ""  # shown by the thread only


def test_a_process_that_is_not_the_first_writes_and_shows_nothing(tmp_path):
    path, stream = tmp_path / "log.jsonl", io.StringIO()
    path.write_text('{"event": "step", "step": 7}\n')
    with TrainingLog(path, 3, stream=stream, active=False) as log:
        log.event("start")
        log.step(3, VALUES, written=True)
    assert lines(path) == [{"event": "step", "step": 7}]
    assert stream.getvalue() == ""


def batch(*rows):
    """Rows of loss, chosen reward, rejected reward, chosen and rejected log-probability."""
    loss, good, bad, chosen, rejected = torch.tensor(rows).T
    ones = torch.ones(len(rows), dtype=torch.int64)
    return PairLogps(chosen, rejected, ones, ones), PairLosses(loss, good, bad)


def test_a_steps_figures_are_means_over_pairs_not_over_batches_and_weight_0_does_not_count():
    meter = Meter(Accelerator(cpu=True))
    meter.add(*batch([1.0, 0.5, 0.0, -4.0, -6.0], [2.0, 0.0, 1.0, -8.0, -7.0]), tokens=30, weight=1.0)
    meter.add(*batch([6.0, 1.0, 0.5, -3.0, -2.0]), tokens=10, weight=1.0)
    meter.add(*batch([100.0, 9.0, 9.0, -9.0, -9.0]), tokens=99, weight=0.0)
    values = meter.read(0.75)
    # Three pairs: (1 + 2 + 6) / 3, margins (0.5 − 1 + 0.5) / 3, two of three with the greater chosen reward.
    assert values["loss"] == pytest.approx(3.0)
    assert values["margin"] == pytest.approx(0.0)
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert values["chosen_logps"] == pytest.approx(-5.0)
    assert values["rejected_logps"] == pytest.approx(-5.0)
    assert values["chosen_rewards"] == pytest.approx(0.5)
    assert values["rejected_rewards"] == pytest.approx(0.5)
    assert values["grad_norm"] == 0.75
    assert values["tokens_per_second"] > 0
    assert values["memory_gib"] > 0


def test_the_next_step_begins_at_nothing():
    meter = Meter(Accelerator(cpu=True))
    meter.add(*batch([5.0, 1.0, 0.0, -1.0, -1.0]), tokens=3, weight=1.0)
    meter.read(None)
    meter.add(*batch([1.0, 0.0, 1.0, -1.0, -1.0]), tokens=3, weight=1.0)
    values = meter.read(None)
    assert (values["loss"], values["accuracy"], values["grad_norm"]) == (1.0, 0.0, 0.0)
