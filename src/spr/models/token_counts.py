"""Counting tokens with a model's tokenizer if it is on this machine, without loading the model or transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from spr.config import DescriberConfig
from spr.core.paths import is_dir


def token_counter(describer: DescriberConfig | None) -> Callable[[Sequence[str]], list[int]] | None:
    """`load_counter` of the describer's `tokenizer_file`."""
    file = tokenizer_file(describer)
    return None if file is None else load_counter(file)


def load_counter(file: Path) -> Callable[[Sequence[str]], list[int]] | None:
    """A function that counts the tokens of texts, without special tokens, with the tokenizer in a ``tokenizer.json``.

    None if the file is damaged, or ``tokenizers`` is not installed.
    """
    tokenizer = load_tokenizer(file)
    if tokenizer is None:
        return None

    def count(texts: Sequence[str]) -> list[int]:
        return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    return count


def load_tokenizer(file: Path) -> Any | None:
    """The `tokenizers.Tokenizer` of a ``tokenizer.json``, without truncation and padding.

    None if the file is damaged, or ``tokenizers`` is not installed.
    """
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # of a damaged file, tokenizers raises plain exceptions
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenizer_file(describer: DescriberConfig | None) -> Path | None:
    """The ``tokenizer.json`` of the describer's model in its folder or in the Hub's cache; nothing is downloaded."""
    if describer is None or describer.model is None:
        return None
    model, folder = describer.model, Path(describer.model)
    if model.startswith("embedded/"):
        folder = Path(str(files("spr"))) / "embedded" / "weights" / model.removeprefix("embedded/")
    if is_dir(folder):
        file = folder / "tokenizer.json"
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model, "tokenizer.json", revision=describer.revision)
    except HFValidationError:  # a folder that no longer exists
        return None
    return Path(cached) if isinstance(cached, str) else None
