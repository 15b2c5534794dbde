"""Filters and the sample on small scenes worked out by hand, with and without a detector for crowds."""

import hashlib
import io
import json
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from spr.config import AnnotationsConfig, load_config, make_config
from spr.core.errors import ConfigError
from spr.core.progress import Progress
from spr.models.errors import ModelError
from spr.pipeline.objects import (
    HELD_OUT,
    RESPELLED,
    STAGE,
    TURNED,
    detect_in_crowds,
    load_objects,
    make_objects,
    plan_objects,
)
from spr.pipeline.runner import run
from spr.records import Detection, ImageObjects
from spr.records.schemas import from_table


class Scene:
    """One image of 100×100 px with the given xywh boxes; ``crowd`` marks the last one as a crowd."""

    def __init__(self, folder, boxes, crowd=False, category="cup"):
        folder.mkdir()
        Image.new("RGB", (100, 100)).save(folder / "1.png")
        marks = [0] * (len(boxes) - 1) + [int(crowd)]
        coco = {
            "images": [{"id": 1, "file_name": "1.png", "width": 100, "height": 100}],
            "categories": [{"id": 1, "name": category}],
            "annotations": [
                {"id": 10 + k, "image_id": 1, "category_id": 1, "bbox": list(box), "iscrowd": mark}
                for k, (box, mark) in enumerate(zip(boxes, marks, strict=True))
            ],
        }
        (folder / "a.json").write_text(json.dumps(coco))
        self.folder = folder

    def settings(self, **settings):
        section = {"path": str(self.folder / "a.json"), "images": str(self.folder), **settings}
        return make_config({"annotations": section}).annotations

    def objects(self, detector=None, **settings):
        settings = self.settings(**settings, crowds="detect" if detector else "drop")
        plan = plan_objects(settings, 0, Progress("", stream=io.StringIO()))
        drops = plan.dropped.to_pylist()
        output = make_objects(plan.rows(0, len(plan.ids)), settings, detector)
        drops += output.dropped.to_pylist()
        images = from_table(output.table, ImageObjects)
        ids = [o.id for image in images for o in image.objects]
        # The scene has one image, and all drops name it, except for what leads out of the folder or has no file.
        names = {
            entry["id"]: entry["file_name"] for entry in json.loads((self.folder / "a.json").read_text())["images"]
        }
        for drop in drops:
            assert drop["file_name"] == names[int(drop["id"]) if drop["kind"] == "image" else 1]
        return ids, sorted((d["kind"], d["id"], d["reason"]) for d in drops), images


def share(image_id):
    """The number from 0 to 1 that decides about an image: the first 8 bytes of BLAKE2b of its id."""
    digest = hashlib.blake2b(b"holdout\0" + image_id.encode(), digest_size=8, salt=bytes(8)).digest()
    return int.from_bytes(digest, "little") / 2**64


def splits(settings, seed):
    plan = plan_objects(settings, seed, Progress("", stream=io.StringIO()))
    output = make_objects(plan.rows(0, len(plan.ids)), settings)
    return dict(zip(*(output.table[name].to_pylist() for name in ("image_id", "split")), strict=True)), output.notes


def test_a_share_of_the_images_is_held_out_by_their_ids_alone(make_dataset, tmp_path):
    data = make_dataset(tmp_path / "d", images=60, ids=range(1, 61))
    found = {}
    for holdout in (0, 0.05, 0.3):
        settings = make_config(data.config(annotations={"holdout": holdout, "check_images": False})).annotations
        for seed in (0, 7):
            found[holdout], notes = splits(settings, seed)
            expected = {str(k): "holdout" if share(str(k)) < holdout else "train" for k in range(1, 61)}
            assert found[holdout] == expected
            count = list(expected.values()).count("holdout")
            assert notes == ({HELD_OUT: count} if holdout else {})
    assert sorted(name for name, split in found[0.05].items() if split == "holdout") == ["47", "50", "58"]
    assert 10 <= list(found[0.3].values()).count("holdout") <= 26  # a share of 0.3 of 60 is 18


