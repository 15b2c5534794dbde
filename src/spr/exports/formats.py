"""What an export format is, what its rows are made from, and the formats by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from spr.core.registry import Registry
from spr.grounding import Dialect
from spr.records import Box, PreferencePair, QuestionPair, Size, Split

ExportSplit: TypeAlias = Literal["train", "test"]
"""``test`` has the pairs of held-out images, under the name that the Hugging Face Hub has for such a split."""
ImageMode: TypeAlias = Literal["embed", "copy", "path", "none"]
"""Where an export's images are: in its rows as bytes, in its folder as copies, in their original place, or left out."""
RowSource: TypeAlias = Literal["pairs", "prompts"]
"""What rows are made from: the pairs of a run, or prompts with what their answers should place."""
PromptTask: TypeAlias = Literal["describe", "detect", "locate", "absent"]
"""What a prompt asks for: a description of a region, all objects of a category, the only object of a category, or an
object that is not in the image."""


class Texts(NamedTuple):
    """The prompt and the two answers, as the trainer sees them."""

    prompt: str
    chosen: str
    rejected: str


class ImageFile(NamedTuple):
    """The image of a row: its path and, with ``embed``, its bytes.

    The path is absolute with ``path``, relative to the export's folder with ``copy``, the file's name with ``embed``,
    and relative to the image folder, as in the annotations, with ``none``.
    """

    path: str
    data: bytes | None


@dataclass(frozen=True, slots=True)
class ExportRow:
    """A pair with its texts, its image, and what the annotations state about the image, if anything.

    ``original`` is the pair before reviewers edited it, if they did.
    """

    pair: PreferencePair | QuestionPair
    texts: Texts
    image: ImageFile
    license: str | None = None
    source_url: str | None = None
    original: PreferencePair | None = None

    @property
    def item(self) -> PreferencePair | QuestionPair:
        """What the row is about: an image, its split, and an id."""
        return self.pair

    @property
    def preview(self) -> dict[str, str]:
        """The texts that the Hub's dataset viewer shows beside a copied image."""
        return self.texts._asdict()

    @property
    def described(self) -> PreferencePair:
        """The pair, in formats without `Format.questions`."""
        if isinstance(self.pair, QuestionPair):
            raise TypeError(f"{self.pair.pair_id} is a question")
        return self.pair


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt about an image, without an answer.

    Attributes:
        query_id: ``<image_id>/<n>`` of a region query; ``<image_id>/<task>-<n>`` of a question; n counts from 0.
        region: The region that the prompt is about, xyxy pixels; None for a question about the whole image.
        text: The prompt in the exported dialect.
        truth: What an answer should place (`spr.rewards.Truth`), as JSON.
        objects: Number of objects in the truth.
    """

    query_id: str
    image_id: str
    file_name: str
    width: int
    height: int
    split: Split
    task: PromptTask
    region: Box | None
    text: str
    truth: str
    objects: int


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt with its image, and what the annotations state about the image, if anything."""

    prompt: Prompt
    image: ImageFile
    license: str | None = None
    source_url: str | None = None

    @property
    def item(self) -> Prompt:
        """What the row is about: an image, its split, and an id."""
        return self.prompt

    @property
    def preview(self) -> dict[str, str]:
        """The texts that the Hub's dataset viewer shows beside a copied image."""
        return {"prompt": self.prompt.text, "truth": self.prompt.truth}


class DroppedItem(NamedTuple):
    """An image, query or candidate that a stage dropped, its exported image, and its region in pixels if it has one."""

    kind: str
    id: str
    stage: str
    reason: str
    explanation: str
    file_name: str
    width: int
    height: int
    region: Box | None
    path: str = ""
    split: str = "dropped"

    @property
    def size_wh(self) -> Size:
        """Width and height of the image."""
        return self.width, self.height


@dataclass(frozen=True, slots=True)
class Labels:
    """The same in all rows: the dataset's name, the annotations' file name, the describer (``name@revision``), the
    dialect of the texts.
    """

    name: str
    origin: str
    describer: str
    dialect: Dialect


R_contra = TypeVar("R_contra", contravariant=True)


class Writer(Protocol[R_contra]):
    """Writes rows into a folder, in order. Files are complete only after `close`."""

    def write(self, rows: Sequence[R_contra]) -> None:
        """Append rows."""

    def close(self) -> None:
        """Complete the files."""

    def abandon(self) -> None:
        """Close open files, complete or not; called last, also after an error."""


@dataclass(frozen=True, slots=True)
class Format:
    """The input format of another trainer.

    Attributes:
        reader: The trainer, for people.
        images: Where the images can be, besides ``none``; the first is the default.
        placeholders: Texts that the trainer replaces by an image or the like; pairs that contain one are left out.
        data_files: Pattern of the files with the rows, for `datasets.load_dataset`; ``{split}`` stands for ``train`` or
            ``test``.
        columns: Meaning of each column or key, for the dataset card.
        usage: How to train on the export, as Markdown; ``{out}`` stands for the folder.
        open: Creates the writer of a split from a folder and the labels. For ``train``, which is opened first, it also
            writes the trainer's settings, if there are any, so that it resizes images as `spr.exports.image_limits`
            says. ``test`` is opened only if there are rows of held-out images.
        rows: What a row is made from: ``pairs`` (the writer gets `ExportRow`) or ``prompts`` (`PromptRow`).
        decodes: Whether rewards decode the tokens of answers, with the tokenizer that the truth names.
        converts: Whether the texts can be converted to another dialect; not where people correct the run's own.
        questions: Whether rows can be pairs of the stage `negatives`, which have no region and no scores.
        write_drops: Writes what the run dropped into the folder, for tools in which people look at it.
    """

    reader: str
    images: tuple[ImageMode, ...]
    placeholders: tuple[str, ...]
    data_files: str
    columns: Mapping[str, str]
    usage: str
    open: Callable[[Path, Labels, ExportSplit], Writer[Any]]
    rows: RowSource = "pairs"
    decodes: bool = False
    converts: bool = True
    questions: bool = True
    write_drops: Callable[[Path, Sequence[DroppedItem]], None] | None = None

    def files(self, split: ExportSplit) -> str:
        """The pattern of a split's files."""
        return self.data_files.replace("{split}", split)


FORMATS: Registry[Format] = Registry(
    "export format",
    "spr.exports",
    {
        "trl": "spr.exports.trl:FORMAT",
        "llamafactory": "spr.exports.llamafactory:FORMAT",
        "ms-swift": "spr.exports.ms_swift:FORMAT",
        "llava": "spr.exports.llava:FORMAT",
        "rlaif-v": "spr.exports.rlaif_v:FORMAT",
        "label-studio": "spr.exports.label_studio:FORMAT",
        "fiftyone": "spr.exports.fiftyone:FORMAT",
        "grpo-trl": "spr.exports.grpo_trl:FORMAT",
        "grpo-ms-swift": "spr.exports.grpo_ms_swift:FORMAT",
        "grpo-verl": "spr.exports.grpo_verl:FORMAT",
        "grpo-easyr1": "spr.exports.grpo_easyr1:FORMAT",
        "grpo-vlm-r1": "spr.exports.grpo_vlm_r1:FORMAT",
        "grpo-visual-rft": "spr.exports.grpo_visual_rft:FORMAT",
    },
)
"""The formats of ``spr export --format``. Other packages add formats through the entry-point group ``spr.exports``."""
