"""Descriptions of held-out regions: how many objects are located, how well, and how many boxes match no object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np

from spr.config import PromptsConfig, load_config
from spr.core import boxes as bx
from spr.core.errors import ConfigError, InputError, RecordError
from spr.core.images import ImageSource
from spr.core.paths import is_dir, is_file
from spr.core.progress import advance
from spr.core.terminal import count_text
from spr.evaluation.answer_fields import Item
from spr.evaluation.inference import Question
from spr.evaluation.layouts.content import Content
from spr.evaluation.layouts.layout import Layout, read_items
from spr.evaluation.layouts.parquet import ParquetContent
from spr.evaluation.metrics import Floats, Share
from spr.evaluation.predictions import Answers
from spr.evaluation.result import Result
from spr.evaluation.task import Option, Task, check_prompt
from spr.grounding import Dialect, GroundedText, parse, render_box
from spr.grounding.matching import (
    WORD,
    contains_name,
    count_named,
    count_placed,
    localization_score,
    reaches,
    spaced_words,
)
from spr.records import RegionQuery
from spr.records.schemas import from_table
from spr.runs.folder import check_run_version
from spr.runs.store import StageStore, read_table

_RECALLS = {f"recall@{threshold}": threshold for threshold in (0.5, 0.75, 0.9)}
_UNMATCHED = 0.5
RegionSplit: TypeAlias = Literal["auto", "holdout", "train", "all"]
_WHOLES = {
    "s_loc": None,
    **dict.fromkeys(_RECALLS, "objects"),
    "unmatched_boxes": "boxes",
    "objects_named": "objects",
    "objects_placed": "objects",
    **dict.fromkeys(("phrases", "boxes", "words")),
}
"""The metrics with the number that each is a share of; None for a mean per answer."""
_REGION = "{region}"
EMBEDDED_PROMPT = "Describe the region {region} and locate its objects."  # what the embedded describer was trained on


@dataclass(frozen=True, slots=True)
class Regions:
    """Regions with their objects; if they come from a run, with its image folder and its model's prompt.

    ``split`` is which of the source's regions they are, and ``note`` what makes that doubtful.
    """

    queries: list[RegionQuery]
    images: ImageSource | None = None
    prompt: str | None = None
    split: str = "all"
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Description(Task[Regions]):
    """Descriptions of held-out regions: objects located and named, boxes without an object, length.

    Accuracy alone rewards short answers, so recall, objects named and length are metrics as well:

    - ``s_loc``: mean localization score of the answer's own boxes, 0 to 1 (paper, Sec. 3.2).
    - ``recall@0.5``, ``@0.75``, ``@0.9``: share of the region's objects that a box overlaps with at least this IoU.
    - ``unmatched_boxes``: share of the boxes whose IoU with every object of the image is below 0.5.
    - ``objects_named``: share of the region's objects whose category a phrase names; a phrase names one object.
    - ``objects_placed``: share of the region's objects that a box of their own name overlaps with an IoU of at least
      0.5; a box places one object.
    - ``phrases``, ``boxes``, ``words``: mean number per answer.
    """

    name: ClassVar[str] = "description"
    reads_points: ClassVar[bool] = True
    higher_is_better: ClassVar[tuple[str, ...]] = ("s_loc", "objects_named", "objects_placed", *_RECALLS)
    lower_is_better: ClassVar[tuple[str, ...]] = ("unmatched_boxes",)

    prompt: Annotated[
        str | None, Option("The question, with {region}. By default the prompt of the regions' run.", asks=True)
    ] = None
    samples: Annotated[int, Option("Answers per region, each with its own seed.")] = 1
    split: Annotated[
        RegionSplit,
        Option("Regions of which images. auto: of held-out ones; of all if none is held out, or a run has no pairs."),
    ] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise ConfigError("--samples is out of range", got=self.samples, expected="at least 1")

    @property
    def samples_per_item(self) -> int:
        """`samples`."""
        return self.samples

    def load(self, path: Path) -> Regions:
        """Read the regions of ``RUN``, ``RUN/regions``, a Parquet file of that table, or JSON (a list, or lines).

        Raises `RunError` if the run's regions are not finished, and `InputError` if none is of the split.
        """
        images, prompt, trains = None, None, True
        if is_dir(path):
            folder = path / "regions" if is_file(path / "config.yaml") else path
            check_run_version(folder.parent)
            queries = [query for table in StageStore(folder).tables() for query in from_table(table, RegionQuery)]
            if is_file(folder.parent / "config.yaml"):
                config = load_config(folder.parent / "config.yaml")
                images = config.annotations.image_source
                prompt = config.prompts.full if config.describer is not None else None
                trains = is_dir(folder.parent / "pairs")
        else:
            queries = read_items(self, path)
        if not queries:
            raise InputError(f"{path} contains no regions", got="no rows", expected="at least one")
        held_out = [query for query in queries if query.split == "holdout"]
        fix = "give --split all, or other regions, or make a run with a larger annotations.holdout or more images"
        split: str = self.split
        if split == "auto":
            split = "holdout" if held_out and trains else "all"
        chosen = queries if split == "all" else [query for query in queries if query.split == split]
        if not chosen:
            got = f"{count_text(len(queries), 'regions')}, {len(held_out):,} of them of held-out images"
            raise InputError(f"{path} has no regions of split {split}", got=got, fix=fix)
        note = None
        if self.split == "auto" and split == "all" and trains and is_dir(path):
            note = f"the run holds out no images, so these are the images that it trains on: {fix}"
        return Regions(chosen, images, prompt, split, note)

    def ids(self, items: Regions) -> Sequence[str]:
        """The ids of the regions, with ``#number`` added if there are several samples."""
        return [name for name, _ in self._answers(items)]

    def about(self, items: Regions) -> Sequence[Item]:
        """The images of the regions."""
        return [Item(name, query.file_name, (query.width, query.height)) for name, query in self._answers(items)]

    def images(self, items: Regions) -> ImageSource | None:
        """The image folder of the run."""
        return items.images

    def questions(self, items: Regions, dialect: Dialect, model: str) -> tuple[str, list[Question]]:
        """`samples` questions per region about the whole image, with the region in the model's dialect."""
        embedded = EMBEDDED_PROMPT if model.startswith("embedded/") else None
        default = embedded or dialect.description_prompt or PromptsConfig().full
        prompt = check_prompt(self.prompt or items.prompt or default, _REGION)
        questions = []
        for name, query in self._answers(items):
            size_wh = query.width, query.height
            text = prompt.replace(_REGION, render_box(query.region, dialect, size_wh, region=True))
            questions.append(Question(name, query.file_name, size_wh, text, query))
        return prompt, questions

    def score(self, items: Regions, answers: Answers) -> Result:
        """The metrics that the class describes."""
        dialect = answers.resolve_dialect()
        ids, images, rows, no_box, malformed, scale = [], [], [], [], [], []
        for (name, query), text in zip(self._answers(items), answers.texts, strict=True):
            grounded = parse(text or "", dialect, (query.width, query.height))
            ids.append(name)
            images.append(query.image_id)
            rows.append(_measure(query, grounded))
            advance()
            if text is not None and not grounded.boxes and not grounded.points:
                no_box.append(name)
            if grounded.problems:
                malformed.append(name)
            if grounded.other_scale:
                scale.append(name)

        def column(name: str) -> Floats:
            return np.array([row[name] for row in rows], dtype=np.float64)

        wholes = {name: column(name) for name in ("objects", "boxes")}
        shares = {
            name: Share.ratio(column(name), wholes[whole]) if whole else Share.mean(column(name))
            for name, whole in _WHOLES.items()
        }
        protocol: dict[str, Any] = {
            "dialect": dialect.spec,
            "samples": self.samples,
            "split": items.split,
            "s_loc": "boxes of the answer itself, no detector; an IoU counts if it is over 0.5",
            "names": "the words of the category in order within a phrase, plural s allowed",
            "ci95": "bootstrap over images",
        }
        problems = {**answers.problems, "no_box": no_box, "malformed": malformed, "scale": scale}
        notes = (items.note,) if items.note else ()
        return Result(self.name, protocol, tuple(ids), tuple(images), shares, {}, problems, notes=notes)

    def _answers(self, items: Regions) -> Iterator[tuple[str, RegionQuery]]:
        """The id and the region of each answer."""
        for query in items.queries:
            for number in range(self.samples):
                yield f"{query.query_id}#{number}" if self.samples > 1 else query.query_id, query


