"""Exports of prompts: what a run needs, what is refused, what is left out, and a second run."""

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from run_folders import rows
from spr.config import make_config
from spr.core.errors import ConfigError, InputError, RunError
from spr.exports import grpo_vlm_r1, prompt_rows, writing
from spr.exports.describer import describer_of, tokenizer_of
from spr.exports.formats import FORMATS
from spr.exports.json_lines import JsonWriter
from spr.exports.prompt_options import PromptOptions, make_options
from spr.exports.writing import export
from spr.pipeline.runner import run
from spr.rewards import Truth
from spr.runs.reader import Run

GRPO = [key for key in FORMATS if key.startswith("grpo-")]
ALL_TASKS = PromptOptions(("describe", "detect", "locate", "absent"))


@pytest.fixture(scope="module")
def regions_run(make_dataset, tmp_path_factory):
    """A run that stopped after the regions, of eight images, two of them held out: 47 and 50."""
    dataset = make_dataset(tmp_path_factory.mktemp("regions"), images=8, ids=range(44, 52))
    dataset.coco["categories"] += [{"id": 3, "name": "zebra"}, {"id": 4, "name": "spoon"}]
    for entry in dataset.coco["annotations"][::12]:
        entry["category_id"] = 3
    dataset.write()
    sections = {"describer": {"backend": "fake"}, "detector": {"backend": "none"}, "shard_rows": 3}
    run(make_config(dataset.config(**sections)), dataset.folder / "run", until="regions")
    return dataset.folder / "run"


def exported(folder, split="train"):
    return [row for path in sorted((folder / "data").glob(f"{split}-*")) for row in pq.read_table(path).to_pylist()]


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("key", GRPO)
def test_a_run_with_regions_only_is_exported_by_split_and_a_second_time_nothing_happens(key, regions_run, tmp_path):
    out = tmp_path / "out"
    summary = export(regions_run, out, key, prompts=ALL_TASKS)
    assert (summary.pairs, summary.prompts, summary.held_out, summary.left_out) == (0, 32, 8, {})
    before = files(out)
    again = export(regions_run, out, key, prompts=ALL_TASKS)
    assert (again.done_before, again.prompts, again.held_out) == (True, 32, 8)
    assert files(out) == before
    export(regions_run, tmp_path / "other" / "out", key, prompts=ALL_TASKS)
    assert files(tmp_path / "other" / "out") == before
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"8 of the prompts are of held-out images: the split `test`, in `{FORMATS[key].files('test')}`" in card
    assert "| `describe` | 8 |" in card
    assert "| `absent` | 8 | 0.0 |" in card
    assert "| regions | 8 |" in card
    assert "candidates" not in card.partition("## Columns")[0]


def test_the_truths_are_those_of_the_regions_and_can_be_read(regions_run, tmp_path):
    export(regions_run, tmp_path / "out", "grpo-trl")
    found = {row["query_id"]: row for split in ("train", "test") for row in exported(tmp_path / "out", split)}
    queries = {row["query_id"]: row for row in rows(regions_run, "regions")}
    assert set(found) == set(queries)
    for name, query in queries.items():
        truth = Truth.from_json(found[name]["truth"])
        inside = [item for item in query["objects"] if item["inside"]]
        assert [item.label for item in truth.objects] == [item["category"] for item in inside]
        for item, expected in zip(truth.objects, inside, strict=True):
            assert item.box == pytest.approx(expected["box"], abs=0.00051)
        assert truth.dialect == "llava_onevision"  # the fake describer's
        assert found[name]["split"] == query["split"]


def test_other_options_for_a_folder_that_holds_an_export_are_refused_by_name(regions_run, tmp_path):
    export(regions_run, tmp_path / "out", "grpo-trl")
    for options, difference in (
        (PromptOptions(labels="phrase"), "labels: ignore → phrase"),
        (PromptOptions(("describe", "absent")), "tasks: describe → describe,absent"),
        (PromptOptions(("detect",), questions=2), "questions: 1 → 2"),
    ):
        with pytest.raises(RunError, match=f"another export[\\s\\S]*{difference}"):
            export(regions_run, tmp_path / "out", "grpo-trl", prompts=options)
    with pytest.raises(RunError, match="dialect: llava_onevision → qwen3_vl"):
        export(regions_run, tmp_path / "out", "grpo-trl", dialect="qwen3_vl")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": "describe,detekt"}, r"--tasks has no such value[\s\S]*did you mean `detect`"),
        ({"tasks": ","}, r"--tasks is not valid[\s\S]*nothing"),
        ({"tasks": "detect,detect"}, r"--tasks is not valid[\s\S]*each once"),
        ({"labels": "names"}, r"--labels has no such value[\s\S]*did you mean `name`"),
        ({"labels": "synonyms"}, "--labels synonyms needs --synonyms FILE"),
        ({"questions": 9, "tasks": "detect"}, r"--questions is out of range[\s\S]*1 to 8"),
        ({"questions": 2}, "--questions has no effect"),
        ({"labels": "name", "tasks": "absent"}, r"--labels has no effect[\s\S]*--labels name --tasks absent"),
    ],
)
def test_options_that_are_wrong_or_have_no_effect_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        make_options(**given)


