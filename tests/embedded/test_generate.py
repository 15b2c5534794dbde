import json

import numpy as np
import pytest
from PIL import Image

from spr.core.errors import InputError
from spr.embedded.scenes import MIN_AREA, SIZE, TRAINING_SEEDS, coco_annotations, make_scene, write_scenes
from spr.embedded.sprites import CATEGORIES, SHAPES, sprite

SCENES = [make_scene(5, index) for index in range(60)]


def test_a_scene_depends_only_on_its_seed_and_index() -> None:
    again = make_scene(5, 7)
    assert np.array_equal(again.image, SCENES[7].image)
    assert np.array_equal(again.boxes_xyxy, SCENES[7].boxes_xyxy)
    assert not np.array_equal(make_scene(6, 7).image, again.image)


def test_scenes_hold_9_to_14_ordinary_objects_over_a_factor_of_3_in_size() -> None:
    sides = np.concatenate([np.sqrt(scene.areas[scene.annotated]) for scene in SCENES])
    assert all(9 <= scene.annotated.sum() <= 14 for scene in SCENES)
    assert sides.max() / sides.min() > 3


def test_objects_overlap_little_and_stay_in_the_scene() -> None:
    for scene in SCENES:
        boxes = scene.boxes_xyxy
        assert boxes.min() >= 0
        assert boxes.max() <= SIZE
        sides = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        shared = np.clip(sides, 0, None).prod(axis=-1)
        np.fill_diagonal(shared, 0)
        smaller = np.minimum(scene.areas[:, None], scene.areas[None, :])
        # The overlap limit applies to a crowd as a whole: an ordinary object may cover more of a small member.
        mixed = scene.in_crowd[:, None] != scene.in_crowd[None, :]
        ordinary = np.where(scene.in_crowd[:, None], scene.areas[None, :], scene.areas[:, None])
        assert (shared <= 0.12 * np.where(mixed, ordinary, smaller)).all()


def test_some_scenes_have_a_crowd_of_one_category_and_some_have_specks() -> None:
    crowds = [scene for scene in SCENES if scene.in_crowd.any()]
    specks = [scene for scene in SCENES if (scene.areas < MIN_AREA).any()]
    assert 10 < len(crowds) < 35
    assert 8 < len(specks) < 35
    for scene in crowds:
        assert scene.in_crowd.sum() >= 3
        assert len({scene.category(int(i)) for i in np.flatnonzero(scene.in_crowd)}) == 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(9, 13), (20, 11), (34, 34)])
def test_a_shape_touches_all_four_sides_of_its_box(shape: str, size: tuple[int, int]) -> None:
    coverage = sprite(shape, *size)[..., 0]
    assert coverage.shape == (size[1], size[0])
    for edge in (coverage[0], coverage[-1], coverage[:, 0], coverage[:, -1]):
        assert edge.max() > 0


def test_a_crowd_is_one_annotation_around_its_members() -> None:
    scene = next(s for s in SCENES if s.in_crowd.any())
    annotations = coco_annotations(scene, image_id=3, first_id=10)
    crowd = [a for a in annotations if a["iscrowd"]]
    members = scene.boxes_xyxy[scene.in_crowd]
    x1, y1, x2, y2 = *members[:, :2].min(axis=0), *members[:, 2:].max(axis=0)
    assert len(crowd) == 1
    assert crowd[0]["bbox"] == [x1, y1, x2 - x1, y2 - y1]
    assert len(annotations) == 1 + (~scene.in_crowd).sum()
    assert [a["id"] for a in annotations] == list(range(10, 10 + len(annotations)))


def test_written_scenes_are_coco_with_png_images(tmp_path) -> None:
    path = write_scenes(tmp_path, n=3, seed=5)
    data = json.loads(path.read_text())
    assert [category["name"] for category in data["categories"]] == list(CATEGORIES)
    assert [image["id"] for image in data["images"]] == [1, 2, 3]
    pixels = np.asarray(Image.open(tmp_path / "images" / data["images"][2]["file_name"]))
    assert np.array_equal(pixels, SCENES[2].image)
    first = next(a for a in data["annotations"] if a["image_id"] == 3 and not a["iscrowd"])
    index = int(np.flatnonzero(~SCENES[2].in_crowd)[0])
    x1, y1, x2, y2 = SCENES[2].boxes_xyxy[index]
    assert first["bbox"] == [x1, y1, x2 - x1, y2 - y1]
    assert CATEGORIES[first["category_id"] - 1] == SCENES[2].category(index)


def test_more_scenes_do_not_change_the_first_ones(tmp_path) -> None:
    write_scenes(tmp_path / "few", n=2, seed=9)
    write_scenes(tmp_path / "more", n=4, seed=9)
    few = json.loads((tmp_path / "few" / "instances.json").read_text())
    more = json.loads((tmp_path / "more" / "instances.json").read_text())
    assert more["images"][:2] == few["images"]
    assert more["annotations"][: len(few["annotations"])] == few["annotations"]
    for image in few["images"]:
        name = image["file_name"]
        assert (tmp_path / "few/images" / name).read_bytes() == (tmp_path / "more/images" / name).read_bytes()


@pytest.mark.parametrize("seed", [-1, TRAINING_SEEDS, TRAINING_SEEDS + 7])
def test_seeds_used_for_training_are_refused(tmp_path, seed: int) -> None:
    with pytest.raises(InputError, match="--seed"):
        write_scenes(tmp_path, n=1, seed=seed)


def test_zero_scenes_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="--n"):
        write_scenes(tmp_path, n=0, seed=0)
