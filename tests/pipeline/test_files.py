"""The number of files of a run is known in advance."""

from run_folders import FAKES
from spr.config import make_config
from spr.pipeline.runner import run
from spr.pipeline.stage import STAGES

OTHERS = {
    *(".lock", "run.json", "config.yaml", "inputs.json", "log.jsonl", "images.parquet", "dropped.parquet"),
    "objects/dropped-source.parquet",
}


def test_a_run_has_two_files_per_shard_a_manifest_per_stage_and_a_fixed_number_of_others(dataset, tmp_path):
    config = make_config(dataset.config(shard_rows=16, annotations={"max_images": None}, **FAKES))
    run(config, tmp_path / "run")
    shards = [
        f"{stage}/{kind}-{k:05d}.parquet"
        for stage in STAGES
        if stage != "negatives"
        for kind in ("part", "dropped")
        for k in range(3)
    ]
    expected = {*shards, *(f"{stage}/manifest.json" for stage in STAGES if stage != "negatives"), *OTHERS}
    found = [str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert sorted(found) == sorted(expected)
    run(config, tmp_path / "run")
    assert sum(path.is_file() for path in (tmp_path / "run").rglob("*")) == len(expected)
