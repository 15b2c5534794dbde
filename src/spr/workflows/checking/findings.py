"""Findings: what is noticed in many rows, with its count and the first rows that show it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

KEPT_ROWS = 5
"""Rows that are named per finding."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something noticed in the data.

    Attributes:
        kind: A short name in snake case, for programs.
        message: What it is, as a clause for people: "boxes reach beyond their image".
        count: How many rows or boxes show it.
        of: Out of how many.
        things: What is counted, in the plural: ``boxes`` or ``rows``.
        places: The first rows that show it, `KEPT_ROWS` at most, with what was found there.
    """

    kind: str
    message: str
    count: int
    of: int
    things: str = "rows"
    places: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """``count / of``; 0 if there is nothing to count."""
        return self.count / self.of if self.of else 0.0

    def to_json(self) -> dict[str, Any]:
        """The finding as values of JSON."""
        return {
            "kind": self.kind,
            "message": self.message,
            "count": self.count,
            "of": self.of,
            "things": self.things,
            "share": self.share,
            "first": list(self.places),
        }


@dataclass(slots=True)
class Tally:
    """Counts what shows a finding, and keeps the first places."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, places: Iterable[str], count: int | None = None) -> None:
        """Count places; ``count`` says how many there are if ``places`` are only the first of them."""
        given = 0
        for place in places:
            given += 1
            if len(self.places) < KEPT_ROWS:
                self.places.append(place)
        self.count += given if count is None else count

    def finding(self, kind: str, message: str, of: int, things: str = "rows") -> Finding:
        """The finding with this count."""
        return Finding(kind, message, self.count, of, things, tuple(self.places))


MESSAGES = {
    "not_json": "are not valid JSON",
    "not_object": "are not JSON objects",
    "other_layout": "do not fit the layout",
    "wrong_image": "of `images` have fields of the wrong type",
    "no_such_image": "of `annotations` name an image that is not in `images`",
    "wrong_box": "have a box that is not four numbers",
    "not_finite": "have a box with numbers that are not finite",
    "placeholders": "have another number of `<bbox>` than of boxes in `objects`",
    "no_image": "name no image",
    "no_size": "have boxes but an image of unknown size",
    "no_boxes": "have no boxes",
    "unknown_form": "have boxes in a form that the dialect does not read",
}
"""What is wrong with rows, as clauses whose subject is the rows."""
