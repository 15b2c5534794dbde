"""Damaged files of a run folder: success or one clear error, whatever the damage (`run_folder_fuzz`)."""

import pytest

from run_folder_fuzz import fuzz, make_folder
from run_folders import FAKES
from spr.config import make_config


@pytest.mark.parametrize("count", [50, pytest.param(500, marks=pytest.mark.slow)])
def test_any_damage_to_any_file_ends_in_success_or_one_clear_error(count, make_dataset, tmp_path):
    data = make_dataset(tmp_path / "data", images=6)
    sections = {"annotations": {"max_images": 4}, "shard_rows": 2, "scoring": {"ground_truth": "annotations"}}
    config = make_config(data.config(**FAKES, **sections))
    failures = fuzz(make_folder(tmp_path, config), config, count, seed=14)
    assert not failures, "\n".join(failures[:3])
