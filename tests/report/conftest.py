"""Runs with pairs written by hand, so that every number of a report can be worked out beforehand."""

import dataclasses
import json

import pytest
from PIL import Image

from spr.config import make_config
from spr.records import BoxEdit, Candidate, PreferencePair, RegionObject, RegionQuery, Scores, Span
from spr.records.schemas import to_table
from spr.runs.store import Manifest, StageOutput, StageStore, dropped_table

SIZE_WH = (100, 80)
CUP, SECOND_CUP, PLATE = (20.0, 20.0, 40.0, 40.0), (50.0, 20.0, 70.0, 40.0), (80.0, 60.0, 100.0, 80.0)
# 20×16 px of the cup's 20×20: IoU 320/400 = 0.8. And a box that touches nothing.
SHORT_CUP, NOTHING = (20.0, 20.0, 40.0, 36.0), (0.0, 60.0, 10.0, 70.0)
KINDS = ("full", "crop", "crop_objects")


class RunMaker:
    """A run folder; change ``pairs``, ``candidates`` or ``regions`` (rows of records), then `write`.

    Pair k has the id ``<k>/0``, margin 0.1 + k/100, and its candidates the kinds ``KINDS[k % 3]`` (chosen) and
    ``KINDS[(k + 1) % 3]``. The chosen answer places both cups exactly: S_loc 1. The rejected one places one at IoU 0.8
    and a dog where nothing is: S_loc (0.8 + 0) / 2 = 0.4.
    """

    def __init__(self, folder, pairs=3, **settings):
        self.folder, self.images = folder / "run", folder / "images"
        self.images.mkdir(parents=True)
        self.folder.mkdir()
        self.settings = settings
        self.regions, self.candidates, self.scores, self.pairs, self.drops = [], [], [], [], {}
        for k in range(pairs):
            self._add(k)

    def _add(self, k, plain="a cup and a second cup"):
        name, query = f"{k}.png", f"{k}/0"
        Image.new("RGB", SIZE_WH, (k % 256, 120, 200)).save(self.images / name)
        objects = (
            RegionObject(f"{k}-1", "cup", CUP, inside=True),
            RegionObject(f"{k}-2", "cup" if k % 2 else "mug", SECOND_CUP, inside=True),
            RegionObject(f"{k}-3", "plate", PLATE),
        )
        region = (20.0, 20.0, 70.0, 40.0)
        image = {"image_id": str(k), "file_name": name, "width": SIZE_WH[0], "height": SIZE_WH[1]}
        self.regions.append(RegionQuery(query_id=query, **image, region=region, start_object=f"{k}-1", objects=objects))
        chosen = (Span("a cup", 0, 5, (CUP,)), Span("a second cup", 10, 22, (SECOND_CUP,)))
        rejected = (Span("a cup", 0, 5, (SHORT_CUP,)), Span("a dog", 10, 15, (NOTHING,)))
        margin = 0.1 + k / 100
        for side, text, spans, kind in (
            ("a", plain, chosen, KINDS[k % 3]),
            ("b", "a cup and a dog", rejected, KINDS[(k + 1) % 3]),
        ):
            score = 0.3 + (margin if side == "a" else 0)
            candidate = f"{query}/{side}"
            self.candidates.append(
                Candidate(
                    candidate, query, kind, text, f"{text} as trained", text, spans, (), "stop", k, "fake@1", "ferret"
                )
            )
            self.scores.append(Scores(candidate, query, 0.25, 0.35, 0.3, 0.6, score, (), ()))
        self.pairs.append(
            PreferencePair(
                query_id=query,
                **image,
                region=region,
                prompt="Describe it.",
                chosen="a cup [1] and a second cup [2]",
                rejected="a cup [3] and a dog [4]",
                chosen_spans=chosen,
                rejected_spans=rejected,
                chosen_candidate=f"{query}/a",
                rejected_candidate=f"{query}/b",
                chosen_score=0.3 + margin,
                rejected_score=0.3,
                margin=margin,
                box_edits=(
                    BoxEdit("a cup", SHORT_CUP, CUP, "replaced"),
                    BoxEdit("a hat", NOTHING, None, "box_removed"),
                ),
            )
        )

    def change(self, table, k, **values):
        """Give fields of one row of a table other values."""
        rows = getattr(self, table)
        rows[k] = dataclasses.replace(rows[k], **values)

    def write(self):
        """Write the run and return its folder."""
        annotations = {"path": str(self.images / "a.json"), "images": str(self.images)}
        config = make_config({"annotations": annotations, "describer": {"backend": "fake"}, **self.settings})
        (self.folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        kinds = {"regions": RegionQuery, "candidates": Candidate, "scores": Scores, "pairs": PreferencePair}
        for name, kind in kinds.items():
            store, manifest = StageStore(self.folder / name), Manifest(name, "by hand", complete=True)
            rows = getattr(self, name)
            dropped = dropped_table(name, *self.drops.get(name, ("query", [])))
            manifest.shards.append(store.write_shard(0, StageOutput(to_table(rows, kind), dropped), inputs=len(rows)))
            store.save(manifest)
        return self.folder

    def log_training(self, lines):
        """Write lines, dicts or texts, as the training's log."""
        (self.folder / "training").mkdir(exist_ok=True)
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (self.folder / "training" / "log.jsonl").write_text("\n".join(texts), encoding="utf-8")


@pytest.fixture
def make_run(tmp_path):
    made = []

    def make(pairs=3, **settings):
        made.append(RunMaker(tmp_path / f"made{len(made)}", pairs, **settings))
        return made[-1]

    return make


@pytest.fixture(scope="module")
def make_module_run(tmp_path_factory):
    return lambda pairs=3, **settings: RunMaker(tmp_path_factory.mktemp("made"), pairs, **settings)
