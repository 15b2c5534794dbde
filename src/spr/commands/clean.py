"""`spr clean`: delete what a run no longer needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr.core.errors import ConfigError
from spr.core.terminal import confirm, count_text, echo, size_text


def clean(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Only checkpoints of finished trainings, and unfinished files.")
    ] = False,
    caches: Annotated[bool, typer.Option("--caches", help="Only cached image features, and unfinished files.")] = False,
    unfinished: Annotated[
        bool,
        typer.Option(
            "--unfinished", help="Also checkpoints of trainings that are not finished, which then start again."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
) -> None:
    """Free disk space: delete checkpoints of finished trainings, cached image features and unfinished files of a run.

    First shows what would be deleted. Adapters, tables, results and the trainings' logs always stay, and all commands
    work on the run as before.
    """
    from spr.runs.folder import lock_run
    from spr.workflows.clean import delete, find_waste

    find_waste(run)  # refuses what is no run, before it is locked
    kinds = {"temporary"} | ({"unfinished"} if unfinished else set())
    kinds |= {"checkpoints"} if checkpoints or not caches else set()
    kinds |= {"caches"} if caches or not checkpoints else set()
    with lock_run(run):
        waste = find_waste(run)
        chosen = [item for item in waste if item.kind in kinds]
        for item in chosen:
            echo(f"  {size_text(item.size):>10}  {item.path.relative_to(run)}  ({item.what})")
        kept = [item for item in waste if item.kind == "unfinished" and not unfinished]
        if kept:
            size, count = size_text(sum(item.size for item in kept)), count_text(len(kept), "checkpoints")
            echo(f"  kept: {count} of unfinished trainings, {size} (--unfinished deletes them too)")
        if not chosen:
            echo(f"{run}: there is nothing to delete")
            return
        total = size_text(sum(item.size for item in chosen))
        agreed = yes or confirm(f"Delete these, {total}?")
        if agreed is None:
            raise ConfigError("Nothing was deleted", got="no terminal to ask on", fix="add --yes to delete them")
        if not agreed:
            echo("Nothing was deleted.")
            return
        echo(f"{size_text(delete(chosen))} freed in {run}")
