"""Progress is never silent: a live line whose clock moves on a terminal, a few plain lines elsewhere."""

import contextlib
import io
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from spr.core import progress as module
from spr.core.progress import Progress, advance, counted, duration, rate_text
from spr.core.terminal import echo


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A terminal; `screen` is what stays visible after carriage returns and erased lines."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        return [re.split(r"\r(?=.)|\x1b\[K", line.removesuffix("\x1b[K\r"))[-1] for line in self.getvalue().split("\n")]


def lines_at(progress: Progress, clock: Clock, stream: io.StringIO, times: range, count: int = 0) -> dict[int, str]:
    """The lines that the thread would print if it looked once a second, by second, with ``count`` items a second."""
    lines = {}
    for second in times:
        clock.now = second
        progress.advance(count)
        before = len(stream.getvalue())
        progress.print_if_due()
        if text := stream.getvalue()[before:]:
            lines[second] = text.rstrip("\n")
    return lines


def test_short_work_shows_nothing():
    stream, clock = io.StringIO(), Clock()
    with Progress("regions", 10, "images", stream=stream, clock=clock) as progress:
        assert lines_at(progress, clock, stream, range(2), 5) == {}
    assert stream.getvalue() == ""


def test_lines_come_at_2_and_10_seconds_and_then_every_30_with_rate_and_time_left():
    stream, clock = io.StringIO(), Clock()
    progress = Progress("regions", 1000, "images", stream=stream, clock=clock)
    assert lines_at(progress, clock, stream, range(1, 80), 10) == {
        2: "regions: 20 of 1,000 images, 10 images/s, 1 min 38 s left",
        10: "regions: 100 of 1,000 images, 10 images/s, 1 min 30 s left",
        40: "regions: 400 of 1,000 images, 10 images/s, 1 min 00 s left",
        70: "regions: 700 of 1,000 images, 10 images/s, 30 s left",
    }


def test_work_in_which_nothing_finishes_is_not_silent():
    stream, clock = io.StringIO(), Clock()
    progress = Progress("candidates", 6, "answers", stream=stream, clock=clock)
    assert lines_at(progress, clock, stream, range(100)) == {
        2: "candidates: 0 of 6 answers, 2 s",
        10: "candidates: still working after 10 s, 0 of 6 answers",
        40: "candidates: still working after 40 s, 0 of 6 answers",
        70: "candidates: still working after 1 min 10 s, 0 of 6 answers",
    }


def test_items_of_an_earlier_run_count_as_done_but_not_for_the_rate():
    clock = Clock()
    progress = Progress("regions", 100, "images", done=50, stream=io.StringIO(), clock=clock)
    clock.now = 5.0
    progress.advance(10)
    assert progress.line() == "regions: 60 of 100 images, 2.0 images/s, 20 s left"


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (2310.4, "2,310 answers/s"),
        (35.2, "35 answers/s"),
        (9.96, "10 answers/s"),
        (1.24, "1.2 answers/s"),
        (0.4, "0.4 answers/s"),
        (0.0951, "0.1 answers/s"),
        (0.02, "50 s per answer"),
        (0.001, "16 min 40 s per answer"),
    ],
)
def test_a_rate_has_the_digits_that_matter(rate, text):
    assert rate_text(rate, "answers") == text


def test_durations_have_two_units():
    assert [duration(s) for s in (0, 59.4, 59.6, 3599.6, 90_061)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "1 h 00 min",
        "1 d 01 h",
    ]


def test_code_far_below_counts_and_a_block_counts_exactly_its_items():
    advance(5)  # without a progress, nothing happens
    with Progress("answers", 30, stream=io.StringIO()) as progress:
        advance(2)
        with counted(10):
            advance(4)
            with counted(3):
                advance(7)  # more than the inner block has
            assert progress.done == 2 + 4 + 3
        assert progress.done == 12
        with contextlib.suppress(KeyError), counted(10):
            advance(1)
            raise KeyError
        assert progress.done == 13  # what has failed is not finished
        with counted(0):
            advance(9)
        assert progress.done == 13


