"""Vicuna's tokenizer with Ferret's tokens, which splits texts as the published code does.

The published code uses the slow Llama tokenizer of 2023: each text between special tokens is tokenized separately,
with a space before it. White space around ``<region_fea>`` is removed; that around ``<image>`` is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from spr.models.errors import ModelError
from spr.models.ported.ferret.regions import REGION_TOKEN

IMAGE_TOKEN = "<image>"  # noqa: S105 (a token of text)
_SPACE = "▁"
_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}


class Piece(NamedTuple):
    """A piece of a SentencePiece model.

    Attributes:
        text: The piece; U+2581 stands for a space.
        rank: The lower the rank, the sooner two pieces are merged into this one.
        mergeable: False for control and byte pieces.
    """

    text: str
    rank: float
    mergeable: bool


def make_tokenizer(folder: Path, vocabulary: int, region_id: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a published folder, with ``<image>`` appended to its vocabulary.

    Args:
        folder: Contains ``tokenizer.model``, and ``added_tokens.json`` if tokens were added.
        vocabulary: The size of the published model's vocabulary.
        region_id: The id of ``<region_fea>``.

    Raises:
        ModelError: if the files are missing or damaged, or belong to another model.
    """
    path = folder / "tokenizer.model"
    if not path.is_file():
        raise ModelError(f"{folder} has no tokenizer.model", fix="put the tokenizer's files beside the weights")
    pieces = read_pieces(path)
    ids = {piece.text: k for k, piece in enumerate(pieces)}
    added = _added(folder, len(pieces), region_id)
    if len(pieces) + len(added) != vocabulary or added.get(REGION_TOKEN, -1) != region_id:
        raise ModelError(
            f"The tokenizer of {folder} is not this model's",
            got=f"{len(pieces)} pieces and {added}",
            expected=f"{vocabulary} tokens, {REGION_TOKEN} being {region_id}",
            fix="use the tokenizer files that came with the weights",
        )
    options = {"unk_token": _ROLES["unk_token"], "fuse_unk": True, "byte_fallback": True}
    backend = Tokenizer(models.BPE(vocab=ids, merges=list(_merges(pieces, ids)), **options))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", ids["<s>"])])
    specials = [AddedToken(text, normalized=False, special=True) for text in ("<unk>", "<s>", "</s>")]
    names = sorted(added, key=lambda text: added[text])
    specials += [AddedToken(text, normalized=False, special=True, lstrip=True, rstrip=True) for text in names]
    specials.append(AddedToken(IMAGE_TOKEN, normalized=False, special=True))
    backend.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **_ROLES,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _added(folder: Path, first: int, region_id: int) -> dict[str, int]:
    path = folder / "added_tokens.json"
    if not path.is_file():
        return {REGION_TOKEN: first} if first == region_id else {}
    try:
        return {str(text): int(number) for text, number in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"{path} can't be read", got=error, fix="download the file again") from error


def _merges(pieces: list[Piece], ids: dict[str, int]) -> Iterator[tuple[str, str]]:
    """The pairs of pieces that merge into one piece, in the order in which SentencePiece merges them."""
    for piece in sorted(pieces, key=lambda piece: piece.rank):
        if piece.mergeable:
            cuts = ((piece.text[:k], piece.text[k:]) for k in range(1, len(piece.text)))
            known = [pair for pair in cuts if pair[0] in ids and pair[1] in ids]
            yield from sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))


def read_pieces(path: Path) -> list[Piece]:
    """The pieces of a ``tokenizer.model``, by id.

    Raises:
        ModelError: if the file is not a SentencePiece model, or not one of Llama's.
    """
    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ModelError(f"{path} is not a SentencePiece model", got=error, fix="download the file again") from error
    pieces = [
        Piece(model.id_to_piece(k), -model.get_score(k), mergeable=not (model.is_control(k) or model.is_byte(k)))
        for k in range(model.get_piece_size())
    ]
    first = [piece.text for piece in pieces[:3]]
    if first != ["<unk>", "<s>", "</s>"]:
        got = f"{len(pieces)} pieces, the first ones {first}"
        raise ModelError(f"{path} is not Llama's vocabulary", got=got, expected="one that starts with <unk>, <s>, </s>")
    return pieces
