"""The errors that users meet: each says what went wrong, what came, what was expected and how to mend it."""

from __future__ import annotations


class SprError(Exception):
    """A problem that the user can mend. The command line prints it without a traceback.

    Args:
        what: What went wrong, one sentence without a final full stop; names the file, record or field.
        got: What came instead.
        expected: What was expected.
        fix: How to mend it; names the flag or field to change.

    >>> print(ConfigError("Config field `regions.min_aspect` is out of range", got="1.5", expected="0 to 1"))
    Config field `regions.min_aspect` is out of range.
      got:      1.5
      expected: 0 to 1
    """

    exit_code = 1

    def __init__(self, what: str, *, got: object = None, expected: object = None, fix: str | None = None) -> None:
        self.what, self.got, self.expected, self.fix = what, got, expected, fix
        lines = [what if what.endswith((".", "!", "?", ":")) else what + "."]
        lines += [f"  got:      {got}"] if got is not None else []
        lines += [f"  expected: {expected}"] if expected is not None else []
        lines += [f"  fix:      {fix}"] if fix is not None else []
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (worker → runner); keyword-only arguments need their own way through pickle.
        return _rebuild, (type(self), self.what, self.got, self.expected, self.fix)


def _rebuild(cls: type[SprError], what: str, got: object, expected: object, fix: str | None) -> SprError:
    return cls(what, got=got, expected=expected, fix=fix)


class ConfigError(SprError):
    """A config file or a `key=value` on the command line is wrong."""

    exit_code = 2


class InputError(SprError):
    """An input file (annotations, images folder, predictions) is missing, unreadable or not what it should be."""


class RecordError(SprError, ValueError):
    """A record breaks one of its own rules (a box with x2 < x1, an id that is empty, …)."""


class RunError(SprError):
    """A run folder can't be used: made by another config, in use by another run, damaged."""


class GroundingError(SprError, ValueError):
    """Grounded text is malformed (only raised in strict mode) or can't be written in a dialect."""
