"""Tiny random models of the real classes, loaded from disk by the config, run all stages on the CPU."""

import itertools

import pytest

from spr.config import make_config
from spr.errors import InputError
from spr.models.families import FAMILIES
from spr.pipeline.runner import run
from spr.store import StageStore

DETECTORS = ("grounding_dino", "mm_grounding_dino", "owlv2", "owlvit")


@pytest.mark.parametrize(("family", "detector"), list(zip(FAMILIES, itertools.cycle(DETECTORS), strict=False)))
def test_a_run_goes_from_annotations_to_pairs(
    family, detector, request, mllm_folder, clip_folder, make_dataset, tmp_path
):
    data = make_dataset(tmp_path / "data", images=3)
    config = make_config(
        data.config(
            describer={
                "model": str(mllm_folder(family)),
                "samples": {"full": 1, "crop": 1, "crop_objects": 1},
                "max_new_tokens": 6,
                "batch_size": 4,
            },
            scorer={"model": str(clip_folder)},
            detector={
                "adapter": "owlv2" if detector.startswith("owl") else "grounding_dino",
                "model": str(request.getfixturevalue(f"{detector}_folder")),
                "box_threshold": 0.0,
            },
        )
    )
    run(config, tmp_path / "run", until="scores")
    candidates = [row for table in StageStore(tmp_path / "run" / "candidates").tables() for row in table.to_pylist()]
    scores = [row for table in StageStore(tmp_path / "run" / "scores").tables() for row in table.to_pylist()]
    assert candidates
    assert [row["candidate_id"] for row in scores] == [row["candidate_id"] for row in candidates]
    assert {row["dialect"].partition(":")[0] for row in candidates} == {FAMILIES[family].dialect}
    assert all(row["model"].partition("@")[2] for row in candidates)
    # Models that never learned anything write no boxes: every query is dropped, with that reason.
    with pytest.raises(InputError, match=r"`pairs` leaves no pairs[\s\S]*query: (chosen_without_box|fewer_than_two)"):
        run(config, tmp_path / "run")
