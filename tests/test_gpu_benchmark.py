"""benchmarks/gpu.py on the CPU: its rehearsal measures, is continued after it was killed, and repeats nothing."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import warm_python

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
sys.path.append(str(BENCHMARK.parent))  # its parts import each other
gpu, gpu_rows = importlib.import_module("gpu"), importlib.import_module("gpu_rows")

# Says which process it is, and starts the processes of the cases as `sys.executable`.
WARM = """
import os, runpy, sys
from pathlib import Path
print(os.getpid(), flush=True)
sys.executable, *sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(out: Path, *options: str, cases: list[str], warm: bool = True) -> subprocess.Popen:
    python = [*warm_python.start(), "-c", WARM, warm_python.executable()] if warm else [sys.executable]
    kind = [] if "--rehearse" in options else ["--rehearse"]
    command = [*python, str(BENCHMARK), *kind, "--out", str(out), *options, "--cases", *cases]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []


# ── the rows and tables ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_torn_line_is_ignored_and_the_next_row_begins_on_a_line_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "deeper" / "rows.jsonl"
    row = {"case": "matmul", "rehearsal": False, "status": "ok"}
    gpu_rows.append_row(out, row)
    whole = out.read_bytes()
    for torn in (b'{"case": "dpo', b'{"case": "d\xc3', b"[1, 2]", b'{"case": "dpo"}'):
        out.write_bytes(whole + torn)
        assert gpu_rows.read_rows(out) == [row]
        gpu_rows.append_row(out, {**row, "case": "next"})
        assert out.read_bytes().splitlines()[1] == torn
        assert gpu_rows.read_rows(out) == [row, {**row, "case": "next"}]
    assert gpu_rows.read_rows(tmp_path / "missing.jsonl") == []


ENVIRONMENT = {"rehearsal": False, "wall_s": 1.0, "time": 1.8e9, "device": "NVIDIA H100 80GB HBM3", "dtype": "bfloat16"}
ENVIRONMENT |= {"torch": "2.11.0", "trl": "1.16.0"}
# Figures that were made up for this test.
ROWS = [
    {"case": "matmul", "status": "ok", "tflops": 700.0, "side": 8192},
    {"case": "dpo m ours", "status": "ok", "s_per_pair": 0.25, "peak_gib": 30.0, "gib_beyond_weights": 14.5},
    {"case": "dpo m trl", "status": "failed", "error": "code 1: out of | memory"},
    {"case": "describe m", "status": "ok", "prompt": 3000, "peak_gib": 9.0, "k1_tokens_per_s": 1234.5, "k6_ratio": 3.5},
    {"case": "score clip", "status": "ok", "per_s": 500.0, "bare_per_s": 625.0, "ratio": 0.8, "peak_gib": 2.25},
    {"case": "four bits", "status": "skipped", "reason": "bitsandbytes is not installed"},
]


def test_tables_show_each_case_once_with_device_versions_and_day() -> None:
    later = {"case": "dpo m trl", "status": "ok", "s_per_pair": 0.75, "peak_gib": 60.0, "times_ours": 3.0}
    later |= {"loss_apart": 0.002, "agree": True, "share": 0.4, "share_of_datasheet": 0.25}
    lines = gpu_rows.tables([{**ENVIRONMENT, **row} for row in (*ROWS, later)]).splitlines()
    assert lines[0] == "NVIDIA H100 80GB HBM3; bfloat16; torch 2.11.0, trl 1.16.0; 2027-01-15"
    assert "| m | 0.25 | 0.75 | 3.00 | 30.0 | 60.0 | 14.5 / – | 0.002 | – / 40% | – / 25% |" in lines
    assert "| m | 3,000 | 1 | 1,234 | – | – | 9.00 |" in lines
    assert "| m | 3,000 | 6 | – | – | 3.50 | 9.00 |" in lines
    assert "| clip | 500 | 625 | 0.8 | 2.25 |" in lines
    assert "| matmul | tflops 700, side 8,192 |" in lines
    assert "| four bits | skipped | bitsandbytes is not installed |" in lines
    assert not any("out of" in line for line in lines)  # the failed row was measured again


def test_tables_say_when_losses_differ_and_when_it_is_a_rehearsal() -> None:
    differs = {"case": "dpo m trl", "status": "ok", "loss_apart": 0.2, "agree": False}
    shown = gpu_rows.tables([{**ENVIRONMENT, **row, "rehearsal": True} for row in (*ROWS, differs)])
    assert "| 0.2, more than allowed |" in shown
    assert "a rehearsal: sizes are tiny, and no figure means anything" in shown.splitlines()[0]
    failed = gpu_rows.tables([{**ENVIRONMENT, **row} for row in ROWS])
    assert "| dpo m trl | failed | code 1: out of \\| memory |" in failed


def test_a_table_of_a_file_without_rows_is_an_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--table", str(tmp_path / "none.jsonl")], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith("none.jsonl has no rows")


