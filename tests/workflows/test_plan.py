"""`spr plan`: the arithmetic from a calibration to rows, seconds, bytes and processes, worked out by hand."""

import json

import pytest

from run_folders import FAKES
from spr.config import make_config
from spr.core.errors import ConfigError
from spr.pipeline.engines.processes import Needs
from spr.workflows import plan_report
from spr.workflows.calibration import Calibration, StageCosts
from spr.workflows.measuring import Cost
from spr.workflows.plan import (
    FIRST_POOL,
    NEXT_POOL,
    RAY_START,
    Setup,
    own_setup,
    parse_duration,
    plan,
    reach,
    setups,
    stage_seconds,
)

NOTHING = Cost()


def costs(name, source, inputs, rows, per_row, **changes):
    """A stage; costs are pairs of seconds and CPU seconds."""
    values = {"drops": 0, "start": NOTHING, "fixed": NOTHING, "per_shard": NOTHING, "after": 0.0, "spread": 0.0}
    values |= {"file_bytes": 0, "row_bytes": 0.0, "drop_bytes": 0.0, "fixed_bytes": 0, "memory": 100}
    return StageCosts(name, source, "rows", inputs, rows, per_row=Cost(*per_row), **{**values, **changes})


OBJECTS = costs(
    *("objects", None, 125, 100, (0.01, 0.01)),
    drops=50,
    fixed=Cost(30.0, 30.0),
    per_shard=Cost(0.5, 0.5),
    after=0.002,
    file_bytes=1000,
    row_bytes=100.0,
    drop_bytes=10.0,
    fixed_bytes=7,
)
DESCRIBE = costs(
    *("candidates", "objects", 100, 600, (4.0, 1.0)), start=Cost(20.0, 5.0), memory=5000, needs=Needs(None, 1.0, True)
)


def calibration(*stages, **changes):
    values = {"images": 100, "shards": 4, "seconds": 60.0, "qualifying": 100_000, "stages": stages, "fixed": 3.0}
    values |= {"imports": 0.0}
    values |= {"merge": 0.001, "source_drops": 1000, "image_bytes": 5.0, "merged_bytes": 2.0, "cores": 8}
    return Calibration(**{**values, **changes})


def config(**sections):
    return make_config({"annotations": {"path": "a.json", "images": "images"}, **FAKES, **sections})


def test_rows_seconds_and_bytes_follow_from_rates_and_yields():
    found = plan(calibration(OBJECTS, DESCRIBE), config(shard_rows=500), 4000, Setup(1, 8, 0))
    # 4,000 images of 5,000 that are opened, since 100 of 125 could be used; 10 shards of 500
    assert (found.images, found.shards) == (4000, 10)
    objects, describe = found.stages
    assert (objects.inputs, objects.rows, objects.processes) == (5000, 4000, 1)
    assert objects.time.seconds == pytest.approx(30 + 10 * 0.5 + 5000 * 0.01)
    # 50 drops per 125 images; the list of what was not sampled counts once
    assert objects.bytes == 10 * 1000 + 4000 * 100 + 2000 * 10 + 7
    assert (describe.inputs, describe.rows) == (4000, 24_000)
    assert describe.time.seconds == pytest.approx(20 + 4000 * 4.0)
    assert describe.cpu_seconds == pytest.approx(5 + 4000)
    # all drops: those of reading have no row for the 3,900 images that are sampled now
    other = 3.0 + 2 * 0.001 * 2000 + 0.002 * 4000
    assert found.other == pytest.approx(other)
    assert found.total.seconds == pytest.approx(85 + 16_020 + other)
    assert found.bytes == objects.bytes + 4000 * 5 + 2000 * 2
    assert (found.driver_memory, found.model_memory) == (5000, {"candidates": 5000})


