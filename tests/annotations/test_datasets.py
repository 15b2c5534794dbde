"""Names of Hugging Face datasets; tests/annotations/test_hugging_face.py tests the folder of their images."""

import pytest

from spr.annotations.datasets import parse_name
from spr.core.errors import ConfigError


def test_names_have_up_to_four_parts() -> None:
    for text, expected in {
        "hf:cups": ("cups", None, None, None),
        "hf:org/cups:train": ("org/cups", None, None, "train"),
        "hf:org/cups@main:small:train[:10]": ("org/cups", "main", "small", "train[:10]"),
        "hf:/data/a@b:val": ("/data/a@b", None, None, "val"),
    }.items():
        name = parse_name(text)
        assert (name.source, name.revision, name.config, name.split) == expected
    for text in ("hf:", "hf:a::b", "hf:a:b:c:d"):
        with pytest.raises(ConfigError, match="not valid"):
            parse_name(text)
