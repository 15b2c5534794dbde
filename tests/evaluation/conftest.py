"""Fixtures that several tests of the evaluation share."""

import json

import pytest


@pytest.fixture(scope="session")
def write_lines():
    """A function that writes rows as JSON lines and returns the path."""

    def write(path, rows):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
