"""Claims: the stage `scores` reaches 85 % of its models' bare throughput, and is 4 times as fast as a simple loop.

Four ways to score the same descriptions, six per region, with the same random-weight models, measured in turn:

- `stage`: `spr.pipeline.score.process`, from tables and image files to a table.
- `bare`: only the forward passes that the stage needs, on prepared tensors and with the methods of transformers. They
  are recorded from the stage: the same views, text pieces and detector inputs in the same batches.
- `bare, shared`: like `bare`, but texts of the same crop also share the detector's backbone, as they do in the stage.
- `loop`: for each description, open the image, cut the views, embed views and text, and call the detector.

The loop uses the backends of SPR, which prepare images faster than the processors of transformers. All are measured
with and without the detector. A ratio compares measurements of the same round, and the median ratio is reported. The
scores of the loop must equal those of the stage.

GroundingDINO combines image and text from its first encoder layer on, so only its backbone can be shared. `sharing` is
the ratio of the FLOPs of the loop to those of the stage (as counted by torch): the speed-up from computing everything
only once, without the gain from batching.

    python benchmarks/bench_score.py [--queries 2] [--repeats 2] [--threads 1]
    python benchmarks/bench_score.py --size real --device cuda --dtype bfloat16 --queries 64
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import transformers
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from score_models import SIZES, make_tables, save_clip, save_dino
from spr.config import Config, make_config
from spr.core.images import ImageSource
from spr.core.views import unshift
from spr.grounding.noun_phrases import phrases_to_detect
from spr.models.detectors.grounding_dino import GroundingDinoDetector, shared_backbone
from spr.models.protocols import DetectRequest
from spr.models.scorers.clip import ClipScorer
from spr.pipeline.score import process, score_candidate, views_of
from spr.records import Candidate, RegionQuery, Scores
from spr.records.schemas import from_table

Recorded = list[tuple[str, dict[str, torch.Tensor]]]


def record(scorer: ClipScorer, detector: GroundingDinoDetector | None, work: Callable[[], object]) -> Recorded:
    """Record the inputs of all forward passes of the models while ``work`` runs, in order."""
    calls: Recorded = []
    hooks = [
        scorer.model.vision_model.embeddings.register_forward_pre_hook(
            lambda _module, args: calls.append(("views", {"pixel_values": args[0]}))
        ),
        scorer.model.text_model.register_forward_pre_hook(
            lambda _module, _args, kwargs: calls.append(("texts", {"input_ids": kwargs["input_ids"]})), with_kwargs=True
        ),
    ]
    if detector is not None:
        hooks.append(
            detector.model.register_forward_pre_hook(
                lambda _module, _args, kwargs: calls.append(("detections", dict(kwargs))), with_kwargs=True
            )
        )
    work()
    for hook in hooks:
        hook.remove()
    return calls


def equal_rows(pixels: torch.Tensor) -> torch.Tensor:
    """For each image of a batch, the index of its first equal among the distinct images: ``(B,)``."""
    distinct: list[torch.Tensor] = []
    numbers = []
    for row in pixels:
        same = [k for k, other in enumerate(distinct) if torch.equal(row, other)]
        numbers.append(same[0] if same else len(distinct))
        distinct += [] if same else [row]
    return torch.tensor(numbers, device=pixels.device)


class Ways:
    """The ways to score, with the same tables and models."""

    def __init__(
        self,
        tables: Mapping[str, pa.Table],
        config: Config,
        scorer: ClipScorer,
        detector: GroundingDinoDetector | None,
    ) -> None:
        self.tables, self.config, self.scorer, self.detector = tables, config, scorer, detector
        self.calls = record(scorer, detector, self.stage)
        self.rows = [
            equal_rows(inputs["pixel_values"]) if kind == "detections" else None for kind, inputs in self.calls
        ]

    def stage(self) -> list[Scores]:
        """Score as `spr run` does."""
        return from_table(process(self.tables, self.config, scorer=self.scorer, detector=self.detector).table, Scores)

    @torch.inference_mode()
    def bare(self, *, shared: bool = False) -> None:
        """Run only the forward passes."""
        for (kind, inputs), rows in zip(self.calls, self.rows, strict=True):
            if kind == "views":
                self.scorer.model.get_image_features(**inputs)
            elif kind == "texts":
                self.scorer.model.get_text_features(**inputs)
            else:
                self._ask(inputs, rows if shared else None)
        if self.scorer.device.type == "cuda":
            torch.cuda.synchronize()

    def _ask(self, inputs: dict[str, torch.Tensor], image_of_row: torch.Tensor | None) -> None:
        model = self.detector.model
        if image_of_row is None:
            model(**inputs)
            return
        pixels = torch.stack([inputs["pixel_values"][image_of_row == k][0] for k in image_of_row.unique()])
        with shared_backbone(model.model.backbone, pixels, image_of_row) as features:
            model(**{**inputs, "pixel_values": features})

    def loop(self) -> list[Scores]:
        """Score one description at a time, without batching or sharing."""
        scores = []
        queries = {query.query_id: query for query in from_table(self.tables["regions"], RegionQuery)}
        for candidate in from_table(self.tables["candidates"], Candidate):
            query = queries[candidate.query_id]
            image = self.config.annotations.image_source.load(query.file_name, (query.width, query.height))
            window, crop, whole, local = views_of(query, image, 1.5, self.config.scoring)
            # Separate calls, so that nothing is batched.
            views = [self.scorer.embed_views([view])[0] for view in (whole, local)]
            text = self.scorer.embed_texts([candidate.plain_text])[0]
            asked = request_for(candidate, crop)
            detections = self.detector.detect([asked])[0] if self.detector else []
            placed = [type(d)(d.phrase, unshift(d.box, window), d.score) for d in detections]
            s_crop, s_local = (float(view @ text) for view in views)
            scores.append(score_candidate(candidate, query, s_crop, s_local, placed, self.config.scoring))
        return scores


def request_for(candidate: Candidate, image: Image.Image) -> DetectRequest:
    """The request for what a candidate mentions."""
    text = candidate.plain_text
    return DetectRequest(image, text, phrases_to_detect(text, candidate.spans))


def flops(work: Callable[[], object]) -> int:
    """FLOPs of matrix products and convolutions, as counted by torch."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def set_threshold(detector: GroundingDinoDetector, tables: Mapping[str, pa.Table], images: Path) -> None:
    """Set the threshold so that the random-weight detector returns about ten boxes, as a trained one does."""
    query = from_table(tables["regions"].slice(0, 1), RegionQuery)[0]
    image = ImageSource(images).load(query.file_name, (query.width, query.height))
    detector.box_threshold = 0.0
    candidate = from_table(tables["candidates"].slice(0, 1), Candidate)[0]
    detections = detector.detect([request_for(candidate, image)])[0]
    detector.box_threshold = detections[min(10, len(detections) - 1)].score


