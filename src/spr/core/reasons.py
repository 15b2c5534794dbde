"""Every reason why an image, object, query, candidate or pair is dropped, with its explanation.

A stage drops something only for a reason that `DROP_REASONS` lists for it. A stage of another package declares its own
reasons. docs/drop-reasons.md shows the same table.
"""

from __future__ import annotations

from collections.abc import Mapping

IMAGE_REASONS: dict[str, str] = {
    "path_outside_images": "the file name is absolute, contains `..` or leaves the image folder through a link",
    "image_missing": "there is no such file in the image folder, and not exactly one whose name is spelled alike",
    "image_unreadable": "not a regular file, not an image in a supported format, truncated or damaged",
    "image_too_large": "the header declares more pixels than `annotations.max_pixels` (a decompression bomb), or "
    "the file is larger than they need",
    "image_size_differs": "the image and the annotations disagree about its width and height",
    "image_orientation_ambiguous": "EXIF rotates or mirrors the image, and the annotated size does not show whether "
    "the boxes are rotated too",
}
"""Why an image file can't be used: the reasons of `spr.core.images.ImageProblem`."""

ANNOTATION_REASONS: dict[str, str] = {
    "entry_not_an_object": "an entry of a list is not a JSON object",
    "image_without_id": "the image has no id, or one that is neither an integer nor a string",
    "image_size_invalid": "width or height is missing or not a whole number of pixels from 1 to 2³¹ − 1",
    "image_without_file_name": "the image has neither a file_name nor a coco_url to derive it from (LVIS)",
    "image_file_name_unsafe": "file_name is absolute, contains `..`, names a drive or contains a NUL or invalid text",
    "image_id_conflicting": "several images have this id but different file names or sizes; all of them are dropped",
    "image_id_repeated": "the image is listed again with the same file name and size; one entry is kept",
    "category_without_id": "the category has no id, or one that is neither an integer nor a string",
    "category_without_name": "the category has no name",
    "category_name_not_words": "the category's name contains a special token such as `<image>`, control characters, "
    "braces or numbers in brackets, which are not read as words; or no letter or digit; or more than 200 characters",
    "object_crowd_invalid": "iscrowd is neither a number nor a boolean",
    "box_missing": "the annotation has no bbox",
    "box_not_four_numbers": "bbox is not a list of four numbers; numbers in quotes are strings",
    "box_not_finite": "bbox contains NaN or an infinite number",
    "box_size_negative": "width or height of the bbox is negative",
    "box_size_zero": "width or height of the bbox is 0",
    "object_image_unknown": "image_id is missing or does not match any image",
    "object_image_dropped": "the image with this image_id was dropped",
    "object_category_unknown": "category_id is missing or does not match any category",
    "object_category_dropped": "the category with this category_id was dropped",
    "box_outside_image": "the box lies entirely outside the image",
    "box_without_area": "nothing is left of the box after clipping to the image and rounding to float32",
    "object_id_repeated": "the annotation is listed again with the same id, image, category, box and iscrowd",
}
"""Why `spr.annotations.read_coco` drops an entry. If several reasons apply, the first in this order is used."""

CONVERSION_REASONS: dict[str, str] = {
    "label_file_unreadable": "the image's label file (YOLO, VOC) can't be read: not UTF-8, not XML, XML with a "
    "document type or entities, or over 64 MiB",
    "row_unreadable": "a row or shape lacks a number or a class, has more values than its format, or values that are "
    "not numbers",
    "numbers_not_normalized": "numbers that should be from 0 to 1, or percentages from 0 to 100, are far outside",
    "shape_without_box": "a line, points, mask, tag or other shape that is neither a box nor the outline of an object",
    "box_rotated": "a rotated box, and `--rotated drop` is given",
    "box_not_visible": "a frame in which the object of a track is not visible (CVAT's `outside`)",
    "mark_dropped": "the object is marked as difficult, truncated, occluded, …, and `--drop` names this mark",
    "annotation_cancelled": "the annotator skipped the task (Label Studio)",
    "annotation_superseded": "the task's ground truth, or its latest annotation, is used instead (Label Studio)",
    "image_turned_in_editor": "the annotator turned the image in the editor, so it is unknown what the boxes refer to",
    "image_repeated": "an earlier entry has the same image; this one and its objects are left out",
    "image_not_embedded": "the dataset has neither the image nor a path to it (Hugging Face)",
    "objects_not_aligned": "the lists of boxes and categories have different lengths (Hugging Face)",
    "object_repeated": "the image has another object with the same category and box",
}
"""Why `spr.annotations.convert_annotations` drops something, besides `IMAGE_REASONS` and some `ANNOTATION_REASONS`."""

