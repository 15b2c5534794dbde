"""The command line as users see it: its output, its errors, and what it does not change."""

import json
import os
import re
import subprocess
import sys
import warnings

import pytest
import yaml
from PIL import Image

import warm_python
from spr.cli import _was_interrupted, keep_logs_clean, main
from spr.core.progress import _Screen


def spr(*arguments, stdin=b"", expect=0, python=None):
    command = [*(python or warm_python.start()), "-m", "spr", *map(str, arguments)]
    result = subprocess.run(command, input=stdin, capture_output=True, check=False)
    output, errors = result.stdout.decode(), result.stderr.decode()
    assert "Traceback" not in errors, errors
    assert result.returncode == expect, (result.returncode, output, errors)
    return output, errors


@pytest.fixture
def config(dataset):
    path = dataset.folder / "config.yaml"
    path.write_text(yaml.safe_dump(dataset.config()))
    return path


def test_run_show_and_draw(config, tmp_path):
    run = tmp_path / "run"
    output, _ = spr("run", config, "--out", run, "annotations.max_images=10", "--until", "regions")
    assert "objects: 10 images" in output
    assert f"spr show {run / 'regions'}" in output
    output, _ = spr("show", run)
    assert "objects: 10 rows, shards: 1" in output
    assert "not_sampled" in output
    output, _ = spr("show", run / "regions", "-n", 2, "--skip", 1)
    assert output.count("── row") == 2
    assert "── row 1" in output
    assert "query_id: " in output
    output, _ = spr("show", run / "dropped.parquet", "-n", 1)
    assert "reason: " in output
    spr("show", run / "regions", "-n", 5, "--draw", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 4 * (420 + 6)  # the fifth region is in a second line


def test_a_run_that_drops_most_of_its_objects_says_so_in_its_last_lines(make_dataset, tmp_path):
    dataset = make_dataset(tmp_path / "data", images=3, objects=24)
    dataset.coco["annotations"] = [
        {**entry, "image_id": entry["image_id"] if entry["id"] % 100 < 11 else 5}
        for entry in dataset.coco["annotations"]
    ]
    dataset.write()
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(dataset.config(annotations={"min_area": 0})))
    for _ in range(2):
        output, _ = spr("run", path, "--out", tmp_path / "run", "--until", "regions")
        *_, note, blank, show = output.rstrip().splitlines()
        expected = "Note: objects: 39 of 72 objects were dropped as object_image_unknown (image_id is missing or does"
        assert note == f"{expected} not match any image)."
        assert (blank, show[:15]) == ("", "To see the rows")


def test_a_second_run_says_that_it_was_done_before(config, tmp_path):
    spr("run", config, "--out", tmp_path / "run")
    output, _ = spr("run", config, "--out", tmp_path / "run")
    assert output.count("done before") == 2


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["run", "nowhere.yaml", "--out", "x"], "There is no config nowhere.yaml", 2),
        (["run", "quickstart", "--out", "x", "regions.per_imag=2"], "did you mean `regions.per_image`", 2),
        (["run", "quickstart", "--out", "x", "annotations.path=gone.json"], "There is no file", 1),
        (["run", "quickstart", "--out", "x", "--until", "region"], "did you mean `regions`", 2),
        (["run", "quickstart"], "Missing option '--out'", 2),
        (["show", "nowhere"], "nothing there", 1),
        (["show", "."], "a folder without a manifest", 1),
        (["text", "--from", "feret", "--to", "llava", "--size", "4x4"], "did you mean `ferret`", 1),
        (["text", "--from", "ferret", "--to", "llava", "--size", "4by4"], "WIDTHxHEIGHT", 2),
        (["text", "--from", "ferret", "--to", "llava", "--size", "0x4"], "WIDTHxHEIGHT", 2),
        (["text", "--from", "ferret:padded=true", "--to", "llava", "--size", "4x4"], "no option `padded`", 1),
        (["text", "--from", "ferret", "--to", "llava:colour=red", "--size", "4x4"], "no option `colour`", 1),
        (["frobnicate"], "No such command", 2),
    ],
)
def test_mistakes_get_one_clear_message(arguments, message, code, tmp_path):
    arguments = [str(tmp_path / a) if a == "x" else a for a in arguments]
    _, errors = spr(*arguments, expect=code)
    assert message in errors


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b'{"images": [', "ends"),
        (b"<html>", "an HTML or XML page"),
        (b"[]", "object"),
        (b"\x80\x04\x95", "is not a JSON object"),
        (b'{"images": [], "annotations": [], "categories": []}', "no images"),
    ],
)
def test_annotations_that_are_none_are_named(dataset, config, tmp_path, content, message):
    dataset.json.write_bytes(content)
    _, errors = spr("run", config, "--out", tmp_path / "run", expect=1)
    assert "instances.json" in errors
    assert message in errors


