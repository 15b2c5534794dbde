"""The vocabulary of the embedded models and its tokenizer: whole words, and coordinates such as ``0.37``.

All three models share one list of tokens, so that a word has the same id everywhere. Two ids are fixed: Grounding
DINO's class in transformers uses ids 101 and 102 for the tokens that split its text into phrases.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from spr.embedded.sprites import COLOURS, SHAPES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<|start|>", "<|end|>"
USER, ASSISTANT, IMAGE, VIDEO = "<|user|>", "<|assistant|>", "<image>", "<video>"
COORDINATES: tuple[str, ...] = tuple(f"{i / 100:.2f}" for i in range(101))
NUMBERS: tuple[str, ...] = tuple(str(i) for i in range(1, 31))

_SPECIAL = (PAD, UNKNOWN, START, USER, ASSISTANT, IMAGE, VIDEO)
_WORDS = (
    # Descriptions and expressions.
    *("[", "]", "],", "];", "].", ",", "?", ":", ";", "a", "an", "the", "and", "of", "in", "to", "it", "its", "is"),
    *("are", "there", "small", "large", "left", "right", "above", "below"),
    # Prompts, including other wordings than those of `tools.embedded.texts`.
    *("where", "what", "describe", "region", "image", "locate", "objects", "object", "these", "this", "with", "all"),
    *("give", "boxes", "box", "each", "inside", "picture", "crop", "list", "for", "detail", "coordinates", "please"),
)
_GIVEN = {101: ".", 102: END}


def _tokens() -> tuple[str, ...]:
    rest = [*_SPECIAL, *_WORDS, *COLOURS, *SHAPES, *NUMBERS, *COORDINATES]
    for index in sorted(_GIVEN):
        rest.insert(index, _GIVEN[index])
    return tuple(rest)


TOKENS: tuple[str, ...] = _tokens()
"""All tokens; a token's id is its index."""
IDS: dict[str, int] = {token: i for i, token in enumerate(TOKENS)}
FIRST_COORDINATE = IDS["0.00"]

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# A closing bracket includes the punctuation after it, and commas between coordinates are not tokens. So a box has six
# tokens instead of nine, which saves a third of the time of a description.
_PATTERN = r"<[^<>\s]*>|\d\.\d\d(?!\d)|\w+|\][,;.]?|[^\w\s]"
_COMMAS = r"(?<=\d\.\d\d)\s*,\s*(?=\d\.\d\d)"
_SPLIT, _DROPPED = re.compile(_PATTERN), re.compile(_COMMAS)


def encode(text: str) -> list[int]:
    """The token ids of a text without special tokens, computed without importing transformers.

    >>> [TOKENS[i] for i in encode("A red circle [0.12, 0.34, 0.56, 1.00].")]
    ['a', 'red', 'circle', '[', '0.12', '0.34', '0.56', '1.00', '].']
    """
    return [IDS.get(token, IDS[UNKNOWN]) for token in _SPLIT.findall(_DROPPED.sub(" ", text.lower()))]


def make_tokenizer(start: str | None = None, *, chat: bool = False, max_length: int = 1024) -> PreTrainedTokenizerFast:
    """The tokenizer. It ignores capitalisation and decodes to lower case with the usual spacing.

    Args:
        start: A token to put before every text, with `END` after it; None for neither.
        chat: Whether to include the describer's chat template.
        max_length: Maximum length of a text, in tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(IDS, unk_token=UNKNOWN))
    core.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(_COMMAS), " ")])
    core.pre_tokenizer = pre_tokenizers.Split(Regex(_PATTERN), behavior="removed", invert=True)
    core.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=True),
            decoders.Fuse(),
            *(decoders.Replace(old, new) for old, new in (("[ ", "["), (" ]", "]"), (" :", ":"), (" ;", ";"))),
            decoders.Replace(Regex(r"(?<=\d\.\d\d) (?=\d\.\d\d)"), ", "),
        ]
    )
    if start is not None:
        core.post_processor = processors.TemplateProcessing(
            single=f"{start} $A {END}", special_tokens=[(mark, IDS[mark]) for mark in sorted({start, END})]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=start,
        eos_token=END,
        additional_special_tokens=[START, USER, ASSISTANT, IMAGE, VIDEO],
        model_max_length=max_length,
        padding_side="left" if chat else "right",
        clean_up_tokenization_spaces=False,
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
