"""Drop reasons and their table in the docs."""

from pathlib import Path

import pytest

from spr.core.reasons import DROP_REASONS, explain

DOCS = Path(__file__).parents[2] / "docs"


def test_the_docs_show_the_reasons_as_a_table():
    stages = {}
    for stage, reasons in DROP_REASONS.items():
        for row in reasons.items():
            stages.setdefault(row, []).append(stage)
    rows = [f"| `{reason}` | {', '.join(names)} | {text} |" for (reason, text), names in stages.items()]
    table = "\n".join(["| reason | stage | explanation |", "|---|---|---|", *rows])
    assert (DOCS / "drop-reasons.md").read_text(encoding="utf-8").endswith(f"\n\n{table}\n")


@pytest.mark.parametrize("stage", DROP_REASONS)
def test_every_reason_is_a_snake_case_name_with_an_explanation(stage):
    for reason, explanation in DROP_REASONS[stage].items():
        assert reason.isidentifier()
        assert reason == reason.lower()
        assert explanation == explanation.strip(" .")
        assert "|" not in explanation


def test_a_reason_of_another_package_is_explained_by_its_name():
    assert explain("blur", "too_blurred") == "too blurred"
