"""Registries of named entries: dialects, model families, stages, tasks, exports, rewards, backends, losses.

A built-in entry is one line in its registry. Another package adds an entry through an entry point in the registry's
group, in its own ``pyproject.toml``. The command line, worker processes and Python code then all find it:

```toml
[project.entry-points."spr.detectors"]
my_detector = "my_package.detector:MyDetector"
```
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from spr.core.errors import ConfigError, SprError, nearest

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """A mapping from names to entries, which are imported when they are first used.

    ``kind`` is what an entry is, for error messages; ``group`` the entry-point group of other packages' entries. A
    built-in entry is an object, or ``"module:attribute"``.

    >>> sizes: Registry[int] = Registry("size", "spr.doctest_sizes", {"small": 1, "large": 3})
    >>> sizes["large"], list(sizes)
    (3, ['small', 'large'])
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, Entry | str]) -> None:
        self.kind, self.group, self._builtin = kind, group, builtin

    def register(self, name: str, entry: Entry) -> None:
        """Add an entry in this process only, for notebooks and tests.

        Raises:
            ConfigError: if the name is taken.
        """
        if name in self:
            raise ConfigError(f"There is already a {self.kind} of this name", got=name, fix="choose another name")
        self._entries[name] = entry

    def unregister(self, name: str) -> None:
        """Remove an entry that `register` added."""
        del self._entries[name]

    def module_of(self, name: str) -> str | None:
        """The module that a built-in entry is imported from; None for an entry that needs no import or is not built in.

        >>> Registry("loss", "spr.doctest_losses", {"dpo": "spr.training.loss:dpo"}).module_of("dpo")
        'spr.training.loss'
        """
        entry = self._builtin.get(name)
        return entry.partition(":")[0] if isinstance(entry, str) else None

    def find(self, name: str, where: str, *, error: type[SprError] = ConfigError) -> Entry:
        """The entry of a name. ``where``: the option or config field that the name comes from, such as ``--format``."""
        self.check(name, where, error=error)
        return self[name]

    def check(self, name: str, where: str, *, error: type[SprError] = ConfigError) -> None:
        """Raise an error that names the nearest entry, unless the name has an entry; nothing is imported."""
        if name not in self:
            raise error(f"{where}: there is no {self.kind} of this name", got=repr(name), fix=nearest(name, self))

    @cached_property
    def _entries(self) -> dict[str, Any]:
        """Entries that have been used, and those to import when they are: strings and entry points."""
        points = {point.name: point for point in entry_points(group=self.group) if point.name not in self._builtin}
        return {**self._builtin, **points}

    def __getitem__(self, name: str) -> Entry:
        entry = self._entries[name]
        if isinstance(entry, EntryPoint):
            try:
                entry = self._entries[name] = entry.load()
            except (ImportError, AttributeError) as error:
                what = f"The {self.kind} `{name}` can't be loaded from {entry.value}"
                raise SprError(what, got=error, fix="fix or uninstall the package that declares it") from error
        elif isinstance(entry, str):
            entry = self._entries[name] = pkgutil.resolve_name(entry)
        return cast(Entry, entry)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
