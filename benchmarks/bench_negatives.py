"""Measure what `pairing.negatives` and `training.mix` do to hallucination and to what the model could do before.

    python benchmarks/bench_negatives.py --out runs/negatives

The embedded describer can't answer yes or no, so POPE's question is asked as it can be: "Where is the red circle?",
about a category that is in a held-out scene once, or not at all. A box for an absent object is a hallucination; an
answer without a box for a present one is a wrong refusal. What is there in ``--out`` is not made again. Prints a
table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spr.config import Config, PairingConfig, load_config
from spr.core import boxes as bx
from spr.embedded.scenes import expressions, make_scene, write_scenes
from spr.evaluation.inference import Question, ask, image_loader
from spr.evaluation.task import evaluate
from spr.evaluation.tasks.description import Description
from spr.evaluation.tasks.rec import Rec
from spr.grounding import parse
from spr.models.describers.hf import HfDescriber
from spr.models.loading import model_source
from spr.models.questions import EMBEDDED_PROMPT
from spr.pipeline import runner
from spr.pipeline.negatives import make_questions
from spr.records import ImageObjects, QuestionPair
from spr.records.schemas import from_table
from spr.runs.store import StageStore
from spr.training.run import run as train

SEED, HELD_OUT, OTHER = 7_400_001, 900_000_006, 7_500_001
"""Seeds of the scenes: to train on, to measure on, and of the mixed rows."""
OWN_WORDS = "pairing.absent_answer=a {category}."
"""A refusal in words that the embedded describer writes: it names the object, and gives no box. It knows no "no"."""
SETTINGS: dict[str, tuple[str, ...]] = {
    "pairs only": (),
    "negatives 1": ("pairing.negatives=1",),
    "negatives 1, no positives": ("pairing.negatives=1", "pairing.positives=false"),
    "negatives 1, NLL 1": ("pairing.negatives=1", "training.nll_weight=1"),
    "own words": ("pairing.negatives=1", OWN_WORDS),
    "own words, NLL 1": ("pairing.negatives=1", OWN_WORDS, "training.nll_weight=1"),
    "own words, NLL 1, mix 0.2": (
        "pairing.negatives=1",
        OWN_WORDS,
        "training.nll_weight=1",
        "training.mix={path: MIX, share: 0.2}",
    ),
    "own words, no positives": ("pairing.negatives=1", OWN_WORDS, "pairing.positives=false"),
}
"""What each training changes in the preset `quickstart`."""
COLUMNS = ("boxes for absent", "boxes for present", "present Acc@0.5", "REC Acc@0.5", "REC Acc@0.9")
COLUMNS += ("S_loc", "unmatched boxes", "words")


def config_of(data: Path, changes: Sequence[str], mix: Path) -> Config:
    """The preset on the scenes in ``data``."""
    paths = {"annotations.path": data / "instances.json", "annotations.images": data / "images"}
    overrides = [f"{name}={json.dumps(str(path))}" for name, path in paths.items()]
    overrides += [change.replace("MIX", json.dumps(str(mix))) for change in changes]
    samples = "describer.samples={full: 1, crop: 1, crop_objects: 1}"
    return load_config("quickstart", [*overrides, samples, f"seed={SEED}"])


def write_mix(out: Path, scenes: int) -> Path:
    """Conversations about referring expressions of other scenes, which the describer was trained to answer."""
    folder = out / "mix"
    write_scenes(folder / "scenes", scenes, OTHER)
    lines = []
    for index in range(scenes):
        scene = make_scene(OTHER, index)
        target = int(np.flatnonzero(scene.annotated)[0])
        texts = expressions(scene, target)
        if texts:
            box = scene.boxes_xyxy[target] / scene.image.shape[0]
            answer = "[" + ", ".join(f"{edge:.2f}" for edge in box) + "]"
            asked = EMBEDDED_PROMPT.replace("{expression}", texts[-1])
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            lines.append({"images": [f"scenes/images/{OTHER:05d}_{index:06d}.png"], "messages": turns})
    path = folder / "mix.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def questions_about(run: Path, config: Config, describer: HfDescriber) -> list[QuestionPair]:
    """Two absent and two present objects of each held-out scene, as far as it has them."""
    images = [image for table in StageStore(run / "objects").tables() for image in from_table(table, ImageObjects)]
    pairing = PairingConfig(negatives=2, positives=True)
    return make_questions(images, describer.dialect, pairing, model="embedded/describer", seed=config.seed)


def measure(held_out: Path, data: Path, config: Config, adapter: Path | None) -> dict[str, Any]:
    """The figures of `COLUMNS`, the numbers of questions about absent and present objects, and a refusal."""
    options = {"temperature": 0.0, "batch_size": 64, "max_new_tokens": 160, "device": "cpu"}
    describer = HfDescriber(model_source("embedded/describer"), peft_adapter=adapter, **options)
    pairs = questions_about(held_out, config, describer)
    asked = [Question(pair.query_id, pair.file_name, (pair.width, pair.height), pair.prompt) for pair in pairs]
    answers = ask(describer, asked, image_loader(data / "images"), seed=0)
    boxes = [
        parse(text or "", describer.dialect, (pair.width, pair.height)).boxes
        for pair, text in zip(pairs, answers.texts, strict=True)
    ]
    boxed = np.array([len(own) > 0 for own in boxes])
    absent = np.array([pair.kind == "absent" for pair in pairs])
    hits = np.array(
        [
            bool(own) and pair.kind == "present" and float(bx.iou(own[0], pair.chosen_spans[0].boxes[0])) >= 0.5
            for pair, own in zip(pairs, boxes, strict=True)
        ]
    )
    rec = evaluate(Rec(prompt=EMBEDDED_PROMPT), data / "expressions.json", describer=describer, images=data / "images")
    regions = Description(prompt=config.prompts.full)
    described = evaluate(regions, regions.load(held_out), describer=describer, images=data / "images")
    refusals = [text for text, own, away in zip(answers.texts, boxes, absent, strict=True) if away and not own]
    return {
        "boxes for absent": float(boxed[absent].mean()),
        "boxes for present": float(boxed[~absent].mean()),
        "present Acc@0.5": float(hits[~absent].mean()),
        "REC Acc@0.5": rec.value("acc@0.5"),
        "REC Acc@0.9": rec.value("acc@0.9"),
        "S_loc": described.value("s_loc"),
        "unmatched boxes": described.value("unmatched_boxes"),
        "words": described.value("words"),
        "questions": [int(absent.sum()), int((~absent).sum())],
        "refusal": refusals[0] if refusals else None,
    }


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=240)
    parser.add_argument("--held-out", type=int, default=150)
    parser.add_argument("--only", help="names of settings, separated by semicolons")
    arguments = parser.parse_args()
    out: Path = arguments.out
    data, held_out_data = out / "scenes", out / "held-out-scenes"
    write_scenes(data, arguments.scenes, SEED)
    write_scenes(held_out_data, arguments.held_out, HELD_OUT)
    mix = write_mix(out, arguments.scenes)
    held_out = config_of(held_out_data, ("annotations.crowds=drop", "annotations.holdout=0"), mix)
    runner.run(held_out, out / "held-out", until="regions")
    wanted = None if arguments.only is None else arguments.only.split(";")
    found: dict[str, dict[str, Any]] = {}
    first = out / "run-0"
    for number, (name, changes) in enumerate({"before": (), **SETTINGS}.items()):
        if wanted is not None and name not in (*wanted, "before"):
            continue
        start, run = time.monotonic(), out / f"run-{number}"
        file = out / f"figures-{number}.json"
        if not file.is_file():
            config, adapter, steps = config_of(data, changes, mix), None, 0
            runner.run(config, run if number else first, workers=2, reuse=[first] if number else [])
            if number:
                summary = train(config, run)
                adapter, steps = run / "adapter", summary.steps
            figures = measure(out / "held-out", held_out_data, held_out, adapter)
            figures |= {"name": name, "steps": steps, "seconds": time.monotonic() - start}
            file.write_text(json.dumps(figures))
        found[name] = json.loads(file.read_text())
        print(f"{name}: {found[name]['seconds']:.0f} s", flush=True)
    print(f"{'':<28}" + "".join(f"{column:>19}" for column in COLUMNS))
    for name, figures in found.items():
        print(f"{name:<28}" + "".join(f"{figures[column]:19.3f}" for column in COLUMNS))
    print(json.dumps({"benchmark": "negatives", "settings": list(found.values())}))


if __name__ == "__main__":
    main()
