"""Phrases of Flickr30k Entities with their boxes: MDETR's JSON beside the dataset's own sentence and box files."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from spr.core.errors import ConfigError, InputError
from spr.records import Box, Size

Protocol: TypeAlias = Literal["merged", "any"]
"""What counts as found where a phrase has several boxes: the box around all of them, or any of them."""
PROTOCOLS = ("merged", "any")

_PHRASE = re.compile(r"\[/EN#([^/\s]+)/(\S+)\s([^\]]*)\]")


@dataclass(frozen=True, slots=True)
class Phrase:
    """A phrase to be found: its text, its categories (``people``, …) and its boxes, xyxy pixels, at least one."""

    text: str
    categories: tuple[str, ...]
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class Sentence:
    """A caption with the phrases that are asked about.

    Attributes:
        id: ``<image>_<sentence>``, both as the dataset numbers them.
        file_name: The image.
        size_wh: Its width and height in pixels.
        caption: The words.
        phrases: In the order in which they are asked.
    """

    id: str
    file_name: str
    size_wh: Size
    caption: str
    phrases: tuple[Phrase, ...]


def read_sentences(path: Path, entities: Path, protocol: Protocol = "merged") -> list[Sentence]:
    """The sentences of ``final_flickr_{merged,separate}GT_*.json``.

    Phrases come from ``tokens_positive_eval``, their boxes and categories from the Entities files: those of the first
    phrase of the sentence that reads the same and has a box, as in Ferret's evaluator.

    Args:
        path: MDETR's JSON.
        entities: The folder of Flickr30k Entities, with ``Annotations/*.xml`` and ``Sentences/*.txt``.
        protocol: ``merged``: a phrase's boxes count as the one around them; ``any``: each counts.

    Raises:
        ConfigError: for an unknown protocol.
        InputError: naming the file and the row, if something is missing or doesn't fit.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError("--boxes is not known", got=protocol, expected=" | ".join(PROTOCOLS))
    for name in ("Annotations", "Sentences"):
        if not (entities / name).is_dir():
            fix = "give --entities the folder that holds Annotations/ and Sentences/"
            raise InputError(f"{entities} is not Flickr30k Entities", got=f"no folder {name}", fix=fix)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["images"]
        made = [_sentence(row, entities, protocol) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        got = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} is not MDETR's Flickr30k JSON", got=got, expected="final_flickr_…GT_….json") from None
    if not made:
        raise InputError(f"{path} holds no sentences", got="no row in `images`", expected="at least one")
    seen: set[str] = set()
    for sentence in made:
        if sentence.id in seen:
            raise InputError(f"{path} has a sentence twice", got=sentence.id, expected="each sentence once")
        seen.add(sentence.id)
    return made


def _sentence(row: dict[str, Any], entities: Path, protocol: Protocol) -> Sentence:
    image, number, caption = str(row["original_img_id"]), int(row["sentence_id"]), row["caption"]
    size_wh = int(row["width"]), int(row["height"])
    boxes = _boxes(entities / "Annotations" / f"{image}.xml")
    sentences = _phrases(entities / "Sentences" / f"{image}.txt")
    if not 0 <= number < len(sentences):
        raise InputError(f"Image {image} has no sentence {number}", got=f"{len(sentences)} sentences")
    known = [(text, key, categories) for text, key, categories in sentences[number] if key in boxes]
    phrases = []
    for (start, end), *_ in row["tokens_positive_eval"]:
        text = caption[start:end]
        found = next(((key, categories) for words, key, categories in known if words == text), None)
        if found is None:
            expected = ", ".join(words for words, _, _ in known)
            raise InputError(f"Sentence {number} of image {image} has no such phrase", got=text, expected=expected)
        of_phrase = boxes[found[0]]
        phrases.append(Phrase(text, found[1], (_around(of_phrase),) if protocol == "merged" else of_phrase))
    return Sentence(f"{image}_{number}", row["file_name"], size_wh, caption, tuple(phrases))


def _around(boxes: Sequence[Box]) -> Box:
    columns = list(zip(*boxes, strict=True))
    return min(columns[0]), min(columns[1]), max(columns[2]), max(columns[3])


@lru_cache(maxsize=64)
def _boxes(path: Path) -> dict[str, tuple[Box, ...]]:
    """Boxes by the phrase's number, from a file of ``Annotations``."""
    try:
        root = ET.parse(path).getroot()  # noqa: S314 (as above)
    except FileNotFoundError:
        raise InputError("Flickr30k Entities lacks a file", got=f"no {path}", fix="unpack all of the dataset") from None
    except (OSError, ET.ParseError) as error:
        raise InputError(f"{path} can't be read", got=error, expected="XML of Flickr30k Entities") from None
    found: dict[str, tuple[Box, ...]] = {}
    for item in root.iter("object"):
        edges = item.find("bndbox")
        if edges is None:
            continue
        x1, y1, x2, y2 = (float(edges.findtext(name) or "nan") for name in ("xmin", "ymin", "xmax", "ymax"))
        for name in item.iter("name"):
            found[name.text or ""] = (*found.get(name.text or "", ()), (x1, y1, x2, y2))
    return found


@lru_cache(maxsize=64)
def _phrases(path: Path) -> tuple[tuple[tuple[str, str, tuple[str, ...]], ...], ...]:
    """Each sentence's phrases, their numbers and categories, from a file of ``Sentences``.

    A phrase stands as ``[/EN#283585/people A man]``; several categories are divided by a slash.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise InputError("Flickr30k Entities lacks a file", got=f"no {path}", fix="unpack all of the dataset") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read", got=error, expected="sentences of Flickr30k Entities") from None
    return tuple(
        tuple((" ".join(m[3].split()), m[1], tuple(m[2].split("/"))) for m in _PHRASE.finditer(line))
        for line in lines
        if line
    )
