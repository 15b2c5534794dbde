"""Each how-to guide "Add a …" is complete: its example is installed as a package, and its commands are run.

All examples together are the scratch package of the guides. It is a folder on the path with the metadata that
`pip install` would write, so every command finds it as it would find an installed package.
"""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
import transformers as hf
from PIL import Image

import warm_python
from tiny_mllms import TEXT, VISION, save, tokenizer

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs" / "how-to").glob("add-a*.md"))
WEIGHTS = ROOT / "src" / "spr" / "embedded" / "weights"
KINDS = {
    "spr.dialects": "corners",
    "spr.families": "llava_next my_llava",
    "spr.stages": "words",
    "spr.tasks": "counting",
    "spr.exports": "mine",
    "spr.rewards": "centred",
    "spr.detectors": "middle",
    "spr.scorers": "brightness",
    "spr.losses": "hinge",
}


def blocks(guide, language):
    """Code blocks of a guide as (title, code)."""
    pattern = rf'^```{language}(?: title="([^"]*)")?\n(.*?)^```'
    return re.findall(pattern, guide.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def entry_points():
    """The entry points of all guides: group → name → object."""
    found = {}
    for guide in GUIDES:
        for _, code in blocks(guide, "toml"):
            for group, entries in tomllib.loads(code)["project"]["entry-points"].items():
                found.setdefault(group, {}).update(entries)
    return found


class Workspace:
    """A folder with a dataset, a config, a finished run and the scratch package, in which commands can be run."""

    def __init__(self, folder, dataset):
        self.folder = folder
        site = folder / "site"
        (site / "scratch").mkdir(parents=True)
        (site / "scratch" / "__init__.py").write_text("")
        for guide in GUIDES:
            for title, code in blocks(guide, "python"):
                path = site / title if title.startswith("scratch/") else folder / title
                path.write_text(code, encoding="utf-8")
        info = site / "scratch-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scratch\nVersion: 0.1\n")
        lines = []
        for group, entries in entry_points().items():
            lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        (folder / "mine.yaml").write_text(
            f"annotations: {{path: {dataset.json}, images: {dataset.images}, max_images: 6}}\n"
            "regions: {per_image: 1}\n"
            "describer: {backend: fake, model: embedded/describer}\n"
            "scorer: {backend: fake}\ndetector: {backend: none}\n"
        )
        path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {
            **os.environ,
            "PYTHONPATH": path,
            "PATH": warm_python.path(),
            "COLUMNS": "160",
            "NO_COLOR": "1",
        }
        self.run("spr run mine.yaml --out runs/mine")

    def run(self, script):
        """Run a shell script; returns what it prints."""
        command = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run_guide(self, name):
        """Run the commands of a guide; returns what they print."""
        ((_, script),) = blocks(ROOT / "docs" / "how-to" / f"add-{name}.md", "sh")
        return self.run(script)

    def rows(self, run, stage):
        script = f"from spr.runs.reader import Run; print(Run('{run}').table('{stage}').to_pylist())"
        return eval(self.run(f'python -c "{script}"'))  # noqa: S307 (rows that this test has just written)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, make_dataset):
    folder = tmp_path_factory.mktemp("plugins")
    return Workspace(folder, make_dataset(folder / "data"))


def test_there_is_a_guide_for_each_kind():
    assert {group: list(entries) for group, entries in entry_points().items()} == {
        k: v.split() for k, v in KINDS.items()
    }
    assert len(GUIDES) == len(KINDS)


def test_each_guide_has_an_example_an_entry_point_and_commands():
    for guide in GUIDES:
        assert blocks(guide, "python")[0][0].startswith("scratch/"), guide
        assert len(blocks(guide, "toml")) == 1, guide
        assert len(blocks(guide, "sh")) == 1, guide


def test_the_overview_and_the_navigation_name_every_guide():
    overview = (ROOT / "docs" / "how-to" / "index.md").read_text()
    navigation = (ROOT / "mkdocs.yml").read_text()
    for guide in GUIDES:
        assert f"({guide.name})" in overview
        assert f"how-to/{guide.name}" in navigation
    for group in KINDS:
        assert f"`{group}`" in overview


def test_doctor_lists_every_addition(workspace):
    printed = workspace.run("spr doctor")
    for name in " ".join(KINDS.values()).split():
        assert re.search(rf"\b{name}\b", printed), name


def test_a_dialect_is_read_written_and_described_in(workspace):
    printed = workspace.run_guide("a-dialect")
    # 50 / 500 of a side is 100 / 1000 of it.
    assert "a dog [100, 150, 300, 200]" in printed
    candidates = workspace.rows("runs/corners", "candidates")
    assert {row["dialect"] for row in candidates} == {"corners"}
    assert all("<at>" in row["raw_text"] for row in candidates)
    workspace.run("spr export runs/corners --format llava --out exported/corners --dialect ferret")


def test_a_model_family_describes_and_trains(workspace):
    model = workspace.folder / "models" / "my-llava"
    shutil.copytree(WEIGHTS / "describer", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "my_llava", "architectures": ["MyModel"]}))
    workspace.run_guide("a-model-family")
    candidates = workspace.rows("runs/family", "candidates")
    assert {row["dialect"] for row in candidates} == {"llava_onevision"}
    assert {row["model"].split("@")[0].rsplit("/")[-1] for row in candidates} == {"my-llava"}
    workspace.run(
        "spr run mine.yaml describer.model=models/my-llava --out runs/family-pairs\n"
        "spr train mine.yaml describer.model=models/my-llava training.num_train_epochs=1 --out runs/family-pairs"
    )
    assert (workspace.folder / "runs/family-pairs/adapter/adapter_model.safetensors").is_file()


