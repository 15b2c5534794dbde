"""Tiny random models of the real classes, loaded from disk by the config, run all stages on the CPU."""

import json
from itertools import cycle

import pytest
from PIL import Image

from spr.config import make_config
from spr.core.errors import InputError
from spr.models.families import FAMILIES
from spr.pipeline.runner import run
from spr.runs.store import StageStore, read_table

DETECTORS = ("grounding_dino", "mm_grounding_dino", "owlv2", "owlvit")


@pytest.mark.parametrize(("family", "detector"), list(zip(FAMILIES, cycle(DETECTORS), strict=False)))
def test_a_run_goes_from_annotations_to_pairs(
    family, detector, request, mllm_folder, clip_folder, make_dataset, tmp_path
):
    data = make_dataset(tmp_path / "data", images=3)
    task = "<DENSE_REGION_CAPTION>" if FAMILIES[family].prompt_pattern else None
    config = make_config(
        data.config(
            prompts={"crop": task} if task else {},
            describer={
                "model": str(mllm_folder(family)),
                "samples": {"full": 1, "crop": 1, "crop_objects": 1}
                if task is None
                else {"full": 0, "crop": 2, "crop_objects": 0},
                "max_new_tokens": 6,
                "truncated": "keep",
                "batch_size": 4,
            },
            scorer={"model": str(clip_folder)},
            detector={
                "backend": "owlv2" if detector.startswith("owl") else "grounding_dino",
                "model": str(request.getfixturevalue(f"{detector}_folder")),
                "box_threshold": 0.0,
            },
            pairing={"unmatched": "remove_box"},
        )
    )
    run(config, tmp_path / "run", until="scores")
    candidates = [row for table in StageStore(tmp_path / "run" / "candidates").tables() for row in table.to_pylist()]
    scores = [row for table in StageStore(tmp_path / "run" / "scores").tables() for row in table.to_pylist()]
    assert candidates
    assert [row["candidate_id"] for row in scores] == [row["candidate_id"] for row in candidates]
    assert {row["dialect"].partition(":")[0] for row in candidates} == {FAMILIES[family].dialect}
    assert all(row["model"].partition("@")[2] for row in candidates)
    if family == "kosmos-2":  # whose vocabulary here is mostly cells
        return
    # Untrained models write no boxes: every query is dropped for that reason.
    with pytest.raises(InputError, match=r"`pairs` has no pairs[\s\S]*query: (chosen_without_box|fewer_than_two)"):
        run(config, tmp_path / "run")


def test_a_run_handles_a_one_pixel_image_and_a_strip_that_the_family_refuses(
    mllm_folder, clip_folder, grounding_dino_folder, tmp_path
):
    coco = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cup"}]}
    for number, (width, height) in enumerate([(1, 1), (600, 2), (30, 40)]):
        Image.new("RGB", (width, height), (200, 30, 30)).save(tmp_path / f"{number}.png")
        coco["images"].append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        box = [0, 0, width, height]
        coco["annotations"].append({"id": number, "image_id": number, "category_id": 1, "bbox": box, "iscrowd": 0})
    (tmp_path / "a.json").write_text(json.dumps(coco))
    config = make_config(
        {
            "annotations": {"path": str(tmp_path / "a.json"), "images": str(tmp_path), "min_area": 0, "min_objects": 1},
            "regions": {"min_inside": 1, "min_aspect": 0.0},
            "describer": {
                "model": str(mllm_folder("qwen2_5_vl")),
                "max_new_tokens": 8,
                "truncated": "keep",
                "attn_implementation": "eager",
            },
            "scorer": {"model": str(clip_folder)},
            "detector": {"model": str(grounding_dino_folder), "box_threshold": 0.0},
        }
    )
    run(config, tmp_path / "run", until="scores")
    scores = [row for table in StageStore(tmp_path / "run" / "scores").tables() for row in table.to_pylist()]
    assert {row["query_id"] for row in scores} == {"0/0", "2/0"}
    dropped = read_table(tmp_path / "run" / "dropped.parquet").to_pylist()
    refused = [row["reason"] for row in dropped if row["id"].startswith("1/0")]
    assert refused == ["empty_answer"] * 6  # an aspect ratio of 300; Qwen's processor accepts up to 200
