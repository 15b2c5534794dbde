"""Vicuna plus the published delta, or a complete checkpoint, becomes Ferret; mismatches are refused with a list."""

import hashlib
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from spr.cli import app
from spr.core.errors import ConfigError, RunError
from spr.models.describers.hf import HfDescriber
from spr.models.errors import ModelError
from spr.models.ported.ferret.configuration import FerretConfig
from spr.models.ported.ferret.convert import convert_checkpoint, convert_delta, expected_shapes
from spr.models.ported.ferret.modeling import FerretForConditionalGeneration
from spr.models.ported.ferret.published import nested_config, our_name


@pytest.fixture(scope="module")
def parts(tmp_path_factory, tiny):
    return tiny.save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def ferret(parts, tmp_path_factory):
    base, delta = parts
    return convert_delta(base, delta, tmp_path_factory.mktemp("made") / "ferret", shard_bytes=100_000)


@pytest.fixture
def copy(parts, tmp_path, tiny):
    del parts
    return tiny.save_parts(tmp_path)


def read(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_the_delta_is_added_to_the_base_and_new_parts_are_taken_from_it(ferret):
    tensors = read(ferret)
    # A quarter and a half.
    assert tensors["model.language_model.norm.weight"].unique().tolist() == [0.75]
    assert tensors["model.language_model.layers.1.mlp.up_proj.weight"].unique().tolist() == [0.75]
    # The base knows 600 tokens; only the delta has <region_fea>, and <image> is new.
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        assert tensors[name].shape == (602, 32)
        assert [tensors[name][k].unique().tolist() for k in (0, 599, 600, 601)] == [[0.75], [0.75], [0.5], [0.0]]
    assert tensors["model.region_sampler.flatten_projector.weight"].unique().tolist() == [0.5]
    assert tensors["model.multi_modal_projector.weight"].shape == (32, 24)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_the_vision_tower_comes_from_its_own_folder(ferret, tiny):
    name = "encoder.layers.2.mlp.fc1.weight"
    expected = tiny.weight(f"model.vision_tower.vision_tower.vision_model.{name}", (48, 24)).half()
    assert torch.equal(read(ferret)[f"model.vision_tower.{name}"], expected)


def test_no_written_file_exceeds_the_size_limit(ferret):
    sizes = {file.name: sum(t.nbytes for t in load_file(file).values()) for file in ferret.glob("*.safetensors")}
    index = json.loads((ferret / "model.safetensors.index.json").read_text())
    assert len(sizes) == 3
    assert max(sizes.values()) <= 100_000
    assert set(index["weight_map"].values()) == set(sizes)
    assert index["metadata"]["total_size"] == sum(sizes.values())


def test_a_converted_model_describes_images(ferret, ask, picture):
    model = HfDescriber(ferret, device="cpu", max_new_tokens=4, dtype="float32")
    assert model.dialect.key == "ferret"
    answers = model.describe(
        [ask(picture(90, 60), "Describe [100, 150, 600, 800] <region_fea>."), ask(picture(40, 70))]
    )
    assert len(answers) == 2


def test_a_caller_who_wants_safetensors_alone_is_told_how_to_convert_pickles(tiny, tmp_path):
    folder = tiny.save_tokenizer(tiny.save_published(tmp_path / "published", 601))
    with pytest.raises(ModelError, match=r"pickled[\s\S]*spr convert ferret --checkpoint .*published --out DIR"):
        FerretForConditionalGeneration.from_pretrained(folder, use_safetensors=True)


@pytest.mark.parametrize("kind", ["pickles", "safetensors"])
def test_a_complete_checkpoint_gives_the_same_model_directly_and_converted(kind, tiny, tmp_path):
    folder = tiny.save_tokenizer(tiny.save_published(tmp_path / "published", 601))
    if kind == "safetensors":
        for file in folder.glob("*.bin"):
            save_file(torch.load(file), file.with_name(file.name.replace("pytorch_", "")).with_suffix(".safetensors"))
            file.unlink()
    direct = FerretForConditionalGeneration.from_pretrained(folder).state_dict()
    converted = convert_checkpoint(folder, tmp_path / "out")
    for name, tensor in FerretForConditionalGeneration.from_pretrained(converted).state_dict().items():
        assert torch.equal(tensor, direct[name]), name


def test_the_describer_reads_a_published_folder_and_writes_its_pickles_as_safetensors_once(
    tiny, tmp_path, ask, picture
):
    folder = tiny.save_tokenizer(tiny.save_published(tmp_path / "published", 601))
    pickled = {name: tensor for file in folder.glob("*.bin") for name, tensor in torch.load(file).items()}
    model = HfDescriber(folder, device="cpu", max_new_tokens=3, temperature=0)
    written = {path: path.stat().st_mtime_ns for path in folder.glob("model*.safetensors")}
    safe = {name: tensor for path in written for name, tensor in load_file(path).items()}
    assert safe.keys() == pickled.keys()
    assert all(torch.equal(safe[name], tensor) for name, tensor in pickled.items())
    HfDescriber(folder, device="cpu")
    assert {path: path.stat().st_mtime_ns for path in folder.glob("model*.safetensors")} == written
    converted = HfDescriber(convert_checkpoint(folder, tmp_path / "out"), device="cpu", max_new_tokens=3, temperature=0)
    request = ask(picture(90, 60), "Describe [100, 150, 600, 800] <region_fea>.")
    assert converted.render("a") == model.render("a")
    assert model.describe([request]) == converted.describe([request])


@pytest.mark.parametrize(
    ("config", "count", "digest"),
    [
        ({}, 700, "093100faf6e3b0aeecb8525ac2d8f580af3229c66fb9ee32cc442ddd55eb9524"),
        (
            {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
            772,
            "384143e3b3e8f571527651268a237241fdf5e51ae64361c1cbc889a7492d009b",
        ),
    ],
    ids=["7B", "13B"],
)
def test_names_and_shapes_are_those_of_the_published_code(config, count, digest):
    # The digests are of "name 4096x4096" lines of the published classes, on the meta device, sorted, without the
    # rotary_emb.inv_freq that old versions of transformers saved.
    text = {"vocab_size": 32002, **config}
    ours = {
        "model.language_model.": "model.",
        "model.multi_modal_projector.": "model.mm_projector.",
        "model.region_sampler.": "model.region_geo_sampler.",
        "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
    }
    lines = []
    for name, shape in expected_shapes(FerretConfig(text_config=text)).items():
        prefix = next((prefix for prefix in ours if name.startswith(prefix)), "")
        published = ours.get(prefix, "") + name.removeprefix(prefix)
        assert our_name(published) == name
        rows = (32001, *shape[1:]) if shape[0] == 32002 else shape
        lines.append(f"{published} {'x'.join(map(str, rows))}")
    assert len(lines) == count
    assert hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() == digest


def change(folder, edit):
    """Edit the tensors of a folder and save them as one pickle."""
    tensors = {name: tensor for file in folder.glob("*.bin") for name, tensor in torch.load(file).items()}
    edit(tensors)
    for file in folder.glob("*.bin*"):
        file.unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


def test_a_delta_that_does_not_fit_the_base_is_refused_with_a_list(copy, tmp_path):
    base, delta = copy

    def edit(tensors):
        tensors["model.strange.weight"] = torch.ones(3)
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(64, 31)
        del tensors["model.layers.1.mlp.up_proj.weight"]

    change(delta, edit)
    with pytest.raises(ModelError) as caught:
        convert_delta(base, delta, tmp_path / "out")
    assert "1 missing: model.layers.1.mlp.up_proj.weight" in str(caught.value)
    assert "1 unexpected: model.strange.weight" in str(caught.value)
    assert "1 misshapen: model.layers.0.mlp.up_proj.weight (64, 31) for (64, 32)" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_incomplete_checkpoint_is_neither_loaded_nor_converted(tiny, tmp_path):
    folder = tiny.save_tokenizer(tiny.save_published(tmp_path / "published", 601))

    def edit(tensors):
        tensors["model.more.weight"] = torch.ones(3)
        del tensors["model.region_geo_sampler.dim_projector.bias"]
        tensors["lm_head.weight"] = torch.ones(601, 30)

    change(folder, edit)
    for load in (FerretForConditionalGeneration.from_pretrained, lambda f: convert_checkpoint(f, tmp_path / "out")):
        with pytest.raises(ModelError) as caught:
            load(folder)
        for part in ("1 missing: model.region_sampler.dim_projector.bias", "1 unexpected: model.more.weight"):
            assert part in str(caught.value)
        assert "misshapen: lm_head.weight (602, 30) for (602, 32)" in str(caught.value)
    assert not list(tmp_path.glob("out*"))


class Runs:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, delta = copy
    torch.save({"model.norm.weight": Runs()}, delta / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(ModelError, match="can't be loaded safely"):
        convert_delta(base, delta, tmp_path / "out")
    assert not (tmp_path / "pwned").exists()


def test_a_pickle_of_other_objects_and_a_duplicate_tensor_are_refused(copy, tmp_path):
    base, delta = copy
    torch.save([torch.ones(2)], base / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(ModelError, match=r"holds more than tensors[\s\S]*list"):
        convert_delta(base, delta, tmp_path / "out")
    torch.save(torch.load(base / "pytorch_model-00002-of-00002.bin"), base / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(ModelError, match=r"Two files of .*vicuna contain tensor"):
        convert_delta(base, delta, tmp_path / "out")


def test_damaged_or_missing_files_are_named(copy, tmp_path):
    base, delta = copy
    first = base / "pytorch_model-00001-of-00002.bin"
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"00001-of-00002\.bin can't be loaded safely"):
        convert_delta(base, delta, tmp_path / "out")
    first.unlink()
    index = {"weight_map": {"model.norm.weight": first.name}}
    (base / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="has no file for some shards of its index"):
        convert_delta(base, delta, tmp_path / "out")
    with pytest.raises(ModelError, match="does not have the layout of Ferret's authors"):
        convert_delta(delta, make_llama(tmp_path / "llama"), tmp_path / "out")
    with pytest.raises(ModelError, match="There is no such model folder"):
        convert_delta(tmp_path / "nothing", delta, tmp_path / "out")


def make_llama(folder):
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def test_a_tokenizer_of_another_model_is_refused(copy, tmp_path):
    base, delta = copy
    (delta / "added_tokens.json").write_text('{"<region_fea>": 600, "<more>": 601}')
    with pytest.raises(ModelError, match=r"tokenizer of .*delta is not this model's"):
        convert_delta(base, delta, tmp_path / "out")
    (delta / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(ModelError, match="is not a SentencePiece model"):
        convert_delta(base, delta, tmp_path / "out")
    (delta / "tokenizer.model").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.model"):
        convert_delta(base, delta, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_an_existing_folder_is_not_changed(parts, tmp_path):
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(RunError, match="is not a converted model, so it is left unchanged"):
        convert_delta(*parts, tmp_path)
    assert (tmp_path / "mine").read_text() == "kept"


def test_the_same_command_again_changes_nothing_and_another_one_is_refused(parts, tmp_path):
    out = tmp_path / "out"
    convert_delta(*parts, out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    os.umask(mask := os.umask(0))
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o666 & ~mask}
    convert_delta(*parts, out)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(RunError, match=r"holds the output of another `spr convert ferret`"):
        convert_checkpoint(parts[0], out)


def test_variants_without_a_published_model_are_refused(tiny):
    with pytest.raises(ModelError, match="mm_use_im_start_end: True"):
        nested_config(tiny.published_config(mm_use_im_start_end=True))
    with pytest.raises(ModelError, match="region_geo_sampler: None"):
        nested_config({k: v for k, v in tiny.published_config().items() if k != "region_geo_sampler"})


def test_the_command_converts_and_checks_its_flags(parts, tmp_path):
    base, delta = parts
    run = CliRunner()
    out = tmp_path / "ferret"
    result = run.invoke(app, ["convert", "ferret", "--base", str(base), "--delta", str(delta), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert f"describer.model={out}" in result.output.replace("\n", "")
    assert (out / "config.json").is_file()
    for flags in ([], ["--base", "b"], ["--base", "b", "--delta", "d", "--checkpoint", "c"]):
        result = run.invoke(app, ["convert", "ferret", "--out", str(tmp_path / "other"), *flags])
        assert isinstance(result.exception, ConfigError)
        assert "--base and --delta, or --checkpoint" in str(result.exception)
