"""Writes prompts as rows of an export, and counts what they ask for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from spr.core.errors import InputError
from spr.core.progress import Progress
from spr.exports.formats import Prompt, PromptRow
from spr.exports.marker import ExportPlan
from spr.exports.prompt_options import PromptOptions
from spr.exports.prompts import NoPrompt, PromptMaker
from spr.exports.rows import BATCH, RowWriter
from spr.records import ImageObjects, RegionQuery
from spr.records.schemas import from_table


class PromptStats:
    """What the exported prompts ask for: their number, and that of the objects in their truths, by task.

    ``unused_synonyms`` are the categories of `PromptOptions.synonyms` that no prompt is about.
    """

    def __init__(self) -> None:
        self.prompts, self.objects = Counter[str](), Counter[str]()
        self.held_out = 0
        self.unused_synonyms: list[str] = []

    @property
    def counts(self) -> dict[str, int]:
        """The number of prompts; a format with prompts has no pairs."""
        return {"pairs": 0, "prompts": self.prompts.total()}

    def add(self, prompt: Prompt) -> None:
        """Count a prompt."""
        self.prompts[prompt.task] += 1
        self.objects[prompt.task] += prompt.objects
        self.held_out += prompt.split == "holdout"


def write_prompts(plan: ExportPlan, writer: RowWriter) -> PromptStats:
    """Write the prompts of all shards, first the region queries and then the questions of each.

    Raises:
        InputError: if there are synonyms, and none is of a category that a prompt is about.
    """
    run, stats = plan.run, PromptStats()
    options = plan.prompts or PromptOptions()
    maker = PromptMaker(run, plan.labels.dialect, options, converted=plan.target is not None)
    regions, objects = run.store("regions"), run.store("objects")
    with Progress(f"export {plan.format_name}", run.finished("regions").rows, "region queries") as progress:
        of_shard = {entry.index: entry for entry in run.finished("objects").shards}
        for entry in run.finished("regions").shards:
            writer.begin_shard(entry.index)
            made: list[Iterator[Prompt | NoPrompt]] = []
            if "describe" in options.tasks:
                made.append(maker.descriptions(from_table(regions.read(entry), RegionQuery)))
            if options.tasks != ("describe",):
                made.append(maker.questions(from_table(objects.read(of_shard[entry.index]), ImageObjects)))
            _write_shard(plan, writer, chain.from_iterable(made), stats)
            progress.advance(entry.rows)
    stats.unused_synonyms = sorted(options.synonyms.keys() - maker.used_synonyms)
    if stats.unused_synonyms and not maker.used_synonyms:
        got, expected = ", ".join(stats.unused_synonyms[:5]), "categories as the annotations write them"
        raise InputError("No prompt is about a category of --synonyms", got=got, expected=expected)
    return stats


def _write_shard(plan: ExportPlan, writer: RowWriter, prompts: Iterable[Prompt | NoPrompt], stats: PromptStats) -> None:
    marks, waiting = plan.format.placeholders, iter(prompts)
    while batch := list(islice(waiting, BATCH)):
        usable: list[Prompt] = []
        for item in batch:
            if isinstance(item, NoPrompt):
                writer.leave_out(item.query_id, item.file_name, item.reason)
            elif any(mark in item.text for mark in marks):
                writer.leave_out(item.query_id, item.file_name, "placeholder_in_text")
            else:
                usable.append(item)
        rows = []
        for item, image in writer.with_images(usable, lambda one: one):
            stats.add(item)
            rows.append(PromptRow(item, image, *writer.origin(item)))
        writer.write(rows)
