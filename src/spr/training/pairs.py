"""Preference pairs on disk: those of a run (`run_pairs`), or from elsewhere in TRL's format (`trl_pairs`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image

from spr.core.errors import InputError
from spr.core.images import ImageSource
from spr.core.paths import is_dir
from spr.models.chat import Message, user_turn
from spr.records import CUT_REASONS, PreferencePair, Size
from spr.runs.folder import check_run_version
from spr.runs.reviews import ReviewMode, Reviews
from spr.runs.store import StageStore
from spr.training.trl_rows import DatasetImage, check_preferences, open_rows, read_answer, read_messages


@dataclass(frozen=True, slots=True, eq=False)
class TrainingPair:
    """A pair as its source gives it, by the id of its query or its row number.

    ``load`` returns the image as RGB, and ``digest`` the hex digest of its file and of how it is turned; both raise
    `ImageProblem`. ``size_wh`` is None if the size is not known without opening the image. An answer that is not
    complete was cut when it was generated; it is trained on without an end of turn. A pair of another ``split`` than
    ``train`` is never trained on, nor is one with a ``left_out``, the reason why reviewers left it out. ``file_name``
    is that of a run's image.

    A pair is ``mixed`` in if it comes from `training.mix`. Such a pair may be ``supervised``, with an answer to learn
    and none to avoid, and it may lack an image; then ``load`` must not be called.
    """

    pair_id: str
    messages: Sequence[Message]
    chosen: str
    rejected: str
    load: Callable[[], Image.Image]
    digest: Callable[[], str]
    size_wh: Size | None = None
    chosen_complete: bool = True
    rejected_complete: bool = True
    split: str = "train"
    left_out: str | None = None
    file_name: str | None = None
    mixed: bool = False
    supervised: bool = False
    has_image: bool = True

    @property
    def excluded(self) -> str | None:
        """Why the pair must not be trained on (`spr.core.reasons.TRAINING_REASONS`); None if it may."""
        return self.left_out if self.split == "train" else "held_out"


def known_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the answers are complete, and the split, as far as a row says so."""
    chosen, rejected = (str(row.get(f"{side}_finish_reason")) not in CUT_REASONS for side in ("chosen", "rejected"))
    split = next((value for name, value in row.items() if name.lower() == "split" and value not in (None, "")), "train")
    return {"chosen_complete": chosen, "rejected_complete": rejected, "split": str(split)}


# ── pairs of a run ────────────────────────────────────────────────────────────────────────────────────────────────────


def run_pairs(
    run: Path, images: ImageSource, reviews: ReviewMode = "use", *, negatives: bool = False
) -> Iterator[TrainingPair]:
    """The pairs of a run folder, in order, or `RunError` if its stage `pairs` is not finished.

    Pairs of held-out images and those that reviewers left out are among them; `spr.training.trainer.train` drops them.
    ``images`` is the config's `AnnotationsConfig.image_source`; ``reviews`` says what becomes of reviewers' decisions.
    With ``negatives``, those of the stage `negatives` follow; it has to be finished, too. Reviewers don't see them, so
    ``require`` leaves them out.
    """
    check_run_version(run)
    store, questions = StageStore(run / "pairs"), StageStore(run / "negatives")
    store.finished()
    if negatives:
        questions.finished()
    made = Reviews.read(run)

    def pair(row: dict[str, Any]) -> TrainingPair:
        size_wh, prompt = (row["width"], row["height"]), user_turn(row["prompt"])
        image = RunImage(images, row["file_name"], size_wh)
        pair_id = row["query_id"] + ("/boxes" if row.get("kind") == "boxes" else "")
        answers, left_out = (row["chosen"], row["rejected"]), None
        if reviews == "require" or (reviews == "use" and made.mentions(pair_id)):
            reviewed = made.apply(PreferencePair.from_row(row), reviews)
            if isinstance(reviewed, str):
                left_out = reviewed
            else:
                answers = reviewed.chosen, reviewed.rejected
        known = {**known_of(row), "left_out": left_out, "file_name": row["file_name"]}
        return TrainingPair(pair_id, prompt, *answers, image, image.digest, size_wh, **known)

    def question(row: dict[str, Any]) -> TrainingPair:
        size_wh, left_out = (row["width"], row["height"]), "not_accepted_in_review" if reviews == "require" else None
        image = RunImage(images, row["file_name"], size_wh)
        known = {"split": row["split"], "left_out": left_out, "file_name": row["file_name"]}
        texts = user_turn(row["prompt"]), row["chosen"], row["rejected"]
        return TrainingPair(row["query_id"], *texts, image, image.digest, size_wh, **known)

    described = (pair(row) for table in store.tables() for row in table.to_pylist())
    if not negatives:
        return described
    return chain(described, (question(row) for table in questions.tables() for row in table.to_pylist()))


@dataclass(frozen=True, slots=True)
class RunImage:
    """An image of a run; calling it returns the pixels as RGB in the orientation of the boxes."""

    images: ImageSource
    file_name: str
    size_wh: Size

    def __call__(self) -> Image.Image:
        """Load the image; raises `ImageProblem`."""
        return self.images.load(self.file_name, self.size_wh)

    def digest(self) -> str:
        """Hex digest of the file, followed by the orientation option."""
        return hashlib.sha256(self.images.read_bytes(self.file_name)).hexdigest() + self.images.orientation


# ── pairs in TRL's format ─────────────────────────────────────────────────────────────────────────────────────────────


def trl_pairs(source: Path, *, allow_outside_images: bool = False) -> Iterator[TrainingPair]:
    """Pairs in TRL's preference format: ``images`` (a list of one) or ``image``, ``prompt``, ``chosen``, ``rejected``.

    Prompt and answers are texts, or lists of messages with one assistant message per answer. A text prompt becomes the
    user's turn. The columns ``chosen_finish_reason`` and ``rejected_finish_reason`` are optional: one of `CUT_REASONS`
    means that the answer was cut. So is ``split``: rows whose split is not ``train`` are never trained on, nor are
    those of files with ``test``, ``val`` and the like in their names in a folder. The source is a folder of
    `datasets.Dataset.save_to_disk`, a folder of Parquet files, or a .parquet, .jsonl or .json file, the last two as
    they are or packed with gzip. Images are stored in it, or are paths, relative to its folder. They are turned
    upright, as viewers show them. A path that is absolute or leads out of the folder is ``path_outside_images``, unless
    ``allow_outside_images``.

    Raises:
        InputError: if the source can't be read, lacks a column, or a row is not a pair about one image.
    """
    rows = open_rows(source, check_preferences)
    files = ImageSource(source if is_dir(source) else source.parent, allow_outside=allow_outside_images)

    def pair(number: int, row: dict[str, Any]) -> TrainingPair:
        where = f"row {number} of {source}"
        images: Sequence[Any] = (row["images"] or ()) if "images" in row else [row.get("image")]
        if len(images) != 1:
            raise InputError(f"{where} is not about one image", got=len(images), expected="`images` with one image")
        image = DatasetImage(images[0], files, where)
        chosen, rejected = (read_answer(row.get(side), where, side) for side in ("chosen", "rejected"))
        prompt = read_messages(row.get("prompt"), where)
        return TrainingPair(str(number), prompt, chosen, rejected, image, image.digest, **known_of(row))

    return (pair(number, row) for number, row in enumerate(rows))