_ALSO_IN_CONVERSION = (
    "entry_not_an_object",
    "image_size_invalid",
    "image_without_file_name",
    "image_file_name_unsafe",
    "category_without_name",
    "box_not_finite",
    "box_size_negative",
    "box_size_zero",
    "box_outside_image",
    "object_image_dropped",
    "object_category_unknown",
)

OBJECT_REASONS: dict[str, str] = {
    "area_under_minimum": "the area of the box is under `annotations.min_area`",
    "too_few_objects": "fewer objects are left than `annotations.min_objects`",
    "not_sampled": "`annotations.max_images` images had been found before this one was reached",
    "crowd_without_detector": "a crowd annotation, and no detector is configured to replace it",
    "crowd_nothing_found": "a crowd in which the detector found no object of its category",
    "crowd_nothing_new": "a crowd in which the detector found only objects that have their own annotation",
    "detection_outside_crowd": "a detection with less than half of its area in the crowd's box, or without area",
    "detection_suppressed": "a detection that overlaps a better one in the same crowd",
    "detection_duplicate": "a detection that overlaps an existing object of the same category",
}
"""Why the stage `objects` drops images, objects, crowds and detections."""

REGION_REASONS: dict[str, str] = {
    "too_few_objects": "the image has fewer objects than `regions.min_inside`",
    "no_valid_region": "no start object leads to a region with enough objects and a valid aspect ratio",
    "no_further_region": "the image has fewer valid regions than `regions.per_image`",
}
"""Why the stage `regions` drops images and queries."""

CANDIDATE_REASONS: dict[str, str] = {
    "truncated_answer": "`describer.max_new_tokens` or the server cut the answer, and `describer.truncated` is `drop`",
    "empty_answer": "the answer is empty",
    "repeats_prompt": "the answer only repeats the prompt or its beginning",
    "repeats_candidate": "an earlier candidate of the query has the same text",
    "unfinished_reasoning": "the answer ends within the model's reasoning",
    "box_not_mapped": "an answer about a crop contains coordinates that can't be read, and so can't be mapped to the "
    "original image; `describer.malformed_crops: keep` keeps them",
}
"""Why the stage `candidates` drops an answer of the describer."""

PAIR_REASONS: dict[str, str] = {
    "fewer_than_two_candidates": "the query has fewer than two candidates to compare",
    "chosen_without_box": "refinement left no box and no point in the chosen answer",
    "chosen_equals_rejected": "both answers have the same text",
    "margin_under_minimum": "the scores differ by less than `pairing.min_margin`",
    "length_ratio_over_maximum": "one answer is more than `pairing.max_length_ratio` times as long as the other",
    "not_renderable": "without the boxes that refinement removes, the text would be read as something else",
    "no_box_to_move": "`pairing.kind: boxes`: refinement replaced no box with that of an object",
    "no_box_in_range": "`pairing.kind: boxes`: the model's numbers are too coarse for a box with an IoU of "
    "`pairing.box_iou`",
}
"""Why the stage `pairs` drops a query."""

NEGATIVE_REASONS: dict[str, str] = {
    "no_absent_category": "no category is known to be absent from the image; of LVIS, only those count that annotators "
    "looked for; or the run is of an earlier version",
    "no_present_category": "`pairing.positives`: no category has exactly one object in the image",
    "no_candidate_in_shard": "no image of the shard has a candidate, so it is not known how the model writes boxes",
    "not_renderable": "a category's name would be read as something else in the model's dialect, or it writes no boxes",
}
"""Why the stage `negatives` has no questions about an image."""

