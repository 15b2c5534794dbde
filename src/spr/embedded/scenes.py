"""Scenes: small images of coloured shapes with exactly known boxes and referring expressions.

A scene depends only on ``(seed, index)``, so that scene 7 is the same among ten scenes and among ten thousand. Seeds
from `TRAINING_SEEDS` up are reserved for training the embedded models; scenes of smaller seeds were not used for it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt
from PIL import Image

from spr.core.atomic import atomic_dir, recover
from spr.core.documents import read_json
from spr.core.errors import InputError
from spr.core.outputs import check_output
from spr.core.paths import is_file
from spr.core.progress import Progress
from spr.core.terminal import count_text
from spr.embedded.sprites import CATEGORIES, COLOURS, RGB, SHAPES, sprite

SIZE = 112
"""Width and height of a scene, pixels."""
MIN_AREA = 60
"""The area filter for scenes, in px²; it corresponds to 300 px² for the photos of Objects365 (supplement, Sec. 1).
Ordinary objects are larger, and the *specks* in some scenes are smaller."""
TRAINING_SEEDS = 1_000_000_000

_COUNT = (9, 14)  # ordinary objects per scene
_SIDE = (11.0, 34.0)  # px, geometric mean of an ordinary object's sides
_MIN_SIDE = 9
_OVERLAP = 0.12  # maximum share of the smaller of two boxes
_CROWD_SHARE, _SPECK_SHARE = 0.35, 0.3  # shares of the scenes
_RELATIONS = ("left of", "right of", "above", "below")
_CLEARANCE = 5.0  # px between centres, so that the relation is obvious
_SIZE_RATIO = 1.6  # minimum ratio of areas for "small" and "large"
_EXPRESSIONS = 3  # maximum number per scene in expressions.json

_Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A scene with N objects; those of a crowd are annotated as one ``iscrowd`` box."""

    image: npt.NDArray[np.uint8]  # RGB, (SIZE, SIZE, 3)
    shapes: npt.NDArray[np.int64]  # (N,), indices into SHAPES
    colours: npt.NDArray[np.int64]  # (N,), indices into COLOURS
    boxes_xyxy: npt.NDArray[np.int64]  # (N, 4) pixels: tight boxes of whole objects, including hidden parts
    in_crowd: npt.NDArray[np.bool_]  # (N,), whether the object belongs to the crowd

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def kinds(self) -> npt.NDArray[np.int64]:
        """Indices into `CATEGORIES`, ``(N,)``."""
        return self.colours * len(SHAPES) + self.shapes

    @property
    def areas(self) -> npt.NDArray[np.int64]:
        """Box areas in px², ``(N,)``."""
        sides = self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]
        return np.asarray(sides[:, 0] * sides[:, 1])

    @property
    def annotated(self) -> npt.NDArray[np.bool_]:
        """Bool ``(N,)``: the objects that remain without crowds and with the area filter `MIN_AREA`."""
        return ~self.in_crowd & (self.areas >= MIN_AREA)

    def category(self, index: int) -> str:
        """The name of an object's category, such as ``"red circle"``."""
        return CATEGORIES[int(self.kinds[index])]


def make_scene(seed: int, index: int) -> Scene:
    """Scene number ``index`` (from 0) of a seed.

    >>> scene = make_scene(0, 3)
    >>> scene.image.shape, 9 <= int(scene.annotated.sum()) <= 14
    ((112, 112, 3), True)
    """
    rng = np.random.default_rng([seed, index])
    annotated = 0
    while annotated < _COUNT[0]:
        members, ordinary = _place(rng)
        annotated = sum((x2 - x1) * (y2 - y1) >= MIN_AREA for x1, y1, x2, y2 in ordinary)
    boxes, crowd = members + ordinary, np.array([True] * len(members) + [False] * len(ordinary))
    shapes, colours = rng.integers(len(SHAPES), size=len(boxes)), rng.integers(len(COLOURS), size=len(boxes))
    if crowd.any():  # all members of a crowd have one category
        shapes[crowd], colours[crowd] = shapes[crowd][0], colours[crowd][0]
    image = _background(rng)
    for shape, colour, (x1, y1, x2, y2) in zip(shapes, colours, boxes, strict=True):
        coverage = sprite(SHAPES[shape], x2 - x1, y2 - y1)
        paint = np.asarray(RGB[COLOURS[colour]], dtype=np.float32) + rng.uniform(-18, 18, 3).astype(np.float32)
        image[y1:y2, x1:x2] += coverage * (paint - image[y1:y2, x1:x2])
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return Scene(pixels, shapes, colours, np.asarray(boxes, dtype=np.int64), crowd)


