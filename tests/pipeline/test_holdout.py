"""The splits of many images at once are those that the plain definition gives each of them."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spr.core.image_names import file_key
from spr.core.randomness import stable_hash
from spr.pipeline.holdout import Splits, first_of_file

PARTS = st.sampled_from(["a", "A", "a.jpg", "a.JPG", "A.jpg", "b c.jpg", "b%20c.jpg", "é.png", "é.png", ".", "..", ""])
SEPARATORS = st.sampled_from(["/", "\\", "//"])
NAMES = st.one_of(
    st.lists(st.tuples(PARTS, SEPARATORS), min_size=1, max_size=3).map(lambda parts: "".join(map("".join, parts))),
    st.lists(PARTS, min_size=1, max_size=3).map("/".join),
    st.text(max_size=10),
    st.from_regex(r"[a-zA-Z0-9_./-]{1,12}", fullmatch=True),
)


@given(st.lists(NAMES, max_size=12))
def test_the_first_image_of_a_file_is_the_first_with_the_same_key(names):
    keys = [file_key(name) for name in names]
    expected = [keys.index(key) for key in keys]
    first = first_of_file(pa.array(names, pa.string()))
    assert (list(range(len(names))) if first is None else first.tolist()) == expected


@given(st.lists(NAMES, min_size=1, max_size=12), st.sampled_from([0.0, 0.05, 0.5, 0.95]), st.randoms())
def test_splits_are_those_of_the_hash_of_the_first_id(names, share, random):
    ids = [str(random.randrange(10**6)) for _ in names]
    keys = [file_key(name) for name in names]
    hashes = [stable_hash(0, "holdout", ids[keys.index(key)]) for key in keys]
    expected = ["holdout" if number / 2**64 < share else "train" for number in hashes]
    order = random.sample(range(len(names)), len(names))
    found = Splits(pa.array(ids), pa.array(names, pa.string()), share).of(np.array(order))
    assert found.to_pylist() == [expected[index] for index in order]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_no_images_have_no_splits(share):
    splits = Splits(pa.array(["1"]), pa.array(["a.jpg"]), share)
    assert splits.of(np.array([], dtype=np.int64)).equals(pa.array([], pa.string()))
