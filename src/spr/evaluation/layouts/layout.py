"""`Layout`: how a benchmark's file is laid out. `LAYOUTS` are the known ones; `read_items` recognises and reads a file.

A layout is one entry in one file. Another package adds one through an entry point of the group ``spr.layouts``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spr.core.errors import InputError
from spr.core.paths import is_dir, is_file
from spr.core.registry import Registry
from spr.core.remote import RemotePath
from spr.core.text_input import TextInput, decode_utf8
from spr.evaluation.layouts.content import Content, Form, JsonContent

if TYPE_CHECKING:
    from spr.evaluation.task import Task

_HEAD = 2**20
_SHOWN = 16
_EMPTY = re.compile(rb"\s*(\[\s*\]\s*)?")


@dataclass(frozen=True)
class Layout:
    """A layout of the items of a task.

    Attributes:
        name: What it is called, such as ``Ref-L4's Parquet``.
        task: The task that reads it, a key of `spr.evaluation.task.TASKS`.
        forms: The forms that such a file may have.
        keys: The keys or columns without which a file is not of this layout; those of rows inside an object are
            written ``images[].caption``.
        read: Returns the task's items, given the content of a file of this layout, and the task with its options.
            Raises `InputError` for a row that is not valid.
    """

    name: str
    task: str
    forms: tuple[Form, ...]
    keys: tuple[str, ...]
    read: Callable[[Any, Any], Any]

    def fits(self, content: Content) -> bool:
        """Whether a file is of this layout."""
        return not set(self.forms).isdisjoint(content.forms) and all(map(content.has, self.keys))

    def describe(self) -> str:
        """The name, the forms and the keys."""
        return f"{self.name} ({' or '.join(self.forms)}: {', '.join(self.keys)})"


LAYOUTS: Registry[Layout] = Registry(
    "layout",
    "spr.layouts",
    {
        "rec-lines": "spr.evaluation.layouts.rec_lines:LAYOUT",
        "finecops-ref": "spr.evaluation.layouts.finecops:LAYOUT",
        "mdetr-refcoco": "spr.evaluation.layouts.mdetr:LAYOUT",
        "ref-l4": "spr.evaluation.layouts.ref_l4:LAYOUT",
        "lmms-eval-refcoco": "spr.evaluation.layouts.lmms_eval_refcoco:LAYOUT",
        "vlmevalkit-refcoco": "spr.evaluation.layouts.vlmevalkit_refcoco:LAYOUT",
        "multi-rec-lines": "spr.evaluation.layouts.multi_rec:LINES",
        "finecops-ref-all": "spr.evaluation.layouts.finecops:MULTI_REC",
        "mdetr-multi-rec": "spr.evaluation.layouts.multi_rec:MDETR",
        "humanref": "spr.evaluation.layouts.multi_rec:HUMANREF",
        "groundingme": "spr.evaluation.layouts.groundingme:PARQUET",
        "vlmevalkit-groundingme": "spr.evaluation.layouts.groundingme:TSV",
        "pointing-lines": "spr.evaluation.layouts.pointing:LINES",
        "where2place": "spr.evaluation.layouts.pointing:WHERE2PLACE",
        "where2place-parquet": "spr.evaluation.layouts.pointing:WHERE2PLACE_PARQUET",
        "point-bench": "spr.evaluation.layouts.pointing:POINT_BENCH",
        "pixmo-points": "spr.evaluation.layouts.pointing:PIXMO",
        "coco-detection": "spr.evaluation.layouts.coco:LAYOUT",
        "mdetr-flickr": "spr.evaluation.tasks.phrase_grounding:LAYOUT",
        "ferret-lvis": "spr.evaluation.tasks.referring:LAYOUT",
        "pope": "spr.evaluation.tasks.pope:LAYOUT",
        "amber": "spr.evaluation.tasks.amber:LAYOUT",
        "regions": "spr.evaluation.tasks.description:LAYOUT",
    },
)
"""The known layouts. Of several that fit a file, a task reads the first one."""


def read_items(task: Task[Any], path: Path) -> Any:
    """The items of a task from a file, or a folder of Parquet files, in any layout that the task reads.

    Raises:
        InputError: if the file can't be read, or is in no layout of the task; the error says what was found, which
            layouts the task reads, and which known layout is the nearest.
    """
    own, expected = _layouts_of(task)
    content = open_content(path, expected)
    for layout in own:
        if layout.fits(content):
            return layout.read(content, task)
    if isinstance(content, JsonContent) and content.damaged is not None:
        raise _damaged(content, own, expected)
    raise unknown_layout(task, content)


def _layouts_of(task: Task[Any]) -> tuple[list[Layout], str]:
    """The layouts of a task, and their descriptions."""
    own = [layout for layout in LAYOUTS.values() if layout.task == task.name]
    return own, "; or ".join(layout.describe() for layout in own)


def open_parquet(path: Path) -> Content | None:
    """Open a Parquet file, or a folder of Parquet files, as far as its columns; None if it is something else."""
    if is_dir(path) and (parts := sorted(path.glob("*.parquet"))):
        return _parquet(path, parts)
    return _parquet(path, [path]) if is_file(path) and _starts_as_parquet(path) else None


def open_content(path: Path, expected: str) -> Content:
    """Open a file as far as its form and keys. A folder stands for the Parquet files in it."""
    table = open_parquet(path)
    if table is not None:
        return table
    what = f"Annotations {path}"
    with TextInput(path, what, expected=expected) as file:
        data = bytearray()
        while len(data) < _HEAD and (part := file.read(_HEAD)):
            data += part
        if _EMPTY.fullmatch(data):
            raise InputError(f"{path} is empty", got="no rows" if data.strip() else "no lines", expected=expected)
        from spr.evaluation.layouts.tsv import TsvContent, is_tsv

        header = is_tsv(bytes(data))
        if header is not None:
            return TsvContent(path, header)
        while part := file.read(_HEAD):
            data += part
        if not data.isascii():
            decode_utf8(bytes(data), what, skipped=file.skipped)
    return JsonContent(path, bytes(data))


def _parquet(path: Path, parts: list[Path]) -> Content:
    from spr.evaluation.layouts.parquet import ParquetContent

    return ParquetContent(path, parts)


def _starts_as_parquet(path: Path) -> bool:
    if isinstance(path, RemotePath):
        return path.suffix == ".parquet"
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False  # `TextInput` says why it can't be read


def _damaged(content: JsonContent, own: Sequence[Layout], expected: str) -> InputError:
    """The error for a file that is not JSON: it names the layout whose keys the text mentions, or the first line."""

    def mentioned(layout: Layout) -> float:
        return sum(map(content.mentions, layout.keys)) / len(layout.keys)

    likely = max((layout for layout in own if "a JSON object" in layout.forms), key=mentioned, default=None)
    if likely is not None and not mentioned(likely) and any("JSON lines" in layout.forms for layout in own):
        likely = None
    what = f"{content.path} is not {likely.name}" if likely is not None else f"Line 1 of {content.path} is not valid"
    return InputError(what, got=content.damaged, expected=expected)


def unknown_layout(task: Task[Any], content: Content) -> InputError:
    """The error for a file in another layout."""
    expected = _layouts_of(task)[1]
    shown = ", ".join(content.keys[:_SHOWN]) + (", …" if len(content.keys) > _SHOWN else "")
    got = f"{content.forms[0]} with {shown}" if shown else f"{content.forms[0]} without keys"
    fix = nearest(content, task.name) or "convert the file to one of these layouts"
    return InputError(f"{content.path} is in no layout that `{task.name}` reads", got=got, expected=expected, fix=fix)


def nearest(content: Content, task: str) -> str | None:
    """What to do with a file that a task doesn't read, given the nearest known layout; None if none has its keys."""
    near = max(LAYOUTS.values(), key=lambda layout: _likeness(layout, content))
    missing = [key for key in near.keys if not content.has(key)]
    other = f" It is read by `spr evaluate {near.task}`." if near.task != task else ""
    if _likeness(near, content)[0] == 0:
        return None
    if not missing and near.fits(content):
        return f"this is {near.name}: use `spr evaluate {near.task}`"
    lacks = f"which has {', '.join(missing)} as well" if missing else f"which is {' or '.join(near.forms)}"
    return f"the nearest known layout is {near.name}, {lacks}; rename or add what is missing.{other}"


def _likeness(layout: Layout, content: Content) -> tuple[float, bool]:
    """How near a layout is: the common keys as shares of its own and of the file's, added; then the same form."""
    common = sum(map(content.has, layout.keys))
    same_form = not set(layout.forms).isdisjoint(content.forms)
    return common / len(layout.keys) + common / max(len(content.keys), 1), same_form