def test_one_entry_is_enough_for_a_family_of_transformers(workspace):
    words = tokenizer(["<s>", "</s>", "<image>", "<pad>"], bos="<s>", eos="</s>", pad="<pad>")
    grid = [[42, 84], [84, 42], [84, 84]]
    config = hf.LlavaNextConfig(
        tie_word_embeddings=False,
        vision_config=hf.CLIPVisionConfig(**VISION, image_size=42, patch_size=14),
        text_config=hf.MistralConfig(**TEXT, vocab_size=112),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
    )
    images = hf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42}, image_grid_pinpoints=grid
    )
    settings = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    folder = workspace.folder / "models" / "next"
    torch.manual_seed(0)
    save(folder, hf.LlavaNextForConditionalGeneration(config), [words, images], settings, hf.LlavaNextProcessor)
    image = workspace.folder / "grey.png"
    Image.new("RGB", (60, 40), "grey").save(image)
    printed = workspace.run(
        f"spr predict {image} --model models/next --prompt 'Where is it?' --json describer.max_new_tokens=8"
    )
    assert json.loads(printed)["answer"]
    given = "mine.yaml describer.model=models/next training.logging_steps=1 training.dtype=float32 --out runs/next"
    workspace.run(f"spr run {given}\nspr train {given}")
    log = (workspace.folder / "runs/next/training/log.jsonl").read_text().splitlines()
    first = next(row for row in map(json.loads, log) if row["event"] == "step")
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)  # −log σ(0): the adapter is fresh
    assert first["margin"] == pytest.approx(0, abs=1e-5)


def test_a_stage_runs_in_its_place_and_its_drops_are_listed(workspace):
    printed = workspace.run_guide("a-stage")
    assert re.search(r"words: [1-9]\d* word counts", printed)
    candidates = workspace.rows("runs/words", "candidates")
    words = {row["candidate_id"]: row["words"] for row in workspace.rows("runs/words", "words")}
    assert words == {row["candidate_id"]: len(row["plain_text"].split()) for row in candidates}
    assert "words" in (workspace.folder / "runs/words/report/index.html").read_text()
    # Up to `words`, pairs were not made; the second command made them.
    assert (workspace.folder / "runs/words/pairs/manifest.json").is_file()


def test_a_task_is_a_command_with_its_own_options(workspace):
    printed = workspace.run_guide("a-benchmark-task")
    # Two dogs are right; five cups are two more than three, which the tolerance of one does not allow: 1 / 2.
    assert re.search(r"accuracy +0\.5000", printed)
    result = json.loads((workspace.folder / "counting.json").read_text())
    assert result["task"] == "counting"
    assert result["protocol"]["tolerance"] == 1
    assert "--tolerance" in workspace.run("spr evaluate counting --help")
    compared = workspace.run("spr compare counting.json counting.json")
    assert "accuracy" in compared


def test_the_report_shows_the_result_of_an_added_task(workspace):
    run = workspace.folder / "runs" / "reported"
    shutil.copytree(workspace.folder / "runs" / "mine", run)
    workspace.run_guide("a-benchmark-task")
    result = json.loads((workspace.folder / "counting.json").read_text())
    (run / "metrics.json").write_text(json.dumps({"format_version": 2, "before": {}, "after": {"counting": result}}))
    workspace.run("spr report runs/reported")
    assert "counting" in (run / "report" / "index.html").read_text()


def test_an_export_format_writes_every_pair_with_a_card(workspace):
    workspace.run_guide("an-export-format")
    folder = workspace.folder / "exported" / "mine"
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    pairs = workspace.rows("runs/mine", "pairs")
    assert [(row["good"], row["bad"]) for row in rows] == [(pair["chosen"], pair["rejected"]) for pair in pairs]
    assert all((folder / row["picture"]).is_file() for row in rows)
    assert "my-trainer" in (folder / "README.md").read_text()
    typo = workspace.run("spr export runs/mine --format min --out exported/typo 2>&1 || true")
    assert "did you mean `mine`" in typo


def test_a_reward_is_found_by_name(workspace):
    printed = dict(line.split() for line in workspace.run_guide("a-reward").splitlines())
    # The dog's centre (160, 120) lies in its box, 0..288 × 0..216; the cat's (520, 390) does not in 0..448 × 288..480.
    assert printed["centred"] == "0.5"


def test_a_detector_is_used_in_the_scores(workspace):
    workspace.run_guide("a-detector")
    scores = workspace.rows("runs/middle", "scores")
    found = [detection for row in scores for detection in row["detections"]]
    # The detector sees the crop around the region; its score of 0.9 is stored as float32.
    assert len(found) == len(scores)
    assert {round(detection["score"], 6) for detection in found} == {0.9}
    assert all(0 <= x1 < x2 <= 200 and 0 <= y1 < y2 <= 160 for x1, y1, x2, y2 in (item["box"] for item in found))


def test_a_scorer_gives_the_semantic_score(workspace):
    workspace.run_guide("a-scorer")
    fake = [row["semantic"] for row in workspace.rows("runs/mine", "scores")]
    ours = [row["semantic"] for row in workspace.rows("runs/brightness", "scores")]
    assert ours != fake
    assert all(0 <= value <= 1 + 1e-6 for value in ours)


def test_a_loss_trains_an_adapter(workspace):
    workspace.run_guide("a-loss")
    folder = workspace.folder / "runs" / "mine"
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert "hinge" in (folder / "config.yaml").read_text()


def test_an_unknown_name_suggests_an_added_one(workspace):
    command = ["spr", "run", "mine.yaml", "detector.backend=midle", "--out", "runs/typo"]
    done = subprocess.run(command, cwd=workspace.folder, env=workspace.environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "did you mean `middle`" in done.stderr
