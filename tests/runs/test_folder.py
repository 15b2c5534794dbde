"""The run folder: its version, its lock and its config."""

import json
import re

import pytest
import yaml

from spr.config import TrainingPart, make_config
from spr.core.errors import InputError, RunError
from spr.core.images import ImageSource
from spr.evaluation.tasks.description import Description
from spr.exports.writing import export
from spr.pipeline.runner import run
from spr.report.page import write_report
from spr.report.show import show
from spr.runs.folder import check_run_version, lock_run, open_run
from spr.runs.store import StageStore
from spr.training.pairs import run_pairs


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(params=["config and manifests", "manifests only", "config only"])
def old_run(request, dataset, tmp_path):
    """A run folder as SPR 0.1 wrote it, in whole or in part, with leftovers of a killed process."""
    out = tmp_path / "run"
    run(make_config(dataset.config()), out)
    if request.param != "manifests only":
        config = yaml.safe_load((out / "config.yaml").read_text())
        del config["format_version"]
        (out / "config.yaml").write_text(yaml.safe_dump(config))
    if request.param != "config only":
        for path in out.glob("*/manifest.json"):
            raw = json.loads(path.read_text())
            for key in ("format_version", "inputs", "sections"):
                del raw[key]
            path.write_text(json.dumps({"format": 1, **raw}))
    (out / ".lock").unlink()
    (out / ".config.yaml.99.spr-tmp").write_text("half")
    (out / "objects" / "part-00077.parquet").write_text("unlisted")
    return out


@pytest.mark.parametrize(
    "use",
    [
        lambda out, raw: run(make_config(raw), out),
        lambda out, _: lock_run(out).__enter__(),
        lambda out, _: open_run(out, TrainingPart()).__enter__(),
        lambda out, _: write_report(out),
        lambda out, _: export(out, out.parent / "export", "llava"),
        lambda out, _: Description().load(out),
        lambda out, _: run_pairs(out, ImageSource(out)),
        lambda out, _: check_run_version(out),
    ],
    ids=["run", "lock", "open", "report", "export", "evaluate", "train", "check"],
)
def test_a_folder_of_version_0_1_is_refused_and_not_a_byte_of_it_changes(use, old_run, dataset):
    before = contents(old_run)
    with pytest.raises(RunError, match=r"made by SPR 0\.1[\s\S]*use SPR 0\.1"):
        use(old_run, dataset.config())
    assert contents(old_run) == before


def test_a_stage_of_version_0_1_is_refused(dataset, tmp_path):
    out = tmp_path / "run"
    run(make_config(dataset.config()), out, until="objects")
    path = out / "objects" / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format": 1'))
    for read in (lambda: list(show(out / "objects")), StageStore(out / "objects").finished):
        with pytest.raises(RunError, match=r"made by SPR 0\.1"):
            read()


def test_a_folder_of_a_later_version_is_refused_with_both_versions(tmp_path):
    (tmp_path / "config.yaml").write_text("format_version: 99\n")
    with pytest.raises(RunError, match=r"another version of SPR[\s\S]*99[\s\S]*2"):
        check_run_version(tmp_path)


def test_a_refused_piece_of_work_leaves_the_config_as_it_was(dataset, tmp_path):
    run(make_config(dataset.config()), tmp_path / "run")
    before = contents(tmp_path / "run")
    changed = make_config(dataset.config(training={"learning_rate": 0.5}))
    with pytest.raises(RunError, match="no"), open_run(tmp_path / "run", changed):  # noqa: PT012
        assert (tmp_path / "run" / "config.yaml").read_bytes() != before["config.yaml"]
        raise RunError("no")
    assert contents(tmp_path / "run") == before


def test_the_config_stays_when_the_work_fails_after_a_stage_has_begun_under_it(dataset, tmp_path):
    run(make_config(dataset.config()), tmp_path / "run", until="objects")
    changed = make_config(dataset.config(regions={"per_image": 2}))
    with pytest.raises(RunError, match="no space"), open_run(tmp_path / "run", changed):  # noqa: PT012
        regions = tmp_path / "run" / "regions"
        regions.mkdir()
        (regions / "manifest.json").write_bytes((tmp_path / "run" / "objects" / "manifest.json").read_bytes())
        raise RunError("no space")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["regions"]["per_image"] == 2


def test_errors_of_the_input_also_end_the_lock(dataset, tmp_path):
    config = make_config(dataset.config(annotations={"path": str(tmp_path / "nowhere.json")}))
    for _ in range(2):
        with pytest.raises(InputError, match="no file"), open_run(tmp_path / "run", config):
            pass


def test_pairs_from_elsewhere_are_not_trained_on_in_a_run_with_annotations(dataset, tmp_path):
    run(make_config(dataset.config()), tmp_path / "run", until="objects")
    before = contents(tmp_path / "run")
    with pytest.raises(RunError, match=r"its own annotations[\s\S]*--pairs"):
        open_run(tmp_path / "run", TrainingPart()).__enter__()
    assert contents(tmp_path / "run") == before


def test_the_stages_to_delete_are_named_in_order_with_all_that_read_them(dataset, tmp_path):
    fakes = {section: {"backend": "fake"} for section in ("describer", "scorer", "detector")}
    run(make_config(dataset.config(**fakes, annotations={"max_images": 3})), tmp_path / "run")
    changed = make_config(dataset.config(**fakes, annotations={"max_images": 3}, prompts={"crop": "What is here?"}))
    stale = " and ".join(str(tmp_path / "run" / name) for name in ("candidates", "scores", "pairs"))
    expected = rf"prompts\.crop: .* → What is here\?[\s\S]*delete {re.escape(stale)}"
    with pytest.raises(RunError, match=expected):
        run(changed, tmp_path / "run")


def test_stages_that_are_inputs_of_each_other_are_an_error_that_names_them(dataset, tmp_path):
    config = make_config(dataset.config(annotations={"max_images": 3}))
    run(config, tmp_path / "run", until="regions")
    manifest = tmp_path / "run" / "objects" / "manifest.json"
    text = manifest.read_text()
    assert '"inputs": []' in text
    manifest.write_text(text.replace('"inputs": []', '"inputs": ["regions"]'))
    with pytest.raises(RunError, match=r"inputs of each other[\s\S]*objects[\s\S]*regions"):
        run(config, tmp_path / "run", until="regions")
