"""Chooses the images of the page in one pass over the data: the same ones each time, spread over all rows."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from spr.core.randomness import stable_hashes
from spr.workflows.checking.rows import Batch, DataRow

IMAGES = 24
"""Images on the page."""
FLAGGED = 16
"""Of these, the most that are chosen because of a finding."""
_POOL = 200
_ROWS = 100


@dataclass(slots=True)
class Shown:
    """An image on the page.

    Attributes:
        image: Its name; None if the data name none.
        rows: The rows whose boxes are drawn, in the order of the data.
        kinds: The findings for which it was chosen; empty if by chance.
        whole: Whether all rows of the image are there, as far as `_ROWS` go; else only those with the findings.
    """

    image: str | None
    rows: list[DataRow]
    kinds: list[str] = field(default_factory=list)
    whole: bool = True


class Gallery:
    """Keeps the rows of the images with the lowest hashes of their names: a random choice that needs no second pass.

    An image that is among the lowest at the end was so from its first row on, so that all of its rows are kept.

    >>> rows = [DataRow(k, f"line {k}", f"{k % 500}.jpg", (9, 9), "", "", ((0, 0, 1, 1),), ("",)) for k in range(1000)]
    >>> gallery = Gallery()
    >>> gallery.add(Batch(rows[:600]))
    >>> gallery.add(Batch(rows[600:]))
    >>> shown = gallery.choose({})
    >>> len(shown), [len(one.rows) for one in shown] == [2] * 24
    (24, True)
    """

    def __init__(self) -> None:
        self._rows: dict[int, list[DataRow]] = {}
        self._highest: list[int] = []  # a heap of negative hashes

    def add(self, batch: Batch) -> None:
        """Look at the rows of a batch; those without boxes are left out."""
        rows = [row for row in batch.rows if row.numbers]
        hashes = stable_hashes(0, "check page", last=[_key(row) for row in rows])
        if len(self._highest) >= _POOL:
            kept = [int(k) for k in (hashes <= -self._highest[0]).nonzero()[0]]
        else:
            kept = list(range(len(rows)))
        for k in kept:
            self._keep(int(hashes[k]), rows[k])

    def _keep(self, code: int, row: DataRow) -> None:
        if code in self._rows:
            if len(self._rows[code]) < _ROWS:
                self._rows[code].append(row)
            return
        if len(self._highest) >= _POOL and code > -self._highest[0]:
            return
        self._rows[code] = [row]
        heapq.heappush(self._highest, -code)
        if len(self._highest) > _POOL:
            del self._rows[-heapq.heappop(self._highest)]

    def choose(self, examples: Mapping[str, Sequence[DataRow]], images: int = IMAGES) -> list[Shown]:
        """The images to show, in the order of the data.

        ``examples``: rows per kind of finding. They are taken first, one of each kind in turn, up to two thirds.
        """
        pool = {_key(rows[0]): rows for rows in self._rows.values()}
        chosen: dict[str, Shown] = {}
        for kind, row in _in_turn(examples):
            key = _key(row)
            if key not in chosen and len(chosen) < images * FLAGGED // IMAGES:
                chosen[key] = Shown(row.image, list(pool.get(key, [])), whole=key in pool)
            if key in chosen:
                shown = chosen[key]
                if all(row is not other for other in shown.rows) and not shown.whole:
                    shown.rows.append(row)
                if kind not in shown.kinds:
                    shown.kinds.append(kind)
        others = sorted((rows for key, rows in pool.items() if key not in chosen), key=lambda rows: rows[0].number)
        room = min(images - len(chosen), len(others))
        for k in range(room):  # evenly over the pool, in the order of the data
            rows = others[k * len(others) // room]
            chosen[_key(rows[0])] = Shown(rows[0].image, rows)
        for shown in chosen.values():
            shown.rows.sort(key=lambda row: row.number)
        return sorted(chosen.values(), key=lambda one: one.rows[0].number)


def _key(row: DataRow) -> str:
    return f"row {row.number}" if row.image is None else f"image {row.image}"


def _in_turn(examples: Mapping[str, Sequence[DataRow]]) -> Iterator[tuple[str, DataRow]]:
    for k in range(max(map(len, examples.values()), default=0)):
        yield from ((kind, rows[k]) for kind, rows in examples.items() if k < len(rows))
