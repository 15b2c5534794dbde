"""Options and arguments that are paths may be URLs of object storage."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from spr.core.paths import as_path

Command = TypeVar("Command", bound=Callable[..., Any])


def with_urls(command: Command) -> Command:
    """The same command, whose paths that are URLs are `spr.core.remote.RemotePath`.

    A command that needs a local disk for one of them refuses it, instead of using a local folder named ``s3:``.
    """

    @functools.wraps(command)
    def called(*arguments: Any, **options: Any) -> Any:
        return command(*arguments, **{name: _with_urls(value) for name, value in options.items()})

    return called  # type: ignore[return-value]


def _with_urls(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_urls(item) for item in value]
    return as_path(value) if isinstance(value, Path) else value
