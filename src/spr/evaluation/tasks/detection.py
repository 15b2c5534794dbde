"""Object detection on COCO, LVIS and files of the same form: average precision and recall, and F1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np

from spr.core.errors import ConfigError
from spr.evaluation.answer_fields import Item
from spr.evaluation.detection.annotations import DetectionData, read_detection
from spr.evaluation.detection.average_precision import by_category, curves, summary
from spr.evaluation.detection.confidence import CONFIDENCE_HELP, Confidence
from spr.evaluation.detection.counts import SHARES, box_counts, by_image
from spr.evaluation.detection.matching import COCO_LIMIT, LVIS_LIMIT, match
from spr.evaluation.detection.reading import Asked, read_answers
from spr.evaluation.detection.synonyms import read_synonyms
from spr.evaluation.inference import Question
from spr.evaluation.layouts.layout import open_parquet, unknown_layout
from spr.evaluation.metrics import Bools, Ints
from spr.evaluation.predictions import Answers
from spr.evaluation.result import Result
from spr.evaluation.task import Option, Task, check_prompt
from spr.grounding import Dialect
from spr.grounding.category_names import CategoryNames
from spr.grounding.markup import JsonList, Tokens

Categories: TypeAlias = Literal["all", "present"]
Per: TypeAlias = Literal["image", "category"]
PROMPT = "Find all objects of these categories: {categories}. Give the name and the bounding box of each object."
JSON_PROMPT = (
    'Locate every instance that belongs to the following categories: "{categories}". '
    "Report bbox coordinates in JSON format."
)
"""The wording of Qwen3-VL's published examples (cookbooks/2d_grounding.ipynb)."""
LIST_PROMPT = "detect {categories}"
"""That of PaliGemma, whose categories are separated by semicolons."""

CATEGORIES = "{categories}"
"""The placeholder of a question for the names of categories."""
_PROMPT_HELP = "The question, with {categories}. By default in the wording of the model's family."
_UNKNOWN = 0.1  # the share of boxes without a category, or of answers without confidences, that makes a result doubtful
_FIGURES = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"),
    *("AR@1", "AR@10", "AR@100", "ARs@100", "ARm@100", "ARl@100", "AR@300", "ARs@300", "ARm@300", "ARl@300"),
    *("f1_by_category@0.5", "f1_by_category@0.95", "f1_by_category@mIoU"),
    *("precision_by_category@mIoU", "recall_by_category@mIoU"),
    *("f1_by_image@0.5", "f1_by_image@0.95", "f1_by_image@mIoU"),
)
_NUMBERS = {"1-5 objects": (1, 5), "6-10 objects": (6, 10), "11-15 objects": (11, 15), "16-20 objects": (16, 20)}


