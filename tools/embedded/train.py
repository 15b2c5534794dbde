"""``python -m tools.embedded.train {vision,describer,scorer,detector}``: trains the embedded models from nothing.

``vision`` comes first; the others start from its tower, in the same ``--out``. Nothing is read but the seed: scenes are
made on the way. With ``--to FOLDER`` the model is exported there, and its figures on unseen scenes are printed and
stored beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import NamedTuple

import torch

from tools.embedded.corpus import Corpus, build_corpus
from tools.embedded.loop import Run, checkpoint_path


class Phase(NamedTuple):
    """A part of a recipe: a schedule of ``steps``, left after step ``stop_at`` where that is given."""

    steps: int
    stop_at: int | None = None


RECIPES: dict[str, tuple[Phase, ...]] = {
    "vision": (Phase(1100),),
    "describer": (Phase(2800, stop_at=1500),),
    "scorer": (Phase(800),),
    "detector": (Phase(1200), Phase(450)),
}
"""How the shipped weights were trained; a later phase starts from the weights of the one before. The describer is left
early, so that its boxes leave preference training room: see its card."""
BATCH = {"vision": 64, "describer": 16, "scorer": 48, "detector": 32}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tools.embedded.train", description=__doc__)
    made.add_argument("model", choices=list(RECIPES))
    made.add_argument("--out", type=Path, required=True, help="folder of checkpoints and logs")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--steps", type=int, help="train in one phase of so many steps (default: the shipped recipe)")
    made.add_argument("--batch-size", type=int, help="views a step (default: as the shipped weights)")
    made.add_argument("--scenes", type=int, default=40_000, help="number of training scenes")
    made.add_argument("--corpus", type=Path, help="folder of the scenes, made if absent (default: OUT/corpus)")
    made.add_argument("--device", default="cpu")
    made.add_argument("--workers", type=int, default=0, help="processes that make scenes and batches")
    made.add_argument("--resume", action="store_true", help="go on from OUT's checkpoint")
    made.add_argument("--start-from", type=Path, help="checkpoint of an earlier run to take the first weights from")
    made.add_argument("--stop-at", type=int, help="with --steps: stop after this one, to resume later")
    made.add_argument("--log-every", type=int, default=100)
    made.add_argument("--to", type=Path, help="folder to export the model to, with its figures")
    return made


def main(arguments: list[str] | None = None) -> None:
    """Train one model."""
    args = parser().parse_args(arguments)
    phases = (Phase(args.steps, args.stop_at),) if args.steps else RECIPES[args.model]
    run = Run(
        out=args.out,
        seed=args.seed,
        steps=0,
        batch_size=args.batch_size or BATCH[args.model],
        device=torch.device(args.device),
        workers=args.workers,
        resume=args.resume,
        start_from=args.start_from,
        log_every=args.log_every,
    )
    corpus = build_corpus(args.corpus or args.out / "corpus", args.scenes, args.seed, max(1, args.workers))
    train_phases(args.model, run, corpus, phases)
    if args.to is not None and args.model != "vision":
        from tools.embedded import evaluate, export

        export.export(args.model, args.out, args.to)
        evaluate.main([args.model, "--weights", str(args.to), "--store"])


def train_phases(model: str, run: Run, corpus: Corpus, phases: tuple[Phase, ...]) -> None:
    """Train through the phases; what an earlier one leaves is kept as ``<model>-<phase>.pt`` and ``.jsonl``.

    With ``run.resume``, phases whose checkpoint is kept are over, and the one after them goes on if it had begun.
    """
    path = checkpoint_path(run.out, model)
    for number, (steps, stop_at) in enumerate(phases, start=1):
        kept, last = checkpoint_path(run.out, f"{model}-{number}"), number == len(phases)
        if not (run.resume and kept.exists()):
            begun = run.resume and (path.exists() or number == 1)
            _train(model, dataclasses.replace(run, steps=steps, stop_at=stop_at, resume=begun), corpus)
            if not last:
                path.replace(kept)
                path.with_suffix(".jsonl").replace(kept.with_suffix(".jsonl"))
        run = dataclasses.replace(run, start_from=kept)


def _train(model: str, run: Run, corpus: Corpus) -> None:
    if model == "vision":
        from tools.embedded.train_vision import train_vision

        train_vision(run, corpus)
    elif model == "describer":
        from tools.embedded.train_describer import train_describer

        train_describer(run, corpus)
    elif model == "scorer":
        from tools.embedded.train_scorer import train_scorer

        train_scorer(run, corpus)
    else:
        from tools.embedded.train_detector import train_detector

        train_detector(run, corpus)


if __name__ == "__main__":
    main()