def test_threads_may_count():
    progress = Progress("answers", stream=io.StringIO())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: [progress.advance() for _ in range(2000)], range(8)))
    assert progress.done == 16_000


def test_the_time_of_inner_work_does_not_count_and_its_line_replaces_the_next_outer_one():
    clock, stream = Clock(), io.StringIO()
    outer = Progress("candidates", 100, "answers", stream=stream, clock=clock)
    inner = Progress("loading model", stream=stream, clock=clock)
    clock.now = 20
    inner.print_if_due()
    outer.resume_after(inner)
    clock.now = 49
    outer.advance(29)
    outer.print_if_due()
    assert stream.getvalue() == "loading model: 20 s\n"
    clock.now = 50
    outer.advance(1)
    outer.print_if_due()
    assert stream.getvalue().splitlines()[1] == "candidates: 30 of 100 answers, 1.0 answers/s, 1 min 10 s left"


def test_other_processes_of_a_training_show_nothing(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    stream, clock = io.StringIO(), Clock()
    with Progress("training", 3, "steps", stream=stream, clock=clock) as progress:
        clock.now = 100
        progress.print_line()
    assert stream.getvalue() == ""


def test_a_live_line_has_a_clock_and_fits_the_terminal():
    clock = Clock()
    progress = Progress("candidates", 2048, "answers", stream=Terminal(), clock=clock)
    clock.now = 65.0
    progress.advance(512)
    text = "512 of 2,048 answers, 7.9 answers/s, 1:05, 3 min 15 s left"
    assert progress.live_line(100) == f"candidates {'━' * 6}{'╌' * 18} {text}"
    assert progress.live_line(72) == f"candidates {text}"
    # Where there is no room for all, the clock stays.
    assert progress.live_line(40) == "candidates 512 of 2,048 answers, 1:05"
    assert progress.live_line(30) == f"candidates {'━' * 3}{'╌' * 10} 1:05"
    assert progress.live_line(16) == "candidates 1:05"
    wide = Progress("读" * 40, stream=Terminal(), clock=clock)
    assert wide.live_line(21) == "读" * 9 + "…"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(module, "_REDRAW_EVERY", 0.01)


def wait_for(condition) -> None:
    until = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.usefixtures("quick")
def test_on_a_terminal_the_line_is_the_last_one_and_is_gone_at_the_end(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    with Progress("regions", 10, "images") as progress:
        wait_for(lambda: "regions" in terminal.getvalue())
        progress.advance(4)
        wait_for(lambda: "4 of 10 images" in terminal.getvalue())
        echo("a line of the program")
        sys.stderr.write("a warning ")
        sys.stderr.write("in two parts\n")
        count = terminal.getvalue().count("4 of 10")
        wait_for(lambda: terminal.getvalue().count("4 of 10") > count)
    assert (sys.stderr, sys.stdout) == (terminal, terminal)
    assert [line.strip("\r") for line in terminal.screen()] == ["a line of the program", "a warning in two parts", ""]
    assert "\x1b[?25l" not in terminal.getvalue()  # the cursor is never hidden


@pytest.mark.usefixtures("quick")
def test_no_thread_is_left_whatever_ends_the_work(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    for error in (ValueError, KeyboardInterrupt):
        with contextlib.suppress(error), Progress("outer"), Progress("inner") as progress:
            wait_for(lambda: "inner" in terminal.getvalue())
            assert sum(thread.name == "progress" for thread in threading.enumerate()) == 1
            progress.advance()
            raise error
        assert not [thread for thread in threading.enumerate() if thread.name == "progress"]
        assert sys.stderr is terminal
        assert terminal.screen()[-1].strip("\r") == ""


@pytest.mark.usefixtures("quick")
def test_a_stream_that_nobody_reads_ends_nothing():
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    with Progress("regions", 10, "images", first=0.0, stream=Closed()) as progress:
        time.sleep(0.05)
        progress.advance(1)
    assert progress.done == 1
