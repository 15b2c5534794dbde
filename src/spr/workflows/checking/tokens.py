"""Tokens of the data: markup that the tokenizer splits, and rows that are longer than a limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spr.config import DescriberConfig
from spr.core.errors import ConfigError, InputError, missing_package
from spr.grounding import Dialect
from spr.models.dialect_samples import markup_tokens, sample_texts
from spr.models.family import Family
from spr.models.token_counts import load_tokenizer, tokenizer_file
from spr.workflows.checking.conversation import PLACEHOLDER, Conversation, conversation_of, without_images
from spr.workflows.checking.findings import Finding, Tally
from spr.workflows.checking.image_tokens import ImageTokens
from spr.workflows.checking.rows import Batch, DataRow

MEASURED = 10_000
"""Rows whose length is counted in any case, the first ones. Of later rows, only those that may exceed a limit are."""
_SEARCHED = 20_000
_SHOWN = 4

MESSAGES = {
    "markup_split": "of the dialect's markup are split by the tokenizer",
    "text_changed": "of the dialect don't survive the tokenizer there and back",
    "answer_cut": "are longer than {limit}, so that a part of the answer is cut",
    "answer_lost": "are longer than {limit} before the answer begins, so that nothing of it is left",
    "image_too_long": "have an image of more tokens than {limit}, so that a part of the image is cut",
}


class RowTokens(NamedTuple):
    """The tokens of a row: of everything, of that the image's, and of the answer with the end of its turn."""

    total: int
    image: int
    answer: int