def test_synonyms_are_read_from_a_file_and_need_their_rule(tmp_path):
    path = tmp_path / "synonyms.json"
    path.write_text('{"cup": ["mug"], "box": []}')
    assert make_options(labels="synonyms", synonyms=path).synonyms == {"cup": ("mug",), "box": ()}
    with pytest.raises(ConfigError, match="--synonyms needs --labels synonyms"):
        make_options(synonyms=path)
    for text in ("{", "[]", "{}", '{"cup": "mug"}', '{"cup": [1]}'):
        path.write_text(text)
        with pytest.raises(InputError, match=r"is not a file of synonyms[\s\S]*person"):
            make_options(labels="synonyms", synonyms=path)
    with pytest.raises(InputError, match=r"missing\.json"):
        make_options(labels="synonyms", synonyms=tmp_path / "missing.json")


def test_synonyms_of_categories_that_no_prompt_is_about_are_reported(regions_run, tmp_path):
    options = PromptOptions(labels="synonyms", synonyms={"cup": ("mug",), "cupp": ("beaker",)})
    export(regions_run, tmp_path / "out", "grpo-trl", prompts=options)
    truths = [Truth.from_json(row["truth"]) for row in exported(tmp_path / "out")]
    assert {tuple(truth.synonyms.items()) for truth in truths} == {(("cup", ("mug",)),)}
    assert "for which there are synonyms: cupp." in (tmp_path / "out" / "README.md").read_text()
    wrong = PromptOptions(labels="synonyms", synonyms={"cupp": ("beaker",)})
    with pytest.raises(InputError, match=r"No prompt is about a category of --synonyms[\s\S]*cupp"):
        export(regions_run, tmp_path / "other", "grpo-trl", prompts=wrong)
    assert not (tmp_path / "other").exists()


def test_no_options_are_none():
    assert make_options() is None
    assert make_options(tokenizer="a/b") == PromptOptions(tokenizer="a/b")


def test_options_of_the_other_kind_of_rows_are_refused_and_nothing_is_written(small_run, regions_run, tmp_path):
    with pytest.raises(ConfigError, match=r"`trl` has pairs, and --tasks[\s\S]*expected: +grpo-trl"):
        export(small_run, tmp_path / "out", "trl", prompts=PromptOptions())
    with pytest.raises(ConfigError, match=r"`grpo-trl` has prompts, and reviewers decide about pairs"):
        export(regions_run, tmp_path / "out", "grpo-trl", reviews="use")
    with pytest.raises(ConfigError, match=r"`grpo-verl` get answers as texts[\s\S]*expected: +grpo-trl\n"):
        export(regions_run, tmp_path / "out", "grpo-verl", prompts=PromptOptions(tokenizer="a/b"))
    for dialect in (None, "qwen3_vl", "paligemma"):  # the run's is llava_onevision
        with pytest.raises(
            ConfigError, match=r"are no special tokens[\s\S]*--tokenizer a/b[\s\S]*leave --tokenizer out"
        ):
            export(regions_run, tmp_path / "out", "grpo-trl", dialect=dialect, prompts=PromptOptions(tokenizer="a/b"))
    with pytest.raises(ConfigError, match=r"`grpo-vlm-r1` doesn't support --images embed[\s\S]*copy | path"):
        export(regions_run, tmp_path / "out", "grpo-vlm-r1", images="embed")
    with pytest.raises(ConfigError, match=r"`molmo2` has only points, and questions ask for boxes"):
        export(regions_run, tmp_path / "out", "grpo-trl", dialect="molmo2", prompts=PromptOptions(("detect",)))
    assert list(tmp_path.iterdir()) == []


def test_pairs_need_more_than_regions(regions_run, tmp_path):
    with pytest.raises(RunError, match=r"does not hold a finished stage[\s\S]*--until pairs"):
        export(regions_run, tmp_path / "out", "trl")


def test_a_run_without_regions_and_one_without_a_describer_are_errors(make_dataset, tmp_path):
    dataset = make_dataset(tmp_path / "data", images=2)
    sections = {"detector": {"backend": "none"}, "regions": {"min_inside": 50}}
    with pytest.raises(InputError, match="has no regions"):
        run(make_config(dataset.config(**sections)), tmp_path / "empty", until="regions")
    with pytest.raises(RunError, match=r"empty has no regions[\s\S]*spr show"):
        export(tmp_path / "empty", tmp_path / "out", "grpo-trl")
    run(make_config(dataset.config(detector={"backend": "none"})), tmp_path / "run", until="regions")
    with pytest.raises(ConfigError, match=r"not known in which dialect[\s\S]*give --dialect"):
        export(tmp_path / "run", tmp_path / "out", "grpo-trl")
    summary = export(tmp_path / "run", tmp_path / "out", "grpo-trl", dialect="qwen3_vl")
    assert (summary.prompts, summary.dialect) == (2, "qwen3_vl")
    assert "| describer | `none` |" in (tmp_path / "out" / "README.md").read_text()