def test_a_run_folder_of_another_config_names_the_field(config, tmp_path):
    spr("run", config, "--out", tmp_path / "run")
    _, errors = spr("run", config, "--out", tmp_path / "run", "regions.min_inside=4", expect=1)
    assert "regions.min_inside: 5 → 4" in errors


def test_a_stage_that_is_not_there_says_which_command_makes_it(config, tmp_path):
    spr("run", config, "--out", tmp_path / "run", "--until", "objects")
    _, errors = spr("show", tmp_path / "run" / "regions", expect=1)
    assert "does not hold a finished stage" in errors
    assert f"--out {tmp_path / 'run'} --until regions" in errors


def test_drawing_needs_images_and_a_file_to_write(config, dataset, tmp_path):
    spr("run", config, "--out", tmp_path / "run")
    _, errors = spr("show", tmp_path / "run" / "regions", "--draw", config, expect=1)
    assert "is not a drawing of `spr show --draw`, so it is left unchanged" in errors
    _, errors = spr("show", tmp_path / "run" / "dropped.parquet", "--draw", tmp_path / "sheet.png", expect=1)
    assert "can't be drawn" in errors
    for image in dataset.images.iterdir():
        image.unlink()
    spr("show", tmp_path / "run" / "objects", "-n", 1, "--draw", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert (60, 60, 60) in {sheet.getpixel((x, 200)) for x in range(0, 420, 20)}


def test_text_converts_line_by_line_and_reports_problems_with_line_and_offset():
    lines = b"a dog [0, 0, 500, 500] and a cat\nno box\na bird [1, 2, 3]\n"
    output, errors = spr("text", "--from", "ferret", "--to", "shikra", "--size", "100x100", stdin=lines)
    assert output.splitlines() == ["a dog [0.000,0.000,0.500,0.500] and a cat", "no box", "a bird"]
    assert errors.startswith("line 3, offset")
    assert "'1, 2, 3'" in errors


def test_text_in_strict_mode_stops_and_names_the_line():
    lines = b"fine [0, 0, 500, 500]\na bird [1, 2, 3]\n"
    output, errors = spr(
        "text", "--from", "ferret", "--to", "llava", "--size", "9x9", "--strict", stdin=lines, expect=1
    )
    assert output.splitlines() == ["fine [0.00, 0.00, 0.50, 0.50]"]
    assert "line:     2" in errors


def test_text_takes_bytes_that_are_no_utf8_and_options_of_dialects():
    options = ("--from", "ferret", "--to", "llava_onevision:padded=true", "--size", "100x50")
    output, _ = spr("text", *options, stdin=b"a \xff dog [0, 0, 500, 500]\n")
    # 50 px high, padded by 25 px above and below to 100: y of 0 and 25 px becomes 0.25 and 0.50.
    assert output == "a \N{REPLACEMENT CHARACTER} dog [0.00, 0.25, 0.50, 0.50]\n"


def test_a_reader_that_leaves_early_is_no_error():
    lines = b"a dog [0, 0, 500, 500]\n" * 50_000
    command = f"{sys.executable} -m spr text --from ferret --to llava --size 9x9 | head -n 1"
    result = subprocess.run(["bash", "-c", command], input=lines, capture_output=True, check=True)
    assert result.stdout == b"a dog [0.00, 0.00, 0.50, 0.50]\n"
    assert result.stderr == b""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seed=18446744073709551616"], "below 2⁶³"),
        (["annotations.images=~nosuchuser/x"], "annotations.images"),
        (["annotations.max_pixels=900000000"], "at most 178956970"),
        (['annotations.path="a\\0b"'], "can't be read"),
        (["annotations.path=/dev/zero"], "is not a file"),
        (["describer.backend=hf"], "describer.model is missing"),
        (["describer.backend=fake", "describer.tempreature=1"], "did you mean `describer.temperature`"),
    ],
)
def test_odd_values_get_one_clear_message(arguments, message, config, tmp_path):
    result = subprocess.run(
        [*warm_python.start(), "-m", "spr", "run", str(config), "--out", str(tmp_path / "run"), *arguments],
        capture_output=True,
        text=True,
    )
    assert result.returncode in (1, 2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        "run LONG --out out",
        "run quickstart --out LONG",
        "run quickstart --out out annotations.path=LONG",
        "train LONG --out out",
        "train quickstart --out out --pairs LONG",
        "compare LONG LONG",
        "show LONG",
        "export LONG --format trl --out out",
        "report LONG",
        "merge LONG --out out",
        "lvis-questions --annotations LONG --out out",
        "evaluate rec --annotations LONG --predictions LONG --dialect ferret --out out",
        "evaluate pope --annotations LONG --predictions LONG --out LONG",
        "scenes --out LONG",
        "quickstart --out LONG",
        "convert ferret --checkpoint LONG --out out",
    ],
)
def test_names_that_no_file_can_have_get_one_clear_message(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["spr", *arguments.replace("LONG", "x" * 5000).split()])
    with pytest.raises(SystemExit) as done:
        main()
    errors = capsys.readouterr().err
    assert done.value.code in (1, 2)
    assert len(re.findall("^spr: ", errors, re.MULTILINE)) == 1, errors
    assert {path.name for path in tmp_path.iterdir()} <= {"out"}


