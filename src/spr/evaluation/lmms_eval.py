"""The functions of a task of lmms-eval that asks about referring expressions and scores the answers as `rec` does.

`spr lmms-eval-task` writes the task's YAML and a ``utils.py`` that calls these functions. They read RefCOCO in
lmms-eval's own form (`spr.evaluation.layouts.lmms_eval_refcoco`). The dialect of the answers is stated in the YAML's
``metadata``; nothing is guessed from the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from spr.core.documents import parse_yaml
from spr.core.errors import ConfigError, GroundingError, InputError
from spr.core.image_files import ImageProblem
from spr.core.images import ImageSource, to_rgb
from spr.core.text_input import read_text
from spr.evaluation.expressions import Expressions
from spr.evaluation.predictions import Answers
from spr.evaluation.task import check_dialect
from spr.evaluation.tasks.rec import THRESHOLDS, Rec
from spr.grounding import DIALECTS, Dialect, get_dialect

EXPRESSION, WIDTH, HEIGHT = "expression", "image_width", "image_height"
"""The columns that `RecDocuments.process_docs` adds."""
_FUNCTION = "!function"


@dataclass(frozen=True)
class RecDocuments:
    """One expression per document: what a model is asked about it, and how its answer is scored.

    Attributes:
        dialect: How the model writes boxes.
        prompt: The question, with ``{expression}``; None for the wording of the dialect's family.

    Raises:
        ConfigError: if the prompt lacks ``{expression}``, or the dialect has no boxes.
    """

    dialect: Dialect
    prompt: str | None = None

    METRICS: ClassVar[tuple[str, ...]] = (*(f"acc@{threshold}" for threshold in THRESHOLDS), "mean_iou", "no_box")
    """What `process_results` returns: the metrics of `rec`, and the share of answers without a box."""

    def __post_init__(self) -> None:
        check_dialect(Rec, self.dialect)
        self.question("")

    @classmethod
    def from_yaml(cls, path: Path) -> RecDocuments:
        """The settings in the ``metadata`` of a task's YAML: ``dialect``, and ``prompt`` if it is not the default.

        Raises:
            ConfigError: if the dialect is missing or not known.
        """
        lines = read_text(path, f"The task {path}", error=ConfigError).splitlines()
        try:
            content = parse_yaml("\n".join(line for line in lines if _FUNCTION not in line))
        except ValueError as error:
            raise ConfigError(f"{path} is not valid YAML", got=error) from None
        metadata = content.get("metadata") if isinstance(content, dict) else None
        settings = metadata if isinstance(metadata, dict) else {}
        dialect, prompt = settings.get("dialect"), settings.get("prompt")
        if not isinstance(dialect, str):
            fix = "write how the model writes boxes into the YAML, such as `metadata: {dialect: qwen2_vl}`"
            raise ConfigError(f"{path} has no metadata.dialect", expected=f"one of {', '.join(DIALECTS)}", fix=fix)
        try:
            return cls(get_dialect(dialect), None if prompt is None else str(prompt))
        except GroundingError as error:
            raise ConfigError(f"metadata.dialect of {path} is not valid", got=error) from None

    def question(self, sentence: str) -> str:
        """The question about an expression, in the wording of `rec`."""
        items = _expressions([sentence], [(0, 0, 1, 1)], [(1, 1)])
        return Rec(prompt=self.prompt).questions(items, self.dialect, "")[1][0].prompt

    def process_docs(self, dataset: Any) -> Any:
        """A row per expression of a `datasets.Dataset`, with the columns `EXPRESSION`, `WIDTH` and `HEIGHT`.

        The images are not decoded, and not written again.

        Raises:
            InputError: if a column is missing, or an image can't be read.
        """
        from datasets import Image

        missing = [name for name in ("image", "answer", "bbox") if name not in dataset.column_names]
        if missing:
            got, expected = ", ".join(dataset.column_names), f"{', '.join(missing)} as well"
            raise InputError("The data set is not RefCOCO in lmms-eval's form", got=got, expected=expected)
        answers = [[row] if isinstance(row, str) else list(row) for row in dataset["answer"]]
        rows = [number for number, texts in enumerate(answers) for _ in texts]
        sizes = [_size(row["image"], number) for number, row in enumerate(_encoded(dataset, Image))]
        chosen = dataset.select(rows)
        columns = {
            EXPRESSION: [text for texts in answers for text in texts],
            WIDTH: [sizes[number][0] for number in rows],
            HEIGHT: [sizes[number][1] for number in rows],
        }
        for name, values in columns.items():
            chosen = chosen.add_column(name, values)
        return chosen

    def doc_to_visual(self, doc: Mapping[str, Any]) -> list[Any]:
        """The image, RGB."""
        return [to_rgb(doc["image"])]

    def doc_to_text(self, doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:  # noqa: ARG002
        """The question. Texts around it, which lmms-eval has per model, are not added: the dialect decides."""
        return self.question(doc[EXPRESSION])

    def process_results(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
        """The values of `METRICS` for one answer, which lmms-eval averages; the reasoning before it is not read."""
        x, y, width, height = doc["bbox"]
        items = _expressions([doc[EXPRESSION]], [(x, y, x + width, y + height)], [(doc[WIDTH], doc[HEIGHT])])
        answers = Answers(dialect=self.dialect)
        answers.add("0", results[0] if results else None)
        result = Rec().score(items, answers)
        values = {name: result.value(name) or 0.0 for name in result.shares}
        return {**values, "no_box": float("without a box" in result.groups)}


def _expressions(sentences: Sequence[str], boxes: Sequence[Sequence[float]], sizes: Sequence[Any]) -> Expressions:
    names = tuple(map(str, range(len(sentences))))
    return Expressions(
        names, names, tuple(sentences), np.array(boxes, dtype=np.float64), tuple(sizes), ("",) * len(names)
    )


def _encoded(dataset: Any, image: Any) -> Any:
    """The images as they are in the file, not decoded."""
    return dataset.select_columns(["image"]).cast_column("image", image(decode=False))


def _size(value: Mapping[str, Any], number: int) -> tuple[int, int]:
    name = value.get("path") or f"row {number}"
    data = value.get("bytes")
    folder, own = (Path(), name) if data is not None else (Path(name).parent, Path(name).name)
    try:
        return ImageSource(folder).header(own, data=data)[0]
    except ImageProblem as problem:
        raise InputError(f"The image of row {number:,} can't be read", got=problem.got or problem.what) from None
