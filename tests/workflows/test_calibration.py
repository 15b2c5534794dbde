"""Calibration: what rounds measure, and `spr plan` as a command, with fake models."""

import itertools
import json
import re
import sys
import tempfile
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from run_folders import FAKES, rows
from spr.cli import app
from spr.config import make_config
from spr.core.errors import InputError, RunError
from spr.pipeline.runner import run
from spr.workflows import calibration, measuring
from spr.workflows.calibration import Round, calibrate, calibration_folder, fit, sample_config, spread
from spr.workflows.measuring import Cost, MeasuringEngine, Shard, StageTimes, peak_memory
from spr.workflows.plan import Setup, plan


def shard(number, inputs, seconds, cpu=0.0):
    return Shard(number, inputs, Cost(seconds, cpu))


def test_two_sizes_of_shards_tell_their_own_cost_from_that_of_their_rows():
    small = [shard(1, 2, 1.0), shard(2, 2, 9.0), shard(3, 2, 1.2, cpu=0.2)]
    large = [shard(1, 100, 10.0, cpu=4.0), shard(2, 100, 12.0, cpu=6.0)]
    per_shard, per_row = fit(small, large)
    # the median of the small ones is 1.2 s: (1.2 × 100 − 11 × 2) / 98 = 1 s per shard
    assert per_shard.seconds == pytest.approx(1.0)
    assert per_row.seconds == pytest.approx(0.1)
    assert per_shard.cpu == 0.0  # the median of the small ones is 0
    assert per_row.cpu == pytest.approx(0.05)


def test_costs_are_never_negative_and_one_size_says_nothing_about_shards():
    assert fit([], [shard(1, 10, 5.0)]) == (Cost(), Cost(0.5, 0.0))
    assert fit([shard(1, 8, 4.0)], [shard(1, 10, 5.0)]) == (Cost(), Cost(0.5, 0.0))  # too alike
    assert fit([shard(1, 2, 7.0)], [shard(1, 100, 5.0)]) == (Cost(5.0, 0.0), Cost())
    assert fit([], [shard(1, 0, 5.0)]) == (Cost(5.0, 0.0), Cost())


def test_the_spread_is_the_interval_of_the_mean_without_the_first_shard():
    shards = [shard(0, 10, 99.0), shard(1, 10, 10.0), shard(2, 10, 12.0), shard(3, 5, 7.0), shard(4, 4, 99.0)]
    images = {0: 10, 1: 10, 2: 10, 3: 5, 4: 4}
    # per image 1.0, 1.2 and 1.4: mean 1.2, deviation 0.2, Student's t 4.3
    assert spread(shards, images) == pytest.approx(4.3 * 0.2 / 3**0.5 / 1.2)
    assert spread(shards[:2], images) is None
    assert spread([], {}) is None


