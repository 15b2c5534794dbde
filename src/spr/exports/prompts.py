"""Prompts with what their answers should place: region queries, and questions about the categories of whole images.

A question about all objects of a category is asked only where nothing is missing in the truth: if objects of the image
were dropped (too small, a crowd, …), only about categories with a single object, which the run knows to be complete. An
absent category is one that `spr.pipeline.askable` has found; it is asked about in the same words as a present one, so
that the words don't give the answer away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from spr.core.errors import GroundingError, RewardError
from spr.core.randomness import stable_hash, stable_hashes
from spr.evaluation.tasks.detection import CATEGORIES, detection_prompt
from spr.exports.formats import Prompt, PromptTask
from spr.exports.prompt_options import PromptOptions
from spr.grounding import Dialect
from spr.grounding.names import readable_names
from spr.models.questions import EXPRESSION, locate_prompt
from spr.pipeline.describe import training_prompt
from spr.records import Box, ImageObject, ImageObjects, RegionQuery
from spr.rewards import Truth, TruthObject
from spr.runs.dropped import dropped_by
from spr.runs.reader import Run

_HARMLESS = (
    *("object_id_repeated", "object_category_unknown", "object_category_dropped"),
    *("object_image_unknown", "object_image_dropped"),
    *("detection_outside_crowd", "detection_suppressed", "detection_duplicate"),
)
"""Reasons for which an object is dropped without being missing among those of a category that is asked about."""


class NoPrompt(NamedTuple):
    """A region query or an image that a task has no prompt for, and why (`spr.core.reasons.EXPORT_REASONS`)."""

    query_id: str
    image_id: str
    file_name: str
    reason: str


@dataclass(frozen=True)
class PromptMaker:
    """Makes the prompts of a run in a dialect; the same run and options make the same prompts.

    Attributes:
        run: The run; its config gives the seed and the words of the prompts.
        dialect: In which the prompts are written, and their answers are read.
        options: What they ask for, with the tokenizer that the truth names.
        converted: Whether the dialect is not that of the run's describer, so that its own wording doesn't apply.
        used_synonyms: The categories of `PromptOptions.synonyms` that are in a truth so far.
    """

    run: Run
    dialect: Dialect
    options: PromptOptions
    converted: bool = False
    used_synonyms: set[str] = field(default_factory=set)

    @cached_property
    def incomplete(self) -> npt.NDArray[np.uint64] | None:
        """Hashes of the image files that lack objects (`incomplete_images`); None if that is unknown."""
        return incomplete_images(self.run) if "detect" in self.options.tasks else None

    @property
    def model(self) -> str:
        """Name of the describer's model, for its own wording; empty if it is another model's dialect."""
        describer = self.run.config.describer
        return "" if self.converted or describer is None else describer.model or ""

    def descriptions(self, queries: Iterable[RegionQuery]) -> Iterator[Prompt | NoPrompt]:
        """The training prompt of each region query; its truth are the objects inside."""
        for query in queries:
            try:
                text = training_prompt(query, self.dialect, self.run.config.prompts)
            except GroundingError:
                yield NoPrompt(query.query_id, query.image_id, query.file_name, "not_renderable")
                continue
            yield self._prompt(query, query.query_id, "describe", query.region, text, query.inside)

    def questions(self, images: Sequence[ImageObjects]) -> Iterator[Prompt | NoPrompt]:
        """The questions about images, of the tasks other than ``describe``."""
        tasks = [task for task in self.options.tasks if task != "describe"]
        for image, whole in zip(images, self._whole(images), strict=True):
            for task in tasks:
                asked = self._asked(image, task, whole)
                if not asked:
                    yield NoPrompt(f"{image.image_id}/{task}", image.image_id, image.file_name, "no_category_to_ask")
                    continue
                own = dict.fromkeys(item.category for item in image.objects)
                names = readable_names([*own, *asked])[len(own) :]
                for number, (category, name) in enumerate(zip(asked, names, strict=True)):
                    objects = [item for item in image.objects if item.category == category]
                    text = self._question(name, self._wording(image, task, category))
                    yield self._prompt(image, f"{image.image_id}/{task}-{number}", task, None, text, objects)

    def _whole(self, images: Sequence[ImageObjects]) -> list[bool]:
        """Whether no object of each image was dropped."""
        if self.incomplete is None:
            return [False] * len(images)
        lacking: list[bool] = np.isin(_hashes([image.file_name for image in images]), self.incomplete).tolist()
        return [not lacks for lacks in lacking]

    def _asked(self, image: ImageObjects, task: PromptTask, whole: bool) -> list[str]:
        """The categories that a task asks about in an image; ``whole`` if no object was dropped from it."""
        most, askable = self.options.questions or 1, image.askable
        if task == "absent":
            return list(getattr(askable, self.run.config.pairing.negatives_from)[:most]) if askable is not None else []
        counts = Counter(item.category for item in image.objects)
        unsure = {item.category for item in image.objects if item.source == "detector"}
        single = askable.single if askable is not None else ()
        known = [name for name in counts if name in single or (whole and name not in unsure)]
        known = [name for name in known if task == "detect" or counts[name] == 1]
        seed = self.run.config.seed
        return sorted(known, key=lambda name: stable_hash(seed, f"export {task}", image.image_id, name))[:most]

    def _wording(self, image: ImageObjects, task: PromptTask, category: str) -> PromptTask:
        """The task in whose words a question is asked; those about absent objects use the words of the others."""
        if task != "absent":
            return task
        known: list[PromptTask] = [name for name in self.options.tasks if name in ("detect", "locate")] or ["locate"]
        return known[stable_hash(self.run.config.seed, "export wording", image.image_id, category) % len(known)]

    def _question(self, name: str, wording: PromptTask) -> str:
        if wording == "detect":
            return detection_prompt(self.dialect).replace(CATEGORIES, name)
        prompt = self.run.config.pairing.locate_prompt or locate_prompt(self.dialect, self.model)
        return prompt.replace(EXPRESSION, f"the {name}")

    def _prompt(
        self,
        about: RegionQuery | ImageObjects,
        query_id: str,
        task: PromptTask,
        region: Box | None,
        text: str,
        objects: Sequence[ImageObject],
    ) -> Prompt | NoPrompt:
        placed = tuple(TruthObject(item.category, item.box) for item in objects)
        given = self.options.synonyms
        synonyms = {item.label: given[item.label] for item in placed if item.label in given}
        self.used_synonyms.update(synonyms)
        size_wh, labels = (about.width, about.height), self.options.labels
        names = about.image_id, about.file_name
        try:
            truth = Truth(placed, self.dialect.spec, size_wh, labels, synonyms, self.options.tokenizer).to_json()
        except RewardError:
            return NoPrompt(query_id, *names, "label_not_nameable")
        return Prompt(query_id, *names, *size_wh, about.split, task, region, text, truth, len(placed))


def incomplete_images(run: Run) -> npt.NDArray[np.uint64] | None:
    """Hashes of the image files from which the stage `objects` dropped an object, uint64, sorted; None if unknown."""
    found = np.empty(0, np.uint64)
    for batch in dropped_by(run.path, run.finished("objects")):
        missing = pc.and_(pc.equal(batch["kind"], "object"), pc.invert(pc.is_in(batch["reason"], pa.array(_HARMLESS))))
        names = pc.unique(batch.filter(missing)["file_name"]).to_pylist()
        if None in names:  # in runs of earlier versions
            return None
        found = np.union1d(found, _hashes(names))
    return found


def _hashes(file_names: Sequence[str]) -> npt.NDArray[np.uint64]:
    return stable_hashes(0, "export file", last=file_names)
