"""Which fields of a predictions file are the ids and the answers. A file that can be read in two ways is refused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from spr.core.errors import InputError
from spr.evaluation.lines import as_id
from spr.records import Size

ID_FIELDS = ("id", "question_id", "image_id", "custom_id")
ANSWER_FIELDS = ("answer", "text", "response", "prediction", "predict", "pred", "output", "generated_text")
"""The known id fields and answer fields, of our own files and of those of other programs."""

QUESTION_FIELDS = ("prompt", "question", "query")
IMAGE_FIELDS = ("file_name", "image", "image_path")
_FIELDS = (*ID_FIELDS, *ANSWER_FIELDS, *QUESTION_FIELDS, *IMAGE_FIELDS)
_KNOWN = (*_FIELDS, "sentence_id", "finish_reason", "dialect", "model", "scores", "logprobs")
_OF_ANSWERS = ("content", "text", "answer")  # the last keys of paths that lead to answers in the formats of servers


class Item(NamedTuple):
    """What an item of a benchmark is about, as far as its file says it; otherwise empty or None.

    ``file_name`` and ``size_wh`` (pixels) are those of its image. ``question`` and ``label`` are the file's own texts,
    not in the wording of a model.
    """

    id: str
    file_name: str = ""
    size_wh: Size | None = None
    question: str = ""
    label: str = ""

    def asks(self, text: str) -> bool:
        """Whether a text contains the question; case, punctuation and line breaks don't matter.

        >>> Item("1", question="the man, left").asks("Where is the man left?")
        True
        """
        return self.question in text or _words(self.question) in _words(text)

    def is_about(self, image: str) -> bool:
        """Whether a path names the item's image, in any folder and format, with or without a prefix such as COCO's.

        >>> Item("1", "val/000007.jpg").is_about("COCO_val2014_000007.png"), Item("1", "7.jpg").is_about("17.jpg")
        (True, False)
        """
        return same_image(self.file_name, image)


def same_image(one: str, other: str) -> bool:
    """Whether two paths name the same image (`Item.is_about`)."""
    short, long = sorted((_stem(one), _stem(other)), key=len)
    return short == long or long.endswith("_" + short)


def _stem(path: str) -> str:
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[0]


def _words(text: str) -> str:
    return f" {' '.join(''.join(c if c.isalnum() else ' ' for c in text.lower()).split())} "


@dataclass(frozen=True)
class PredictionLines:
    """The lines of a predictions file that are JSON objects: structs of `line_type`, by line number."""

    path: Path
    data: bytes
    rows: Mapping[int, Any]

    def choose_id_field(self, given: str | None, known: Set[str]) -> tuple[str, list[str | None]]:
        """The id field and the id of each line, given the ids of the items.

        Of several id fields, the one whose ids occur among the items.

        Raises:
            InputError: if there is none, or if several fit and differ.
        """
        names = ID_FIELDS if given is None else [given]
        present = self._present(names)
        if not present:
            raise self._lacks("an id", names, "--id-field")
        ids = {name: self._ids(name) for name in present}
        fitting = [name for name in present if not known.isdisjoint(ids[name])] or present[:1]
        differing = [name for name in fitting if ids[name] != ids[fitting[0]]]
        if differing:
            got = ", ".join(f"`{name}`" for name in fitting)
            what, fix = f"Several fields of {self.path} have ids of the annotations", "name one of them: --id-field"
            raise InputError(what, got=got, expected="one field", fix=f"{fix} {' or '.join(fitting)}")
        return fitting[0], ids[fitting[0]]

    def choose_answer_field(self, given: str | None, matched: Callable[[], Iterator[tuple[Item, Any]]]) -> str:
        """The answer field, given a function that returns the items and the lines that belong to them.

        Raises:
            InputError: if there is none, if there are several, if it has no text, or if it is a copy of the label.
        """
        names = ANSWER_FIELDS if given is None else [given]
        present = self._present(names)
        if not present:
            raise self._lacks("an answer", names, "--answer-field")
        if len(present) > 1:
            self._refuse_several(present, matched)
        (name,) = present
        get = getter(name)
        if not any(isinstance(get(row), str) for row in self.rows.values()):
            values = map(get, self.rows.values())
            value = next((value for value in values if value is not None and value is not msgspec.UNSET), None)
            paths = sorted(
                (path for path, _ in _texts_in(value, name)), key=lambda path: not path.endswith(_OF_ANSWERS)
            )
            fix = f"name the path to the text, such as --answer-field {paths[0]}" if paths else None
            got = "null" if value is None else type(value).__name__
            got = f"an object with {', '.join(list(value)[:5])}" if isinstance(value, dict) else got
            raise InputError(f"The field `{name}` of {self.path} is not text", got=got, expected="a text", fix=fix)
        if given is None and _copy_of(name, matched) == "label" and (others := self._other_texts(matched)):
            what = f"The field `{name}` of {self.path} is the label in every line, so it may not be the model's answer"
            fix = f"name the field with the model's answers: --answer-field {' or '.join([*others, name])}"
            raise InputError(what, got=f"another text in {', '.join(others)}", expected="answers", fix=fix)
        return name

    def _present(self, names: Sequence[str]) -> list[str]:
        """The fields that occur. A field that is always null is left out if others are not."""
        rows = self.rows.values()
        types = {name: set(map(type, map(getter(name), rows))) for name in names if occurs(rows, name)}
        found = {name: some for name in types if (some := types[name] - {msgspec.UnsetType})}
        return [name for name, some in found.items() if some != {type(None)}] or list(found)

    def _ids(self, name: str) -> list[str | None]:
        rows = self.rows.values()
        ids = list(map(getter(name), rows))
        if set(map(type, ids)) != {str} or not all(ids):
            ids = list(map(as_id, ids))
        if name == "image_id" and occurs(rows, "sentence_id"):  # Flickr30k Entities: several sentences per image
            ids = [
                f"{k}_{r.sentence_id}" if k and r.sentence_id is not msgspec.UNSET else k
                for k, r in zip(ids, rows, strict=True)
            ]
        return ids

    def _refuse_several(self, present: Sequence[str], matched: Callable[[], Iterator[tuple[Item, Any]]]) -> None:
        copies = {name: _copy_of(name, matched) for name in present}
        about = {name: f", the {copy} in every line" if copy else "" for name, copy in copies.items()}
        got = "; ".join(f"`{name}`, first in line {self._first_with(name)}{about[name]}" for name in present)
        left = [name for name in present if copies[name] is None]
        left = left or self._other_texts(matched) or list(present)
        fix = f"name the field with the model's answers: --answer-field {' or '.join(left)}"
        what = f"Several fields of {self.path} may be the answer"
        raise InputError(what, got=got, expected="one of them in all lines", fix=fix)

    def _first_with(self, name: str) -> int:
        get = getter(name)
        return next(number for number, row in self.rows.items() if get(row) not in (None, msgspec.UNSET))

    def _lacks(self, what: str, names: Sequence[str], flag: str) -> InputError:
        fix = f"name the field: {flag} NAME"
        if flag == "--id-field":
            fix += ". Answers are matched by id, not by position: if the lines have no id, add one to each"
        expected = " or ".join(names)
        got = ", ".join(list(next(self._contents())[1])[:12]) or "an empty object"
        return InputError(f"The lines of {self.path} have no field for {what}", got=got, expected=expected, fix=fix)

    def _contents(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """The lines with all their fields."""
        lines = self.data.splitlines()
        for number, row in self.rows.items():
            try:
                yield row, msgspec.json.decode(lines[number - 1])
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # in a field that is not read otherwise
                yield row, {}

    def _other_texts(self, matched: Callable[[], Iterator[tuple[Item, Any]]]) -> list[str]:
        """The paths of up to three texts in unknown fields that may be the answers: no ids, questions or labels."""
        items = {id(row): item for item, row in matched()}
        for row, content in self._contents():
            if (item := items.get(id(row))) is not None:
                unknown = [name for name in content if name not in _KNOWN and not name.endswith("_id")]
                texts = (found for name in unknown for found in _texts_in(content[name], name))
                copies = _words(item.question), _words(item.label)
                if found := [path for path, text in texts if _words(text) not in copies]:
                    return found[:3]
        return []


def line_type(data: bytes, *given: str | None) -> Any:
    """A struct of the known fields, and of those given by name, that occur in the lines of a file.

    Other fields are skipped without being decoded; those that do not occur are UNSET in every line.
    """
    own = dict.fromkeys(name.split(".")[0] for name in given if name is not None)
    names = {_attribute(name): name for name in (*_KNOWN, *own)}
    found = {attribute: name for attribute, name in names.items() if f'"{name}"'.encode(errors="replace") in data}
    unset = dict.fromkeys(names.keys() - found.keys(), msgspec.UNSET)
    columns = [(attribute, Any, msgspec.UNSET) for attribute in found]
    return msgspec.defstruct("Line", columns, rename=found, namespace=unset, gc=False)


def occurs(rows: Collection[Any], name: str) -> bool:
    """Whether a field occurs in lines of one `line_type`, as far as the struct tells it."""
    return bool(rows) and _attribute(name.split(".")[0]) in next(iter(rows)).__struct_fields__


def getter(name: str) -> Callable[[Any], Any]:
    """A function from a line to a field's value, or that of a path such as ``choices.0.text``; UNSET if it lacks it."""
    name, *path = name.split(".")
    get = attrgetter(_attribute(name))

    def follow(row: Any) -> Any:
        value = get(row)
        for key in path:
            try:
                value = value[int(key) if isinstance(value, list) else key]
            except (LookupError, TypeError, ValueError):
                return msgspec.UNSET
        return value

    return follow if path else get


def _attribute(name: str) -> str:
    return name if name in _KNOWN else "given_" + name.encode(errors="replace").hex()


def _copy_of(name: str, matched: Callable[[], Iterator[tuple[Item, Any]]]) -> str | None:
    """What the texts of a field are in every line, in any case: the item's ``question`` or its ``label``."""
    get = getter(name)
    for kind in ("question", "label"):
        texts = ((_words(getattr(item, kind)), text) for item, row in matched() if isinstance(text := get(row), str))
        first = next(texts, None)
        if first and all(own.strip() and own == _words(text) for own, text in chain([first], texts)):
            return kind
    return None


def _texts_in(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """The paths and texts of all texts inside a value, at most eight levels deep."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict | list) and path.count(".") < 8:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts_in(inner, f"{path}.{key}")
