"""Draw a contact sheet of scenes with their boxes, or of the describer's answers on their scenes.

Usage, from the root of the repository: ``python -m tools.embedded.gallery {scenes,descriptions} --out PNG``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from spr.embedded.scenes import MIN_AREA, SIZE, Scene, make_scene
from spr.records import Box
from tools.embedded.evaluate import SEED

SCALE = 3
_GAP = 6
_RIGHT, _WRONG, _CROWD, _SPECK = "cyan", "red", "magenta", "white"


def draw(scene: Scene, boxes: Sequence[tuple[Box, str]], region: Box | None = None) -> Image.Image:
    """The scene, enlarged `SCALE` times, with boxes ``(xyxy pixels, colour)`` and optionally a region's frame."""
    image = Image.fromarray(scene.image).resize((SIZE * SCALE, SIZE * SCALE), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(image)
    if region is not None:
        pen.rectangle(_scaled(region), outline="yellow", width=2)
    for box, colour in boxes:
        pen.rectangle(_scaled(box), outline=colour)
    return image


def _scaled(box: Box) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (SCALE * value for value in box)
    return x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)


def sheet(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Tiles of equal size in one image, row by row."""
    width, height = (side + _GAP for side in tiles[0].size)
    rows = -(-len(tiles) // columns)
    made = Image.new("RGB", (columns * width, rows * height), "black")
    for k, tile in enumerate(tiles):
        made.paste(tile, (k % columns * width, k // columns * height))
    return made


def scene_sheet(n: int, seed: int) -> Image.Image:
    """Scenes with the boxes of their objects; members of crowds and specks have their own colours."""
    tiles = []
    for index in range(n):
        scene = make_scene(seed, index)
        boxes = []
        for k, (x1, y1, x2, y2) in enumerate(scene.boxes_xyxy.tolist()):
            colour = _CROWD if scene.in_crowd[k] else _RIGHT if scene.areas[k] >= MIN_AREA else _SPECK
            boxes.append(((x1, y1, x2, y2), colour))
        tiles.append(draw(scene, boxes))
    return sheet(tiles, columns=6)


def description_sheet(folder: Path, n: int, seed: int) -> tuple[Image.Image, list[str]]:
    """The describer's answers about one region per scene; correct and wrong boxes have different colours."""
    from spr.grounding import parse
    from tools.embedded.evaluate_describer import (
        DIALECT,
        answers_to,
        hits,
        open_describer,
        placed_boxes,
        region_questions,
        view,
    )

    scenes = [make_scene(seed, index) for index in range(n)]
    questions = [q for q in region_questions(scenes, seed) if q.kind == "full"]
    shown = [view(scenes[q.scene], q.window) for q in questions]
    answers = answers_to(open_describer(folder), shown, [q.prompt for q in questions])
    tiles = []
    for question, answer in zip(questions, answers, strict=True):
        scene = scenes[question.scene]
        said = placed_boxes(parse(answer, DIALECT, (SIZE, SIZE)).spans, question.window)
        every = list(range(len(scene)))
        boxes = [(box, _RIGHT if hits(scene, every, [(name, box)], 0.5) else _WRONG) for name, box in said]
        (region,) = [box for span in parse(question.prompt, DIALECT, (SIZE, SIZE)).spans for box in span.boxes]
        tiles.append(draw(scene, boxes, region))
    return sheet(tiles, columns=4), answers


def main(arguments: list[str] | None = None) -> None:
    """Draw a sheet."""
    parser = argparse.ArgumentParser(prog="python -m tools.embedded.gallery", description=__doc__)
    parser.add_argument("what", choices=["scenes", "descriptions"])
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--weights", type=Path, help="folder of the describer (default: the weights in the package)")
    args = parser.parse_args(arguments)
    if args.what == "scenes":
        scene_sheet(24, args.seed).save(args.out)
        return
    from tools.embedded.models import weights_folder

    image, answers = description_sheet(args.weights or weights_folder("describer"), 12, args.seed)
    image.save(args.out)
    print("\n".join(answers))


if __name__ == "__main__":
    main()