def test_a_range_holds_the_spread_of_the_shards_and_that_of_the_machine():
    spread = costs("objects", None, 100, 100, (1.0, 1.0), spread=0.24)
    unknown = costs("objects", None, 100, 100, (1.0, 1.0), spread=None)
    times = [plan(calibration(each), config(), 100, Setup(1, 8, 0)).stages[0].time for each in (spread, unknown)]
    assert (times[0].low, times[0].high) == pytest.approx((74.0, 126.0))  # √(0.1² + 0.24²) = 0.26
    assert times[1].high == pytest.approx(100 * (1 + 0.26**0.5))  # √(0.1² + 0.5²)


def test_fewer_images_than_asked_for_are_planned_if_there_are_no_more():
    measured = calibration(OBJECTS, qualifying=1000)
    found = plan(measured, config(), 4000, Setup(1, 8, 0))
    assert found.images == 800  # of each 125 images, 25 can't be used
    assert plan(measured, config(), None, Setup(1, 8, 0)).images == 800
    text = list(plan_report.notes(measured, config(), found, 4000))
    assert "the annotations have about 800 images that pass the filters, not 4,000" in text
    assert not any("pass the filters" in note for note in plan_report.notes(measured, config(), found, 800))


@pytest.mark.parametrize(
    ("processes", "cores", "seconds"),
    [
        (1, 8, 20 + 100),
        (2, 8, 20 + 50),
        (4, 8, 20 + 30),  # one of four has three of the ten shards
        (10, 80, 20 + 10),
        (4, 2, 20 + 45),  # 90 CPU seconds on two cores
    ],
)
def test_processes_share_shards_and_cores(processes, cores, seconds):
    work = Cost(100.0, 90.0)
    assert stage_seconds(DESCRIBE, work, 10, processes, cores) == pytest.approx(seconds)


def test_there_are_no_more_processes_than_shards():
    found = plan(calibration(OBJECTS), config(shard_rows=2500), 4000, Setup(8, 8, 0))
    assert (found.shards, found.stages[0].processes) == (2, 2)
    assert found.stages[0].time.seconds == pytest.approx(30 + FIRST_POOL + (2 * 0.5 + 5000 * 0.01) / 2)


def test_each_process_with_models_imports_packages_and_the_first_pool_takes_longer_to_start():
    measured = calibration(OBJECTS, DESCRIBE, imports=4.0)
    found = plan(measured, config(shard_rows=500), 4000, Setup(2, 8, 2))
    assert [stage.processes for stage in found.stages] == [2, 2]
    assert found.stages[0].time.seconds == pytest.approx(30 + FIRST_POOL + 55 / 2)
    assert found.stages[1].time.seconds == pytest.approx(20 + NEXT_POOL + 4.0 + 16_000 / 2)
    alone = plan(measured, config(shard_rows=500), 4000, Setup(1, 8, 1))
    assert alone.stages[1].time.seconds == pytest.approx(20 + 16_000)


def test_a_disturbed_calibration_gives_a_range_that_reaches_further_down():
    spread = costs("objects", None, 100, 100, (1.0, 1.0), spread=0.24)
    time = plan(calibration(spread, waited=0.4), config(), 100, Setup(1, 8, 0)).stages[0].time
    assert (time.seconds, time.low, time.high) == pytest.approx((100.0, 0.6 * 74.0, 126.0))


def test_the_number_of_gpus_for_a_wished_time():
    measured = calibration(OBJECTS, DESCRIBE, gpus=1)
    own = plan(measured, config(), 4000, own_setup(measured, config()))
    assert own.stages[1].processes == 1
    found, reached = reach(measured, config(), own, 3 * 3600.0)
    # 10 shards: with two GPUs five rounds of 1,600 s
    assert (reached, found.setup.gpus, found.stages[1].processes) == (True, 2, 2)
    assert found.stages[1].time.seconds == pytest.approx(20 + NEXT_POOL + 8000)
    assert reach(measured, config(), own, 24 * 3600.0) == (own, True)
    assert plan_report.setup_text(found.setup, config()) == "2 GPUs and 16 cores, --workers 16"


def test_half_a_gpu_per_process_gives_two_processes_per_gpu():
    shared = costs("candidates", "objects", 100, 600, (4.0, 0.1), needs=Needs(None, 0.5, True))
    found = plan(calibration(OBJECTS, shared), config(), 4000, Setup(1, 8, 2))
    assert found.stages[1].processes == 4