REVIEW_REASONS: dict[str, str] = {
    "rejected_in_review": "reviewers rejected the pair (`spr review`)",
    "not_accepted_in_review": "`--reviews require`: no majority of reviewers has accepted or edited the pair",
}
"""Why a pair of a reviewed run is neither trained on nor exported."""

TRAINING_REASONS: dict[str, str] = {
    "held_out": "the image is held out (`annotations.holdout`): its `split` is not `train`",
    "empty_answer": "an answer is empty",
    "answers_equal": "chosen and rejected are the same",
    "answer_has_image_token": "an answer contains the image placeholder token",
    "answer_has_end_of_turn": "an answer contains the token that ends the model's answers, before its own end",
    "several_images": "`training.mix`: the row has more than one image",
    "no_image": "`training.mix`: the row has no image, and models of this family are trained with images only",
    "too_long": "the prompt and an answer have more tokens than `training.max_length` or the model allows; they are "
    "never truncated",
}
"""Why a pair is not trained on, besides `IMAGE_REASONS`."""

EXPORT_REASONS: dict[str, str] = {
    "truncated_answer": "an answer was cut, and the trainer would add an end of turn to it",
    "placeholder_in_text": "the prompt or an answer contains the trainer's image placeholder, such as `<image>`",
    "not_renderable": "the requested dialect would read the words as coordinates",
    "points_not_writable": "an answer has points, and the requested dialect has none",
    "boxes_not_writable": "an answer has boxes, and the requested dialect has only points",
    "chosen_equals_rejected": "both answers have the same text in the requested dialect",
    "question_not_shown": "a question of `pairing.negatives`: this format shows descriptions of regions",
    "no_category_to_ask": "prompts: there is no category that this task of `--tasks` can ask about in the image",
    "label_not_nameable": "prompts: with the given `--labels`, no answer could name an object: its label has no letter "
    "or digit, or differs from another only in case or punctuation",
    "image_needs_rewriting": "EXIF rotation, transparency or 16-bit channels: other readers would get other pixels "
    "than the pipeline",
}
"""Why a pair or a prompt is left out of an export, besides `IMAGE_REASONS`."""

DROP_REASONS: Mapping[str, Mapping[str, str]] = {
    "objects": {**ANNOTATION_REASONS, **IMAGE_REASONS, **OBJECT_REASONS},
    "regions": REGION_REASONS,
    "candidates": {**IMAGE_REASONS, **CANDIDATE_REASONS},
    "scores": IMAGE_REASONS,
    "pairs": PAIR_REASONS,
    "negatives": NEGATIVE_REASONS,
    "training": {**IMAGE_REASONS, **TRAINING_REASONS, **REVIEW_REASONS},
    "export": {**IMAGE_REASONS, **EXPORT_REASONS, **REVIEW_REASONS},
    "convert": {
        **{reason: ANNOTATION_REASONS[reason] for reason in _ALSO_IN_CONVERSION},
        **IMAGE_REASONS,
        **CONVERSION_REASONS,
    },
}
"""Explanations by stage and reason."""

_IF_TRUSTED = "if you trust the file names and links, set annotations.allow_outside_images=true, with another --out"
FIXES: dict[str, str] = {
    "truncated_answer": "raise describer.max_new_tokens, or shorten the answers with another prompt",
    "image_missing": "check annotations.images",
    "path_outside_images": _IF_TRUSTED,
    "image_file_name_unsafe": _IF_TRUSTED,
    "area_under_minimum": "lower annotations.min_area to keep them",
    "crowd_without_detector": "set detector.backend to replace crowds",
}
"""What to change if a stage drops more than half of its items for one of these reasons."""

NOTEWORTHY = frozenset({*FIXES, *IMAGE_REASONS, *ANNOTATION_REASONS})
"""Reasons that a run points out if a stage drops more than half of its items for one of them; for objects, all do."""


def explain(stage: str, reason: str) -> str:
    """The explanation of a reason. For a reason of another package's stage: its name, as words.

    >>> explain("pairs", "chosen_without_box")
    'refinement left no box and no point in the chosen answer'
    """
    return DROP_REASONS.get(stage, {}).get(reason, reason.replace("_", " "))
