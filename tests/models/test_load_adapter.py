"""PEFT adapters of a describer: merging changes no answer, and adapters of other models are refused."""

import json
import shutil
import warnings

import peft
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from spr.embedded.scenes import make_scene
from spr.models.describers.hf import HfDescriber
from spr.models.errors import ModelError
from spr.models.image_processors import encode
from spr.models.protocols import DescribeRequest
from tools.embedded.models import weights_folder

FOLDER = weights_folder("describer")
TARGETS = r".*language_model.*\.(q_proj|v_proj|down_proj)"


def make_adapter(folder, rank=4, targets=TARGETS):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses a deprecated name of transformers
        model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=draw)
    adapted.save_pretrained(folder)
    return adapted.eval()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "adapter"
    return folder, make_adapter(folder)


def describer(adapter=None, **options):
    return HfDescriber(FOLDER, peft_adapter=adapter, temperature=0, device="cpu", max_new_tokens=40, **options)


@torch.no_grad()
def test_a_merged_adapter_gives_the_logits_of_the_adapter_beside_the_weights(adapter):
    folder, beside = adapter
    base, tuned = describer(), describer(folder)
    prompt, image = tuned.render("Where is the red circle?"), Image.fromarray(make_scene(5, 0).image)
    inputs = encode(tuned.processor, [prompt], [image])
    expected = beside(**inputs).logits
    torch.testing.assert_close(tuned.model(**inputs).logits, expected, atol=2e-4, rtol=1e-4)
    assert (base.model(**inputs).logits - expected).abs().max() > 0.1
    assert not any(parameter.requires_grad for parameter in tuned.model.parameters())


def test_the_name_identifies_the_adapter_and_changes_with_it(adapter, tmp_path):
    folder, _ = adapter
    base, tuned = describer().name, describer(folder).name
    assert tuned.startswith(f"{base}+adapter@")
    changed = tmp_path / "adapter"
    shutil.copytree(folder, changed)
    settings = json.loads((changed / "adapter_config.json").read_text())
    (changed / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 1}))
    assert describer(changed).name != tuned


def test_with_sampling_shares_the_weights_and_does_not_change_the_original():
    greedy = describer()
    sampled = greedy.with_sampling(temperature=1.0, top_p=1.0, batch_size=3)
    assert sampled.model is greedy.model
    image = Image.fromarray(make_scene(5, 1).image)
    requests = [DescribeRequest(image, "Describe the image and locate its objects.", seed) for seed in range(4)]
    assert len(set(sampled.describe(requests))) > 1
    assert len(set(greedy.describe(requests))) == 1
    assert sampled.describe(requests) == sampled.describe(requests)


def test_folders_without_an_adapter_are_refused(tmp_path, adapter):
    with pytest.raises(ModelError, match="has no PEFT adapter"):
        describer(tmp_path / "gone")
    folder = tmp_path / "pickled"
    shutil.copytree(adapter[0], folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        describer(folder)


def test_an_adapter_of_another_model_is_refused(tmp_path, adapter):
    folder = tmp_path / "other"
    shutil.copytree(adapter[0], folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": r".*\.(q_proj|k_proj)"}))
    with pytest.raises(ModelError, match="was not trained on this model"):
        describer(folder)
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": ["no_such_layer"]}))
    with pytest.raises(ModelError, match="is not a complete model"):
        describer(folder)
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "r": 2}))
    with pytest.raises(ModelError):
        describer(folder)