def _hull(boxes: Sequence[_Box] | npt.NDArray[np.int64]) -> _Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _collides(box: _Box, others: list[_Box]) -> bool:
    x1, y1, x2, y2 = box
    for a1, b1, a2, b2 in others:
        width, height = min(x2, a2) - max(x1, a1), min(y2, b2) - max(y1, b1)
        smaller = min((x2 - x1) * (y2 - y1), (a2 - a1) * (b2 - b1))
        if width > 0 and height > 0 and width * height > _OVERLAP * smaller:
            return True
    return False


def _place(rng: np.random.Generator) -> tuple[list[_Box], list[_Box]]:
    """Boxes of the crowd; and of ordinary objects (large ones first, so that small ones are on top) and of specks."""
    members: list[_Box] = []
    if rng.random() < _CROWD_SHARE:
        window = rng.integers(34, 41)
        left, top = rng.integers(0, SIZE - window + 1, size=2)
        for _ in range(int(rng.integers(4, 7))):
            _try(rng, members, members, (10.0, 14.0), (int(left), int(top), int(left + window), int(top + window)))
        if len(members) < 3:  # two objects are not a crowd
            members = []
    blocked = [_hull(members)] if members else []
    ordinary: list[_Box] = []
    sides = np.exp(rng.uniform(np.log(_SIDE[0]), np.log(_SIDE[1]), size=int(rng.integers(_COUNT[0], _COUNT[1] + 1))))
    for side in np.sort(sides)[::-1]:
        _try(rng, ordinary, blocked, (side, side), (0, 0, SIZE, SIZE))
    if rng.random() < _SPECK_SHARE:
        for _ in range(int(rng.integers(1, 3))):
            _try(rng, ordinary, blocked, (6.0, 7.0), (0, 0, SIZE, SIZE), speck=True)
    return members, ordinary