def test_an_override_that_is_not_text_is_refused(tmp_path):
    override = b"\xff=3".decode(errors="surrogateescape")
    _, errors = spr("run", "quickstart", "--out", tmp_path / "run", override, expect=2)
    assert "An override is not UTF-8" in errors


def test_show_gives_no_dangerous_advice(config, tmp_path):
    spr("run", config, "--out", tmp_path / "run", "--until", "objects")
    for name in ("config.yaml", "log.jsonl"):
        _, errors = spr("show", tmp_path / "run" / name, expect=1)
        assert "can't be shown" in errors
        assert "delete" not in errors
    for options in ((), ("--draw", tmp_path / "drawing.png")):
        _, errors = spr("show", tmp_path / "run" / "object", *options, expect=1)
        assert "has no stage or file `object`" in errors
        assert "stages with rows: objects\n" in errors
        assert "did you mean `objects`?" in errors


def test_text_without_standard_input_or_with_a_poor_terminal_is_no_crash():
    command = f"{sys.executable} -m spr text --from ferret --to llava --size 9x9 <&-"
    assert subprocess.run(["bash", "-c", command], capture_output=True, check=True).stderr == b""
    line = "一只狗 [0, 0, 500, 500]\n".encode()
    result = subprocess.run(
        [sys.executable, "-m", "spr", "text", "--from", "ferret", "--to", "llava", "--size", "9x9"],
        input=line,
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    assert result.stdout == b"??? [0.00, 0.00, 0.50, 0.50]\n"


def test_the_whole_pipeline_runs_without_weights_and_tells_lengths(config, tmp_path):
    fakes = [f"{section}.backend=fake" for section in ("describer", "scorer", "detector")]
    output, _ = spr("run", config, "--out", tmp_path / "run", *fakes)
    assert "pairs: " in output
    assert "phrases with boxes" in output
    assert "S_loc, own boxes" in output
    assert "neighbours in order" in output
    spr("show", tmp_path / "run" / "pairs", "-n", 2, "--draw", tmp_path / "pairs.png")
    with Image.open(tmp_path / "pairs.png") as sheet:
        assert sheet.width == 2 * (420 + 6)


def test_an_embedded_model_that_does_not_exist_names_those_that_do(config, tmp_path):
    arguments = ["describer.model=embedded/clip", "describer.backend=hf", "detector.backend=none"]
    _, errors = spr("run", config, "--out", tmp_path / "run", *arguments, expect=2)
    assert "There is no such embedded model" in errors
    assert "embedded/describer, embedded/scorer or embedded/detector" in errors


def test_a_stage_that_needs_a_describer_says_so(config, tmp_path):
    _, errors = spr("run", config, "--out", tmp_path / "run", "--until", "pairs", expect=2)
    assert "needs a describer" in errors
    assert "describer.backend=fake" in errors


def test_doctor_tells_versions_devices_configs_and_dialects():
    output, _ = spr("doctor")
    for word in ("torch", "CPU cores", "quickstart", "florence2"):
        assert word in output


@pytest.mark.slow
def test_quickstart_goes_from_scenes_to_figures_and_report_and_gives_the_same_table_twice(tmp_path):
    out = tmp_path / "q #1: x"
    small = ("quickstart", "--scenes", 10, "--held-out", 10)
    # In a process that was started in the usual way, and then in one with other hash seeds.
    output, _ = spr(*small, "--out", out, python=[sys.executable])
    assert "regions: 10 regions" in output
    assert "training: 3 steps on 10 pairs" in output
    assert (out / "run" / "report" / "index.html").is_file()
    metrics = json.loads((out / "run" / "metrics.json").read_text())
    assert metrics["before"]["rec"]["metrics"]["acc@0.5"]["value"] > 0.7
    assert metrics["after"]["description"]["metrics"]["s_loc"]["value"] > 0.4
    again, _ = spr(*small, "--out", out)
    assert again.count("done before") == 5
    assert table_of(again) == table_of(output)
    elsewhere, _ = spr(*small, "--out", tmp_path / "other")
    assert table_of(elsewhere) == table_of(output)


def table_of(output: str) -> list[str]:
    lines = output.splitlines()
    rows = [line for line in lines if line.strip().startswith(("acc@", "s_loc", "recall@"))]
    assert len(rows) == 9
    return rows


def test_scenes_into_a_place_that_can_not_be_written_get_one_clear_message(tmp_path):
    (tmp_path / "file").write_text("x")
    _, errors = spr("scenes", "--out", tmp_path / "file", "--n", 1, expect=1)
    assert "is not a folder with 1 scene of seed 0, so it is left unchanged" in errors
    spr("scenes", "--out", tmp_path / "scenes", "-n", 2)
    names = sorted(p.name for p in (tmp_path / "scenes").iterdir())
    assert names == ["expressions.json", "images", "instances.json"]


def without(package, *arguments):
    """Run `spr` in a process in which a package can't be imported; returns the exit status and the errors."""
    code = f"""
import sys
import warnings
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from spr.cli import keep_logs_clean, main
from spr.core.progress import _Screen
main()
"""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr, result.stderr
    return result.returncode, result.stderr


def test_a_command_that_lacks_a_package_says_which_extra_to_install(config, tmp_path):
    code, errors = without("torch", "merge", tmp_path / "run", "--out", tmp_path / "merged")
    assert (code, "`spr merge` needs the package torch" in errors) == (1, True)
    assert "pip install 'spatial-preference-rewarding[models]'" in errors
    hf = ["describer.backend=hf", "describer.model=embedded/describer", "detector.backend=none"]
    code, errors = without("transformers", "run", config, "--out", tmp_path / "a", *hf)
    assert (code, "The describer backend `hf` needs the package transformers" in errors) == (1, True)
    server = [
        "describer.backend=openai",
        "describer.model=m",
        "describer.dialect=llava",
        "describer.base_url=http://x/v1",
        "detector.backend=none",
    ]
    code, errors = without("httpx", "run", config, "--out", tmp_path / "b", *server)
    assert (code, "pip install 'spatial-preference-rewarding[openai]'" in errors) == (1, True)


def test_the_pipeline_with_fake_models_runs_without_torch(config, tmp_path):
    fakes = [f"{section}.backend=fake" for section in ("describer", "scorer", "detector")]
    code, errors = without("torch", "run", config, "--out", tmp_path / "run", "annotations.max_images=3", *fakes)
    assert code == 0, errors


def test_other_libraries_are_kept_quiet_but_not_if_the_user_asks_for_them(monkeypatch):
    names = ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATASETS_VERBOSITY", "info")
    keep_logs_clean()
    assert [os.environ[name] for name in (*names, "DATASETS_VERBOSITY")] == ["error", "1", "1", "info"]
    monkeypatch.setattr(sys, "stderr", None)  # a process that was started without one
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        keep_logs_clean()
        for module in ("transformers.modeling_utils", "peft", "mine"):
            warnings.warn_explicit("a hint", UserWarning, f"{module}.py", 1, module=module)
    assert [warning.filename for warning in caught] == ["mine.py"]


def test_long_commands_show_that_they_work_from_the_start_and_others_print_nothing_more(monkeypatch):
    opened = []
    monkeypatch.setattr(_Screen, "add", lambda _, progress: opened.append(progress.label))
    monkeypatch.setattr(_Screen, "remove", lambda *_: None)
    for arguments in (["run", "--help"], ["--version"], ["text", "--help"], ["evaluate", "--help"]):
        monkeypatch.setattr(sys, "argv", ["spr", *arguments])
        with pytest.raises(SystemExit):
            main()
    assert opened == ["spr run", "spr evaluate"]


def test_an_error_that_a_library_raises_because_of_ctrl_c_ends_with_130_without_a_traceback(monkeypatch, capsys):
    def interrupted():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ValueError("Error calling function `ser_path`") from error

    monkeypatch.setattr("spr.cli.app", interrupted)
    monkeypatch.setattr(sys, "argv", ["spr", "doctor"])
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code, capsys.readouterr().err) == (130, "\nInterrupted.\n")
    assert not _was_interrupted(ValueError("of another cause"))