def test_an_image_file_with_several_ids_is_in_one_split(make_dataset, tmp_path):
    data = make_dataset(tmp_path / "d", images=8, ids=range(44, 52))
    listed = {image["id"]: image for image in data.coco["images"]}
    listed[47]["file_name"] = listed[44]["file_name"]  # 44 is to train on, 47 alone would be held out
    file = listed[50]["file_name"]  # 50 is held out, 51 alone would be to train on
    settings = make_config(data.config()).annotations
    for spelled in (file, f"./{file}", file.replace(".", "%2E"), file[:-3] + file[-3:].upper()):
        listed[51]["file_name"] = spelled
        data.write()
        assert {name for name, split in splits(settings, 0)[0].items() if split == "holdout"} == {"50", "51"}, spelled


@pytest.mark.parametrize(
    ("holdout", "hint"),
    [
        (0, None),
        (0.001, "none of the 40 images is held out"),
        (0.05, "only 2 of 40 images are held out, too few to measure a model; use more images"),
        (0.9, None),
    ],
)
def test_a_run_warns_if_fewer_than_twenty_images_are_held_out(make_dataset, tmp_path, holdout, hint):
    data = make_dataset(tmp_path / "d", ids=range(15, 55))
    config = make_config(data.config(annotations={"holdout": holdout}))
    (summary,) = run(config, tmp_path / "run", until="objects")
    assert (summary.hint is None) == (hint is None)
    assert hint is None or summary.hint.startswith(hint)
    assert (HELD_OUT in summary.counts) == (holdout > 0)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), max_size=30),
    st.sampled_from(["drop", "detect"]),
    st.integers(1, 3),
)
def test_the_rows_of_a_plan_are_those_of_a_loop_over_the_annotations(tmp_path, objects, crowds, least):
    """``objects`` are image, whether it is small, and whether it is a crowd; the plan's rows are read two at a time."""
    entries = [
        {
            "id": n,
            "image_id": image,
            "category_id": 1,
            "bbox": [0, 0, *([9, 9] if small else [20, 20])],
            "iscrowd": crowd,
        }
        for n, (image, small, crowd) in enumerate(objects)
    ]
    images = [{"id": k, "file_name": f"{k}.jpg", "width": 50, "height": 50} for k in range(6)]
    content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "cup"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    options = {"check_images": False, "max_images": None, "min_objects": least, "min_area": 100, "crowds": crowds}
    annotations = AnnotationsConfig(path=tmp_path / "a.json", images=tmp_path, **options)
    plan = plan_objects(annotations, 0, Progress(""))
    expected, dropped = {}, []
    for k in range(6):
        own = [(str(n), small, crowd) for n, (image, small, crowd) in enumerate(objects) if image == k]
        kept = [n for n, small, crowd in own if not crowd and not small]
        waiting = [n for n, _, crowd in own if crowd and crowds == "detect"]
        if len(kept) >= least or waiting:
            expected[str(k)] = kept, waiting
        else:
            dropped.append(("image", str(k), f"{k}.jpg"))
        dropped += [
            ("object", n, f"{k}.jpg")
            for n, small, crowd in own
            if (crowd and crowds == "drop") or (small and not crowd)
        ]
    rows = [row for start in range(0, len(plan.ids), 2) for row in plan.rows(start, start + 2).to_pylist()]
    ids = {row["image_id"]: tuple([item["id"] for item in row[name]] for name in ("objects", "crowds")) for row in rows}
    assert ids == expected
    assert plan.ids.to_pylist() == [row["image_id"] for row in rows]
    found = [(row["kind"], row["id"], row["file_name"]) for row in plan.dropped.to_pylist()]
    assert sorted(found) == sorted(dropped)


