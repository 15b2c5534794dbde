"""`spr push` and `spr pull`: share pairs, adapters and runs on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spr.core.terminal import echo


def push(
    source: Annotated[Path, typer.Argument(help="The folder of `spr export`, RUN/adapter, another adapter, or RUN.")],
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face Hub; created if it is missing.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository as a private one.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch, created if it is missing. (default: main)")] = None,
    license: Annotated[  # noqa: A002 - the option's name
        str | None,
        typer.Option("--license", help="License on the card, such as cc-by-4.0. (default: that of the card, or other)"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be uploaded.")] = False,
) -> None:
    """Upload pairs, an adapter or a whole run to the Hugging Face Hub, with its card.

    Nothing about this machine is uploaded. Log in with `hf auth login`, or set HF_TOKEN. An interrupted upload
    continues with the same command.
    """
    from spr.workflows import hub

    options = {"private": private, "revision": revision, "license_id": license, "dry_run": dry_run}
    url = hub.push(source, repo_id, **options, say=echo)  # type: ignore[arg-type]
    echo("\nNothing was uploaded (--dry-run)." if url is None else f"\nUploaded:  {url}")


def pull(
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME of what `spr push` has uploaded.")],
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit. (default: main)")] = None,
    repo_type: Annotated[
        str | None, typer.Option(help="model or dataset, where there are both.", metavar="[model|dataset]")
    ] = None,
) -> None:
    """Download what `spr push` has uploaded, and check it. An interrupted download continues with the same command."""
    from spr.core.errors import ConfigError
    from spr.workflows import hub

    if repo_type not in (None, "model", "dataset"):
        raise ConfigError("--repo-type is not known", got=repo_type, expected="model or dataset")
    kind = hub.pull(repo_id, out, revision=revision, repo_type=repo_type, say=echo)
    use = {
        "run": f"spr show {out}",
        "adapter": f"spr predict IMAGE --adapter {out}",
        "pairs": f"see {out / 'README.md'}",
    }
    echo(f"\n{out} is complete and unchanged.  To use it:  {use[kind]}")
