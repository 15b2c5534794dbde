"""Progress shows nothing for two seconds, then a bar on a terminal or plain lines elsewhere."""

import io

from spr.core.progress import Progress


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_short_work_shows_nothing():
    stream, clock = io.StringIO(), Clock()
    with Progress("regions", 10, stream=stream, clock=clock) as progress:
        clock.now = 1.9
        progress.advance(10)
    assert stream.getvalue() == ""


def test_long_work_writes_a_line_every_ten_seconds_with_rate_and_time_left():
    stream, clock = io.StringIO(), Clock()
    with Progress("regions", 1000, "images", stream=stream, clock=clock) as progress:
        for second in range(1, 16):
            clock.now = second
            progress.advance(10)
    # Lines at 2 s (20 done, 10/s, 980 left) and at 12 s.
    assert stream.getvalue().splitlines() == [
        "regions: 20 of 1,000 images, 10 images/s, 98 s left",
        "regions: 120 of 1,000 images, 10 images/s, 88 s left",
    ]


def test_items_of_an_earlier_run_count_as_done_but_not_for_the_rate():
    clock = Clock()
    progress = Progress("regions", 100, "images", done=50, stream=io.StringIO(), clock=clock)
    clock.now = 5.0
    progress.advance(10)
    assert progress.line() == "regions: 60 of 100 images, 2 images/s, 20 s left"


def test_slow_work_is_shown_in_seconds_per_item():
    clock = Clock()
    progress = Progress("train", 4, "steps", stream=io.StringIO(), clock=clock)
    clock.now = 10.0
    progress.advance(2)
    assert progress.line() == "train: 2 of 4 steps, 5.0 s per step, 10 s left"


def test_a_terminal_shows_a_live_bar():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream, clock = Terminal(), Clock()
    with Progress("regions", 10, "images", stream=stream, clock=clock) as progress:
        clock.now = 3.0
        progress.advance(4)
        progress.advance(6)
    assert "regions" in stream.getvalue()
