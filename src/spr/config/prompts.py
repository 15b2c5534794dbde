"""The config section `prompts`: what the model is asked."""

from __future__ import annotations

from pydantic import ValidationInfo, field_validator

from spr.config.section import Section


class PromptsConfig(Section):
    """What the model is asked. `{region}` and `{objects}` are written in the model's dialect."""

    full: str = "Describe the region {region} in detail, and give the bounding box of each object that you mention."
    """The training prompt, which is also asked of the whole image; needs `{region}`."""
    crop: str = "Describe this image in detail, and give the bounding box of each object that you mention."
    """Asked of the crop."""
    crop_objects: str = (
        "Describe this image in detail, and give the bounding box of each object that you mention. "
        "These objects are in it:\n{objects}"
    )
    """Asked of the crop, with the objects inside; needs `{objects}`."""
    object_line: str = "{index}. {category} {box}"
    """One object of the list; needs `{category}` and `{box}`."""
    object_join: str = "\n"
    """What stands between two objects of the list."""

    @field_validator("full", "crop_objects", "object_line")
    @classmethod
    def _has_its_fields(cls, value: str, info: ValidationInfo) -> str:
        needed = {"full": ("{region}",), "crop_objects": ("{objects}",), "object_line": ("{category}", "{box}")}
        for name in needed[str(info.field_name)]:
            if name not in value:
                raise ValueError(f"lacks {name}")
        return value
