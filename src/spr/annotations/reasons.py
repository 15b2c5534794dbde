"""Why entries of an annotations file fall out."""

from __future__ import annotations

import enum


class Reason(enum.IntEnum):
    """Why an entry of the file falls out; ``OK`` for those that stay. The first that applies, in this order, counts."""

    OK = 0
    ENTRY_NOT_AN_OBJECT = enum.auto()
    IMAGE_WITHOUT_ID = enum.auto()
    IMAGE_SIZE_INVALID = enum.auto()
    IMAGE_WITHOUT_FILE_NAME = enum.auto()
    IMAGE_FILE_NAME_UNSAFE = enum.auto()
    IMAGE_ID_CONFLICTING = enum.auto()
    IMAGE_ID_REPEATED = enum.auto()
    CATEGORY_WITHOUT_ID = enum.auto()
    CATEGORY_WITHOUT_NAME = enum.auto()
    OBJECT_WITHOUT_ID = enum.auto()
    OBJECT_CROWD_INVALID = enum.auto()
    BOX_MISSING = enum.auto()
    BOX_NOT_FOUR_NUMBERS = enum.auto()
    BOX_NOT_FINITE = enum.auto()
    BOX_SIZE_NEGATIVE = enum.auto()
    BOX_SIZE_ZERO = enum.auto()
    OBJECT_IMAGE_UNKNOWN = enum.auto()
    OBJECT_IMAGE_DROPPED = enum.auto()
    OBJECT_CATEGORY_UNKNOWN = enum.auto()
    BOX_OUTSIDE_IMAGE = enum.auto()
    BOX_WITHOUT_AREA = enum.auto()
    OBJECT_ID_REPEATED = enum.auto()
