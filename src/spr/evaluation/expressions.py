"""Referring expressions with one box each, the items of the task `rec`, whatever layout they come from."""

from __future__ import annotations

from dataclasses import dataclass

from spr.core.boxes import first_without_area
from spr.core.errors import InputError
from spr.evaluation.inference import LoadImage
from spr.evaluation.lines import first_repeated
from spr.evaluation.metrics import Floats
from spr.records import Size


@dataclass(frozen=True, slots=True, eq=False)
class Expressions:
    """N referring expressions, one tuple or array per column.

    ``boxes_xyxy`` is float64 ``(N, 4)`` in pixels of the image. A dataset is such as ``refcoco+``, or empty if unknown.
    ``images`` loads the images if the file contains them. Raises `InputError` if an id is repeated, or a box has no
    area.
    """

    ids: tuple[str, ...]
    file_names: tuple[str, ...]
    sentences: tuple[str, ...]
    boxes_xyxy: Floats
    sizes_wh: tuple[Size, ...]
    datasets: tuple[str, ...]
    images: LoadImage | None = None

    def __post_init__(self) -> None:
        repeated = first_repeated(self.ids)
        if repeated is not None:
            raise InputError("Two expressions have the same id", got=repeated, expected="unique ids")
        k = first_without_area(self.boxes_xyxy)
        if k is not None:
            got = self.boxes_xyxy[k].tolist()
            raise InputError(
                f"The box of expression {self.ids[k]} has no area", got=got, expected="x1 < x2, y1 < y2, in pixels"
            )

    def __len__(self) -> int:
        return len(self.ids)
