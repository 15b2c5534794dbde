"""Generated tokens as text: with the markup of boxes, without the tokens that end an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from spr.core.errors import RewardError, missing_package

_REASONING = re.compile(r"</?(?:think(?:ing)?|answer)>", re.IGNORECASE)
_END = re.compile(
    r"<\|(?:im_end|endoftext|end|eot_id|eot|end_of_text|return|user|observation|pad|video_pad|image_pad)\|>"
    r"|</s>|<s>|<eos>|<pad>|<end_of_turn>|<turn\|>|<\|end_of_sentence\|>|<｜end▁of▁sentence｜>|\[EOS\]|\[PAD\]"
)
_LONGEST_END = 32


class Decoder:
    """Decodes tokens to text without special tokens, except those of a box markup and of reasoning.

    Args:
        tokenizer: The model's tokenizer, or a processor that has one.

    Raises:
        RewardError: if it is neither.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        if not hasattr(self.tokenizer, "decode") or not hasattr(self.tokenizer, "added_tokens_decoder"):
            expected = "a folder, a name on the Hugging Face Hub, a tokenizer of transformers, or a processor"
            raise RewardError("`tokenizer` is not a tokenizer", got=type(tokenizer).__name__, expected=expected)
        from spr.models.model_dialect import control_ids

        self.hidden = control_ids(self.tokenizer, keep=_REASONING.fullmatch)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated tokens."""
        kept = [int(number) for number in ids if int(number) not in self.hidden]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@lru_cache(maxsize=8)
def load_decoder(where: str) -> Decoder:
    """The decoder of a tokenizer in a folder or on the Hugging Face Hub; loaded once.

    Raises:
        SprError: if it can't be loaded, or transformers is not installed.
    """
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise missing_package(error, "Decoding tokens for a reward") or error from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
    except Exception as error:  # transformers raises many kinds, from many packages
        expected = "a folder with a tokenizer, or a name on the Hugging Face Hub"
        what = f"The tokenizer {where} can't be loaded"
        raise RewardError(what, got=f"{type(error).__name__}: {error}", expected=expected) from error
    return Decoder(tokenizer)


def without_end(text: str) -> str:
    r"""The text without the tokens at its end that end a turn or fill a batch.

    >>> without_end("a dog <|box_end|><|im_end|>\n<|endoftext|>")
    'a dog <|box_end|>'
    """
    found = text
    while True:
        rest = found.rstrip()
        start = max(0, len(rest) - _LONGEST_END)
        match = next((item for item in _END.finditer(rest, start) if item.end() == len(rest)), None)
        if match is None:
            return found
        found = rest[: match.start()]
