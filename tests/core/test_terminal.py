"""Foreign text can't control the terminal: everything that is printed goes through one function."""

import ast
import io
import json
import subprocess
from pathlib import Path

import pytest

import warm_python
from spr.core.errors import InputError
from spr.core.progress import Progress
from spr.core.terminal import count_text, echo, one_line, printable, size_text

SOURCE = Path(__file__).parents[2] / "src" / "spr"
EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\r\x08\u202e\u2066\u200f\ud800\x7f"
"""Escape sequences in both forms, carriage return, backspace, direction marks, a lone surrogate, delete."""


def is_harmless(text: str) -> bool:
    return all(c.isprintable() or c in "\n\t" for c in text)


def test_control_characters_are_escaped_and_other_text_is_kept() -> None:
    assert printable(EVIL) == (r"\x1b]0;title\x07\x1b[2J\x9b31m\r\x08\u202e\u2066\u200f\ud800\x7f")
    for text in ("a dog, [1, 2, 3, 4]", "äöü 狗 собака 👩‍🚀", "a\n\tb\u00a0c"):
        assert printable(text) == text
    assert one_line("a\nb\tc\x1b") == r"a\nb\tc\x1b"
    assert printable(Path("a\x1bb")) == r"a\x1bb"


def test_one_thing_is_counted_in_the_singular() -> None:
    singular = {
        "pairs": "pair",
        "images": "image",
        "boxes": "box",
        "queries": "query",
        "tries": "try",
        "candidates": "candidate",
        "files": "file",
        "scored descriptions": "scored description",
    }
    for things, thing in singular.items():
        assert [count_text(n, things) for n in (0, 1, 2, 1000)] == [
            f"0 {things}",
            f"1 {thing}",
            f"2 {things}",
            f"1,000 {things}",
        ]
    assert (size_text(0), size_text(1)) == ("0 bytes", "1 byte")


def test_the_message_of_an_error_is_escaped_and_its_parts_are_not_imitated() -> None:
    error = InputError(f"File {EVIL} is bad", got=f"{EVIL}\n  fix:      run this", expected=EVIL, fix=EVIL)
    assert is_harmless(str(error))
    assert [line[:11] for line in str(error).splitlines() if "fix:" in line] == [" " * 11, "  fix:      "[:11]]
    long = InputError("x", got="a" * 10**6, expected="b")
    assert len(str(long)) < 2100
    assert "… (1,000,000 characters)\n  expected: b" in str(long)
    assert error.got == f"{EVIL}\n  fix:      run this"  # for programs, as it was


def test_progress_is_escaped() -> None:
    stream = io.StringIO()
    progress = Progress(f"hashing {EVIL}", 9, "files", stream=stream)
    progress.note = EVIL
    progress.print_line()
    assert "hashing" in stream.getvalue()
    assert is_harmless(stream.getvalue() + progress.live_line(200))


def test_echo_writes_to_the_stream_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    echo("a\x1b")
    echo(1, err=True)
    assert capsys.readouterr() == ("a\\x1b\n", "1\n")


def spr(*arguments: object, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [*warm_python.start(), "-m", "spr", *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True, encoding="utf-8", check=False)


def test_the_ids_of_predictions_are_printed_escaped(tmp_path: Path) -> None:
    questions, answers = tmp_path / "q.jsonl", tmp_path / "a.jsonl"
    rows = [{"question_id": n, "image": "a.jpg", "text": "A dog?", "label": "yes"} for n in (1, 2)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evil = EVIL.replace("\ud800", "")
    answers.write_text("".join(json.dumps({"id": id_, "answer": "yes"}) + "\n" for id_ in (1, evil)))
    out = tmp_path / "r.json"
    done = spr("evaluate", "pope", "--annotations", questions, "--predictions", answers, "--out", out)
    assert done.returncode in (0, 3), done.stderr  # 3: doubtful, since an item has no answer
    assert is_harmless(done.stdout + done.stderr)
    answers.write_text(json.dumps({"id": evil, "answer": "yes"}))
    done = spr("evaluate", "pope", "--annotations", questions, "--predictions", answers, "--out", out)
    assert done.returncode == 1
    assert r"\x1b]0;title\x07" in done.stderr
    assert is_harmless(done.stdout + done.stderr)


def test_the_text_command_reports_escaped_and_passes_text_on() -> None:
    arguments = ("text", "--from", "ferret", "--to", "ferret", "--size", "100x100")
    done = spr(*arguments, text="a \x1b[1mdog [1, 2, \x1b[2J3]\n")
    assert "\x1b[1mdog" in done.stdout  # a pipe gets the text as it is
    assert "numbers instead of 4" in done.stderr or "line 1" in done.stderr
    assert is_harmless(done.stderr)


# Calls that print. Only `spr text`, whose output is data, may pass text on as it is.
ALLOWED = {("core/terminal.py", "print"), ("commands/text.py", "print")}


def calls(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Attribute | ast.Name):
            continue
        name = ast.unparse(node)
        if name in ("print", "typer.echo", "typer.secho", "click.echo", "warnings.warn") or name.endswith(
            ("sys.stdout.write", "sys.stderr.write", "stderr.buffer", "stdout.buffer", ".print")
        ):
            found.add(name)
    return found


def test_nothing_is_printed_in_another_way() -> None:
    files = {str(path.relative_to(SOURCE)): path for path in SOURCE.rglob("*.py")}
    assert {(name, call) for name, path in files.items() for call in calls(path)} == ALLOWED


def test_log_messages_are_constant_or_escaped() -> None:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("_log.", "logger.", "logging.warn")):
                foreign = [
                    ast.unparse(value) for value in ast.walk(node.args[0]) if isinstance(value, ast.FormattedValue)
                ]
                escaped = ast.unparse(node.args[0]).startswith(("one_line(", "printable("))
                # the key of a dialect is one of our own names
                assert escaped or set(foreign) <= {"{self.dialect.key}"}, f"{path}: {ast.unparse(node)}"
