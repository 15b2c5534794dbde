"""The longest stretch without anything new is measured in a log and on a terminal."""

import sys

import pytest

from tools.silence import Silence, main, watch


def test_any_output_ends_a_stretch_in_a_log_and_lines_are_measured():
    silence = Silence(100.0)
    silence.add(101.0, b"one\n")
    silence.add(104.5, b"one\nthe longest\n")
    silence.end(106.0)
    assert silence.longest() == [(3.5, 1.0, "one"), (1.5, 4.5, "the longest"), (1.0, 0.0, "")]
    assert (silence.lines, silence.columns) == (3, len("the longest"))


def test_a_line_that_is_drawn_again_without_a_change_is_silence_on_a_terminal():
    silence = Silence(0.0, terminal=True)
    for now, text in ((1.0, "0:01"), (1.5, "0:01"), (2.0, "0:01"), (2.5, "0:02")):
        silence.add(now, f"\rwork {text}\x1b[K\r".encode())
    silence.end(3.0)
    assert silence.longest(1) == [(1.5, 1.0, "work 0:01")]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_command_is_watched(terminal):
    code = "import sys, time; print(sys.stdout.isatty(), flush=True); time.sleep(0.3); print('end'); sys.exit(7)"
    outputs = []
    silence, status = watch([sys.executable, "-c", code], terminal=terminal, show=outputs.append)
    assert status == 7
    assert b"".join(outputs).split() == [str(terminal).encode(), b"end"]
    assert any(0.25 < seconds < 5 and shown == str(terminal) for seconds, _, shown in silence.stretches)


def test_the_exit_code_is_1_over_the_limit_or_with_a_hidden_cursor(capsys):
    command = ["--quiet", "--", sys.executable, "-c", "import time; print(1, flush=True); time.sleep(0.3)"]
    assert main(["--limit", "0.2", *command]) == 1
    assert main(["--limit", "30", *command]) == 0
    assert "after: 1" in capsys.readouterr().out
    assert main(["--terminal", "--quiet", "--", sys.executable, "-c", "print('\\x1b[?25l')"]) == 1
