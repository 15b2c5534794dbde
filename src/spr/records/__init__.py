"""The data model: records, their Arrow schemas, and tables as columns."""

from spr.core.boxes import Box, Size
from spr.records.records import (
    PROMPT_KINDS,
    TRUNCATED,
    BoxEdit,
    Candidate,
    Detection,
    EditKind,
    ImageObject,
    ImageObjects,
    Match,
    PreferencePair,
    PromptKind,
    RegionObject,
    RegionQuery,
    Scores,
    Source,
    Span,
    check_box,
)

__all__ = [
    "PROMPT_KINDS",
    "TRUNCATED",
    "Box",
    "BoxEdit",
    "Candidate",
    "Detection",
    "EditKind",
    "ImageObject",
    "ImageObjects",
    "Match",
    "PreferencePair",
    "PromptKind",
    "RegionObject",
    "RegionQuery",
    "Scores",
    "Size",
    "Source",
    "Span",
    "check_box",
]
