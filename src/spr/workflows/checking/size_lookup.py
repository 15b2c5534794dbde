"""Sizes of images by their headers, each image once."""

from __future__ import annotations

from pathlib import Path

from spr.core.boxes import Size
from spr.core.errors import InputError
from spr.core.image_files import ImageProblem
from spr.core.images import ImageSource
from spr.core.paths import exists
from spr.workflows.checking.layouts.layout import ImageName


class SizeLookup:
    """Looks up the sizes of images in a folder, or in the data file's own folder if none is given.

    Attributes:
        missing: How many images can't be found or read.
        first_missing: The name of the first one, and why.

    Raises:
        InputError: if there is no such folder.
    """

    def __init__(self, images: Path | None, beside: Path) -> None:
        if images is not None and not exists(images):
            fix = "check the path given with --images"
            raise InputError(f"There is no image folder {images}", got="nothing there", fix=fix)
        self._source = ImageSource(images or beside, allow_outside=True)
        self.missing, self.first_missing = 0, ""
        self._is_given, self._has_none = images is not None, False
        self._found: dict[str, Size | None] = {}
        self._shared: dict[Size, Size] = {}
        if images is not None:
            self._source.prepare()

    def find(self, image: ImageName) -> Size | None:
        """The size of an image after its EXIF orientation is applied; None if it is unknown."""
        if image.data is not None:
            return self._read(image.name or "(embedded)", image.data)
        if image.name is None or self._has_none:
            return None
        if image.name not in self._found:
            size = self._read(image.name, None)
            if not self._found and not self._is_given and size is None:
                self._has_none, self.missing, self.first_missing = True, 0, ""
                return None
            self._found[image.name] = size if size is None else self._shared.setdefault(size, size)
        return self._found[image.name]

    @property
    def source(self) -> ImageSource | None:
        """The folder or tar file; None if no folder is given and the first image is not in the data file's folder."""
        return None if self._has_none else self._source

    def _read(self, name: str, data: bytes | None) -> Size | None:
        try:
            return self._source.header(name, data=data)[0]
        except ImageProblem as problem:
            self.missing += 1
            self.first_missing = self.first_missing or str(problem.what)
            return None
