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


DROP_REASONS: dict[str, str] = {
    "entry_not_an_object": "an entry of a list is not a JSON object",
    "image_without_id": "no id, or one that is neither an integer nor a text",
    "image_size_invalid": "width or height is missing or not a whole number of pixels from 1 to 2³¹ − 1",
    "image_without_file_name": "no file_name, and no coco_url to take it from (LVIS)",
    "image_file_name_unsafe": "file_name is absolute, climbs with `..`, names a drive or holds a NUL or broken text",
    "image_id_conflicting": "several images have this id but not the same file name and size; none is taken",
    "image_id_repeated": "the image is listed again with the same file name and size; one of them is taken",
    "category_without_id": "no id, or one that is neither an integer nor a text",
    "category_without_name": "no name",
    "object_without_id": "no id, or one that is neither an integer nor a text",
    "object_crowd_invalid": "iscrowd is neither a number nor true or false",
    "box_missing": "no bbox",
    "box_not_four_numbers": "bbox is not a list of four numbers (numbers in quotes are texts)",
    "box_not_finite": "a number of the bbox is NaN or infinite",
    "box_size_negative": "width or height of the bbox is negative",
    "box_size_zero": "width or height of the bbox is 0",
    "object_image_unknown": "image_id is missing or no image of the file has it",
    "object_image_dropped": "the image with this image_id fell out",
    "object_category_unknown": "category_id is missing or no category of the file has it",
    "box_outside_image": "no part of the box lies in the image",
    "box_without_area": "nothing is left of the box when it is clipped to the image and rounded to float32",
    "object_id_repeated": "several annotations have this id; the least by image, category, box and iscrowd stays",
}
"""Every reason for which `read_coco` drops an entry, in the order in which they are tested, with its explanation."""