def test_a_time_that_no_number_of_processes_reaches_says_what_limits_it():
    measured = calibration(OBJECTS, DESCRIBE, gpus=1)
    own = plan(measured, config(), 4000, own_setup(measured, config()))
    found, reached = reach(measured, config(), own, 600.0)
    assert not reached
    assert found.stages[1].processes == found.shards == 10
    lines = list(plan_report.within_lines(config(), 600.0, found, reached))
    assert lines[1].startswith("Within 10 min 00 s: not reached. The fastest: 10 GPUs")
    assert "there are 10 shards: a smaller shard_rows than 512 gives more" in lines[2]


def test_on_cpus_processes_of_this_machine_come_first_and_then_more_machines():
    alone = costs("candidates", "objects", 100, 600, (4.0, 4.0), needs=Needs(None, 0.0, False))
    measured = calibration(OBJECTS, alone, cores=2)
    found = list(setups(measured, config()))
    assert [(s.model_processes, s.machines) for s in found[:4]] == [(1, 1), (2, 1), (2, 2), (2, 3)]
    own = plan(measured, config(), 4000, own_setup(measured, config()))
    half, reached = reach(measured, config(), own, 3 * 3600.0)
    assert (reached, half.setup.machines, half.stages[1].processes) == (True, 1, 2)
    text = "describer.num_processes=2 scorer.num_processes=2 detector.num_processes=2 --workers 2"
    assert plan_report.setup_text(half.setup, config()) == text
    several, reached = reach(measured, config(), own, 7000.0)
    assert (reached, several.setup.machines, several.setup.overlapping) == (True, 2, True)
    assert plan_report.setup_text(several.setup, config()) == "2 machines like this one (engine=ray)"


def test_a_server_is_not_made_faster_by_processes():
    remote = costs("candidates", "objects", 100, 600, (4.0, 0.1), needs=Needs(None, 0.0, False), is_remote=True)
    measured = calibration(OBJECTS, remote, gpus=0)
    settings = {"backend": "openai", "model": "m", "base_url": "http://127.0.0.1:1/v1", "dialect": "qwen2_5_vl"}
    own = plan(measured, config(describer=settings), 4000, Setup(1, 8, 0))
    found, reached = reach(measured, config(describer=settings), own, 600.0)
    assert (reached, found.stages[1].processes) == (False, 1)
    (note,) = [n for n in plan_report.notes(measured, config(describer=settings), own, None) if "asks" in n]
    assert "http://127.0.0.1:1/v1" in note
    assert "describer.concurrency (32)" in note


def test_on_ray_a_run_takes_as_long_as_its_slowest_stage_and_the_first_shard_in_the_others():
    score = costs("scores", "candidates", 600, 600, (0.5, 0.1), start=Cost(8.0, 1.0), needs=Needs(2, 0.0, False))
    measured = calibration(OBJECTS, DESCRIBE, score)
    ray = config(engine="ray")
    setup = own_setup(measured, ray)
    assert (setup.workers, setup.overlapping) == (8, True)
    found = plan(measured, ray, 4000, setup)
    # 16,000 s of describing in one process; 24,000 × 0.5 s of scoring in two
    works = [10 * 0.5 + 5000 * 0.01, 16_000.0, 12_000.0]
    assert found.stages[2].time.seconds == pytest.approx(8 + 6000)
    total = RAY_START + 20 + 30 + 16_000 + sum(works) / 10 + found.other
    several = [stage.time.seconds for stage in found.stages if stage.processes > 1]
    share = sum(several) / sum(stage.time.seconds for stage in found.stages)
    assert found.total.seconds == pytest.approx(total)
    # 10 % for the machine, 25 % more for stages in several processes, 20 % more for Ray
    assert (found.total.low, found.total.high) == pytest.approx((0.9 * total, total * (1.3 + 0.25 * share)))
    # many processes: the cores are the limit
    busy = costs("scores", "objects", 100, 100, (20.0, 20.0), needs=Needs(64, 0.0, False))
    found = plan(calibration(OBJECTS, busy), ray, 4000, setup)
    works = [10 * 0.5 + 5000 * 0.01, 80_000.0]
    assert found.total.seconds == pytest.approx(RAY_START + 30 + sum(works) / 8 + sum(works) / 10 + found.other)


