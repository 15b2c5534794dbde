"""What differs between families or dialects is a field of their entry: no other code decides by a name or a probe."""

import ast
import re
from pathlib import Path

import pytest

import spr
from spr.grounding import DIALECTS
from spr.models.families import FAMILIES

SOURCE = Path(spr.__file__).parent
OWN = re.compile(
    r"models/families\.py|grounding/(dialects|list_dialects|prose_dialects)\.py|models/ported/.*"
)  # the tables, and models' own classes
FILES = [path for path in sorted(SOURCE.rglob("*.py")) if not OWN.fullmatch(path.relative_to(SOURCE).as_posix())]
# Of configs and processors of every family, where a missing one means "none".
GENERAL = {"image_token", "final_logit_softcapping", "layer_types", "config", "_commit_hash"}
NAMES = {*FAMILIES, *DIALECTS}
SUBJECT = re.compile(r"model_type|family|dialect|\bkind\b|\.key\b|architectures|__class__|class_name", re.IGNORECASE)
PROBED = re.compile(r"\b(model|base|processor|image_processor|language_model|last|layer|self_attn)\b")


def names_in(node):
    return {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and part.value in NAMES}


def decisions(tree):
    """The conditions of the code: comparisons with the name of a family or dialect, patterns of it, and probes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and names_in(node) and SUBJECT.search(ast.unparse(node)):
            yield node
        is_prefix = isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("startswith", "endswith"))
        if is_prefix and names_in(node) and SUBJECT.search(ast.unparse(node)):
            yield node
        if isinstance(node, ast.Match) and SUBJECT.search(ast.unparse(node.subject)):
            yield from (case.pattern for case in node.cases if names_in(case.pattern))
        if isinstance(node, ast.Call) and (ast.unparse(node.func), len(node.args)) in (("hasattr", 2), ("getattr", 3)):
            name = ast.unparse(node.args[1]).strip("'")
            if PROBED.search(ast.unparse(node.args[0])) and name not in GENERAL and "_token" not in name:
                yield node


def found():
    return [
        f"{path.relative_to(SOURCE).as_posix()}: {ast.unparse(node)}"
        for path in FILES
        for node in decisions(ast.parse(path.read_text(encoding="utf-8")))
    ]


def test_no_code_outside_the_tables_decides_by_a_family():
    assert found() == []


@pytest.mark.parametrize(
    "code",
    [
        "if config.model_type == 'llava_onevision': pass",
        "if model_type in ('qwen2_vl', 'qwen3_vl'): pass",
        "if dialect.key != 'ferret': pass",
        "x = family.model_type.startswith('llava')",
        "match model_type:\n    case 'paligemma': pass",
        "if hasattr(model, 'get_rope_index'): pass",
        "x = getattr(processor, 'merge_size', None)",
    ],
)
def test_such_a_decision_would_be_found(code):
    assert list(decisions(ast.parse(code)))