@dataclass(frozen=True, kw_only=True)
class Detection(Task[DetectionData]):
    """Objects of COCO, LVIS, or a file of the same form.

    The model is asked about all categories at once, or about one per question. Metrics:

    - COCO's ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``, ``AR@1`` to ``AR@100`` and by size; for LVIS
      ``APr``, ``APc``, ``APf`` and ``AR@300``: equal to those of pycocotools and of LVIS's package.
    - ``f1@0.5`` to ``f1@0.95`` and their mean ``f1``, ``precision`` and ``recall``, of all boxes together.
    - ``recall_by_image`` and ``precision_by_image``, averaged over the images, as for Dense200 and VisDrone.
    - ``f1_by_category`` and ``f1_by_image``, as Rex-Omni reports them.

    Groups: the number of objects in the image.
    """

    name: ClassVar[str] = "detection"
    higher_is_better: ClassVar[tuple[str, ...]] = (*_FIGURES, *SHARES)

    categories: Annotated[
        Categories, Option("The categories that a question names: all of the file, or those present in its image.")
    ] = "all"
    per: Annotated[Per, Option("One question per image, or per image and category.")] = "image"
    prompt: Annotated[str | None, Option(_PROMPT_HELP, asks=True)] = None
    confidence: Annotated[Confidence, Option(CONFIDENCE_HELP)] = "constant"
    synonyms: Annotated[
        Path | None, Option('Further names of the categories, a JSON file: {"person": ["man", "woman"], …}.')
    ] = None

    def load(self, path: Path) -> DetectionData:
        """Read COCO's or LVIS's annotations (`read_detection`)."""
        table = open_parquet(path)
        if table is not None:
            raise unknown_layout(self, table)
        return read_detection(path)

    def ids(self, items: DetectionData) -> Sequence[str]:
        """The ids of the images; with ``--per category``, ``<image>#<category>``."""
        return [question.id for question in self._asked(items)]

    def about(self, items: DetectionData) -> Sequence[Item]:
        """The images of the questions, and their category, if they are about one."""
        names = CategoryNames(items.categories).readable
        return [
            Item(
                question.id,
                items.file_names[question.image],
                items.sizes_wh[question.image],
                names[question.category] if question.category >= 0 else "",
            )
            for question in self._asked(items)
        ]

    def questions(self, items: DetectionData, dialect: Dialect, model: str) -> tuple[str, list[Question]]:
        """One question per image, or per image and category."""
        if self.confidence in ("scores", "token-probability"):
            what = f"--confidence {self.confidence} is only for --predictions"
            fix = "give --confidence constant or order, or a file of answers with the field that it needs"
            raise ConfigError(what, got="a model", fix=fix)
        prompt = check_prompt(self.prompt or detection_prompt(dialect), CATEGORIES)
        separator = " ; " if isinstance(dialect.markup, Tokens) else ", "
        readable = CategoryNames(items.categories).readable
        everything = separator.join(readable)
        present: dict[int, list[str]] = {}
        if self.categories == "present":
            for image, category in _pairs(items):
                present.setdefault(image, []).append(readable[category])
        questions = []
        for own in self._asked(items):
            if own.category >= 0:
                names = readable[own.category]
            else:
                names = separator.join(present[own.image]) if self.categories == "present" else everything
            file_name, size_wh = items.file_names[own.image], items.sizes_wh[own.image]
            questions.append(Question(own.id, file_name, size_wh, prompt.replace(CATEGORIES, names)))
        return prompt, questions

    def score(self, items: DetectionData, answers: Answers) -> Result:
        """The metrics that the class describes."""
        synonyms = read_synonyms(self.synonyms, items.categories) if self.synonyms is not None else None
        names = CategoryNames(items.categories, synonyms)
        asked = self._asked(items)
        read = read_answers(items, names, asked, answers, self.confidence)
        matches = match(items, read.detections)
        own = curves(items, matches)
        counts = box_counts(items, matches, read.unnamed)
        chosen = np.zeros(len(items.image_ids), dtype=bool)
        chosen[[question.image for question in asked]] = True
        unanswered = np.zeros(len(items.image_ids), dtype=bool)
        pairs = zip(asked, answers.texts, strict=True)
        unanswered[[question.image for question, text in pairs if text is None]] = True
        counts = counts.take(chosen)
        shares, of_images = by_image(counts, unanswered[chosen])
        figures = {**summary(items, own), **by_category(own), **of_images}
        unnamed = int(read.unnamed.sum())
        notes = []
        if unnamed > _UNKNOWN * read.boxes:
            share = f"{unnamed:,} of {read.boxes:,} boxes ({unnamed / read.boxes * 100:.1f} %)"
            notes.append(f"{share} have no name, or one that is not a category: --synonyms gives more names")
        answered = sum(text is not None for text in answers.texts)
        without = len(read.problems["confidence"])
        if without > _UNKNOWN * answered:
            share = f"{without:,} of {answered:,} answers ({without / answered * 100:.1f} %)"
            notes.append(f"the boxes of {share} can't be given their confidences, which AP and AR need")
        if answered and not read.boxes and len(items.image):
            notes.append(f"none of the {answered:,} answers has a box that its dialect can read")
        limit = f"{LVIS_LIMIT} detections per image" if items.federated else f"{COCO_LIMIT} per image and category"
        protocol: dict[str, Any] = {
            "dialect": answers.resolve_dialect().spec,
            "rules": "LVIS" if items.federated else "COCO",
            "asked": f"{self.categories} categories, one question per {self.per}",
            "confidence": self.confidence,
            "names": "the same words, without case, article and plural s"
            + (f", or a synonym of {self.synonyms.name}" if self.synonyms is not None else ""),
            "match": "as in pycocotools and LVIS: highest confidence first, IoU of at least the threshold",
            "limit": f"AP and AR: {limit}; all others: none",
            "ci95": "bootstrap over images",
        }
        groups = _groups(counts.objects.astype(np.int64))
        kept, problems = np.flatnonzero(chosen).tolist(), {**answers.problems, **read.problems}
        ids, images = (tuple([own[k] for k in kept]) for own in (items.image_ids, items.file_names))
        return Result(self.name, protocol, ids, images, shares, groups, problems, notes=tuple(notes), figures=figures)

    def _asked(self, items: DetectionData) -> list[Asked]:
        """The questions, in the order of the images and of the categories."""
        count, width = len(items.image_ids), len(items.categories)
        if self.categories == "present" and not len(items.image):
            what = "--categories present has nothing to ask about"
            raise ConfigError(what, got="annotations without an object", fix="use --categories all")
        if self.per == "image":
            chosen = range(count) if self.categories == "all" else np.unique(items.image).tolist()
            return [Asked(items.image_ids[image], image) for image in chosen]
        pairs = _pairs(items) if self.categories == "present" else np.ndindex(count, width)
        return [Asked(f"{items.image_ids[image]}#{items.categories[k]}", image, k) for image, k in pairs]


def _pairs(items: DetectionData) -> list[tuple[int, int]]:
    """Each image with each category of which it has an object."""
    width = len(items.categories)
    return [divmod(pair, width) for pair in np.unique(items.pairs(items.image, items.category)).tolist()]


def detection_prompt(dialect: Dialect) -> str:
    """The question in the wording of a dialect's models, with `CATEGORIES`."""
    if isinstance(dialect.markup, Tokens):
        return LIST_PROMPT
    return JSON_PROMPT if isinstance(dialect.markup, JsonList) else PROMPT


def _groups(objects: Ints) -> dict[str, Bools]:
    groups = {"no objects": objects == 0}
    groups |= {name: (objects >= low) & (objects <= high) for name, (low, high) in _NUMBERS.items()}
    groups["over 20 objects"] = objects > 20
    return {name: mask for name, mask in groups.items() if mask.any()}