@dataclass(slots=True)
class TokenChecks:
    """Counts tokens batch by batch; see `open_token_checks`.

    Attributes:
        tokenizer: The model's `tokenizers.Tokenizer`.
        conversation: What the chat template writes around question and answer.
        dialect: The dialect of the answers; None if it is not known.
        whole_markup: Whether each token of the dialect's markup must be one token of the tokenizer.
        max_length: The trainer's limit; None without one.
        context: The model's context length; None if unknown.
        image_tokens: How many tokens an image has; None if unknown.
    """

    tokenizer: Any
    conversation: Conversation = field(default_factory=Conversation)
    dialect: Dialect | None = None
    whole_markup: bool = True
    max_length: int | None = None
    context: int | None = None
    image_tokens: ImageTokens | None = None
    _tallies: dict[str, Tally] = field(default_factory=dict)
    _lengths: list[int] = field(default_factory=list)
    _longest: tuple[int, str] = (0, "")
    _rows: int = 0
    _searched: int = 0
    _markup: dict[str, None] = field(default_factory=dict)
    _flagged: list[DataRow] = field(default_factory=list)

    @property
    def limit(self) -> int | None:
        """The smaller one of ``max_length`` and the context."""
        return min((limit for limit in (self.max_length, self.context) if limit is not None), default=None)

    def add(self, batch: Batch) -> None:
        """Count the rows of a batch; rows without texts are left out."""
        rows = [row for row in batch.rows if row.answer or row.prompt]
        self._rows += len(rows)
        if self.dialect is not None and self._searched < _SEARCHED:
            self._searched += len(rows)
            self._markup.update(dict.fromkeys(markup_tokens(self.dialect, (row.answer for row in rows))))
        kept: list[tuple[DataRow, str, int]] = []
        room = MEASURED - len(self._lengths)
        for row in rows:
            prompt, marked = without_images(row.prompt)
            images = max(marked, 1) if row.image is not None else marked
            image = 0 if self.image_tokens is None else images * self.image_tokens.number(row.size_wh)
            text = self.conversation.text(prompt, row.answer)
            if len(kept) < room or (self.limit is not None and _most_tokens(text) + image > self.limit):
                kept.append((row, text, image))
        self._count(kept)

    def _count(self, kept: Sequence[tuple[DataRow, str, int]]) -> None:
        encoded = self.tokenizer.encode_batch_fast([text for _, text, _ in kept], add_special_tokens=self._begins())
        placeholder = self._placeholder()
        for (row, _, image), tokens in zip(kept, encoded, strict=True):
            total = len(tokens.ids) + (image - placeholder if image else 0)
            if len(self._lengths) < MEASURED:
                self._lengths.append(total)
            if total > self._longest[0]:
                self._longest = total, row.place
            if self.limit is not None and total > self.limit:
                self._note(row, total, image)

    def _begins(self) -> bool:
        """Whether the tokenizer adds its token of the beginning: not if the template writes it."""
        first = self.tokenizer.encode(self.conversation.start + "a", add_special_tokens=True).ids[:2]
        return len(set(first)) == len(first)

    def _placeholder(self) -> int:
        """How many tokens the template's placeholder has, which the image's tokens replace; 0 if it writes none."""
        found = PLACEHOLDER.search(self.conversation.image)
        if found is None or self.image_tokens is None:
            return 0
        return len(self.tokenizer.encode(found[0], add_special_tokens=False).ids)

    def _note(self, row: DataRow, total: int, image: int) -> None:
        assert self.limit is not None  # noqa: S101 (for the type checker)
        answer = len(self.tokenizer.encode(row.answer + self.conversation.end, add_special_tokens=False).ids)
        kind = "answer_cut"
        if image > self.limit:
            kind = "image_too_long"
        elif total - answer >= self.limit:
            kind = "answer_lost"
        about = f"{total:,} tokens: image {image:,}, prompt {total - image - answer:,}, answer {answer:,}"
        self._tallies.setdefault(kind, Tally()).add([f"{row.place}: {about}"])
        if len(self._flagged) < _SHOWN:
            self._flagged.append(row)

    def findings(self) -> list[Finding]:
        """What was found: first what is wrong with the tokenizer, then rows that are too long."""
        found = [*self._tokenizer_findings()]
        limit = f"the limit of {self.limit or 0:,} tokens ({self._limit_name()})"
        found += [
            tally.finding(kind, MESSAGES[kind].format(limit=limit), self._rows)
            for kind in ("image_too_long", "answer_lost", "answer_cut")
            if (tally := self._tallies.get(kind)) is not None
        ]
        return found

    def examples(self) -> list[DataRow]:
        """The first rows that are too long."""
        return list(self._flagged)

    def notes(self) -> list[str]:
        """What was counted and how, as sentences."""
        notes = [f"Tokens are counted with {self.conversation.source}."]
        if self.image_tokens is None:
            notes.append("Tokens of images are not counted: the model's image processor is not known here.")
        else:
            notes.append(f"Tokens of images: {self.image_tokens.source}.")
            if self.image_tokens.unknown:
                notes.append(f"{self.image_tokens.unknown:,} rows have an image of unknown size, counted as 0 tokens.")
        if self.max_length is not None and self.context is not None and self.max_length > self.context:
            notes.append(f"max_length {self.max_length:,} is above the model's context of {self.context:,} tokens.")
        if self._lengths:
            median, high = (int(value) for value in np.quantile(self._lengths, (0.5, 0.99)))
            first = "" if self._rows <= MEASURED else f" of the first {MEASURED:,} rows"
            notes.append(
                f"Tokens per row{first}: median {median:,}, 99 % up to {high:,}; "
                f"longest counted: {self._longest[0]:,} ({self._longest[1]})."
            )
        return notes

    def _limit_name(self) -> str:
        return "max_length" if self.limit == self.max_length else "the model's context"

    def _tokenizer_findings(self) -> list[Finding]:
        if self.dialect is None:
            return []
        found, samples = [], sample_texts(self.dialect)
        used = dict.fromkeys([*markup_tokens(self.dialect, samples), *self._markup])
        split = split_tokens(self.tokenizer, used) if self.whole_markup else {}
        if split:
            tally = Tally()
            tally.add(f"`{token}` → {' '.join(f'`{piece}`' for piece in pieces)}" for token, pieces in split.items())
            found.append(tally.finding("markup_split", MESSAGES["markup_split"], len(used), "tokens"))
        changed = Tally()
        for sample in samples:
            ids = self.tokenizer.encode(sample, add_special_tokens=False).ids
            decoded = self.tokenizer.decode(ids, skip_special_tokens=False)
            if "".join(decoded.split()) != "".join(sample.split()):
                changed.add([f"`{sample}` → `{decoded}`"])
        if changed.count:
            found.append(changed.finding("text_changed", MESSAGES["text_changed"], len(samples), "sample texts"))
        return found


