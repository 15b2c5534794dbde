"""Counting tokens with a model's tokenizer if it is on this machine, without loading the model or transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from spr.config import DescriberConfig


def token_counter(describer: DescriberConfig | None) -> Callable[[Sequence[str]], list[int]] | None:
    """A function that counts the tokens of texts, without special tokens, with the describer's tokenizer.

    None if there is no describer with a model, its folder or the Hub's cache has no readable ``tokenizer.json``, or
    ``tokenizers`` is not installed. Nothing is downloaded.
    """
    if describer is None or describer.model is None:
        return None
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    file = _tokenizer_file(describer.model, describer.revision)
    if file is None:
        return None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # a damaged file; tokenizers raises plain exceptions
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: Sequence[str]) -> list[int]:
        return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    return count


def _tokenizer_file(model: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    folder = Path(model)
    if model.startswith("embedded/"):
        folder = Path(str(files("spr"))) / "embedded" / "weights" / model.removeprefix("embedded/")
    if folder.is_dir():
        file = folder / "tokenizer.json"
        return file if file.is_file() else None
    try:
        cached = try_to_load_from_cache(model, "tokenizer.json", revision=revision)
    except HFValidationError:  # a folder that no longer exists
        return None
    return Path(cached) if isinstance(cached, str) else None
