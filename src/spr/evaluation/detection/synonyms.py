"""A file of synonyms of a dataset's categories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spr.core.errors import InputError, closest
from spr.evaluation.lines import decode_json, read_bytes


def read_synonyms(path: Path, categories: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read a JSON object of lists of names by category, such as ``{"person": ["man", "woman"]}``.

    Raises:
        InputError: if the file has another layout, or names a category that the dataset does not have.
    """
    expected = '{"person": ["man", "woman"], …}'
    data = read_bytes(path, f"JSON such as {expected}", "Synonyms")
    found = decode_json(data, dict[str, tuple[str, ...]], f"{path} is not a file of synonyms", expected=expected)
    for name in found:
        if name not in categories:
            near = closest(name, categories)
            fix = f"did you mean `{near}`?" if near else "write the categories as in the annotations"
            raise InputError(f"{path} has synonyms of an unknown category", got=repr(name), fix=fix)
    return found
