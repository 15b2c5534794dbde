"""The summary of a run's pairs: right numbers, computed shard by shard, and only once."""

import json
import random
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spr.config import make_config
from spr.core.errors import RunError
from spr.grounding.matching import localization_score
from spr.records import BoxEdit, PreferencePair, RegionObject, RegionQuery, Span
from spr.records.schemas import to_table
from spr.runs.cues import kept_cues, pair_cues
from spr.runs.pair_stats import pair_summary, spread
from spr.runs.store import Manifest, ShardEntry, StageOutput, StageStore, dropped_table

SIDES = ("chosen", "rejected")


def box(draw: random.Random) -> tuple[float, ...]:
    x, y = draw.randrange(6), draw.randrange(6)
    return float(x), float(y), float(x + draw.randrange(1, 5)), float(y + draw.randrange(1, 5))


def rows(draw: random.Random, k: int) -> tuple[RegionQuery, PreferencePair]:
    """A query with some objects inside its region, and a pair whose phrases have no, one or several boxes."""
    image = {"image_id": str(k), "file_name": "x.png", "width": 10, "height": 10}
    objects = tuple(
        RegionObject(f"{n}", "cup", box(draw), inside=draw.random() < 0.7) for n in range(draw.randrange(1, 5))
    )
    region = (0.0, 0.0, 10.0, 10.0)
    query = RegionQuery(query_id=str(k), **image, region=region, start_object="0", objects=objects)
    sides: dict[str, object] = {}
    for side in SIDES:
        sides[side] = f"{side} " + "a cup " * draw.randrange(1, 5)
        sides[f"{side}_spans"] = tuple(
            Span("cup", 0, 3, tuple(box(draw) for _ in range(draw.randrange(3)))) for _ in range(draw.randrange(4))
        )
        sides[f"{side}_candidate"] = f"{k}/{side}"
    edits = tuple(BoxEdit("cup", box(draw), box(draw), "replaced") for _ in range(k % 3))
    scores = {"chosen_score": 0.6, "rejected_score": 0.5, "margin": 0.1}
    return query, PreferencePair(
        query_id=str(k), **image, region=region, prompt="?", **sides, **scores, box_edits=edits
    )


def write(run: Path, shards: list[list[tuple[RegionQuery, PreferencePair]]]) -> Path:
    config = make_config({"annotations": {"path": "a.json", "images": "i"}})
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text(config.to_yaml())
    for column, (name, kind) in enumerate((("regions", RegionQuery), ("pairs", PreferencePair))):
        store, manifest = StageStore(run / name), Manifest(name, "by hand", complete=True)
        for number, shard in enumerate(shards):
            # The rows of a table don't have to be in the order of those of another.
            table = to_table([row[column] for row in (shard if column else shard[::-1])], kind)
            output = StageOutput(table, dropped_table(name, "query", []))
            manifest.shards.append(store.write_shard(number, output, inputs=len(table)))
        store.save(manifest)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    draw = random.Random(3)
    made = [rows(draw, k) for k in range(60)]
    return write(tmp_path / "run", [made[:25], [], made[25:]])


def test_the_lines_are_those_of_a_plain_computation(run: Path) -> None:
    draw = random.Random(3)
    made = [rows(draw, k) for k in range(60)]
    values: dict[str, list[list[float]]] = {name: [[], []] for name in ("phrases", "boxes", "words", "s_loc")}
    for query, pair in made:
        for number, side in enumerate(SIDES):
            spans = getattr(pair, f"{side}_spans")
            own = [b for span in spans for b in span.boxes]
            values["phrases"][number].append(sum(bool(span.boxes) for span in spans))
            values["boxes"][number].append(len(own))
            values["words"][number].append(len(getattr(pair, side).split()))
            values["s_loc"][number].append(localization_score(query.inside, own).score)
    assert 0 < np.mean(values["s_loc"][0]) < 1
    lines = pair_summary(run)
    for line, (name, digits) in zip(
        lines[1:5], (("phrases", 1), ("boxes", 1), ("words", 1), ("s_loc", 3)), strict=True
    ):
        assert line.split("  ")[-1].strip() == spread(values[name][1], digits)
        assert spread(values[name][0], digits) in line
    assert lines[5] == "  boxes of the chosen: 60 replaced"
    assert lines[6:] == list(pair_cues(run).table())


def test_it_is_computed_once_for_the_same_rows_and_options(run: Path) -> None:
    first, cues = pair_summary(run), kept_cues(run)
    counted = pair_summary(run, run, lambda _: lambda texts: map(len, texts))
    assert any("tokens" in line for line in counted)
    assert pair_summary(run, run, lambda _: pytest.fail("the tokenizer is loaded again")) == counted
    first = pair_summary(run)
    shutil.move(run / "pairs" / "part-00000.parquet", run / "hidden")
    assert pair_summary(run) == first  # without reading the rows
    assert kept_cues(run) == cues
    shutil.move(run / "hidden", run / "pairs" / "part-00000.parquet")
    store = StageStore(run / "pairs")
    manifest = store.manifest()
    assert manifest is not None
    manifest.shards = manifest.shards[:1]
    store.save(manifest)
    assert pair_summary(run) != first
    assert kept_cues(run).pairs == 25


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 9999, None])
def test_a_damaged_file_is_made_again(run: Path, content: bytes | None) -> None:
    lines, cues = pair_summary(run), kept_cues(run)
    for name in ("summary.json", "cues.json"):
        kept = json.loads((run / name).read_text())
        (run / name).write_bytes(json.dumps({**kept, "value": 5}).encode() if content is None else content)
    assert pair_summary(run) == lines
    assert kept_cues(run) == cues


def test_a_pair_without_its_region_and_unfinished_pairs_are_errors(run: Path, tmp_path: Path) -> None:
    query, pair = rows(random.Random(0), 0)
    other = write(tmp_path / "other", [[(query, replace(pair, query_id="7"))]])
    with pytest.raises(RunError, match="don't match"):
        pair_summary(other)
    (run / "pairs" / "manifest.json").unlink()
    with pytest.raises(RunError, match="finished"):
        pair_summary(run)


def test_no_pairs_have_no_summary(tmp_path: Path) -> None:
    assert pair_summary(write(tmp_path / "run", [[]])) == []


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    draw = random.Random(1)
    run = write(tmp_path / "run", [[rows(draw, k) for k in range(100)]])

    def peak(shards: int) -> int:
        for stage in ("regions", "pairs"):
            store = StageStore(run / stage)
            manifest = store.manifest()
            assert manifest is not None
            first: ShardEntry = manifest.shards[0]
            manifest.shards = [replace(first, index=number) for number in range(shards)]
            for number in range(1, shards):
                shutil.copy(store.part(0), store.part(number))
            store.save(manifest)
        tracemalloc.start()
        pair_summary(run)
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    peak(2)  # what is loaded once
    # 8 numbers of 8 bytes per pair, in arrays that grow in steps; the pairs themselves take kilobytes
    assert peak(42) - peak(2) < 4000 * 200