def test_objects_under_the_minimum_area_are_dropped(tmp_path):
    # 300, 299.7 and 300.3 px².
    scene = Scene(tmp_path / "s", [(0, 0, 20, 15), (20, 20, 20, 14.985), (50, 50, 20, 15.015)])
    ids, drops, _ = scene.objects(min_objects=1)
    assert ids == ["10", "12"]
    assert drops == [("object", "11", "area_under_minimum")]


def test_area_is_that_of_the_box_within_the_image(tmp_path):
    # 20×20 at x = 90: only 10×20 = 200 px² lie in the image.
    scene = Scene(tmp_path / "s", [(0, 0, 20, 20), (90, 50, 20, 20)])
    assert scene.objects(min_objects=1)[0] == ["10"]


@pytest.mark.parametrize(("count", "kept"), [(8, 0), (9, 9), (10, 10)])
def test_images_with_more_than_eight_objects_are_kept(tmp_path, count, kept):
    scene = Scene(tmp_path / "s", [(k * 9, k * 9, 18, 18) for k in range(count)])
    ids, drops, _ = scene.objects()
    assert len(ids) == kept
    assert drops == ([] if kept else [("image", "1", "too_few_objects")])


def test_small_objects_are_removed_before_objects_are_counted(tmp_path):
    boxes = [(k * 9, k * 9, 18, 18) for k in range(9)]
    boxes[4] = (40, 40, 5, 5)
    ids, drops, _ = Scene(tmp_path / "s", boxes).objects()
    assert ids == []
    assert drops == [("image", "1", "too_few_objects"), ("object", "14", "area_under_minimum")]


def test_without_a_detector_crowds_are_dropped_and_do_not_count(tmp_path):
    boxes = [(k * 9, k * 9, 18, 18) for k in range(9)]
    ids, drops, _ = Scene(tmp_path / "s", boxes, crowd=True).objects()
    assert ids == []
    assert drops == [("image", "1", "too_few_objects"), ("object", "18", "crowd_without_detector")]


def test_detections_in_a_crowd_count_as_objects_and_are_filtered_by_area(tmp_path):
    # Eight objects along the left edge and a crowd at 40–100. The detector finds two cups of 20×20 and a speck.
    boxes = [(0, 12 * k, 30, 11) for k in range(8)] + [(40, 40, 60, 60)]
    asked = []

    def detector(queries):
        asked.extend((q.category, q.box) for q in queries)
        boxes = [(45, 45, 65, 65), (70, 70, 90, 90), (95, 95, 99, 99)]
        detections = [Detection("cup", box, score) for box, score in zip(boxes, [0.75, 0.5, 0.25], strict=True)]
        return [detections for _ in queries]

    ids, drops, (image,) = Scene(tmp_path / "s", boxes, crowd=True).objects(detector)
    assert asked == [("cup", (40.0, 40.0, 100.0, 100.0))]
    assert ids == [*(str(10 + k) for k in range(8)), "18#1", "18#2"]
    assert [(o.source, o.score) for o in image.objects[-2:]] == [("detector", 0.75), ("detector", 0.5)]
    assert drops == [("object", "18#3", "area_under_minimum")]


def test_an_image_with_too_few_detections_in_its_crowd_is_dropped(tmp_path):
    boxes = [(0, 12 * k, 30, 11) for k in range(8)] + [(40, 40, 60, 60)]
    ids, drops, _ = Scene(tmp_path / "s", boxes, crowd=True).objects(lambda queries: [[] for _ in queries])
    assert ids == []
    assert drops == [("image", "1", "too_few_objects"), ("object", "18", "crowd_nothing_found")]


def test_an_image_without_its_file_is_dropped_unless_files_are_not_checked(tmp_path):
    scene = Scene(tmp_path / "s", [(0, 0, 20, 20)])
    (scene.folder / "1.png").unlink()
    assert scene.objects(min_objects=1)[:2] == ([], [("image", "1", "image_missing")])
    assert scene.objects(min_objects=1, check_images=False)[:2] == (["10"], [])