def finished(images, seconds, empty=None):
    engine = MeasuringEngine(make_config({"annotations": {"path": "a", "images": "b"}}))
    engine.stages["objects"] = StageTimes(shards=[shard(0, images // 2, 1e6), shard(1, images // 2, seconds / 2)])
    return Round(images, None, engine, [], {}, 0.0, empty)


def test_a_round_follows_until_it_takes_long_enough_or_there_are_no_more_images():
    assert finished(8, 4.0).work == pytest.approx(4.0)  # the first shard also starts the stage
    assert calibration._next(finished(8, 4.0), 10_000, None, 120.0) == 240
    assert calibration._next(finished(8, 4.0), 100, None, 120.0) == 100
    assert calibration._next(finished(8, 0.01), 10_000, None, 120.0) == 8 * calibration.GROWTH
    assert calibration._next(finished(8, 400.0), 10_000, None, 120.0) == 32
    assert calibration._next(finished(200, 39.0), 10_000, None, 120.0) == 800
    assert calibration._next(finished(200, 41.0), 10_000, None, 120.0) == 0
    assert calibration._next(finished(8, 4.0), 10_000, 50, 120.0) == 50
    assert calibration._next(finished(50, 4.0), 10_000, 50, 120.0) == 50
    # a stage without rows in a few images may have some in more
    assert calibration._next(finished(8, 400.0, InputError("none")), 10_000, None, 120.0) == 256


def test_shards_of_a_sample_are_several_and_hold_whole_groups_of_queries():
    config = make_config({"annotations": {"path": "a", "images": "b"}})
    sizes = {images: calibration._shard_rows(config, images) for images in (1, 8, 63, 64, 300, 600, 2048, 10_000)}
    assert sizes == {1: 1, 8: 2, 63: 15, 64: 16, 300: 32, 600: 96, 2048: 320, 10_000: 512}


def test_a_sample_runs_in_one_process_of_this_machine():
    models = {name: {"backend": "fake", "num_processes": 4} for name in ("describer", "scorer", "detector")}
    config = make_config({"annotations": {"path": "a", "images": "b"}, "engine": "ray", **models})
    sample = sample_config(config, 20, 5)
    assert (sample.annotations.max_images, sample.shard_rows, sample.engine.name) == (20, 5, "local")
    assert [getattr(sample, name).num_processes for name in models] == [1, 1, 1]
    assert config.describer.num_processes == 4


def test_the_engine_counts_what_each_shard_takes(dataset, tmp_path):
    config = make_config(dataset.config(**FAKES, shard_rows=10))
    ticks, cpu_ticks = itertools.count(), itertools.count(step=3)
    engine = MeasuringEngine(config, lambda: next(ticks), lambda: next(cpu_ticks))
    summaries = run(config, tmp_path / "run", engine=engine)
    assert list(engine.stages) == [summary.name for summary in summaries]
    for times in engine.stages.values():
        assert [found.number for found in times.shards] == [0, 1, 2, 3]
        assert {found.cost for found in times.shards} == {Cost(1, 3)}  # two readings of each clock
        assert times.load == Cost(1, 3)
        assert 1e7 < times.memory <= peak_memory() * 100
        assert times.gpu_memory == 0
    assert sum(found.inputs for found in engine.stages["pairs"].shards) == summaries[3].rows


class FakeTorch:
    """The part of PyTorch that the measuring engine uses."""

    def __init__(self, gpus=0):
        self.threads, self.set = 8, []
        self.cuda = SimpleNamespace(
            is_available=lambda: gpus > 0,
            device_count=lambda: gpus,
            reset_peak_memory_stats=lambda device: self.set.append(f"reset {device}"),
            max_memory_reserved=lambda device: 100 + device,
        )

    def get_num_threads(self):
        return self.threads

    def set_num_threads(self, count):
        self.threads = count
        self.set.append(count)


def test_a_model_of_several_cpu_processes_is_measured_with_the_threads_of_one(dataset, tmp_path, monkeypatch):
    fake = FakeTorch()
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setattr(measuring, "threads_each", lambda processes: 8 // processes)
    models = {**FAKES, "describer": {"backend": "fake", "num_processes": 4}}
    config = make_config(dataset.config(**models))
    run(sample_config(config, 4, 2), tmp_path / "run", engine=MeasuringEngine(config))
    assert fake.set == [2, 8]  # only while candidates are made


def test_the_peak_of_gpu_memory_is_that_of_the_fullest_gpu(dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", FakeTorch(gpus=2))
    config = make_config(dataset.config(**FAKES))
    engine = MeasuringEngine(config)
    run(sample_config(config, 4, 2), tmp_path / "run", engine=engine)
    assert engine.stages["candidates"].gpu_memory == 101


def test_a_plan_of_the_whole_sample_has_its_rows_and_its_bytes(dataset, tmp_path):
    config = make_config(dataset.config(**FAKES, shard_rows=16, annotations={"holdout": 0.0}))
    summaries = run(config, tmp_path / "run")
    measured = calibrate(config, tmp_path / "calibration", 40)
    found = plan(measured, config, 40, Setup(1, 2, 0))
    assert measured.images == found.images == 40
    assert [stage.rows for stage in found.stages] == [summary.rows for summary in summaries]
    for stage in found.stages:
        size = sum(path.stat().st_size for path in (tmp_path / "run" / stage.name).iterdir())
        assert stage.bytes == pytest.approx(size, rel=0.1)
    size = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert found.bytes == pytest.approx(size, rel=0.15)
    assert found.shards == 3
    assert all(stage.time.seconds > 0 for stage in found.stages)
    assert found.model_memory.keys() == {"objects", "candidates", "scores"}


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, and a current folder that must stay empty."""
    for name in ("temporary", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "temporary"


def arguments(dataset, tmp_path, *more, **sections):
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(dataset.config(**sections)))
    return ["plan", str(config), *more]


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_command_prints_a_plan_and_leaves_nothing_behind(dataset, tmp_path, temporary):
    before = content(dataset.folder)
    command = arguments(dataset, tmp_path, "--images", "30", "--within", "24h", "--json", "plan.json", **FAKES)
    for _ in range(2):  # the JSON file of the same command is replaced
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    names = [line.split()[0] for line in result.stdout.splitlines() if line]
    stages = ["objects", "regions", "candidates", "scores", "pairs"]
    assert names[names.index("stage") + 1 :][:7] == [*stages, "other", "total"]
    assert re.search(r"^30 images, 1 shard of up to 512 rows, engine: local$", result.stdout, re.MULTILINE)
    assert re.search(r"^objects +30 +30 +1 ", result.stdout, re.MULTILINE)
    assert "Within 1 d 00 h: " in result.stdout
    assert content(dataset.folder) == before
    assert list(temporary.iterdir()) == []
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["plan.json"]
    written = json.loads((tmp_path / "here" / "plan.json").read_text())
    assert [stage["name"] for stage in written["plan"]["stages"]][-1] == "pairs"
    assert written["within"]["reached"] is True


@pytest.mark.usefixtures("temporary")
def test_without_a_describer_only_objects_and_regions_are_planned(dataset, tmp_path):
    result = CliRunner().invoke(app, arguments(dataset, tmp_path, "--images", "1000"))
    assert result.exit_code == 0, result.output
    assert re.search(r"^regions +40 ", result.stdout, re.MULTILINE)
    assert "candidates" not in result.stdout
    assert "the annotations have about 40 images that pass the filters, not 1,000" in result.stdout
    assert "the config has no describer" in result.stdout


@pytest.mark.usefixtures("temporary")
def test_one_image_is_enough_but_says_little(make_dataset, tmp_path):
    dataset = make_dataset(tmp_path / "one", images=1, objects=24)
    result = CliRunner().invoke(app, arguments(dataset, tmp_path, **FAKES))
    assert result.exit_code == 0, result.output
    assert "Calibration: 1 image in 1 shard" in result.stdout
    assert re.search(r"^pairs +6 +1 +1 ", result.stdout, re.MULTILINE)


def test_a_sample_without_rows_is_an_error_that_does_not_name_a_temporary_folder(dataset, tmp_path, temporary):
    settings = {"annotations": {"min_objects": 50}}
    result = CliRunner().invoke(app, arguments(dataset, tmp_path, **FAKES, **settings))
    error = result.exception
    assert isinstance(error, InputError)
    assert "Stage `objects` has no images in a sample of 8 images" in str(error)
    assert "too_few_objects" in str(error)
    assert str(temporary) not in str(error)
    assert list(temporary.iterdir()) == []
    settings = {"regions": {"min_inside": 13}}
    with pytest.raises(InputError, match=r"(?s)Stage `regions` has no regions in a sample of 40 .*larger --sample"):
        calibrate(make_config(dataset.config(**FAKES, **settings)), tmp_path / "a", None)


@pytest.mark.usefixtures("temporary")
def test_a_kept_calibration_is_a_run_that_can_be_looked_at_and_replaced(dataset, tmp_path):
    command = arguments(dataset, tmp_path, "--keep", "kept", "--sample", "20", **FAKES)
    for _ in range(2):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert len(rows(tmp_path / "here" / "kept" / "run", "objects")) == 20
    (tmp_path / "here" / "mine").mkdir()
    (tmp_path / "here" / "mine" / "notes.txt").write_text("keep")
    refused = CliRunner().invoke(app, arguments(dataset, tmp_path, "--keep", "mine", **FAKES))
    assert isinstance(refused.exception, RunError)
    assert [path.name for path in (tmp_path / "here" / "mine").iterdir()] == ["notes.txt"]


def test_ctrl_c_leaves_nothing_behind(dataset, tmp_path, temporary, monkeypatch):
    def interrupted(*_, **__):
        (folder,) = temporary.iterdir()
        (folder / "first").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "run", interrupted)
    result = CliRunner().invoke(app, arguments(dataset, tmp_path, **FAKES))
    assert result.exit_code == 130
    assert "Interrupted. Nothing is kept." in result.output
    assert list(temporary.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), calibration_folder(tmp_path / "here" / "kept"):
        raise KeyboardInterrupt
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--within", "24"], "--within is not a duration"),
        (["--json", "mine.json"], "mine.json is not a plan"),
    ],
)
def test_wrong_options_are_refused_before_any_work(dataset, tmp_path, monkeypatch, options, message):
    (tmp_path / "here" / "mine.json").write_text('{"mine": 1}')
    monkeypatch.setattr(calibration, "run", lambda *_, **__: pytest.fail("it has run"))
    result = CliRunner().invoke(app, arguments(dataset, tmp_path, *options, **FAKES))
    assert message in str(result.exception)
    assert (tmp_path / "here" / "mine.json").read_text() == '{"mine": 1}'