# ── the cases ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_cases_fit_into_eight_minutes_by_their_estimates_small_models_first() -> None:
    assert sum(case.seconds for case in gpu.CASES.values()) <= 8 * 60
    names = list(gpu.CASES)
    large = [k for k, name in enumerate(names) if "7b" in name]
    assert [k for k, name in enumerate(names) if "0.5b" in name] < large
    # TRL's row compares with ours.
    for model in ("llava-onevision-0.5b", "qwen2.5-vl-7b", "llava-onevision-7b", "llava-onevision-7b checkpointing"):
        assert names.index(f"dpo {model} trl") == names.index(f"dpo {model} ours") + 1


def test_missing_packages_and_a_missing_gpu_are_said_before_any_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "NEEDED", ("json", "no_such_package_here"))
    with pytest.raises(SystemExit, match="Missing packages: no_such_package_here; install them, or gather"):
        gpu.check_machine(None)
    monkeypatch.setattr(gpu, "NEEDED", ("json",))
    with monkeypatch.context() as patch:
        patch.setattr(gpu.importlib.util, "find_spec", lambda _: SimpleNamespace(origin="/opt/wheels/datasets/x.py"))
        with pytest.raises(SystemExit, match="install the wheels into a folder that is named site-packages"):
            gpu.check_machine("float32")
    monkeypatch.setattr(gpu, "CHECK", "raise SystemExit('PyTorch 2.13.0 sees no GPU')")
    with pytest.raises(SystemExit, match=r"The GPU can't be used: PyTorch 2\.13\.0 sees no GPU; to try the cases"):
        gpu.check_machine(None)
    gpu.check_machine("float32")  # a rehearsal needs none