def split_tokens(tokenizer: Any, tokens: Sequence[str] | dict[str, None]) -> dict[str, list[str]]:
    """The tokens that a `tokenizers.Tokenizer` splits, each with its pieces."""
    texts = list(tokens)
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    return {token: list(one.tokens) for token, one in zip(texts, encoded, strict=True) if len(one.ids) > 1}


def open_token_checks(
    *,
    tokenizer: str | Path | None,
    model: str | None = None,
    folder: Path | None = None,
    family: Family | None = None,
    dialect: Dialect | None = None,
    max_length: int | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> TokenChecks | None:
    """The checks with a tokenizer, or with that of the model if it is on this machine; nothing is downloaded.

    Args:
        tokenizer: A folder with ``tokenizer.json``, or an id of the Hub in its cache; None for that of ``model``.
        model: The model that is trained: a folder or an id of the Hub.
        folder: The folder with the model's files, if it is on this machine.
        family: The model's family.
        dialect: The dialect of the answers.
        max_length: The trainer's limit of tokens per row.
        min_pixels: The trainer's resize setting, instead of the processor's.
        max_pixels: Likewise.

    Returns:
        None if there is no tokenizer, and neither it nor ``max_length`` was asked for.

    Raises:
        ConfigError: if ``max_length`` is given, but no tokenizer can be found.
        InputError: if the given tokenizer is not there, or is damaged.
        SprError: if the package ``tokenizers`` is not installed.
    """
    named = tokenizer if tokenizer is not None else model
    file = None if named is None else tokenizer_file(DescriberConfig(model=str(named)))
    if file is None:
        if tokenizer is not None:
            fix = "give a folder with tokenizer.json, or download it: hf download ORG/MODEL tokenizer.json"
            raise InputError("There is no tokenizer on this machine", got=tokenizer, expected="tokenizer.json", fix=fix)
        if max_length is not None:
            fix = "give --tokenizer, or a --model that is on this machine"
            raise ConfigError("--max-length needs a tokenizer", got="none", expected="tokenizer.json", fix=fix)
        return None
    loaded = load_tokenizer(file)
    if loaded is None:
        _check_installed()
        raise InputError("The tokenizer can't be read", got=file, expected="a tokenizer.json of tokenizers")
    home = folder if folder is not None else file.parent
    return TokenChecks(
        loaded,
        conversation_of(file.parent, family),
        dialect,
        family is None or family.markup_tokens or dialect is None or dialect.key != family.dialect,
        max_length,
        _context(home),
        ImageTokens.of_model(home, family, dialect, min_pixels, max_pixels),
    )


def _check_installed() -> None:
    try:
        import tokenizers  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_package(error, "Counting tokens") or error from None


def _context(folder: Path) -> int | None:
    """The model's context length by its config.json."""
    from spr.models.hub_cache import find_model

    config = find_model(str(folder)).config or {}
    text = config.get("text_config")
    length = {**config, **(text if isinstance(text, dict) else {})}.get("max_position_embeddings")
    return length if isinstance(length, int) and length > 0 else None


def _most_tokens(text: str) -> int:
    """A bound of the number of tokens: none is empty, and characters beyond ASCII can become several bytes each."""
    return len(text) + 1 if text.isascii() else 3 * len(text.encode("utf-8", "replace")) + 1
