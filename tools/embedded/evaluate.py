"""Measure an embedded model on scenes that training never used.

Usage, from the root of the repository: ``python -m tools.embedded.evaluate {describer,scorer,detector}``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from spr.embedded.scenes import check_seed
from tools.embedded.figures import Figure, fill_card, table

SCENES, SEED = 500, 900_000_001


def evaluate(model: str, folder: Path, n: int, seed: int) -> dict[str, Figure]:
    """The figures of the model in a folder, by name."""
    check_seed(seed)
    if model == "describer":
        from tools.embedded.evaluate_describer import evaluate_describer

        return evaluate_describer(folder, n, seed)
    if model == "scorer":
        from tools.embedded.evaluate_scorer import evaluate_scorer

        return evaluate_scorer(folder, n, seed)
    from tools.embedded.evaluate_detector import evaluate_detector

    return evaluate_detector(folder, n, seed)


def main(arguments: list[str] | None = None) -> None:
    """Print a model's figures as a table, then as one line of JSON."""
    from tools.embedded.models import weights_folder

    parser = argparse.ArgumentParser(prog="python -m tools.embedded.evaluate", description=__doc__)
    parser.add_argument("model", choices=["describer", "scorer", "detector"])
    parser.add_argument("--weights", type=Path, help="folder of the model (default: the weights in the package)")
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument(
        "--seed", type=int, default=SEED, help="seed of the scenes; the seeds used for training are refused"
    )
    parser.add_argument(
        "--store", action="store_true", help="write figures.json and the card's table beside the weights"
    )
    args = parser.parse_args(arguments)
    folder = args.weights or weights_folder(args.model)
    figures = evaluate(args.model, folder, args.scenes, args.seed)
    protocol = {"scenes": args.scenes, "seed": args.seed}
    print(table(args.model, figures, f"{args.scenes} scenes of seed {args.seed}, 95 % intervals"))
    result = {"task": f"scenes-{args.model}", "protocol": protocol, "n": args.scenes}
    line = json.dumps({**result, "metrics": {name: figure.to_json() for name, figure in figures.items()}})
    if args.store:
        (folder / "figures.json").write_text(line + "\n", encoding="utf-8")
        card = folder / "README.md"
        if card.exists():
            setting = f"On {args.scenes} scenes of seed {args.seed}, which were not used for training:"
            card.write_text(fill_card(card.read_text(encoding="utf-8"), figures, setting), encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
