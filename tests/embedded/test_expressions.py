import json

import numpy as np

from spr.embedded.scenes import Scene, expressions, make_scene, write_scenes
from spr.embedded.sprites import COLOURS, SHAPES


def scene_of(*objects: tuple[str, tuple[int, int, int, int]]) -> Scene:
    """A scene of the given objects, without an image."""
    names = [name.split() for name, _ in objects]
    return Scene(
        np.zeros((112, 112, 3), dtype=np.uint8),
        np.array([SHAPES.index(shape) for _, shape in names]),
        np.array([COLOURS.index(colour) for colour, _ in names]),
        np.array([box for _, box in objects]),
        np.zeros(len(objects), dtype=bool),
    )


def test_the_only_object_of_its_kind_is_called_by_its_name() -> None:
    scene = scene_of(("red circle", (0, 0, 20, 20)), ("blue star", (40, 0, 60, 20)))
    assert expressions(scene, 0)[0] == "the red circle"


def test_of_two_similar_objects_the_clearly_smaller_is_called_small_and_the_other_large() -> None:
    # Areas 100 and 400: a ratio of 4, which is above 1.6.
    scene = scene_of(("red circle", (0, 0, 10, 10)), ("red circle", (40, 0, 60, 20)))
    assert "the small red circle" in expressions(scene, 0)
    assert "the large red circle" in expressions(scene, 1)
    assert "the red circle" not in expressions(scene, 0)


def test_two_similar_objects_of_equal_size_are_not_called_small_or_large() -> None:
    scene = scene_of(("red circle", (0, 0, 10, 10)), ("red circle", (40, 0, 51, 11)))
    assert expressions(scene, 0) == []


def test_a_relation_distinguishes_two_similar_objects_on_different_sides() -> None:
    # The star's centre is at x = 50, the circles' at 15 and 85: left and right of it, and level with it.
    scene = scene_of(("red circle", (5, 40, 25, 60)), ("red circle", (75, 40, 95, 60)), ("blue star", (40, 40, 60, 60)))
    assert expressions(scene, 0) == ["the red circle left of the star"]
    assert expressions(scene, 1) == ["the red circle right of the star"]


def test_an_anchor_with_a_shape_that_others_share_is_called_by_colour_and_shape() -> None:
    scene = scene_of(
        ("red circle", (5, 40, 25, 60)),
        ("red circle", (75, 40, 95, 60)),
        ("blue star", (40, 40, 60, 60)),
        ("green star", (40, 80, 60, 100)),
    )
    assert "the red circle left of the blue star" in expressions(scene, 0)
    assert not any(e.endswith(" the star") for e in expressions(scene, 0))


def test_mdetr_json_has_one_image_entry_and_one_box_per_expression(tmp_path) -> None:
    write_scenes(tmp_path, n=4, seed=3)
    data = json.loads((tmp_path / "expressions.json").read_text())
    assert len(data["images"]) == len(data["annotations"]) > 4
    for image, annotation in zip(data["images"], data["annotations"], strict=True):
        scene = make_scene(3, image["original_id"] - 1)
        x, y, width, height = annotation["bbox"]
        target = np.flatnonzero((scene.boxes_xyxy == [x, y, x + width, y + height]).all(axis=1))
        assert len(target) == 1
        assert image["caption"] in expressions(scene, int(target[0]))
        assert annotation["image_id"] == image["id"]
        assert annotation["tokens_positive"] == [[0, len(image["caption"])]]


def test_expressions_of_a_scene_do_not_depend_on_the_other_scenes(tmp_path) -> None:
    write_scenes(tmp_path / "few", n=1, seed=3)
    write_scenes(tmp_path / "more", n=3, seed=3)
    few = json.loads((tmp_path / "few" / "expressions.json").read_text())
    more = json.loads((tmp_path / "more" / "expressions.json").read_text())
    assert 0 < len(few["images"]) <= 3
    assert more["images"][: len(few["images"])] == few["images"]
    assert more["annotations"][: len(few["images"])] == few["annotations"]
