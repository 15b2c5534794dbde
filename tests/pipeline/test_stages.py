"""Stages of other packages: run, resumed, shown and reported without further edits."""

import dataclasses
import json
import pickle
import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pytest

import warm_python
from run_folders import FAKES
from spr.config import make_config
from spr.core.errors import ConfigError, SprError
from spr.pipeline.runner import run
from spr.pipeline.stage import STAGES, Stage, due_stages, ordered_stages
from spr.report.funnel import count_stages
from spr.report.show import show
from spr.runs.reader import Run
from spr.runs.store import StageOutput, StageStore, dropped_table, read_table

BUILTIN = ["objects", "regions", "candidates", "scores", "pairs", "negatives"]
SCHEMA = pa.schema([pa.field("query_id", pa.string(), nullable=False), pa.field("area", pa.float32(), nullable=False)])


def measure(tables, _):
    """The area of each region; tall regions are dropped."""
    rows, drops = [], []
    for row in tables["regions"].to_pylist():
        x1, y1, x2, y2 = row["region"]
        if y2 - y1 > x2 - x1:
            drops.append((row["query_id"], "tall"))
        else:
            rows.append({"query_id": row["query_id"], "area": (x2 - x1) * (y2 - y1)})
    return StageOutput(pa.Table.from_pylist(rows, SCHEMA), dropped_table("areas", "query", drops))


AREAS = Stage(
    "areas",
    version=1,
    unit="areas",
    kind="query",
    schema=SCHEMA,
    process=measure,
    reasons={"tall": "the region is higher than wide"},
    inputs=("regions",),
)


@pytest.fixture
def areas():
    STAGES.register("areas", AREAS)
    yield
    STAGES.unregister("areas")


def names(stages):
    return [stage.name for stage in stages]


def test_the_built_in_stages_come_in_the_order_of_the_data():
    assert names(ordered_stages()) == BUILTIN
    assert [STAGES[name].name for name in STAGES] == BUILTIN


@pytest.mark.usefixtures("areas")
def test_a_stage_comes_after_the_last_of_its_inputs():
    assert names(ordered_stages()) == ["objects", "regions", "areas", "candidates", "scores", "pairs", "negatives"]


def test_stages_are_ordered_by_their_inputs_for_any_order_of_registration():
    added = {"z": ("pairs",), "b": ("a", "objects"), "a": ("regions",), "c": ("regions",)}
    for name, inputs in added.items():
        STAGES.register(name, replace(AREAS, name=name, inputs=inputs))
    try:
        first = ["objects", "regions", "a", "b", "c"]
        assert names(ordered_stages()) == [*first, "candidates", "scores", "pairs", "z", "negatives"]
    finally:
        for name in added:
            STAGES.unregister(name)


@pytest.mark.parametrize("inputs", [("nowhere",), ("areas",)])
def test_missing_and_circular_inputs_are_named(inputs):
    STAGES.register("areas", replace(AREAS, inputs=inputs))
    try:
        with pytest.raises(ConfigError, match=f"areas reads {inputs[0]}"):
            ordered_stages()
    finally:
        STAGES.unregister("areas")


@pytest.mark.usefixtures("areas")
def test_without_a_describer_all_stages_that_need_none_run(dataset):
    STAGES.register("lengths", replace(AREAS, name="lengths", inputs=("pairs",)))
    try:
        plain, described = make_config(dataset.config()), make_config(dataset.config(**FAKES))
        assert names(due_stages(plain)) == ["objects", "regions", "areas"]
        assert names(due_stages(described))[-1] == "lengths"
        assert names(due_stages(plain, "regions")) == ["objects", "regions"]
        with pytest.raises(ConfigError, match="did you mean `regions`"):
            due_stages(plain, "region")
    finally:
        STAGES.unregister("lengths")


