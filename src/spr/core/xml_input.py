"""XML from files that anyone may have written, element by element, so that its size does not matter.

A document type is refused: entities, of which a few can expand to gigabytes or name other files, are declared there.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from xml.parsers import expat

from spr.core.errors import InputError
from spr.core.text_input import TextInput

_DEEPEST = 100


def read_elements(path: Path, what: str, root: str) -> Iterator[ET.Element]:
    """The children of the root element, each with all that it contains; one is in memory at a time.

    Args:
        path: The file, which may be packed with gzip; see `spr.core.text_input`.
        what: Names the file in errors, such as ``CVAT file``.
        root: Name that the root element must have.

    Raises:
        InputError: if the file can't be read, is not XML, has another root or a document type, or is nested too deeply.
    """
    stack: list[tuple[ET.Element, list[str]]] = []
    done: list[ET.Element] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        if not stack and name != root:
            raise ValueError(f"its root element is <{name}>, not <{root}>")
        if len(stack) >= _DEEPEST:
            raise ValueError("it is nested too deeply")
        stack.append((ET.Element(name, attributes), []))

    def end(_: str) -> None:
        element, text = stack.pop()
        element.text = "".join(text)
        if len(stack) == 1:
            done.append(element)
        elif stack:
            stack[-1][0].append(element)

    def text(data: str) -> None:
        if len(stack) > 1:
            stack[-1][1].append(data)

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type (<!DOCTYPE …>)")

    with TextInput(path, f"{what} {path}", expected=f"XML with the root <{root}>") as file:
        parser = expat.ParserCreate("utf-8" if file.converted else None)
        parser.buffer_text = True
        parser.StartElementHandler, parser.EndElementHandler = start, end
        parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = text, refuse
        try:
            while data := file.read(2**16):
                parser.Parse(data)
                yield from done
                done.clear()
            parser.Parse(b"", True)
        except (expat.ExpatError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
            got = str(error)
            raise InputError(f"{what} {path} can't be read", got=got, expected=f"XML with the root <{root}>") from None
