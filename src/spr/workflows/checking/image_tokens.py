"""How many tokens an image becomes: by the resize settings of Qwen's processors, or by the model's own processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from spr.core.boxes import Size
from spr.core.errors import SprError
from spr.grounding import Dialect, smart_resize
from spr.grounding.geometry import Resized
from spr.models.family import Family
from spr.workflows.checking.target import processor_settings


@dataclass(slots=True)
class ImageTokens:
    """Counts the tokens of images.

    Attributes:
        count: The number for an image of a width and height in pixels.
        source: How it is counted, for people.
        unknown: Images of unknown size so far.
    """

    count: Callable[[Size], int]
    source: str
    unknown: int = 0

    def number(self, size_wh: Size | None) -> int:
        """The number of tokens; 0 for an image of unknown size."""
        if size_wh is None:
            self.unknown += 1
            return 0
        return self.count(size_wh)

    @classmethod
    def of_resize(cls, resize: Resized) -> ImageTokens:
        """A token per square of ``factor`` pixels of the resized image.

        >>> ImageTokens.of_resize(Resized(max_pixels=1280 * 28 * 28)).number((1920, 1080))  # resized to 1316 × 728
        1222
        """

        @lru_cache(maxsize=8192)
        def count(size_wh: Size) -> int:
            width, height = smart_resize(size_wh, resize.factor, resize.min_pixels, resize.max_pixels)
            return (width // resize.factor) * (height // resize.factor)

        limits = f"{resize.min_pixels:,} to {resize.max_pixels:,} pixels"
        return cls(count, f"one per {resize.factor} × {resize.factor} pixels of images resized to {limits}")

    @classmethod
    def of_model(
        cls,
        folder: Path,
        family: Family | None,
        dialect: Dialect | None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> ImageTokens | None:
        """The counter of a model; None if its processor is not on this machine, or can't count.

        Processors that resize as Qwen2-VL's are computed here; of others, the processor in ``folder`` is loaded, which
        needs the extra ``models``.
        """
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        given = {name: value for name, value in limits.items() if value is not None}
        settings = processor_settings(folder)
        if settings is not None and (family is None or family.resized_geometry):
            size = {"min_pixels": settings.size["shortest_edge"], "max_pixels": settings.size["longest_edge"]}
            return cls.of_resize(Resized(settings.patch_size * settings.merge_size, **{**size, **given}))
        if dialect is not None and isinstance(dialect.geometry, Resized) and dialect.geometry.resized_wh is None:
            usual = dialect.geometry
            size = {"min_pixels": usual.min_pixels, "max_pixels": usual.max_pixels}
            return cls.of_resize(Resized(usual.factor, **{**size, **given}))
        return None if family is None else cls._of_processor(folder, family)

    @classmethod
    def _of_processor(cls, folder: Path, family: Family) -> ImageTokens | None:
        if not family.counts_image_tokens and family.count_function is None:
            return None
        try:
            from spr.models.image_processors import count_image_tokens, load_processor

            processor = load_processor(str(folder), family.model_type, family=family)
            count_image_tokens(processor, family, [(480, 640)])
        except (ImportError, SprError, OSError, ValueError, TypeError, AttributeError, KeyError):
            return None

        @lru_cache(maxsize=8192)
        def count(size_wh: Size) -> int:
            return count_image_tokens(processor, family, [(size_wh[1], size_wh[0])])[0]

        return cls(count, "by the model's own processor")