def test_an_image_outside_the_folder_is_used_only_if_the_config_allows_it(tmp_path):
    scene = Scene(tmp_path / "s", [(0, 0, 20, 20)])
    (tmp_path / "s" / "images").mkdir()
    coco = json.loads((scene.folder / "a.json").read_text())
    for name in (str(scene.folder / "1.png"), "../1.png"):
        coco["images"] = [
            {**coco["images"][0], "file_name": name},
            {"id": 2, "file_name": "b", "width": 1, "height": 1},
        ]
        (scene.folder / "a.json").write_text(json.dumps(coco))
        folder = {"min_objects": 1, "images": str(scene.folder / "images")}
        ids, drops, _ = scene.objects(**folder)
        assert (ids, drops[0]) == ([], ("image", "1", "image_file_name_unsafe"))
        ids, _, images = scene.objects(**folder, allow_outside_images=True)
        assert (ids, [image.file_name for image in images]) == (["10"], [name])


def test_a_configured_detector_is_asked_about_the_crop_of_the_crowd(tmp_path):
    boxes = [(0, 12 * k, 30, 11) for k in range(8)] + [(40.5, 40, 59, 60)]
    scene = Scene(tmp_path / "s", boxes, crowd=True, category="cup_(drinking_vessel)")
    asked = []

    class Finds:
        name = "finds"

        def detect(self, requests):
            asked.extend((request.image.size, request.text, request.phrases) for request in requests)
            # The crop begins at x = 40: 5–25 of it is 45–65 of the image.
            return [[Detection("cup", (5, 5, 25, 25), 0.75)] for _ in requests]

    settings = scene.settings(crowds="detect")
    find = partial(detect_in_crowds, detector=Finds(), images=settings.image_source)
    _, drops, (image,) = scene.objects(find)
    assert asked == [((60, 60), "cup", ("cup",))]
    assert image.objects[-1].box == (45.0, 45.0, 65.0, 65.0)
    assert drops == []


def test_crowds_can_be_annotated_again_by_a_run(tmp_path):
    boxes = [(k * 9, k * 9, 18, 18) for k in range(10)] + [(0, 40, 60, 60)]
    scene = Scene(tmp_path / "s", boxes, crowd=True)
    raw = {"path": str(scene.folder / "a.json"), "images": str(scene.folder), "crowds": "detect"}
    config = make_config({"annotations": raw, "detector": {"backend": "fake"}})
    (summary,) = run(config, tmp_path / "run", until="objects")
    assert summary.rows == 1
    assert "object: crowd_without_detector" not in summary.dropped


def test_a_run_replaces_crowds_where_a_detector_is_configured_and_records_it(tmp_path):
    boxes = [(k * 9, k * 9, 18, 18) for k in range(10)] + [(0, 40, 60, 60)]
    scene = Scene(tmp_path / "s", boxes, crowd=True)
    paths = {"path": str(scene.folder / "a.json"), "images": str(scene.folder)}
    for backend, crowds in (("fake", "detect"), ("none", "drop")):
        config = make_config({"annotations": paths, "detector": {"backend": backend}})
        (summary,) = run(config, tmp_path / backend, until="objects")
        assert ("object: crowd_without_detector" in summary.dropped) == (crowds == "drop")
        assert load_config(tmp_path / backend / "config.yaml").annotations.crowds == crowds
    # The rows depend on the detector only where it is used.
    assert STAGE.models_for(load_config(tmp_path / "fake" / "config.yaml")) == ("detector",)
    assert STAGE.models_for(load_config(tmp_path / "none" / "config.yaml")) == ()


def test_a_wrong_detector_fails_before_anything_else_is_computed(tmp_path):
    # Without a crowd, too: the stage `scores` would fail after all regions were described.
    scene = Scene(tmp_path / "s", [(k * 9, k * 9, 18, 18) for k in range(10)])
    paths = {"path": str(scene.folder / "a.json"), "images": str(scene.folder)}
    wrong = make_config({"annotations": paths, "detector": {"model": str(tmp_path / "nowhere")}})
    with pytest.raises(ModelError, match="no such model folder"):
        run(wrong, tmp_path / "run")
    # Nothing depends on it yet, so the run continues with the corrected config.
    assert run(make_config({"annotations": paths, "detector": {"backend": "fake"}}), tmp_path / "run")[0].rows == 1


