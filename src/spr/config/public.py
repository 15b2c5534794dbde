"""What may be shown of a config on pages that are made to be shared: nothing about the machine it was used on."""

from __future__ import annotations

import re
from typing import Any

from spr.config.experiment import Config


def public_config(config: Config) -> dict[str, Any]:
    """The config without folders, and without the address of the describer's server, which may contain a password."""
    shown: dict[str, Any] = public_values(config.model_dump(mode="json"))
    if shown["describer"] and shown["describer"]["base_url"]:
        shown["describer"]["base_url"] = "not published"
    return shown


def public_name(value: str) -> str:
    r"""A path without its folders, which would say whose machine it was.

    This also applies to each part of a model with a LoRA adapter, ``model@revision+adapter@revision``, and to the
    folder of a dataset.

    >>> public_name("/home/me/ferret-7b@ab12+/runs/mine/adapter@cd34"), public_name("Qwen/Qwen2.5-VL-7B-Instruct")
    ('ferret-7b@ab12+adapter@cd34', 'Qwen/Qwen2.5-VL-7B-Instruct')
    >>> public_name("hf:/home/me/cups:train")
    'hf:cups:train'
    >>> public_name("C:\\Users\\me\\1.jpg")
    '1.jpg'
    >>> public_name("s3://our-bucket/photos/instances.json")
    'instances.json'
    """
    value = re.sub(r"^(?:s3|gs|az)://?(?:.*/)?(?=[^/])", "", value)
    value = re.sub(r"^[A-Za-z]:[\\/](?:.*[\\/])?(?=[^\\/])", "", value)
    return re.sub(r"(?:^|(?<=\+)|(?<=^hf:))/(?:[^@+]*/)?(?=[^/@+])", "", value)


def public_values(value: Any) -> Any:
    """The same lists, mappings and texts, with `public_name` applied to each text."""
    if isinstance(value, dict):
        return {key: public_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [public_values(item) for item in value]
    return public_name(value) if isinstance(value, str) else value