@pytest.mark.usefixtures("areas")
def test_an_added_stage_is_run_resumed_shown_counted_and_its_drops_are_merged(dataset, tmp_path):
    raw, out = dataset.config(**FAKES, shard_rows=7, annotations={"max_images": 20}), tmp_path / "run"
    config = make_config(raw)
    summaries = {summary.name: summary for summary in run(config, out)}
    areas = summaries["areas"]
    assert areas.rows + areas.dropped["query: tall"] == summaries["regions"].rows
    assert areas.dropped["query: tall"] > 0
    assert len(StageStore(out / "areas").finished().shards) == len(StageStore(out / "regions").finished().shards)
    dropped = read_table(out / "dropped.parquet").to_pylist()
    assert sum(row["stage"] == "areas" for row in dropped) == areas.dropped["query: tall"]
    files = {str(entry["id"]): entry["file_name"] for entry in dataset.coco["images"]}
    assert all(row["file_name"] == files[row["id"].partition("/")[0]] for row in dropped if row["kind"] != "object")
    text = "\n".join(show(out))
    assert f"areas: {areas.rows} rows" in text
    counted = {count.name: count for count in count_stages(Run(out))}["areas"]
    assert (counted.rows, counted.lost) == (areas.rows, areas.dropped["query: tall"])
    (drop,) = counted.drops
    assert drop.explanation == "the region is higher than wide"
    assert drop.files == [files[id_.partition("/")[0]] for id_ in drop.ids]
    assert all(summary.done_before for summary in run(config, out))
    with pytest.raises(SprError, match=r"delete \S+/regions and \S+/areas and \S+/candidates"):
        run(make_config({**raw, "regions": {"per_image": 2}}), out)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"schema": pa.schema([("query_id", pa.string())])}, "another schema"), ({"reasons": {}}, "undeclared reason")],
)
def test_a_stage_that_breaks_its_own_declaration_is_named(change, message, dataset, tmp_path):
    STAGES.register("areas", replace(AREAS, **change))
    try:
        with pytest.raises(SprError, match=rf"Stage `areas`[\s\S]*{message}"):
            run(make_config(dataset.config()), tmp_path / "run")
    finally:
        STAGES.unregister("areas")


@pytest.mark.parametrize("name", BUILTIN)
def test_a_stage_is_pickled_without_loss(name):
    sent = pickle.loads(pickle.dumps(STAGES[name]))  # noqa: S301
    for field in dataclasses.fields(Stage):
        assert getattr(sent, field.name) == getattr(STAGES[name], field.name)
    assert str(sent.schema) == str(STAGES[name].schema)


@pytest.mark.parametrize(
    ("stage", "section", "field"), [("candidates", "describer", "seed"), ("objects", "annotations", "skip_images")]
)
def test_a_later_field_that_is_null_is_no_part_of_the_settings_so_that_older_runs_resume(
    dataset, stage, section, field
):
    raw = dataset.config(**FAKES)
    before = STAGES[stage].settings(make_config(raw))[section]
    after = STAGES[stage].settings(make_config({**raw, section: {**raw[section], field: 3}}))[section]
    assert field not in before
    assert after == {**before, field: 3}


PACKAGE = """
import pyarrow as pa
from spr.pipeline.stage import Stage
from spr.runs.reader import Run
from spr.runs.store import StageOutput, dropped_table

SCHEMA = pa.schema([pa.field("query_id", pa.string())])


def process(tables, config):
    return StageOutput(tables["regions"].select(["query_id"]).cast(SCHEMA), dropped_table("ids", "query", []))


STAGE = Stage("ids", version=1, unit="ids", kind="query", schema=SCHEMA, process=process, inputs=("regions",))
"""


@pytest.mark.processes
def test_a_stage_of_an_installed_package_runs_from_the_command_line_in_worker_processes(dataset, tmp_path, monkeypatch):
    (tmp_path / "my_stage.py").write_text(PACKAGE)
    info = tmp_path / "my_stage-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-stage\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[spr.stages]\nids = my_stage:STAGE\n")
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(dataset.config(shard_rows=9)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    command = [sys.executable, "-m", "spr", "run", str(path), "--out", str(tmp_path / "run"), "--workers", "2"]
    output = subprocess.run([*command, "--until", "ids"], capture_output=True, text=True, check=True).stdout
    assert "ids: " in output
    assert f"spr show {tmp_path / 'run' / 'ids'}" in output
    shown = subprocess.run(
        [*warm_python.start(), "-m", "spr", "show", tmp_path / "run"], capture_output=True, text=True
    )
    assert "  ids: " in shown.stdout
