"""A thousand mutated inputs per reader are read or refused with one clear error; see tools/fuzz_inputs.py."""

from pathlib import Path

import pytest

from spr.core.errors import InputError
from tools.fuzz_inputs import READERS, Reader, fuzz


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", READERS)
def test_every_input_is_read_or_refused(name: str, count: int, tmp_path: Path) -> None:
    found = fuzz(READERS[name], count, 0, tmp_path)
    assert found.failures == []
    assert found.read + found.refused == count
    assert found.read > count / 20


def test_crashes_unclear_messages_and_slowness_are_found(tmp_path: Path) -> None:
    def read(data: bytes, _: Path) -> None:
        if data == b'{"a": 1}':
            return
        if len(data) % 3 == 0:
            raise KeyError("x")
        if len(data) % 3 == 1:
            raise InputError("\n".join(["x" * 1500] * 4))

    found = fuzz(Reader(read, (b'{"a": 1}',)), 100, 0, tmp_path)
    kinds = {"KeyError" in problem or problem[:15] for problem, _ in found.failures}
    assert kinds == {True, "unclear message"}
    assert found.read + len(found.failures) == 100
