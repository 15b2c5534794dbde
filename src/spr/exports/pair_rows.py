"""Writes the pairs of a run as rows of an export: descriptions, and questions of the stage `negatives`."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from spr.core.progress import Progress
from spr.exports.formats import ExportRow, Texts
from spr.exports.marker import ExportPlan
from spr.exports.rows import BATCH, RowWriter
from spr.exports.texts import question_texts, texts_of
from spr.records import PreferencePair, QuestionPair
from spr.runs.pair_stats import PairStats
from spr.runs.reader import JoinedPair


class ExportedPairs(NamedTuple):
    """The statistics of the exported descriptions, and the number of exported questions by split."""

    stats: PairStats
    questions: Counter[str]

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of pairs and of questions."""
        return {"pairs": self.stats.pairs, "questions": self.questions.total()}


def write_pairs(plan: ExportPlan, writer: RowWriter) -> ExportedPairs:
    """Write all pairs."""
    run = plan.run
    stats, questions = PairStats(), Counter[str]()
    with Progress(f"export {plan.format_name}", run.finished("pairs").rows, "pairs") as progress:
        for entry, shard in zip(run.finished("objects").shards, run.shards(), strict=False):
            writer.begin_shard(entry.index)
            stats.add_candidates(shard)
            for start in range(0, len(shard.pairs), BATCH):
                batch = shard.pairs[start : start + BATCH]
                _write_descriptions(plan, writer, batch, stats)
                progress.advance(len(batch))
            asked = run.questions(entry.index)
            for start in range(0, len(asked), BATCH):
                _write_questions(plan, writer, asked[start : start + BATCH], questions)
    return ExportedPairs(stats, questions)


def _write_descriptions(plan: ExportPlan, writer: RowWriter, batch: list[JoinedPair], stats: PairStats) -> None:
    _, dialect = plan.run.describer
    usable: list[tuple[JoinedPair, Texts, PreferencePair]] = []
    for joined in batch:
        pair = joined.pair
        reviewed = plan.reviews.apply(pair, plan.review_mode)
        if isinstance(reviewed, str):
            writer.leave_out(pair.query_id, pair.file_name, reviewed)
            continue
        item = joined if reviewed is pair else joined.with_chosen(reviewed)
        texts = texts_of(item.pair, dialect, plan.target, plan.run.config.prompts, plan.format.placeholders)
        if isinstance(texts, str):
            writer.leave_out(pair.query_id, pair.file_name, texts)
        else:
            usable.append((item, texts, pair))
    rows = []
    for (item, texts, original), image in writer.with_images(usable, lambda one: one[0].pair):
        stats.add(item, (texts.chosen, texts.rejected))
        rows.append(ExportRow(item.pair, texts, image, *writer.origin(item.pair), original))
    writer.write(rows)


def _write_questions(plan: ExportPlan, writer: RowWriter, batch: list[QuestionPair], counts: Counter[str]) -> None:
    refused = None if plan.format.questions else "question_not_shown"
    refused = "not_accepted_in_review" if plan.review_mode == "require" else refused
    locate = plan.run.config.pairing.locate_prompt
    usable: list[tuple[QuestionPair, Texts]] = []
    for pair in batch:
        texts = refused or question_texts(pair, plan.target, locate, plan.format.placeholders)
        if isinstance(texts, str):
            writer.leave_out(pair.query_id, pair.file_name, texts)
        else:
            usable.append((pair, texts))
    rows = []
    for (pair, texts), image in writer.with_images(usable, lambda one: one[0]):
        counts[pair.split] += 1
        rows.append(ExportRow(pair, texts, image, *writer.origin(pair)))
    writer.write(rows)