def test_memory_is_that_of_the_driver_and_of_all_model_processes_at_a_time():
    several = costs("candidates", "objects", 100, 600, (4.0, 4.0), memory=5000, needs=Needs(4, 0.0, False))
    score = costs("scores", "candidates", 600, 600, (0.5, 0.1), memory=3000, needs=Needs(2, 0.0, False))
    found = plan(calibration(OBJECTS, several, score), config(), 4000, Setup(1, 8, 0))
    assert (found.driver_memory, found.memory) == (100, 100 + 4 * 5000)
    found = plan(calibration(OBJECTS, several, score), config(), 4000, Setup(1, 8, 0, overlapping=True))
    assert found.memory == 100 + 4 * 5000 + 2 * 3000


def test_what_does_not_fit_is_noted(monkeypatch):
    measured = calibration(OBJECTS, DESCRIBE, waited=0.5)
    found = plan(measured, config(), 4000, Setup(1, 8, 0))
    monkeypatch.setattr(plan_report, "_free", lambda: 1000)
    monkeypatch.setattr(plan_report.os, "sysconf", lambda _: 10)
    text = "\n".join(plan_report.notes(measured, config(), found, None))
    assert "the run folder needs 454.0 kB, and 1.0 kB are free in this folder" in text
    assert "the processes need 5.0 kB of memory, and this machine has 100 bytes" in text
    assert "waited for a core for 50% of its time" in text
    assert "small" not in text
    unknown = calibration(costs("objects", None, 2, 2, (1.0, 1.0), spread=None), images=2, shards=1)
    found = plan(unknown, config(), 4000, Setup(1, 8, 0))
    assert "the sample of 2 images in 1 shard is small" in "\n".join(plan_report.notes(unknown, config(), found, None))


def test_the_table_names_each_stage_with_its_range():
    measured = calibration(OBJECTS, DESCRIBE)
    found = plan(measured, config(), 4000, Setup(1, 8, 0))
    lines = list(plan_report.lines(measured, config(), found, None))
    assert lines[0] == "Calibration: 100 images in 4 shards, 1 min 00 s in one process (8 cores, no GPU)"
    assert lines[2] == "4,000 images, 10 shards of up to 512 rows, engine: local"
    assert lines[3].split() == ["stage", "input", "rows", "processes", "on", "disk", "time,", "and", "its", "range"]
    described = "candidates  4,000  24,000          1   0 bytes  4 h 27 min (4 h 00 min to 4 h 53 min)"
    assert lines[5] == described
    more = list(plan_report.more_lines(measured, config(), found, None))
    assert more[1] == "With more processes:"
    assert more[2].startswith("  describer.num_processes=2 ")


def test_a_duration_needs_a_unit():
    assert parse_duration("36h") == parse_duration("1d 12h") == parse_duration("1.5 d") == 129_600
    assert parse_duration("2min") == parse_duration("120 s") == parse_duration("2m") == 120
    for text in ("24", "", "h", "24 hours", "0h", "-1h", "1h!"):
        with pytest.raises(ConfigError, match="a number with a unit, such as 24h"):
            parse_duration(text)


def test_the_json_has_the_measurements_and_the_plans(tmp_path):
    measured = calibration(OBJECTS, DESCRIBE)
    found = plan(measured, config(), 4000, Setup(1, 8, 0))
    path = tmp_path / "plan.json"
    plan_report.write_json(path, measured, found, (60.0, found, False))
    content = json.loads(path.read_text())
    assert content["format"] == "spr plan"
    assert content["calibration"]["stages"][0]["fixed"] == [30.0, 30.0]
    assert content["plan"]["stages"][1]["rows"] == 24_000
    assert content["within"]["reached"] is False
    plan_report.check_json(path)  # what it wrote before may be replaced
