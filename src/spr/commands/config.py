"""`spr config` and `spr doctor`: what configs may contain, and whether this machine can run one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr.core.terminal import echo

_OVERRIDES = typer.Argument(metavar="[KEY=VALUE]...", help="Config fields, such as regions.per_image=2.")


def config(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[SECTION|CONFIG]",
            help="A section or field, such as training.lora; or a YAML file, a run folder, or the name of a config "
            "that ships with SPR. (default: list the sections)",
        ),
    ] = None,
    overrides: Annotated[list[str] | None, _OVERRIDES] = None,
) -> None:
    """Show the fields of a section with their types, defaults and meaning, or all values of a config."""
    from spr.config import find_config, load_config, presets
    from spr.config.reference import annotated_yaml, describe, names
    from spr.config.renamed import ALSO_KNOWN_AS, RENAMED
    from spr.core.errors import ConfigError, closest

    lines = describe({**ALSO_KNOWN_AS, **RENAMED}.get(name or "", name))
    if lines is not None:
        if overrides:
            raise ConfigError(f"`{name}` is part of every config", got=overrides[0], expected="no key=value after it")
        for line in lines:
            echo(line)
        return
    source = _of_run(str(name))
    try:
        find_config(source)
    except ConfigError as error:
        if "/" in source or source.endswith((".yaml", ".yml")):
            raise
        known = dict.fromkeys([*(part for full in names() for part in (full, full.split(".")[-1])), *presets()])
        other = {old.rpartition(".")[2]: new for old, new in {**RENAMED, **ALSO_KNOWN_AS}.items()}
        near = other.get(source) or closest(source, known)
        fix = f"did you mean `{near}`?" if near else "`spr config` lists the sections and the configs"
        raise ConfigError(f"There is no config, section or field {source}", got=error.got, fix=fix) from None
    echo(annotated_yaml(load_config(source, overrides or ())).rstrip())


def doctor(
    config: Annotated[
        str | None,
        typer.Argument(
            help="A YAML file, a run folder, or the name of a config that ships with SPR. (default: check no config)"
        ),
    ] = None,
    overrides: Annotated[list[str] | None, _OVERRIDES] = None,
) -> None:
    """Show packages, devices and accepted names; or whether the models, memory and disk that a config needs are here.

    No model is loaded, and nothing is downloaded. Exit code 1 if something that the config needs is missing.
    """
    from spr.config import load_config
    from spr.report.doctor import diagnose

    if config is None:
        for line in diagnose():
            echo(line)
        return
    from spr.workflows.check import check

    missing = 0
    for status, about, finding in check(load_config(_of_run(config), overrides or ())):
        echo(f"{status:<8}{about:<24}{finding}")
        missing += status == "MISSING"
    if missing:
        echo(f"\n{missing} missing.", err=True)
        raise typer.Exit(1)


def _of_run(source: str) -> str:
    """The config of a run folder; anything else stays as it is."""
    from spr.core.paths import is_file

    return str(file) if is_file(file := Path(source) / "config.yaml") else source
