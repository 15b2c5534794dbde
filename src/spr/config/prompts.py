"""The config section `prompts`: the prompts for the describer."""

from __future__ import annotations

from pydantic import ValidationInfo, field_validator

from spr.config.section import Section

_PLACEHOLDERS = {
    "full": ("{region}",),
    "crop_objects": ("{objects}",),
    "object_line": ("{category}", "{box}"),
}


class PromptsConfig(Section):
    """The prompts (our choice). `{region}` and `{objects}` are replaced by text in the model's dialect."""

    full: str = "Describe the region {region} in detail, and give the bounding box of each object that you mention."
    """Prompt for the whole image, which is also the training prompt. Must contain `{region}`."""
    crop: str = "Describe this image in detail, and give the bounding box of each object that you mention."
    """Prompt for the crop."""
    crop_objects: str = (
        "Describe this image in detail, and give the bounding box of each object that you mention. "
        "These objects are in it:\n{objects}"
    )
    """Prompt for the crop with a list of the objects inside the region. Must contain `{objects}`."""
    object_line: str = "{index}. {category} {box}"
    """One object of the list. Must contain `{category}` and `{box}`; `{index}` counts from 1."""
    object_join: str = "\n"
    """Separator between two objects of the list."""

    @field_validator(*_PLACEHOLDERS)
    @classmethod
    def _has_its_placeholders(cls, value: str, info: ValidationInfo) -> str:
        for placeholder in _PLACEHOLDERS[str(info.field_name)]:
            if placeholder not in value:
                raise ValueError(f"must contain {placeholder}")
        return value
