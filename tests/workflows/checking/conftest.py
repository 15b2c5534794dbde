"""Data files of every layout with the same two samples."""

import json

import pytest

from checking_cases import LAYOUTS, write


@pytest.fixture(params=LAYOUTS)
def sample(request, tmp_path):
    """The name of a layout, and a file of it with the samples of `checking_cases.SAMPLES`."""
    return request.param, write(tmp_path, request.param)


@pytest.fixture
def lines(tmp_path):
    """Writes rows as JSON lines; texts are written as they are."""

    def written(*rows, name="rows.jsonl"):
        path = tmp_path / name
        texts = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
        return path

    return written
