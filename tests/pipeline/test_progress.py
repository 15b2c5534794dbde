"""What the stages count while a shard is processed, also in worker processes, and what a run says that it keeps."""

import io

import pytest
from PIL import Image

from run_folders import FAKES, advance_times
from spr.config import DescriberConfig, make_config
from spr.core import progress as module
from spr.core.progress import Progress, counted
from spr.models.batching import Batcher
from spr.models.fakes import FakeDescriber, FakeDetector
from spr.models.protocols import Answer, DescribeRequest
from spr.pipeline import describe, pair, regions, score
from spr.pipeline.answers import AnswerJournal
from spr.pipeline.engines.local import Pool
from spr.pipeline.objects import crowd_detector, make_objects, plan_objects
from spr.pipeline.runner import run
from spr.runs.store import StageStore


class Counts(Progress):
    """A progress that records each count."""

    def __init__(self):
        super().__init__("test", stream=io.StringIO())
        self.counts = []

    def advance(self, count=1):
        self.counts.append(count)
        super().advance(count)


class SlowDescriber(FakeDescriber):
    """Counts its answers in batches of three, as models do."""

    def describe(self, requests):
        return Batcher(super().describe, 3)(requests)


@pytest.fixture(scope="module")
def folder(make_dataset, tmp_path_factory):
    """A finished run of two shards, with its config."""
    data = make_dataset(tmp_path_factory.mktemp("progress") / "data", images=6)
    config = make_config(data.config(**FAKES, shard_rows=4))
    out = tmp_path_factory.mktemp("progress") / "run"
    run(config, out)
    return out, config


def tables(out, *stages):
    return {stage: next(StageStore(out / stage).tables()) for stage in stages}


def test_answers_are_counted_as_their_batches_finish(folder):
    out, config = folder
    inputs = tables(out, "regions")
    total = 6 * len(inputs["regions"])
    with Counts() as progress:
        describe.process(inputs, config, describer=SlowDescriber())
    assert progress.counts == [3] * (total // 3)
    assert describe.STAGE.work(config) == (6, "answers")


def test_answers_of_a_journal_count_at_once_and_a_model_that_counts_nothing_at_the_end(tmp_path):
    image = Image.new("RGB", (8, 8))
    requests = [DescribeRequest(image, f"question {k}", k) for k in range(5)]

    class Silent:
        name, dialect = "silent", FakeDescriber().dialect

        def describe(self, requests):
            return [Answer("yes")] * len(requests)

    journal = AnswerJournal(Silent(), tmp_path / "journal", DescriberConfig(backend="fake"))
    journal.describe(requests[:2])
    with Counts() as progress, counted(5):
        journal.describe(requests)
    assert progress.counts == [2, 3]


def test_candidates_are_counted_by_the_detector_that_takes_the_time(folder):
    class SlowDetector(FakeDetector):
        def detect(self, requests):
            return Batcher(super().detect, 2)(requests)

    out, config = folder
    inputs = tables(out, "regions", "candidates")
    with Counts() as progress:
        score.process(inputs, config, detector=SlowDetector())
    assert progress.done == len(inputs["candidates"])
    assert progress.counts[0] == 2


def test_regions_and_pairs_count_their_input_rows(folder):
    out, config = folder
    inputs = tables(out, "objects", "regions", "candidates", "scores")
    for stage, last in ((regions, "objects"), (pair, "scores")):
        with Counts() as progress:
            stage.process(inputs, config)
        assert progress.done == len(inputs[last])


def test_images_are_counted_when_checked_and_those_with_crowds_when_their_crowds_are_done(make_dataset, tmp_path):
    data = make_dataset(tmp_path / "data", images=5)
    for entry in data.coco["annotations"]:
        entry["iscrowd"] = int(entry["image_id"] == data.coco["images"][0]["id"] and entry["id"] % 12 == 0)
    data.write()
    settings = make_config(data.config(**FAKES, annotations={"crowds": "detect"})).annotations
    source = plan_objects(settings, 0, Progress("", stream=io.StringIO())).rows(0, 5)
    with Counts() as progress:
        make_objects(source, settings, crowd_detector(settings, FakeDetector()))
    assert progress.counts == [1] * 5


def test_items_that_worker_processes_finish_are_counted_here():
    with Progress("test", stream=io.StringIO()) as progress:
        pool = Pool([{}, {}], progress)
        for number in (3, 4, 5):
            pool.submit(number, advance_times)
        results = []
        while len(results) < 3:
            results += pool.wait()
        pool.stop()
        assert sorted(results) == [(3, 3), (4, 4), (5, 5)]
        assert progress.done == 12


def test_a_run_shows_each_stage_within_its_shards_and_says_what_it_keeps(monkeypatch, tmp_path, make_dataset):
    shown = {}

    def remember(_, progress):
        shown[progress.label] = progress

    monkeypatch.setattr(module._Screen, "add", remember)
    monkeypatch.setattr(module._Screen, "remove", lambda *_: None)
    data = make_dataset(tmp_path / "data", images=6)
    config = make_config(data.config(**FAKES, shard_rows=4))
    out, said = tmp_path / "run", []
    summaries = {summary.name: summary.rows for summary in run(config, out, say=said.append)}
    assert said == []
    ends = {name: (progress.done, progress.total, progress.unit) for name, progress in shown.items()}
    assert ends["objects"] == (6, 6, "images")
    assert ends["candidates"] == (6 * summaries["regions"], 6 * summaries["regions"], "answers")
    assert ends["scores"] == (summaries["candidates"], summaries["candidates"], "candidates")
    store = StageStore(out / "candidates")
    store.part(1).unlink()
    rows = store.manifest().shards[0].rows
    run(config, out, say=said.append)
    assert said == [f"candidates: keeps 1 of 2 shards, {rows:,} candidates"]