def test_what_can_not_be_asked_or_shown_is_left_out_with_its_reason(make_dataset, tmp_path):
    dataset = make_dataset(tmp_path / "data", images=3)
    sections = {
        "describer": {"backend": "fake"},
        "detector": {"backend": "none"},
        "prompts": {"full": "Describe <image> {region}."},
    }
    run(make_config(dataset.config(**sections)), tmp_path / "run", until="regions")
    (dataset.images / "1000.png").unlink()
    with pytest.raises(InputError, match=r"No prompt can be exported[\s\S]*placeholder_in_text 3"):
        export(tmp_path / "run", tmp_path / "out", "grpo-verl")
    with pytest.raises(InputError, match=r"no_category_to_ask 3[\s\S]*add describe to --tasks"):
        export(tmp_path / "run", tmp_path / "out", "grpo-trl", prompts=PromptOptions(("absent",)))
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
    options = PromptOptions(("describe", "detect", "absent"))
    summary = export(tmp_path / "run", tmp_path / "out", "grpo-verl", prompts=options)
    assert summary.left_out == {"placeholder_in_text": 3, "no_category_to_ask": 3, "image_missing": 1}
    assert summary.prompts == 2
    listed = [json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()]
    assert {(row["query_id"], row["reason"]) for row in listed} >= {
        ("1000/0", "placeholder_in_text"),
        ("1000/absent", "no_category_to_ask"),
        ("1000/detect-0", "image_missing"),
    }
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`left_out.jsonl` lists the prompts that this export left out." in card


def test_no_more_than_a_batch_is_held_whatever_the_number_of_prompts(regions_run, tmp_path, monkeypatch):
    held = []

    class Watched(JsonWriter):
        def write(self, rows):
            held.append(len(rows))
            super().write(rows)

    def open_writer(folder, _, split):
        return Watched(folder / f"{split}.jsonl", grpo_vlm_r1.to_row)

    monkeypatch.setattr(prompt_rows, "BATCH", 2)
    FORMATS.register("watched", dataclasses.replace(grpo_vlm_r1.FORMAT, open=open_writer))
    try:
        export(regions_run, tmp_path / "out", "watched", prompts=ALL_TASKS)
    finally:
        FORMATS.unregister("watched")
    assert max(held) == 2
    assert sum(held) == 32


def test_the_tokenizer_is_named_where_boxes_are_special_tokens(make_dataset, tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path / "data", images=1)
    sections = {"detector": {"backend": "none"}, "describer": {"backend": "fake", "dialect": "qwen2_vl"}}
    run(make_config(dataset.config(**sections)), tmp_path / "run", until="regions")
    assert tokenizer_of(Run(tmp_path / "run")) is None

    def named(key, *, dialect=None, given=None):
        """The tokenizer in the truth, and the card."""
        out = tmp_path / f"{key}-{dialect}-{given}-{len(list(tmp_path.iterdir()))}"
        options = None if given is None else PromptOptions(tokenizer=given)
        export(tmp_path / "run", out, key, dialect=dialect, prompts=options)
        (row,) = exported(out)
        return Truth.from_json(row.get("truth") or row["answer"]).tokenizer, (out / "README.md").read_text()

    tokenizer, card = named("grpo-trl")
    assert tokenizer is None
    assert "Boxes of this dialect may be special tokens.** Most" in card
    assert "give `make` the tokenizer" in card
    tokenizer, card = named("grpo-trl", given="/home/ann/Qwen2-VL")
    assert tokenizer == "/home/ann/Qwen2-VL"
    assert "names the tokenizer that decodes answers: `Qwen2-VL`" in card

    monkeypatch.setattr(writing, "tokenizer_of", lambda _: "Qwen/Qwen2-VL-2B-Instruct")
    assert named("grpo-trl")[0] == "Qwen/Qwen2-VL-2B-Instruct"
    assert named("grpo-trl", dialect="qwen3_vl")[0] is None  # its boxes are plain text
    assert named("grpo-trl", dialect="kosmos2")[0] is None  # of another model
    tokenizer, card = named("grpo-easyr1")
    assert tokenizer is None
    assert "the page on RL trainers says what to set" in card


def test_the_tokenizer_of_a_describer_is_that_of_its_model(make_dataset, tmp_path):
    dataset = make_dataset(tmp_path / "data", images=1)
    sections = {"detector": {"backend": "none"}, "describer": {"model": "embedded/describer"}}
    run(make_config(dataset.config(**sections)), tmp_path / "run", until="regions")
    describer, dialect = describer_of(Run(tmp_path / "run"))
    assert describer == "embedded/describer"
    assert dialect is not None
    export(tmp_path / "run", tmp_path / "out", "grpo-trl", prompts=PromptOptions(("locate", "describe")))
    assert (Path(tokenizer_of(Run(tmp_path / "run"))) / "tokenizer.json").is_file()
    assert all("tokenizer" not in json.loads(row["truth"]) for row in exported(tmp_path / "out"))
