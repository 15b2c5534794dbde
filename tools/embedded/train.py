"""Train the embedded models from scratch.

Usage, from the root of the repository: ``python -m tools.embedded.train {vision,describer,scorer,detector} --out OUT``.
Train ``vision`` first; the other models start from its tower in the same ``--out``. The only input is the seed: scenes
are generated. With ``--to FOLDER`` the model is exported there, with its figures on new scenes.
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
    """A part of a recipe: a schedule of ``steps``, stopped after step ``stop_at`` if that is given."""

    steps: int
    batch_size: int
    stop_at: int | None = None


RECIPES: dict[str, tuple[Phase, ...]] = {
    "vision": (Phase(1100, 64),),
    "describer": (Phase(2800, 16, stop_at=1500),),
    "scorer": (Phase(800, 48), Phase(400, 24)),
    "detector": (Phase(1200, 32), Phase(450, 32)),
}
"""How the shipped weights were trained; a phase starts from the weights of the previous one. Training of the describer
stops early, so that preference training can improve its boxes: see its model card."""


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.embedded.train", description=__doc__)
    parser.add_argument("model", choices=list(RECIPES))
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="train in one phase of this many steps (default: the shipped recipe)")
    parser.add_argument("--batch-size", type=int, help="views per step (default: as for the shipped weights)")
    parser.add_argument("--scenes", type=int, default=40_000, help="number of training scenes")
    parser.add_argument("--corpus", type=Path, help="folder of the scenes, created if missing (default: OUT/corpus)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that make scenes and batches")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in OUT")
    parser.add_argument("--start-from", type=Path, help="checkpoint of an earlier run for the initial weights")
    parser.add_argument("--stop-at", type=int, help="with --steps: stop after this step, to resume later")
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--to", type=Path, help="folder to export the model to, with its figures")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Train one model."""
    args = make_parser().parse_args(arguments)
    recipe = RECIPES[args.model]
    phases = (Phase(args.steps, recipe[0].batch_size, args.stop_at),) if args.steps else recipe
    if args.batch_size:
        phases = tuple(phase._replace(batch_size=args.batch_size) for phase in phases)
    run = Run(
        out=args.out,
        seed=args.seed,
        steps=0,
        batch_size=0,
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
    """Train through the phases; the files of an earlier phase are kept as ``<model>-<phase>.pt`` and ``.jsonl``.

    With ``run.resume``, phases with a kept checkpoint are skipped, and the next one continues if it had started.
    """
    path = checkpoint_path(run.out, model)
    for number, phase in enumerate(phases, start=1):
        kept, last = checkpoint_path(run.out, f"{model}-{number}"), number == len(phases)
        if not (run.resume and kept.exists()):
            begun = run.resume and (path.exists() or number == 1)
            _train(model, dataclasses.replace(run, **phase._asdict(), resume=begun), corpus)
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
