"""The config section `engine`: where the pipeline's stages run."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from spr.config.section import Section

_ADDRESS = re.compile(r"auto|local|(ray://)?[^\s/:]+:\d+|ray://[^\s/]+")


class EngineConfig(Section):
    """Where the stages run. Does not affect the rows."""

    runtime_fields = frozenset({"name", "address"})

    name: Literal["local", "ray"] = "local"
    """`local`: processes of this machine, one stage after another; `ray`: tasks and actors of a Ray cluster, in which
    a finished shard goes on to the next stage immediately. `engine: ray` is short for this field."""
    address: str = "auto"
    """`ray`: `auto` joins the cluster that `RAY_ADDRESS` names or that runs on this machine, and starts one for this
    command if there is none; `local` always starts one; `HOST:PORT` and `ray://HOST:PORT` join that cluster."""

    @model_validator(mode="after")
    def _has_a_valid_address(self) -> Self:
        if not _ADDRESS.fullmatch(self.address):
            raise ValueError(
                f"engine.address is not valid: got {self.address!r}, expected auto, local or ray://HOST:PORT"
            )
        if self.name == "local" and self.address != "auto":
            raise ValueError("engine.address is for Ray: set engine.name: ray, or remove the address")
        return self


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Engine = Annotated[EngineConfig, BeforeValidator(_named)]
"""The section, or its `name` alone."""

SHORT = {"engine": "name"}
"""Sections that may be given as the value of one of their fields."""