def test_no_time_is_a_row_once(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text('{"case": "matmul", "rehearsal": false, "status": "ok"}\n{"case": "mat')  # cut short
    for _ in range(2):
        gpu.measure_all(out, ["matmul"], 0.0, "float32", retry=False)
    lines = out.read_text().splitlines()
    assert len(lines) == 3
    row = json.loads(lines[2])
    assert (row["status"], row["reason"], row["rehearsal"]) == ("no time", "needs 1 s, 0 s are left", True)


def test_killed_in_the_middle_of_a_case_the_next_call_measures_what_is_missing(tmp_path: Path) -> None:
    out, cases = tmp_path / "rows.jsonl", ["matmul", "dpo llava-onevision-0.5b ours"]
    first = start(out, cases=cases)
    command = int(first.stdout.readline())
    wait_for(lambda: rows_of(out), first)  # the first case is done, the second one runs
    os.kill(command, signal.SIGKILL)
    first.communicate(timeout=60)
    check_that_it_is_continued(out, cases)


def check_that_it_is_continued(out: Path, cases: list[str]) -> None:
    (before,) = rows_of(out)
    assert (before["case"], before["status"]) == (cases[0], "ok")
    with out.open("a") as file:
        file.write('{"case": "dpo llava')  # as if it had been killed while it wrote
    second = start(out, cases=cases)
    shown = second.communicate(timeout=240)[0]
    assert second.returncode == 0, shown
    rows = gpu_rows.read_rows(out)
    assert rows[0] == before
    assert [(row["case"], row["status"]) for row in rows] == [(case, "ok") for case in cases]
    third = start(out, cases=cases)
    third.stdout.readline()
    assert third.communicate(timeout=60)[0] == ""
    assert gpu_rows.read_rows(out) == rows


PARENT = """
import subprocess, sys
code = "import gpu, time; gpu.end_with_parent(); print(1, flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code], cwd=sys.argv[1], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def test_the_process_of_a_case_ends_with_the_command_even_if_that_is_killed() -> None:
    command = [sys.executable, "-c", PARENT, str(BENCHMARK.parent)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    child.wait(timeout=20)
    assert not child.is_running()


@pytest.mark.slow
def test_killed_in_the_middle_of_a_case_no_process_is_left(tmp_path: Path) -> None:
    out, cases = tmp_path / "rows.jsonl", ["matmul", "dpo llava-onevision-0.5b ours"]
    first = start(out, cases=cases, warm=False)
    wait_for(lambda: rows_of(out), first)
    children = psutil.Process(first.pid).children(recursive=True)
    assert children
    first.kill()
    first.communicate()
    _, left = psutil.wait_procs(children, timeout=20)
    assert left == []
    check_that_it_is_continued(out, cases)


def wait_for(what, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "nothing after two minutes"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_case_that_the_end_of_the_time_stops_is_measured_later(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    start(out, "--minutes", "0.03", cases=["matmul"], warm=False).communicate(timeout=60)
    (row,) = rows_of(out)
    assert row["status"] == "no time"
    assert row["reason"].startswith(("stopped after the last", "needs 1 s"))


@pytest.mark.slow
def test_a_failed_case_costs_only_itself_and_is_repeated_only_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        assert skipped["reason"] == "a rehearsal has no GPU"
    start(out, "--retry", cases=cases).communicate(timeout=120)
    assert [row["case"] for row in rows_of(out)] == [cases[0], cases[1], cases[0]]


# ── the whole rehearsal ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    out = tmp_path_factory.mktemp("gpu") / "rows.jsonl"
    process = start(out, cases=[""])
    shown = process.communicate(timeout=900)[0]
    assert process.returncode == 0, shown
    return {row["case"]: row for row in rows_of(out)}


@pytest.mark.slow
def test_every_case_is_rehearsed_but_those_that_need_a_gpu(rehearsal: dict[str, dict]) -> None:
    assert list(rehearsal) == list(gpu.CASES)
    skipped = {name for name, row in rehearsal.items() if row["status"] == "skipped"}
    assert "four bits" in skipped
    assert skipped <= {"four bits", "attention flex", "attention flash"}
    for name, row in rehearsal.items():
        assert row["status"] in ("ok", "skipped"), row
        assert (row["device"], row["dtype"], row["rehearsal"]) == ("cpu", "float32", True), name
        assert row["wall_s"] > 0
    shown = gpu_rows.tables(list(rehearsal.values()))
    assert all(name in shown for name in skipped)
    assert "None" not in shown
    assert "nan" not in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    ["llava-onevision-0.5b", "qwen2.5-vl-7b", "llava-onevision-7b", "llava-onevision-7b checkpointing"],
)
def test_both_trainers_see_the_same_losses(rehearsal: dict[str, dict], model: str) -> None:
    ours, trl = (rehearsal[f"dpo {model} {name}"] for name in ("ours", "trl"))
    assert len(ours["losses"]) == len(trl["losses"]) == 3
    assert ours["first_loss"] == pytest.approx(0.693147, abs=1e-5)  # log 2: the policy is the reference
    assert ours["losses"][1][0] != ours["losses"][0][0]  # it learns
    for one, other in zip(ours["losses"], trl["losses"], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert trl["agree"] is True
    assert trl["loss_apart"] == max(abs(a[0] - b[0]) for a, b in zip(ours["losses"], trl["losses"], strict=True))
    assert trl["times_ours"] == pytest.approx(trl["s_per_pair"] / ours["s_per_pair"])
    assert 0 < ours["counted_tflop"] < trl["counted_tflop"]
    rate = rehearsal["matmul"]["tflops"]
    for row in (ours, trl):
        assert row["share"] == pytest.approx(row["counted_tflop"] / row["s_per_pair"] / rate)
        assert "share_of_datasheet" not in row  # a CPU is in no such list


@pytest.mark.slow
def test_a_prompt_has_the_tokens_of_its_image_and_text(rehearsal: dict[str, dict]) -> None:
    # An image of 56 × 42 pixels is shown whole, as 2 × 2 patches, and as 2 × 2 tiles of 28 pixels: 4 rows of 4 patches
    # with a newline each. The question has 60 letters and the chat template 20 tokens.
    row = rehearsal["dpo llava-onevision-0.5b ours"]
    assert row["patches"] == 5 * 4
    assert row["prompt"] == 4 + 4 * (4 + 1) + 60 + 20


@pytest.mark.slow
def test_describing_and_scoring_have_rates_and_ratios(rehearsal: dict[str, dict]) -> None:
    for name in ("describe llava-onevision-0.5b", "describe qwen2.5-vl-7b"):
        row = rehearsal[name]
        for k in ("k1", "k6"):
            ratio = row[f"{k}_tokens_per_s"] / row[f"{k}_generate_tokens_per_s"]
            assert row[f"{k}_ratio"] == pytest.approx(ratio)
    for name in ("score clip", "score grounding-dino"):
        row = rehearsal[name]
        assert row["ratio"] == pytest.approx(row["per_s"] / row["bare_per_s"])
    assert rehearsal["ferret-7b step"]["first_loss"] == pytest.approx(0.693147, abs=1e-4)


@pytest.mark.slow
def test_running_out_of_memory_halves_batches_and_says_what_to_do(rehearsal: dict[str, dict]) -> None:
    row = rehearsal["memory describe"]
    assert row["rows_before"] == 8
    assert row["rows_after"] == 2  # 8 and 4 don't fit
    assert row["same_answers"] == row["of_answers"] == 8
    assert "A single item does not fit into the device's memory" in row["message"]
    assert row["limit"].startswith("faked")
    row = rehearsal["memory train"]
    assert "training.per_device_train_batch_size" in row["message"]
    assert row["steps_after"] == 3
    assert row["reference_again"] == 0
    assert row["limit"].startswith("faked")


@pytest.mark.slow
def test_in_bfloat16_as_on_a_gpu_the_trainers_agree_within_the_stated_tolerance(tmp_path: Path) -> None:
    out, cases = tmp_path / "rows.jsonl", ["dpo llava-onevision-0.5b", "describe llava-onevision-0.5b", "ferret"]
    process = start(out, "--rehearse", "bfloat16", cases=cases)
    shown = process.communicate(timeout=300)[0]
    rows = {row["case"]: row for row in rows_of(out)}
    assert [row["status"] for row in rows.values()] == ["ok"] * 4, shown
    assert {row["dtype"] for row in rows.values()} == {"bfloat16"}
    trl = rows["dpo llava-onevision-0.5b trl"]
    assert trl["allowed"] == {"losses": 0.02, "logps": 1e-3}
    assert trl["agree"] is True, trl