def measure(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Wall-clock and CPU seconds of each way; the ways are measured in turn."""
    taken: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            taken[name]["wall"].append(time.perf_counter() - wall)
            taken[name]["cpu"].append(time.process_time() - cpu)
    return taken


def ratio(taken: Mapping[str, Mapping[str, Sequence[float]]], name: str, clock: str) -> float:
    """Time of a way divided by the time of the stage: the median over the rounds."""
    rounds = zip(taken[name][clock], taken["stage"][clock], strict=True)
    return statistics.median(other / stage for other, stage in rounds)


def compare(title: str, ways: Ways, repeats: int, descriptions: int) -> dict[str, Any]:
    """Measure, check and print one table."""
    found: list[list[Scores]] = []
    counts = [flops(lambda work=work: found.append(work())) for work in (ways.loop, ways.stage)]
    sharing, (other, one) = counts[0] / counts[1], found
    apart = max(abs(a.score - b.score) for a, b in zip(one, other, strict=True))
    if apart > 1e-4 or any(a.candidate_id != b.candidate_id for a, b in zip(one, other, strict=True)):
        raise SystemExit(f"the scores of the loop and the stage differ by {apart}")
    names: dict[str, Callable[[], object]] = {"stage": ways.stage, "bare": ways.bare}
    if ways.detector is not None:
        names["bare, shared"] = lambda: ways.bare(shared=True)
    taken = measure({**names, "loop": ways.loop}, repeats)
    kinds = [kind for kind, _ in ways.calls]
    sizes = {kind: [len(next(iter(i.values()))) for k, i in ways.calls if k == kind] for kind in dict.fromkeys(kinds)}
    batches = ", ".join(f"{sum(rows)} {kind} in {len(rows)} batches" for kind, rows in sizes.items())
    print(f"\n{title}: {batches}; scores differ by {apart:.1e}")
    print(f"{'':14}{'descriptions/s':>16}{'time / stage time':>22}{'CPU':>8}")
    for name, clocks in taken.items():
        speed = descriptions / statistics.median(clocks["wall"])
        print(f"{name:14}{speed:16.2f}{ratio(taken, name, 'wall'):22.3f}{ratio(taken, name, 'cpu'):8.3f}")
    print(f"sharing alone makes the stage {sharing:.2f} times as fast as the loop")
    ratios = {clock: {name: ratio(taken, name, clock) for name in taken} for clock in ("wall", "cpu")}
    return {"ratio": ratios, "sharing": sharing, "seconds": taken, "batches": sizes, "apart": apart}


def main() -> None:
    """Print the tables, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"queries": 2, "descriptions": 6, "repeats": 2, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--size", choices=list(SIZES), default="mid")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("clip", "dino", "images"):
            (folder / part).mkdir()
        save_clip(folder / "clip", arguments.size)
        save_dino(folder / "dino", arguments.size)
        tables = make_tables(folder / "images", arguments.queries, arguments.descriptions)
        paths = {"path": os.fspath(folder / "none.json"), "images": os.fspath(folder / "images")}
        backends = {"describer": {"backend": "fake"}, "detector": {"backend": "none"}}
        config = make_config({"annotations": paths, **backends})
        transformers.logging.disable_progress_bar()
        options = {"device": arguments.device, "dtype": arguments.dtype}
        scorer_batch, detector_batch = SIZES[arguments.size]["batches"]
        scorer = ClipScorer(folder / "clip", batch_size=scorer_batch, **options)
        detector = GroundingDinoDetector(folder / "dino", batch_size=detector_batch, **options)
        set_threshold(detector, tables, folder / "images")
        millions = [sum(p.numel() for p in part.model.parameters()) / 1e6 for part in (scorer, detector)]
        print(f"CLIP with {millions[0]:.0f} M and GroundingDINO with {millions[1]:.0f} M parameters ({arguments.size})")
        print(f"{arguments.queries} regions with {arguments.descriptions} descriptions each, {arguments.dtype}")
        print(f"{scorer.device}, {arguments.threads} threads, torch {torch.__version__}, {transformers.__version__}")
        count = arguments.queries * arguments.descriptions
        results = {}
        for title, part in (("scorer alone", None), ("scorer and detector", detector)):
            ways = Ways(tables, config, scorer, part)
            results[title] = compare(title, ways, arguments.repeats, count)
    print(json.dumps({"benchmark": "score", "size": arguments.size, **results}))


if __name__ == "__main__":
    main()
