"""Keys are equal if the ids are, and sort as they do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spr.annotations.ids import NO_KEY, TEXT_BASE, IdTable, look_up


def test_different_spellings_of_an_integer_are_the_same_id() -> None:
    ids = IdTable()
    assert {ids.key(value) for value in (12, 12.0, "12")} == {12}
    assert {ids.key(value) for value in (-3, "-3", -3.0)} == {-3}


def test_other_spellings_are_different_strings() -> None:
    ids = IdTable()
    keys = [ids.key(text) for text in ("012", "-0", "1e3", "12 ", "+5", "٣", "12.0", str(2**63))]
    assert all(TEXT_BASE <= key < NO_KEY for key in keys)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("value", [None, "", True, False, 1.5, float("nan"), float("inf"), [], {}, "\ud800"])
def test_an_invalid_id_has_no_key(value: object) -> None:
    assert IdTable().key(value) == NO_KEY


def test_integers_that_are_too_large_are_strings() -> None:
    ids = IdTable()
    large = [2**63, 2**63 - 1, TEXT_BASE, -(2**63) - 1]
    keys = np.array([ids.key(value) for value in large])
    ids.freeze()
    assert ids.texts(ids.final_keys(keys)) == [str(value) for value in large]
    assert ids.key(TEXT_BASE - 1) == TEXT_BASE - 1


def test_the_text_of_no_key_is_empty() -> None:
    ids = IdTable()
    keys = np.array([ids.key("a"), NO_KEY, 5])
    ids.freeze()
    assert ids.texts(ids.final_keys(keys)) == ["a", "", "5"]


@settings(deadline=None)
@given(st.lists(st.integers() | st.text(max_size=3), max_size=20))
def test_final_keys_sort_integers_by_value_then_strings(values: list[int | str]) -> None:
    ids = IdTable()
    keys = np.array([key for key in map(ids.key, values) if key != NO_KEY], dtype=np.int64)
    ids.freeze()
    texts = ids.texts(np.sort(ids.final_keys(keys)))
    integers = [int(text) for text in texts if _is_small_integer(text)]
    assert integers == sorted(integers)
    rest = texts[len(integers) :]
    assert rest == sorted(rest)
    assert not any(map(_is_small_integer, rest))


def _is_small_integer(text: str) -> bool:
    try:
        return str(int(text)) == text and -(2**63) <= int(text) < TEXT_BASE
    except ValueError:
        return False


_near = st.lists(st.integers(-50, 50))
_far = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3))


@settings(deadline=None)
@given(st.one_of(_near, _far), st.one_of(_near, _far))
def test_look_up_agrees_with_a_dict(known: list[int], wanted: list[int]) -> None:
    known = sorted(set(known))
    places = {key: place for place, key in enumerate(known)}
    wanted = wanted + known[:3]
    found = look_up(np.array(known, dtype=np.int64), np.array(wanted, dtype=np.int64))
    assert found.tolist() == [places.get(key, -1) for key in wanted]
    assert found.dtype == np.int32
