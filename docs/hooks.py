"""Hooks of MkDocs: take the repository's address from pyproject.toml, the only place that holds it."""

import tomllib
from pathlib import Path


def on_config(config):
    """Add links to the repository and to "edit this page", once the owner is filled in."""
    project = tomllib.loads((Path(config.config_file_path).parent / "pyproject.toml").read_text(encoding="utf-8"))
    repository = project["project"]["urls"]["Repository"]
    if "/OWNER/" not in repository:
        config.repo_url, config.edit_uri = repository, "edit/main/docs/"
    return config
