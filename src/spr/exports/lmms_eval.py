"""A task of lmms-eval that scores referring expressions by SPR's own rules: its YAML file and ``utils.py``."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from spr.core.errors import ConfigError
from spr.core.outputs import check_output, write_output
from spr.evaluation.lmms_eval import EXPRESSION, RecDocuments
from spr.grounding import get_dialect

DATASET = "lmms-lab/RefCOCO"
_UTILS = "utils.py"
_NAME = re.compile(r"[A-Za-z0-9_.+-]+")
_WHAT = "a task of `spr lmms-eval-task`"
_CODE = '''"""The functions of the task {name}, which `spr lmms-eval-task` wrote. They need the package spr."""

from pathlib import Path

from spr.evaluation.lmms_eval import RecDocuments

TASK = RecDocuments.from_yaml(Path(__file__).with_name("{name}.yaml"))


def process_docs(dataset):
    return TASK.process_docs(dataset)


def doc_to_visual(doc):
    return TASK.doc_to_visual(doc)


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return TASK.doc_to_text(doc, lmms_eval_specific_kwargs)


def process_results(doc, results):
    return TASK.process_results(doc, results)
'''


def write_lmms_eval_task(
    out: Path, *, dialect: str, split: str, dataset: str = DATASET, name: str | None = None, prompt: str | None = None
) -> Path:
    """Write the folder of a task, for lmms-eval's ``--include_path``.

    Args:
        out: The folder; files of an earlier task of this command are replaced.
        dialect: How the model writes boxes, such as ``qwen2_vl``.
        split: The split of the data set to ask about, such as ``val`` or ``testA``.
        dataset: A data set in the form of lmms-lab/RefCOCO, on the hub or a local folder.
        name: The task's name; by default that of the data set and the split.
        prompt: The question, with ``{expression}``; None for the wording of the dialect's family.

    Returns:
        The YAML file.

    Raises:
        GroundingError: if the dialect is unknown.
        ConfigError: if the name or the prompt can't be used.
        RunError: if there is another file or folder.
    """
    documents = RecDocuments(get_dialect(dialect), prompt)
    name = name or f"spr_{Path(dataset).name.lower().replace('+', 'plus')}_{split}"
    if not _NAME.fullmatch(name):
        raise ConfigError("The name of the task can't be used", got=repr(name), expected="letters, digits and _ + - .")
    content = {
        "task": name,
        "dataset_path": dataset,
        "test_split": split,
        "output_type": "generate_until",
        **{key: _Function(f"utils.{key}") for key in ("process_docs", "doc_to_visual", "doc_to_text")},
        "doc_to_target": EXPRESSION,
        "generation_kwargs": {"max_new_tokens": 256, "temperature": 0, "do_sample": False},
        "process_results": _Function("utils.process_results"),
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": metric != "no_box"}
            for metric in documents.METRICS
        ],
        "metadata": {
            "version": 1.0,
            "dialect": documents.dialect.spec,
            "prompt": prompt or documents.dialect.rec_prompt,
        },
    }
    check_output(out, _WHAT, lambda folder: _is_ours(folder / _UTILS), folder=True)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.yaml"
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)
    write_output(out / _UTILS, _CODE.format(name=name).encode(), _WHAT, _is_ours)
    write_output(path, text.encode(), _WHAT, lambda _: True)
    return path


class _Function(str):
    """The name of a function, which the YAML marks with ``!function``."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Function, lambda dumper, value: dumper.represent_scalar("!function", value))


def _is_ours(path: Path) -> bool:
    return b"`spr lmms-eval-task` wrote" in path.read_bytes()
