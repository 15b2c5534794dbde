"""The command `spr`: all commands of `spr.commands`, and how errors are printed."""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import io
import os
import sys
import warnings
from typing import Annotated, NoReturn

import typer

from spr import __version__
from spr.commands import (
    check,
    clean,
    config,
    convert,
    embedded,
    evaluate,
    export,
    hub,
    plan,
    predict,
    report,
    review,
    rounds,
    run,
    sweep,
    text,
    train,
)
from spr.commands.urls import with_urls
from spr.core.errors import SprError, missing_package
from spr.core.progress import LINE_EVERY, Progress
from spr.core.terminal import echo

app = typer.Typer(
    name="spr",
    help="Spatial Preference Rewarding: teach multimodal LLMs to place what they describe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        echo(f"spr {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for command in (
    run.run,
    plan.plan,
    train.train,
    train.merge,
    sweep.sweep,
    rounds.rounds,
    evaluate.compare,
    evaluate.lvis_questions,
    evaluate.lmms_eval_task,
    report.report,
    review.review,
    export.export,
    hub.push,
    hub.pull,
    run.show,
    predict.predict,
    text.text,
    check.check,
    clean.clean,
    embedded.scenes,
    embedded.quickstart,
    config.config,
    config.doctor,
):
    app.command()(with_urls(command))
app.add_typer(evaluate.evaluate)
app.add_typer(convert.convert)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_USABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE)


_LONG = {
    "run",
    "plan",
    "train",
    "sweep",
    "rounds",
    "push",
    "pull",
    "merge",
    "check",
    "evaluate",
    "compare",
    "lvis-questions",
    "report",
    "export",
    "convert",
} | {
    "scenes",
    "quickstart",
}


def keep_logs_clean() -> None:
    """Keep the bars, banners and hints of other libraries out of logs; on a terminal, out of our live line.

    Errors are still shown. A variable that the user has set is left as it is.
    """
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "DATASETS_VERBOSITY": "error", "HF_HUB_VERBOSITY": "error"}
    quiet |= {"TRANSFORMERS_NO_ADVISORY_WARNINGS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    if sys.stderr is None or not sys.stderr.isatty():
        quiet["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    for package in ("accelerate", "datasets", "huggingface_hub", "peft", "transformers"):
        warnings.filterwarnings("ignore", module=rf"{package}\b")


def main() -> NoReturn:
    """Run the command line. A problem that the user can fix is printed without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that can't show a character must not stop a conversion.
            stream.reconfigure(errors="replace")
    command = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")
    keep_logs_clean()
    # With PyTorch loaded, the interpreter's last searches for cycles take seconds, for nothing.
    atexit.register(gc.freeze)
    try:
        # Shown where nothing more specific is: while packages are imported, and between two pieces of work.
        with Progress(f"spr {command}", first=LINE_EVERY) if command in _LONG else contextlib.nullcontext():
            app()
    except SprError as error:
        _exit_with(error)
    except ModuleNotFoundError as error:
        missing = missing_package(error, f"`spr {command}`")
        if missing is None:
            raise
        _exit_with(missing)
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe; nothing can be written any more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno in _FULL:
            _exit_with(SprError("The output can't be written", got=error, fix="free some disk space"))
        if error.errno not in _NOT_USABLE:
            raise
        _exit_with(SprError("A path can't be used", got=error, fix="check the path and its permissions"))
    except Exception as error:
        # Libraries in C, such as pydantic's, raise errors of their own when Ctrl-C interrupts a call back into Python.
        if not _was_interrupted(error):
            raise
        echo("\nInterrupted.", err=True)
        sys.exit(130)
    sys.exit(0)


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether an error was raised because of Ctrl-C."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _exit_with(error: SprError) -> NoReturn:
    notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
    echo(f"spr: {error}{notes}", err=True)
    sys.exit(error.exit_code)