def _try(
    rng: np.random.Generator,
    into: list[_Box],
    blocked: list[_Box],
    sides: tuple[float, float],
    window: _Box,
    *,
    speck: bool = False,
) -> None:
    """Add a box of random size to ``into`` and ``blocked`` if one fits; the size is reduced until one does."""
    side, aspect = rng.uniform(*sides), np.exp(rng.uniform(-0.3, 0.3))
    low, high = (5, 7) if speck else (_MIN_SIDE, 40)
    for attempt in range(60):
        shrunk = side * 0.94 ** (attempt // 6)
        width = min(max(round(shrunk * aspect**0.5), low), high)
        height = min(max(round(shrunk / aspect**0.5), low), high)
        x = window[0] + int(rng.random() * (window[2] - window[0] - width + 1))
        y = window[1] + int(rng.random() * (window[3] - window[1] - height + 1))
        box = (x, y, x + width, y + height)
        if not _collides(box, blocked):
            into.append(box)
            if blocked is not into:
                blocked.append(box)
            return


def _background(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A greyish gradient with noise, float32 ``(SIZE, SIZE, 3)``, clearly different from all colours."""
    base = rng.uniform(90, 165) + rng.uniform(-22, 22, 3)
    slopes = rng.uniform(-18, 18, (2, 3)).astype(np.float32)
    ramp = np.linspace(-1, 1, SIZE, dtype=np.float32)[:, None]
    noise = rng.standard_normal((SIZE, SIZE, 3), dtype=np.float32) * np.float32(rng.uniform(3, 11))
    image: npt.NDArray[np.float32] = noise + base.astype(np.float32)
    image += (ramp * slopes[0])[None, :, :] + (ramp * slopes[1])[:, None, :]
    return image


def expressions(scene: Scene, target: int) -> list[str]:
    """All expressions that are true of the object ``target`` and of no other visible object, the simplest first.

    They are ``the red circle``, ``the small red circle`` (clearly smaller, or larger, than all others of its category),
    and relations to an object with an unambiguous name: ``the red circle left of the blue star`` or ``… the star``.

    >>> expressions(make_scene(0, 0), 0)[0].startswith("the ")
    True
    """
    kinds, name = scene.kinds, scene.category(target)
    rivals = [int(i) for i in np.flatnonzero(kinds == kinds[target]) if i != target]
    size = _size_word(scene, target, rivals) if rivals else None
    names = [name, f"{size} {name}"] if size else [name]
    texts = [f"the {names[-1]}"] if size or not rivals else []
    centres = (scene.boxes_xyxy[:, :2] + scene.boxes_xyxy[:, 2:]) / 2
    for anchor in range(len(scene)):
        phrase = _anchor_phrase(scene, anchor)
        if phrase is None or kinds[anchor] == kinds[target]:
            continue
        x, y = (centres - centres[anchor]).T
        for relation, distance in zip(_RELATIONS, (-x, x, -y, y), strict=True):
            if distance[target] >= _CLEARANCE and all(distance[r] <= -_CLEARANCE for r in rivals):
                texts += [f"the {own} {relation} {phrase}" for own in names]
    return texts


def _size_word(scene: Scene, target: int, rivals: list[int]) -> str | None:
    area, others = scene.areas[target], scene.areas[rivals]
    if area * _SIZE_RATIO <= others.min():
        return "small"
    return "large" if area >= others.max() * _SIZE_RATIO else None


def _anchor_phrase(scene: Scene, anchor: int) -> str | None:
    """The shortest name that fits only this object: ``the star``, ``the blue star``, or None."""
    if (scene.shapes == scene.shapes[anchor]).sum() == 1:
        return f"the {SHAPES[scene.shapes[anchor]]}"
    return f"the {scene.category(anchor)}" if (scene.kinds == scene.kinds[anchor]).sum() == 1 else None


def choose(scene: Scene, target: int, rng: np.random.Generator) -> str | None:
    """One of the object's expressions, or None if it has none: with probability 1/2 the simplest, else any."""
    texts = expressions(scene, target)
    if not texts:
        return None
    return texts[0] if rng.random() < 0.5 else texts[int(rng.integers(len(texts)))]


def _coco_object(scene: Scene, index: SupportsIndex, box: Sequence[int], *, crowd: bool = False) -> dict[str, Any]:
    x1, y1, x2, y2 = map(int, box)
    bbox, area = [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1)
    return {"category_id": int(scene.kinds[index]) + 1, "bbox": bbox, "area": area, "iscrowd": int(crowd)}


def coco_annotations(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """The scene's annotations in COCO format, with ids from ``first_id``: each object, and the crowd as one box."""
    crowd = np.flatnonzero(scene.in_crowd)
    objects = [_coco_object(scene, crowd[0], _hull(scene.boxes_xyxy[crowd]), crowd=True)] if crowd.size else []
    objects += [_coco_object(scene, i, scene.boxes_xyxy[i]) for i in np.flatnonzero(~scene.in_crowd)]
    return [{"id": first_id + k, "image_id": image_id, **entry} for k, entry in enumerate(objects)]


def mdetr_entries(
    scene: Scene, index: int, file_name: str, seed: int, first_id: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The images and annotations of MDETR's ``finetune_refcoco_val.json`` for up to three objects of a scene.

    There, each *image* is one expression (``caption``) with its file and the file's number (``original_id``), and has
    one annotation with the box (``[x, y, width, height]`` in pixels). Both have ids from ``first_id``. The choice of
    objects and expressions depends only on the seed and on the scene's ``index``.
    """
    rng = np.random.default_rng([seed, index, 1])
    targets = map(int, rng.permutation(np.flatnonzero(scene.annotated)))
    captions = ((target, caption) for target in targets if (caption := choose(scene, target, rng)) is not None)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (target, caption) in enumerate(itertools.islice(captions, _EXPRESSIONS), first_id):
        whole = [[0, len(caption)]]
        image = {"id": number, "original_id": index + 1, "file_name": file_name, "width": SIZE, "height": SIZE}
        images.append({**image, "caption": caption, "dataset_name": "scenes", "tokens_negative": whole})
        ids = {"id": number, "image_id": number, "original_id": number}
        box = _coco_object(scene, target, scene.boxes_xyxy[target])
        annotations.append({**ids, **box, "tokens_positive": whole})
    return images, annotations


def check_seed(seed: int) -> None:
    """Raise an InputError unless the seed is in ``0..TRAINING_SEEDS - 1``; larger ones are reserved for training."""
    if not 0 <= seed < TRAINING_SEEDS:
        fix = "give a smaller --seed; larger ones are reserved for training the embedded models"
        raise InputError("--seed can't be used for scenes", got=seed, expected=f"0 to {TRAINING_SEEDS - 1}", fix=fix)


def write_scenes(out: Path, n: int, seed: int) -> Path:
    """Write ``n`` scenes as ``out/images/*.png``, ``out/expressions.json`` and ``out/instances.json`` (COCO).

    `mdetr_entries` describes ``expressions.json``. The folder appears when it is complete; if it already holds these
    scenes, nothing is done. Returns the path of ``instances.json``.

    Raises:
        InputError: if ``n`` is not positive, or the seed is reserved for training.
        RunError: if the folder holds anything else, or can't be written.
    """
    check_seed(seed)
    if n < 1:
        raise InputError("--n is out of range", got=n, expected="1 or more", fix="give a larger --n")
    out = Path(out)
    recover(out)
    info = {"description": "SPR scenes", "seed": seed}
    check_output(
        out,
        f"a folder with {count_text(n, 'scenes')} of seed {seed}",
        lambda folder: _holds(folder, info, n),
        folder=True,
    )
    if not is_file(out / "instances.json"):
        with atomic_dir(out, replace=False, sync=False) as folder:
            _write(folder, n, seed, info)
    return out / "instances.json"


def _holds(folder: Path, info: dict[str, Any], n: int) -> bool:
    content = read_json(folder / "instances.json")
    images = [folder / "images" / image["file_name"] for image in content["images"]]
    return content["info"] == info and len(images) == n and all(path.is_file() for path in images)


def _write(out: Path, n: int, seed: int, info: dict[str, Any]) -> None:
    (out / "images").mkdir()
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CATEGORIES)]
    instances: dict[str, Any] = {"info": info, "images": [], "annotations": [], "categories": categories}
    referring: dict[str, Any] = {"info": info, "images": [], "annotations": [], "categories": categories}
    with Progress("scenes", n, "scenes") as progress:
        for index in range(n):
            scene, file_name = make_scene(seed, index), f"{seed:05d}_{index:06d}.png"
            Image.fromarray(scene.image).save(out / "images" / file_name, compress_level=1)
            instances["images"].append({"id": index + 1, "file_name": file_name, "width": SIZE, "height": SIZE})
            instances["annotations"] += coco_annotations(scene, index + 1, len(instances["annotations"]) + 1)
            images, annotations = mdetr_entries(scene, index, file_name, seed, len(referring["images"]) + 1)
            referring["images"] += images
            referring["annotations"] += annotations
            progress.advance()
    (out / "expressions.json").write_text(json.dumps(referring))
    (out / "instances.json").write_text(json.dumps(instances))
