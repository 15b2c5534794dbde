"""Which images are held out from training: a share of them, chosen by a hash of the id alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from spr.core.image_names import file_key
from spr.core.randomness import stable_hashes

_PART = r"([a-z0-9_-]+|[A-Za-z0-9_-][A-Za-z0-9_.-]*\.[a-z0-9_-]+)"
_OWN_KEY = f"^{_PART}(/{_PART})*$"
"""File names that are their own `file_key`: nearly all."""


class Splits:
    """The splits of images: ``train`` or ``holdout``.

    An image file that several entries name, in whatever spelling, is in one split: that of the entry listed first.

    Args:
        image_ids: Strings, ``(images,)``.
        file_names: Strings, ``(images,)``.
        share: Share of the images that is held out, 0 ≤ x < 1.

    >>> splits = Splits(pa.array(["1", "2"]), pa.array(["a.jpg", "./a.JPG"]), 0.5)
    >>> splits.of(np.array([0, 1])).to_pylist()
    ['train', 'train']
    """

    def __init__(self, image_ids: pa.Array, file_names: pa.Array, share: float) -> None:
        self._ids, self._share = image_ids, share
        self._first = first_of_file(file_names) if share else None

    def of(self, images: npt.NDArray[np.int64]) -> pa.Array:
        """The splits of images, given by their indices, as an array of strings."""
        if not self._share:
            return pa.repeat(pa.scalar("train"), len(images))
        first = images if self._first is None else self._first[images]
        hashes = stable_hashes(0, "holdout", last=self._ids.take(pa.array(first)).to_pylist())
        return pc.if_else(pa.array(hashes / 2**64 < self._share), "holdout", "train")


def first_of_file(file_names: pa.Array) -> npt.NDArray[np.int64] | None:
    """The index of the first image with the same file as each image, int64; None if no two have the same file."""
    own = pc.match_substring_regex(file_names, _OWN_KEY)
    keys = [file_key(name) for name in file_names.filter(pc.invert(own)).to_pylist()]
    encoded = pc.replace_with_mask(file_names, pc.invert(own), pa.array(keys, pa.string())).dictionary_encode()
    if len(encoded.dictionary) == len(file_names):
        return None
    codes = encoded.indices.to_numpy()
    # Of several assignments to one place, the last is kept.
    first = np.empty(len(encoded.dictionary), dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    return np.asarray(first[codes])
