"""Vicuna's tokenizer with Ferret's tokens, cutting texts as the published code cuts them.

That code used the slow Llama tokenizer of 2023: each piece of text between special tokens is cut by itself, with a
space before it, and white space around ``<region_fea>`` goes, while that around ``<image>`` stays.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from spr.models.loading import ModelError
from spr.models.ported.ferret.regions import REGION_TOKEN

IMAGE_TOKEN = "<image>"  # noqa: S105 (a token of text)
_CONTROL, _BYTE = 3, 6  # kinds of pieces in SentencePiece's format
_SPACE = "▁"
_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}


class Piece(NamedTuple):
    """A piece of a SentencePiece model; the lower its rank, the sooner two pieces are joined to it."""

    text: str
    rank: float
    kind: int


def make_tokenizer(folder: Path, vocabulary: int, region_id: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a published folder, ``<image>`` added behind its vocabulary.

    Args:
        folder: Holds ``tokenizer.model``, and ``added_tokens.json`` if tokens were added to it.
        vocabulary: Tokens that the published model knows.
        region_id: Of ``<region_fea>``.

    Raises:
        ModelError: if the files are missing or damaged, or not those of the model.
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
        raise ModelError(f"{path} can't be read", got=error, fix="fetch the file again") from error


def _merges(pieces: list[Piece], ids: dict[str, int]) -> Iterator[tuple[str, str]]:
    """The pairs that join to a piece, those that SentencePiece would join first first."""
    for piece in sorted(pieces, key=lambda piece: piece.rank):
        if piece.kind not in (_CONTROL, _BYTE):
            cuts = ((piece.text[:k], piece.text[k:]) for k in range(1, len(piece.text)))
            known = [pair for pair in cuts if pair[0] in ids and pair[1] in ids]
            yield from sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))


def read_pieces(path: Path) -> list[Piece]:
    """The pieces of a ``tokenizer.model``, by id.

    The file is a message of Protocol Buffers; its field 1 repeats the pieces, whose fields 1 to 3 are text, score and
    kind. That is all a vocabulary needs, so neither SentencePiece nor protobuf has to be installed.

    Raises:
        ModelError: if the file is no SentencePiece model.
    """
    data = path.read_bytes()
    pieces = []
    try:
        for number, value in _fields(data):
            if number == 1 and isinstance(value, bytes):
                parts = dict(_fields(value))
                score = struct.unpack("<f", bytes(parts.get(2, b"\0\0\0\0")))[0]
                pieces.append(Piece(bytes(parts[1]).decode("utf-8"), -score, int(parts.get(3, 1))))
    except (IndexError, KeyError, UnicodeDecodeError, ValueError, TypeError, struct.error) as error:
        raise ModelError(f"{path} is no SentencePiece model", got=error, fix="fetch the file again") from error
    if [piece.text for piece in pieces[:3]] != ["<unk>", "<s>", "</s>"]:
        got = f"{len(pieces)} pieces, the first {[piece.text for piece in pieces[:3]]}"
        raise ModelError(f"{path} is not Llama's vocabulary", got=got, expected="one that starts with <unk>, <s>, </s>")
    return pieces


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a message: integers, and the bytes of anything else."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, varint()
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"wire type {kind} at byte {at}")
        length = varint() if kind == 2 else 8 if kind == 1 else 4
        if at + length > len(data):
            raise ValueError(f"a field of {length} bytes at byte {at} of {len(data)}")
        yield tag >> 3, data[at : at + length]
        at += length
