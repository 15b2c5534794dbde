"""What is printed for people: every line goes through `echo`, and foreign text in errors and logs through `printable`.

Ids, file names, categories and answers come from strangers' files and from models. Control characters in them could
move the cursor, change the title of the terminal or hide text, and Unicode's direction marks could reorder it.
"""

from __future__ import annotations

import re
import sys
from typing import TextIO

_KEPT = "\n\t\u00a0\u3000\u200d"  # spaces, and the joiner inside emoji


def printable(text: object) -> str:
    r"""A text with its control, format and unassigned characters and lone surrogates escaped; ``\n`` and ``\t`` stay.

    >>> printable("\x1b[31mred\x07 \x9b2J \u202egpj.exe, naïve 👩‍🚀")
    '\\x1b[31mred\\x07 \\x9b2J \\u202egpj.exe, naïve 👩‍🚀'
    """
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(c if c.isprintable() or c in _KEPT else repr(c)[1:-1] for c in plain)


def one_line(text: object) -> str:
    r"""`printable` with ``\n`` and ``\t`` escaped too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def echo(line: object = "", *, err: bool = False, stream: TextIO | None = None) -> None:
    """Print `printable` lines to standard output, with ``err`` to standard error, or to a stream."""
    print(printable(line), file=stream or (sys.stderr if err else sys.stdout), flush=True)


def count_text(number: int, things: str) -> str:
    """A number with what it counts, which is given in the plural.

    >>> count_text(1, "pairs"), count_text(1, "boxes"), count_text(1, "categories"), count_text(1200, "categories")
    ('1 pair', '1 box', '1 category', '1,200 categories')
    """
    if number == 1:
        things = re.sub("(?<=x)es$|s$", "", re.sub("ies$", "ys", things))
    return f"{number:,} {things}"


def size_text(size: int) -> str:
    """A number of bytes as people read it.

    >>> size_text(999), size_text(1_250_000), size_text(14_000_000_000)
    ('999 bytes', '1.2 MB', '14.0 GB')
    """
    if size < 1000:
        return count_text(size, "bytes")
    unit = next((k for k in (1, 2, 3) if size < 999.95 * 1000**k), 4)
    return f"{size / 1000**unit:.1f} {('', 'kB', 'MB', 'GB', 'TB')[unit]}"


def confirm(question: str) -> bool | None:
    """Ask a yes-or-no question on the terminal; None if there is none. Anything but ``y`` or ``yes`` means no."""
    if not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    echo(f"{question} [y/N]", err=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
