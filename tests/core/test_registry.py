"""Registries: built-in entries, entries of other packages, and errors that name the nearest entry."""

from importlib.metadata import EntryPoint

import pytest

from spr.core import registry as registry_module
from spr.core.errors import ConfigError, SprError
from spr.core.registry import Registry


@pytest.fixture
def shapes():
    return Registry("shape", "spr.test_shapes", {"square": 4, "join": "os.path:join"})


def test_a_built_in_entry_is_imported_when_it_is_used(shapes):
    import os.path

    assert shapes["square"] == 4
    assert shapes["join"] is os.path.join


def test_an_unknown_name_is_an_error_with_the_nearest_name(shapes):
    with pytest.raises(ConfigError, match=r"--shape: there is no shape of this name[\s\S]*did you mean `square`"):
        shapes.find("sqare", "--shape")


def test_an_unknown_name_without_a_near_one_lists_all_names(shapes):
    with pytest.raises(ConfigError, match="use one of: square, join"):
        shapes.find("zzz", "--shape")


def test_a_name_can_be_registered_once_and_unregistered(shapes):
    shapes.register("triangle", 3)
    assert (shapes["triangle"], list(shapes)) == (3, ["square", "join", "triangle"])
    with pytest.raises(ConfigError, match="already a shape"):
        shapes.register("square", 5)
    shapes.unregister("triangle")
    assert "triangle" not in shapes


def test_an_entry_point_of_another_package_adds_an_entry(monkeypatch):
    points = [
        EntryPoint("line", "os.path:join", "spr.test_shapes"),
        EntryPoint("square", "os.path:split", "spr.test_shapes"),
        EntryPoint("broken", "no_such_package:shape", "spr.test_shapes"),
    ]
    monkeypatch.setattr(registry_module, "entry_points", lambda **_: points)
    shapes = Registry("shape", "spr.test_shapes", {"square": 4})
    assert list(shapes) == ["square", "line", "broken"]
    assert len(shapes) == 3
    # A built-in entry wins over an entry point of the same name.
    assert shapes["square"] == 4
    assert shapes["line"]("a", "b") == "a/b"
    with pytest.raises(SprError, match="`broken` can't be loaded from no_such_package:shape"):
        shapes["broken"]
