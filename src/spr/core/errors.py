"""Errors for users: each says what went wrong, what was given, what was expected and how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import partial

from spr.core.terminal import printable

LONGEST_PART = 2000
"""Characters of a part of an error's message that are shown, so that a file can't fill the screen."""


class SprError(Exception):
    """A problem that the user can fix. The command line prints it without a traceback.

    ``what`` went wrong, as a sentence without a full stop, names the file, record or field; ``fix`` the flag or field.
    Control characters in the message are escaped, since the parts may contain text from strangers' files.

    >>> print(ConfigError("Config field `regions.min_aspect` is out of range", got="1.5", expected="0 to 1"))
    Config field `regions.min_aspect` is out of range.
      got:      1.5
      expected: 0 to 1
    """

    exit_code = 1

    def __init__(self, what: str, *, got: object = None, expected: object = None, fix: str | None = None) -> None:
        self.what, self.got, self.expected, self.fix = what, got, expected, fix
        what = "\n".join(map(_shown, what.split("\n")))
        lines = [what if what.endswith((".", "!", "?", ":")) else what + "."]
        for label, part in (("got:", got), ("expected:", expected), ("fix:", fix)):
            if part is not None:  # text from a file must not look like the next part
                lines.append(f"  {label:<9} " + _shown(str(part)).replace("\n", "\n" + " " * 12))
        super().__init__(printable("\n".join(lines)))

    def __reduce__(self) -> tuple[object, ...]:
        # Workers send errors to the runner by pickle, which by default does not pass keyword-only arguments.
        return partial(type(self), self.what, got=self.got, expected=self.expected, fix=self.fix), ()


class ConfigError(SprError):
    """A config file, or a `key=value` override on the command line, is not valid."""

    exit_code = 2


class InputError(SprError):
    """An input (annotations, image folder, predictions) is missing, unreadable or malformed."""


class RecordError(SprError, ValueError):
    """A record is not valid: a box with x2 < x1, an empty id, …"""


class RunError(SprError):
    """A run folder can't be used: it was made with another config, another process uses it, or it is damaged."""


class StorageError(SprError):
    """An object store refuses a request or can't be reached, or can't do what a local disk can."""


class GroundingError(SprError, ValueError):
    """Grounded text is malformed (raised only in strict mode), or can't be written in a dialect."""


class RewardError(SprError, ValueError):
    """A reward can't be computed from what the trainer gives: a wrong or missing truth, or an unknown reward.

    Never raised because of a model's answer.
    """


def _shown(text: str) -> str:
    return text if len(text) <= LONGEST_PART else f"{text[:LONGEST_PART]}… ({len(text):,} characters)"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most similar to an unknown one, if any is similar."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), None)


def nearest(name: str, known: Iterable[str], otherwise: str = "use one of") -> str:
    """How to fix an unknown name: use the nearest known one, or any of them.

    >>> nearest("sqare", ["square", "circle"]), nearest("x", ["square", "circle"])
    ('did you mean `square`?', 'use one of: square, circle')
    """
    known = list(known)
    near = closest(name, known)
    return f"did you mean `{near}`?" if near else f"{otherwise}: {', '.join(known)}"


_EXTRAS = {
    "models": {"accelerate", "datasets", "huggingface_hub", "peft", "psutil", "safetensors", "sentencepiece"}
    | {"tokenizers", "torch", "transformers"},
    "openai": {"anyio", "httpx", "openai", "tenacity"},
    "storage": {"obstore"},
    "ray": {"ray"},
    "vllm": {"vllm"},
}


def missing_package(error: ModuleNotFoundError, what: str = "This") -> SprError | None:
    """The error for a package that is not installed because it belongs to an extra; None for any other module.

    >>> print(missing_package(ModuleNotFoundError(name="torch.nn"), "`spr train`"))
    `spr train` needs the package torch.
      got:      torch is not installed
      fix:      pip install 'spatial-preference-rewarding[models]'
    """
    package = (error.name or "").partition(".")[0]
    for extra, packages in _EXTRAS.items():
        if package in packages:
            fix = f"pip install 'spatial-preference-rewarding[{extra}]'"
            return SprError(f"{what} needs the package {package}", got=f"{package} is not installed", fix=fix)
    return None
