"""Images that a benchmark's file contains, decoded when a model is asked about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from spr.core.image_files import ImageProblem
from spr.core.images import ImageSource
from spr.evaluation.inference import Question


class EmbeddedImages:
    """The images of a file, by the file name of a question: a `spr.evaluation.inference.LoadImage`.

    They are opened as those of a folder are, with the same limits, and raise the same `ImageProblem`.
    """

    def __init__(self, path: Path, places: Mapping[str, Any], read: Callable[[Any], bytes]) -> None:
        self.path, self._places, self._read = path, places, read
        self._source = ImageSource(path.parent)

    def __len__(self) -> int:
        return len(self._places)

    def __call__(self, question: Question) -> Image.Image:
        """Load the image of a question as RGB."""
        name = question.file_name
        if name not in self._places:
            raise ImageProblem("image_missing", name, expected=f"one of the {len(self):,} images in {self.path}")
        return self._source.load(name, question.size_wh, data=self._read(self._places[name]))
