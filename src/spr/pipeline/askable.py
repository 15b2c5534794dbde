"""Which categories an image can be asked about: absent ones, and ones with a single object (`pairing.negatives`).

Absent is what is not annotated in the image at all, be it as a small object, as a crowd or by an entry that was
dropped. For LVIS, whose annotators did not look for every category in every image, only the categories count that they
looked for and did not find (``neg_category_ids``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spr.annotations import Annotations
from spr.core.randomness import stable_hashes
from spr.grounding.names import category_name
from spr.records.columns import list_array
from spr.records.schemas import OBJECTS

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MOST = 8
"""Maximum number of absent categories that are kept per image and strategy."""
FRAME = 100_000
"""Maximum number of images that are counted for popular and adversarial categories."""
MOST_CATEGORIES = 4096
"""With more categories, none is ``adversarial``: the table of all pairs of categories would take too much memory."""
_AT_ONCE = 8192
_STRATEGIES = ("random", "popular", "adversarial")
_STRUCT = OBJECTS.field("askable").type


class Askable:
    """The askable categories of images.

    Absent categories are drawn at random, without replacement: ``random`` with equal probabilities; ``popular`` in
    proportion to the number of images with the category; ``adversarial`` in proportion to the number of images in which
    it occurs together with a category of this image, summed over these categories. POPE (Li et al., 2023)
    names these three strategies, and takes the most frequent categories instead of drawing them.

    Args:
        parsed: The annotations.
        image_ids: Strings, ``(images,)``.
        kept: Objects that pass the filters, ``(objects,)``.
        counted: Indices of the images whose categories are counted; of more than `FRAME`, the first.
        seed: Seed of the choice; each image has its own, so it does not depend on the order of the images.
    """

    def __init__(self, parsed: Annotations, image_ids: pa.Array, kept: Bools, counted: Ints, seed: int) -> None:
        self._parsed, self._ids, self._kept, self._seed = parsed, image_ids, kept, seed
        names = parsed.categories
        self._names = pa.array(names, pa.string())
        self._own = parsed.unusable[np.argsort(parsed.unusable[:, 0], kind="stable")]
        self._alike = _alike(names)
        self._popularity, self._together = self._count(np.sort(counted[:FRAME]))

    def of(self, images: Ints) -> pa.Array:
        """The categories of images, given by their indices, as an array of the column ``askable``."""
        lists: dict[str, list[Ints]] = {field.name: [] for field in _STRUCT}
        seeds = stable_hashes(self._seed, "absent", last=self._ids.take(pa.array(images)).to_pylist())
        for image, seed in zip(images.tolist(), seeds.tolist(), strict=True):
            present, single = self._present(image)
            absent = self._absent(image, present)
            draws = np.random.default_rng(seed).random((3, len(self._names)))
            weights = np.ones(len(self._names)), self._popularity, self._likely(present)
            for name, draw, weight in zip(_STRATEGIES, draws, weights, strict=True):
                lists[name].append(_drawn(absent, draw, weight))
            lists["single"].append(single)
        columns = [self._column(lists[field.name]) for field in _STRUCT]
        return pa.StructArray.from_arrays(columns, fields=list(_STRUCT))

    def _column(self, lists: list[Ints]) -> pa.Array:
        offsets = np.cumsum([0, *map(len, lists)])
        flat = np.concatenate(lists) if lists else np.empty(0, np.int64)
        return list_array(offsets, self._names.take(pa.array(flat, pa.int64())))

    def _present(self, image: int) -> tuple[Ints, Ints]:
        """The categories annotated in an image, and those of them with one object, which is kept."""
        rows = self._parsed.rows(image)
        low, high = np.searchsorted(self._own[:, 0], [image, image + 1])
        dropped = self._own[low:high, 1]
        present, counts = np.unique(np.concatenate([self._parsed.category[rows], dropped]), return_counts=True)
        single = present[counts == 1]
        usable = self._parsed.category[rows][self._kept[rows]]
        return present.astype(np.int64), single[np.isin(single, usable)].astype(np.int64)

    def _absent(self, image: int, present: Ints) -> Bools:
        looked_for = self._parsed.looked_for
        absent = np.ones(len(self._names), dtype=np.bool_)
        if looked_for is not None:
            absent[:] = False
            own = looked_for[image]
            if own is not None:
                absent[own] = True
        for category in present.tolist():
            absent[self._alike[category]] = False
        return absent

    def _likely(self, present: Ints) -> npt.NDArray[np.float64]:
        """The weights of adversarial categories; all 0 with too many categories."""
        if self._together is None:
            return np.zeros(len(self._names))
        return np.asarray(self._together[present].sum(axis=0, dtype=np.float64))

    def _count(self, images: Ints) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32] | None]:
        """The number of images with each category, and with each pair of categories."""
        count, parsed = len(self._names), self._parsed
        single = np.zeros(count)
        pairs = np.zeros(count * count, np.int32) if count <= MOST_CATEGORIES else None
        for start in range(0, len(images), _AT_ONCE):
            part = images[start : start + _AT_ONCE]
            lengths = np.diff(parsed.offsets)[part]
            rows = np.arange(lengths.sum()) + np.repeat(parsed.offsets[part] - np.cumsum(lengths) + lengths, lengths)
            keys = np.unique(np.repeat(np.arange(len(part)), lengths) * count + parsed.category[rows])
            category, owner = keys % count, keys // count
            single += np.bincount(category, minlength=count)
            if pairs is not None:
                own = np.bincount(owner, minlength=len(part))[owner]  # how many categories the image has
                first = np.repeat(category, own)
                begin = np.searchsorted(owner, owner)
                second = category[np.arange(own.sum()) - np.repeat(np.cumsum(own) - own - begin, own)]
                pairs += np.bincount(first * count + second, minlength=len(pairs)).astype(np.int32)
        return single, None if pairs is None else pairs.reshape(count, count)


def _drawn(absent: Bools, draw: npt.NDArray[np.float64], weight: npt.NDArray[np.float64]) -> Ints:
    """At most `MOST` absent categories, drawn without replacement in proportion to their weights."""
    rows = np.flatnonzero(absent & (weight > 0))
    # The largest keys u^(1/w) are such a sample (Efraimidis and Spirakis, 2006).
    keys = np.log(draw[rows]) / weight[rows]
    return np.asarray(rows[np.argsort(-keys, kind="stable")[:MOST]], dtype=np.int64)


def _alike(names: tuple[str, ...]) -> list[Ints]:
    """For each category those that people may call by the same name, such as both of LVIS's bows, and itself."""
    by_word: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        for word in category_name(name).alternatives:
            by_word.setdefault(word.lower(), []).append(number)
    return [
        np.unique([number, *(other for word in category_name(name).alternatives for other in by_word[word.lower()])])
        for number, name in enumerate(names)
    ]