def test_load_objects_replaces_crowds_if_it_gets_a_detector(tmp_path):
    class Finds:
        name = "finds"

        def detect(self, requests):
            return [[Detection("cup", (5, 5, 25, 25), 0.75)] for _ in requests]

    boxes = [(0, 12 * k, 30, 11) for k in range(8)] + [(40, 40, 60, 60)]
    scene = Scene(tmp_path / "s", boxes, crowd=True)
    paths = {"path": scene.folder / "a.json", "images": scene.folder}
    (image,) = load_objects(AnnotationsConfig(**paths), detector=Finds())
    assert image.objects[-1].box == (45.0, 45.0, 65.0, 65.0)
    assert load_objects(AnnotationsConfig(**paths)) == []
    assert load_objects(AnnotationsConfig(**paths, crowds="drop"), detector=Finds()) == []
    with pytest.raises(ConfigError, match="needs a detector"):
        load_objects(AnnotationsConfig(**paths, crowds="detect"))


@pytest.mark.parametrize(("min_inside", "kept"), [(0.5, ["18#1"]), (0.2, ["18#1", "18#2"])])
def test_detections_outside_their_crowd_are_dropped(tmp_path, min_inside, kept):
    # The crowd is 40–100; the second detection lies in it with 10 of its 40 px.
    boxes = [(0, 12 * k, 30, 11) for k in range(8)] + [(40, 40, 60, 60)]

    def detector(queries):
        return [[Detection("cup", (60, 60, 90, 90), 0.75), Detection("cup", (50, 10, 60, 50), 0.5)] for _ in queries]

    ids, _, _ = Scene(tmp_path / "s", boxes, crowd=True).objects(detector, crowd_min_inside=min_inside)
    assert ids[8:] == kept


class Photo(Scene):
    """A photo that is stored lying, 200×100 px, and that viewers turn upright: 100×200 px."""

    def __init__(self, folder, boxes, size_wh, tag=6, **options):
        super().__init__(folder, boxes, **options)
        exif = Image.Exif()
        exif[0x0112] = tag
        Image.new("RGB", (200, 100)).save(folder / "1.png", exif=exif)
        coco = json.loads((folder / "a.json").read_text())
        coco["images"][0] |= {"width": size_wh[0], "height": size_wh[1]}
        (folder / "a.json").write_text(json.dumps(coco))

    def use(self, orientation, **settings):
        """The size, the boxes, the drops, the notes of the plan and those of the shard."""
        settings = self.settings(orientation=orientation, min_objects=1, **settings)
        plan = plan_objects(settings, 0, Progress("", stream=io.StringIO()))
        output = make_objects(plan.rows(0, len(plan.ids)), settings)
        rows = output.table.to_pylist()
        boxes = [[tuple(item["box"]) for item in row["objects"]] for row in rows]
        drops = [row for table in (plan.dropped, output.dropped) for row in table.to_pylist()]
        assert all(row["file_name"] == "1.png" for row in drops)
        dropped = [row["reason"] for row in drops]
        sizes = [(row["width"], row["height"]) for row in rows]
        return sizes, boxes, dropped, plan.counts.get(TURNED, 0), output.notes.get(TURNED, 0)


UPRIGHT = [(10, 150, 60, 40), (0, 0, 50, 50)]  # boxes as a viewer shows the photo: the first leaves the lying one
AS_SEEN = [[(10, 150, 70, 190), (0, 0, 50, 50)]]


