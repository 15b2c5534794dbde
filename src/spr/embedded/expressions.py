"""Referring expressions for the objects of scenes, each true of exactly one object, in MDETR's RefCOCO format."""

from __future__ import annotations

from typing import Any

import numpy as np

from spr.embedded.scenes import SIZE, Scene
from spr.embedded.sprites import CATEGORIES, COLOURS, SHAPES

RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
_CLEARANCE = 5.0  # px between centres, so that the relation is obvious
_SIZE_RATIO = 1.6  # minimum ratio of areas for "small" and "large"


def expressions(scene: Scene, target: int) -> list[str]:
    """All expressions that are true of the object ``target`` and of no other visible object, the simplest first.

    They are ``the red circle``, ``the small red circle`` (clearly smaller, or larger, than all others of its category),
    and relations to an object with an unambiguous name: ``the red circle left of the blue star`` or ``… the star``.

    >>> from spr.embedded.scenes import make_scene
    >>> expressions(make_scene(0, 0), 0)[0].startswith("the ")
    True
    """
    kinds = scene.colours * len(SHAPES) + scene.shapes
    rivals = [int(i) for i in np.flatnonzero(kinds == kinds[target]) if i != target]
    name = scene.category(target)
    found = [f"the {name}"] if not rivals else []
    size = _size_word(scene, target, rivals)
    if size:
        found.append(f"the {size} {name}")
    centres = (scene.boxes_xyxy[:, :2] + scene.boxes_xyxy[:, 2:]) / 2
    for anchor in range(len(scene)):
        phrase = _anchor_phrase(scene, anchor)
        if phrase is None or kinds[anchor] == kinds[target]:
            continue
        offset = centres - centres[anchor]
        for relation, distance in zip(
            RELATIONS, (-offset[:, 0], offset[:, 0], -offset[:, 1], offset[:, 1]), strict=True
        ):
            if distance[target] >= _CLEARANCE and all(distance[r] <= -_CLEARANCE for r in rivals):
                found.append(f"the {name} {relation} {phrase}")
                if size:
                    found.append(f"the {size} {name} {relation} {phrase}")
    return found


def _size_word(scene: Scene, target: int, rivals: list[int]) -> str | None:
    if not rivals:
        return None
    area, others = scene.areas[target], scene.areas[rivals]
    if area * _SIZE_RATIO <= others.min():
        return "small"
    return "large" if area >= others.max() * _SIZE_RATIO else None


def _anchor_phrase(scene: Scene, anchor: int) -> str | None:
    """The shortest name that fits only this object: ``the star``, ``the blue star``, or None."""
    if (scene.shapes == scene.shapes[anchor]).sum() == 1:
        return f"the {SHAPES[scene.shapes[anchor]]}"
    same = (scene.shapes == scene.shapes[anchor]) & (scene.colours == scene.colours[anchor])
    return f"the {COLOURS[scene.colours[anchor]]} {SHAPES[scene.shapes[anchor]]}" if same.sum() == 1 else None


def choose(scene: Scene, target: int, rng: np.random.Generator) -> str | None:
    """One of the object's expressions, or None if it has none: with probability 1/2 the simplest, else any."""
    found = expressions(scene, target)
    if not found:
        return None
    return found[0] if rng.random() < 0.5 else found[int(rng.integers(len(found)))]


def mdetr_entries(
    scene: Scene, index: int, file_name: str, seed: int, first_id: int, limit: int = 3
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Expressions of up to ``limit`` objects of a scene, in the format of MDETR's ``finetune_refcoco_val.json``.

    There, each *image* entry is one expression (``caption``) with its file and the file's number (``original_id``), and
    has one annotation with the box (``[x, y, width, height]`` in pixels). The choice depends only on the seed and on
    the scene's ``index``.

    Returns:
        The image entries and their annotations, with ids from ``first_id``.
    """
    rng = np.random.default_rng([seed, index, 1])
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for target in rng.permutation(np.flatnonzero(scene.annotated)):
        caption = choose(scene, int(target), rng)
        if caption is None:
            continue
        number = first_id + len(images)
        x1, y1, x2, y2 = (int(v) for v in scene.boxes_xyxy[target])
        images.append(
            {
                "id": number,
                "original_id": index + 1,
                "file_name": file_name,
                "width": SIZE,
                "height": SIZE,
                "caption": caption,
                "dataset_name": "scenes",
                "tokens_negative": [[0, len(caption)]],
            }
        )
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "original_id": number,
                "category_id": 1 + CATEGORIES.index(scene.category(int(target))),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                "tokens_positive": [[0, len(caption)]],
            }
        )
        if len(images) == limit:
            break
    return images, annotations