def _measure(query: RegionQuery, grounded: GroundedText) -> dict[str, float]:
    """The numbers of one answer that the metrics are sums of."""
    inside, boxes = query.inside, grounded.boxes
    overlaps = bx.iou_matrix([item.box for item in inside], boxes)
    best = overlaps.max(axis=1, initial=0.0)
    best_of_box = bx.iou_matrix([item.box for item in query.objects], boxes).max(axis=0, initial=0.0)
    phrases = [span.phrase for span in grounded.spans]
    words = {phrase: spaced_words(phrase) for phrase in phrases}
    box_phrases = [words[span.phrase] for span in grounded.spans for _ in span.boxes]
    names = [item.category for item in inside]
    same_name = np.array([[contains_name(phrase, name) for phrase in box_phrases] for name in names], dtype=bool)
    return {
        "s_loc": localization_score(inside, boxes).score,
        "objects": len(inside),
        **{name: float(reaches(best, threshold).sum()) for name, threshold in _RECALLS.items()},
        "boxes": len(boxes),
        "unmatched_boxes": float((~reaches(best_of_box, _UNMATCHED)).sum()),
        "objects_named": count_named(names, phrases or [grounded.plain_text]),
        "objects_placed": count_placed(overlaps, same_name.reshape(overlaps.shape)),
        "phrases": len(phrases),
        "words": len(WORD.findall(grounded.plain_text)),
    }


def _read(content: Content, _: Any) -> list[RegionQuery]:
    if isinstance(content, ParquetContent):
        return from_table(read_table(content.path), RegionQuery)
    rows = content.rows(dict[str, Any], "RUN/regions, a .parquet file of regions, or JSON rows of that table")
    try:
        return [RegionQuery.from_row(row) for row in rows]
    except RecordError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        what = f"{content.path} contains no regions"
        raise InputError(what, got=f"{type(error).__name__}: {error}", expected="rows of RUN/regions") from None


_KEYS = ("query_id", "image_id", "file_name", "width", "height", "region", "objects")
LAYOUT = Layout("the regions of a run", "description", ("Parquet", "JSON lines", "a JSON list"), _KEYS, _read)
