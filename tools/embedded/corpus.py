"""The training scenes as arrays on disk: generated once from a seed, then read as memory maps.

Besides the images, they contain what is slow to compute: for each scene some regions, grown as the pipeline grows them,
and some referring expressions as token ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import numpy.typing as npt

from spr.config import RegionsConfig
from spr.core.atomic import write_atomically
from spr.core.errors import InputError
from spr.embedded.scenes import MIN_AREA, SIZE, TRAINING_SEEDS, Scene, choose, make_scene
from spr.pipeline.regions import grow_regions
from tools.embedded.texts import PROMPTS
from tools.embedded.vocabulary import IDS, PAD, TOKENS, encode

MAX_OBJECTS = 24
REGIONS, EXPRESSIONS, PROMPT_LENGTH = 3, 4, 16
_CHUNK = 250

_FIELDS: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "images": (np.uint8, (SIZE, SIZE, 3)),
    "kinds": (np.int16, (MAX_OBJECTS,)),
    "boxes": (np.int16, (MAX_OBJECTS, 4)),
    "regions": (np.int16, (REGIONS, 4)),
    "inside": (np.bool_, (REGIONS, MAX_OBJECTS)),
    "targets": (np.int16, (EXPRESSIONS,)),
    "questions": (np.int16, (EXPRESSIONS, PROMPT_LENGTH)),
}


@dataclass(frozen=True, slots=True)
class Corpus:
    """N scenes as arrays, with up to M = `MAX_OBJECTS` objects, R regions and Q expressions per scene.

    Attributes:
        images: uint8 ``(N, SIZE, SIZE, 3)``.
        kinds: int16 ``(N, M)``: index of the category in `spr.embedded.sprites.CATEGORIES`, −1 for padding.
        boxes: int16 ``(N, M, 4)``, xyxy pixels; objects from left to right.
        regions: int16 ``(N, R, 4)``, xyxy pixels; 0 for padding.
        inside: bool ``(N, R, M)``: which objects are inside a region. Specks, below the area filter, never are.
        targets: int16 ``(N, Q)``: the object that an expression refers to, −1 for padding.
        questions: int16 ``(N, Q, L)``: ids of the REC prompt, padded on the right.
    """

    images: npt.NDArray[np.uint8]
    kinds: npt.NDArray[np.int16]
    boxes: npt.NDArray[np.int16]
    regions: npt.NDArray[np.int16]
    inside: npt.NDArray[np.bool_]
    targets: npt.NDArray[np.int16]
    questions: npt.NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.images)


def sorted_scene(scene: Scene) -> Scene:
    """The scene with its objects sorted by their left edges, then their top edges."""
    order = np.lexsort((scene.boxes_xyxy[:, 1], scene.boxes_xyxy[:, 0]))
    return Scene(scene.image, scene.shapes[order], scene.colours[order], scene.boxes_xyxy[order], scene.in_crowd[order])


def scene_regions(
    scene: Scene, rng: np.random.Generator, count: int
) -> list[tuple[npt.NDArray[np.float64], list[int]]]:
    """Up to ``count`` different valid regions of a scene, with the indices of the objects inside each.

    Members of a crowd count as objects, since a detector finds them (supplement, Sec. 1); specks do not.
    """
    usable = np.flatnonzero(scene.areas >= MIN_AREA)
    boxes = np.broadcast_to(scene.boxes_xyxy[usable], (len(usable), len(usable), 4))
    grown = grow_regions(boxes, np.ones(boxes.shape[:2], dtype=bool), np.arange(len(usable)), RegionsConfig())
    found: list[tuple[npt.NDArray[np.float64], list[int]]] = []
    for start in rng.permutation(len(usable)):
        region = grown.regions_xyxy[start]
        if grown.valid[start] and not any(np.array_equal(region, other) for other, _ in found):
            found.append((region, [int(i) for i in usable[grown.inside[start]]]))
    return found[:count]


def _chunk(seed: int, first: int, count: int) -> dict[str, npt.NDArray[np.generic]]:
    arrays = {name: np.zeros((count, *shape), dtype=kind) for name, (kind, shape) in _FIELDS.items()}
    arrays["kinds"] -= 1
    arrays["targets"] -= 1
    arrays["questions"] += IDS[PAD]
    for row in range(count):
        scene = sorted_scene(make_scene(seed, first + row))
        rng = np.random.default_rng([seed, first + row, 2])
        arrays["images"][row] = scene.image
        arrays["kinds"][row, : len(scene)] = scene.kinds
        arrays["boxes"][row, : len(scene)] = scene.boxes_xyxy
        for k, (region, inside) in enumerate(scene_regions(scene, rng, REGIONS)):
            arrays["regions"][row, k] = region
            arrays["inside"][row, k, inside] = True
        filled = 0
        for target in rng.permutation(np.flatnonzero(scene.annotated)):
            if filled == EXPRESSIONS:
                break
            expression = choose(scene, int(target), rng)
            if expression is not None:
                ids = encode(PROMPTS["rec"].format(expression=expression))
                arrays["targets"][row, filled] = target
                arrays["questions"][row, filled, : len(ids)] = ids
                filled += 1
    return arrays


def _jobs(seed: int, n: int) -> Iterator[tuple[int, int, int]]:
    for first in range(0, n, _CHUNK):
        yield seed, first, min(_CHUNK, n - first)


def build_corpus(folder: Path, n: int, seed: int, workers: int = 1) -> Corpus:
    """The corpus of ``n`` scenes of training seed ``seed`` (0, 1, …) in a folder; generated if it does not exist.

    Raises:
        InputError: if the folder contains another corpus.
    """
    identity = {"n": n, "seed": seed, "size": SIZE, "tokens": crc32(" ".join(TOKENS).encode())}
    marker = folder / "corpus.json"
    if marker.exists():
        there = json.loads(marker.read_text(encoding="utf-8"))
        if there != identity:
            fix = "give another --corpus, or remove that folder"
            raise InputError(f"{folder} contains another corpus", got=there, expected=identity, fix=fix)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        maps = {
            name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=kind, shape=(n, *shape))
            for name, (kind, shape) in _FIELDS.items()
        }
        jobs = list(_jobs(TRAINING_SEEDS + seed, n))
        if workers > 1:
            with ProcessPoolExecutor(workers) as pool:
                chunks = pool.map(_chunk, *zip(*jobs, strict=True))
                _fill(maps, jobs, chunks)
        else:
            _fill(maps, jobs, (_chunk(*job) for job in jobs))
        write_atomically(marker, json.dumps(identity).encode())
    return Corpus(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _FIELDS})


def _fill(
    maps: dict[str, np.memmap[tuple[int, ...], np.dtype[np.generic]]],
    jobs: list[tuple[int, int, int]],
    chunks: Iterator[dict[str, npt.NDArray[np.generic]]],
) -> None:
    for (_, first, count), chunk in zip(jobs, chunks, strict=True):
        for name, array in chunk.items():
            maps[name][first : first + count] = array
    for array in maps.values():
        array.flush()
