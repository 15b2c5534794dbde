"""JSON and YAML that can't be parsed are a ValueError, whatever the reason."""

import pytest

from spr.config import apply_overrides, load_config
from spr.core.documents import parse_json, parse_yaml
from spr.core.errors import ConfigError

BAD_YAML = ["a: [", "a: 2024-13-45", "a: !!timestamp x", "a: !!int foo", "a: !!python/object:os.system x", "[" * 9999]
BAD_YAML += ['a: "\\ud800"', 'a: {"b\\udfff": 1}', 'a: ["x", "\\udc80y"]']


@pytest.mark.parametrize("text", BAD_YAML)
def test_yaml_that_can_not_be_parsed(text, tmp_path):
    with pytest.raises(ValueError, match=r"."):
        parse_yaml(text)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml is not YAML"):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="is not YAML"):
        apply_overrides({}, [f"seed={text.removeprefix('a: ')}"])


@pytest.mark.parametrize("text", ["", "{", b"\xff", "[" * 99999, '{"a":' * 99999, "9" * 5000])
def test_json_that_can_not_be_parsed(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


@pytest.mark.parametrize("text", ["[" * 9999, "{" * 9999, "[" * 101 + "]" * 101])
def test_brackets_nested_more_than_100_deep_are_refused_at_once(text):
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_yaml(text)
    assert str(parse_yaml("[" * 100 + "]" * 100)) == "[" * 100 + "]" * 100


def test_what_can_be_parsed():
    assert parse_yaml("a: [1, 2.5, x]\n") == {"a": [1, 2.5, "x"]}
    assert parse_json(b'{"a": [1, null]}') == {"a": [1, None]}
