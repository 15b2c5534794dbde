"""Errors of models that can't be loaded or used."""

from __future__ import annotations

from spr.core.errors import SprError


class ModelError(SprError):
    """A model can't be loaded: it is missing, unreachable, incomplete or of the wrong kind."""


class UnreachableError(ModelError):
    """A model is neither cached nor a folder, and the Hub can't be reached."""