def test_boxes_of_the_upright_photo_beside_the_stored_size_are_kept_with_apply_and_counted_otherwise(tmp_path):
    # Label Studio writes the stored size, with boxes drawn on what the browser shows.
    photo = Photo(tmp_path / "a", UPRIGHT, (200, 100))
    assert photo.use("apply") == ([(100, 200)], AS_SEEN, [], 0, 0)
    for orientation in ("auto", "ignore"):
        assert photo.use(orientation) == ([(200, 100)], [[(0, 0, 50, 50)]], ["box_outside_image"], 1, 0)
    # Without opening the images, nothing is known about how they are turned.
    assert photo.use("apply", check_images=False)[:2] == ([(200, 100)], [[(0, 0, 50, 50)]])


def test_boxes_of_the_stored_photo_leave_the_upright_one_and_are_counted(tmp_path):
    lying = [(150, 10, 40, 60), (80, 0, 50, 50)]
    photo = Photo(tmp_path / "a", lying, (200, 100), tag=8)
    # Clipped to 100 px; the first has nothing left, the second 20 × 50 px.
    dropped = ["box_outside_image"]
    assert photo.use("apply") == ([(100, 200)], [[(80, 0, 100, 50)]], dropped, 0, 1)
    *_, dropped, _, _ = photo.use("apply", min_area=1001)
    assert sorted(dropped) == ["area_under_minimum", "box_outside_image", "too_few_objects"]
    for orientation in ("auto", "ignore"):
        assert photo.use(orientation) == ([(200, 100)], [[(150, 10, 190, 70), (80, 0, 130, 50)]], [], 0, 0)


def test_the_upright_size_and_files_without_orientation_stay_as_annotated_with_apply(tmp_path):
    for orientation in ("apply", "auto"):
        photo = Photo(tmp_path / f"a-{orientation}", UPRIGHT, (100, 200))
        assert photo.use(orientation) == ([(100, 200)], AS_SEEN, [], 0, 0)
        # Tag 1: nothing is turned. Boxes are clipped, and a careless one of 1 px beside the image is not counted.
        plain = Photo(tmp_path / f"b-{orientation}", [(10, 50, 60, 51.5), (0, 0, 50, 50)], (200, 100), tag=1)
        assert plain.use(orientation) == ([(200, 100)], [[(10, 50, 70, 100), (0, 0, 50, 50)]], [], 0, 0)
        swapped = Photo(tmp_path / f"c-{orientation}", UPRIGHT, (200, 100), tag=1)
        assert sum(swapped.use(orientation)[3:]) == 1


def test_crowds_and_boxes_at_the_edge_of_an_upright_photo_are_clipped_to_it(tmp_path):
    photo = Photo(tmp_path / "a", [(10, 150, 100, 40), (0, 180, 50, 50)], (200, 100), crowd=True)
    asked = []
    settings = photo.settings(orientation="apply", min_objects=1, crowds="detect")
    plan = plan_objects(settings, 0, Progress("", stream=io.StringIO()))
    make_objects(plan.rows(0, 1), settings, lambda queries: asked.extend(queries) or [[] for _ in queries])
    assert [(query.size_wh, query.box) for query in asked] == [((100, 200), (0, 180, 50, 200))]


def test_images_under_another_spelling_of_their_name_are_used_and_counted_and_missing_ones_explained(tmp_path):
    scene = Scene(tmp_path / "s", [(0, 0, 20, 20)])
    (scene.folder / "1.png").rename(scene.folder / "1.PNG")
    settings = scene.settings(min_objects=1)
    plan = plan_objects(settings, 0, Progress("", stream=io.StringIO()))
    output = make_objects(plan.rows(0, 1), settings)
    assert (output.notes, output.examples) == ({RESPELLED: 1, HELD_OUT: 0}, {RESPELLED: "'1.PNG' for '1.png'"})
    assert output.table["file_name"].to_pylist() == ["1.png"]
    (scene.folder / "1.PNG").rename(scene.folder / "1.webp")
    output = make_objects(plan.rows(0, 1), settings)
    assert output.examples["image: image_missing"].startswith("Image '1.png': there is no such file")
    assert (
        "got: '1.webp', in other upper and lower case or with another suffix" in output.examples["image: image_missing"]
    )
