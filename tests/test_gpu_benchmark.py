"""benchmarks/gpu.py on the CPU: its rehearsal measures, is continued after it was killed, and repeats nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import warm_python

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
CASES = ["dpo llava-onevision-0.5b ours", "dpo llava-onevision-0.5b trl", "describe llava-onevision-0.5b"]


# The processes of the cases start as `sys.executable`.
WARM = "import runpy, sys; sys.executable, *sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


def start(out: Path, *options: str, cases: list[str] = CASES, warm: bool = True) -> subprocess.Popen:
    python = [*warm_python.start(), "-c", WARM, warm_python.executable()] if warm else [sys.executable]
    command = [*python, str(BENCHMARK), "--rehearse", "--out", str(out), *options, "--cases", *cases]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True)


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []


@pytest.fixture(scope="module")
def killed_and_continued(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], Path]:
    """The rows after the first one, with which the call was killed, and the file after a second call."""
    out = tmp_path_factory.mktemp("gpu") / "rows.jsonl"
    first = start(out, warm=False)
    deadline = time.monotonic() + 120
    while not rows_of(out):
        assert first.poll() is None, "the benchmark ended without a row"
        assert time.monotonic() < deadline, "no row after two minutes"
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    before = rows_of(out)
    second = start(out)
    second.communicate(timeout=240)
    assert second.returncode == 0
    return before, out


@pytest.mark.slow
def test_a_killed_call_is_continued_and_a_third_one_adds_nothing(
    killed_and_continued: tuple[list[dict], Path],
) -> None:
    before, out = killed_and_continued
    assert [row["case"] for row in before] == CASES[: len(before)]
    assert len(before) < len(CASES)
    rows = rows_of(out)
    assert rows[: len(before)] == before
    assert [row["case"] for row in rows] == CASES
    third = start(out)
    assert third.communicate(timeout=60)[0] == ""
    assert rows_of(out) == rows


@pytest.mark.slow
def test_rows_have_their_figures_and_both_trainers_see_the_same_losses(
    killed_and_continued: tuple[list[dict], Path],
) -> None:
    ours, trl, describe = rows_of(killed_and_continued[1])
    for row in (ours, trl, describe):
        assert row["status"] == "ok", row
        assert row["rehearsal"] is True
        assert row["device"] == "cpu"
        assert row["wall_s"] > 0
    assert len(ours["losses"]) == len(trl["losses"]) == 3
    assert ours["first_loss"] == pytest.approx(0.693147, abs=1e-5)  # log 2: the policy is the reference
    assert ours["losses"][1][0] != ours["losses"][0][0]  # it learns
    for one, other in zip(ours["losses"], trl["losses"], strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert trl["agree"] is True
    assert trl["loss_apart"] == max(abs(a[0] - b[0]) for a, b in zip(ours["losses"], trl["losses"], strict=True))
    assert trl["times_ours"] == pytest.approx(trl["s_per_pair"] / ours["s_per_pair"])
    # An image of 56 × 42 pixels is shown whole, as 2 × 2 patches, and as 2 × 2 tiles of 28 pixels: 4 rows of 4 patches
    # with a newline each. The question has 60 letters and the chat template 20 tokens.
    assert ours["patches"] == 5 * 4
    assert ours["prompt"] == 4 + 4 * (4 + 1) + 60 + 20
    assert 0 < ours["counted_tflop"] < trl["counted_tflop"]
    assert describe["k1_ratio"] == pytest.approx(describe["k1_tokens_per_s"] / describe["k1_generate_tokens_per_s"])
    assert describe["k6_tokens_per_s"] > 0


@pytest.mark.slow
def test_no_time_is_a_row_once_and_is_measured_later(tmp_path: Path) -> None:
    out, case = tmp_path / "rows.jsonl", ["matmul"]
    out.write_text('{"case": "matmul", "rehearsal": false, "status": "ok"}\n{"case": "mat')  # cut short
    for _ in range(2):
        start(out, "--minutes", "0", cases=case).communicate(timeout=60)
    lines = out.read_text().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[2])["status"] == "no time"
    shown = start(out, cases=case).communicate(timeout=120)[0]
    assert shown.startswith("matmul")
    row = json.loads(out.read_text().splitlines()[3])
    assert row["status"] == "ok"
    assert row["tflops"] > 0


def test_a_case_that_the_end_of_the_time_stops_is_measured_later(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    start(out, "--minutes", "0.02", cases=["matmul"], warm=False).communicate(timeout=60)
    (row,) = rows_of(out)
    assert row["status"] == "no time"
    assert row["reason"] == "stopped after the last 1 s"


@pytest.mark.slow
def test_a_failed_case_costs_only_itself_and_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trl").mkdir()
    (tmp_path / "trl" / "__init__.py").write_text("raise RuntimeError('out of order')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    out, cases = tmp_path / "rows.jsonl", ["dpo llava-onevision-0.5b trl", "four bits"]
    for _ in range(2):
        start(out, cases=cases).communicate(timeout=120)
        failed, skipped = rows_of(out)
        assert failed["status"] == "failed"
        assert failed["error"] == "code 1: RuntimeError: out of order"
        assert skipped["status"] == "skipped"
        assert "no GPU" in skipped["reason"]
