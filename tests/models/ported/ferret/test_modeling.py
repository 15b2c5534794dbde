"""Ferret supports what LLaVA supports in transformers: saving, loading, batches, LoRA, checkpointing."""

import copy
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from spr.core.errors import InputError
from spr.models.custom_models import register_custom_models
from spr.models.errors import ModelError
from spr.models.image_processors import encode, load_processor
from spr.models.loading import load_pretrained
from spr.models.ported.ferret.modeling import FerretForConditionalGeneration
from spr.models.ported.ferret.processing import FerretProcessor

TEXTS = [
    "<image>\nWhat is [100, 250, 500, 500] <region_fea>?",
    "<image>\nWhat is it?",
    "<image>\nIs [0, 0, 300, 300] <region_fea> the same as [500, 100] <region_fea>, or [9, 9, 600, 999] <region_fea>?",
]


@pytest.fixture(scope="module")
def folder(mllm_folder):
    return mllm_folder("ferret")


@pytest.fixture
def model(folder):
    return FerretForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor(folder):
    return load_processor(folder, "ferret")


@pytest.fixture
def batch(processor, picture):
    return encode(processor, TEXTS, [picture(80, 100), picture(50, 40), picture(120, 60)])


def test_a_left_padded_batch_gives_each_row_the_result_that_it_has_alone(model, processor, batch, picture):
    images = [picture(80, 100), picture(50, 40), picture(120, 60)]
    with torch.no_grad():
        together = model(**batch).logits
        for k, (text, image) in enumerate(zip(TEXTS, images, strict=True)):
            alone = model(**encode(processor, [text], [image])).logits[0]
            torch.testing.assert_close(together[k, -len(alone) :], alone, atol=1e-4, rtol=1e-4)


def test_regions_make_a_difference_and_so_do_the_random_choices(model, batch):
    with torch.no_grad():
        logits = model(**batch).logits
        without = {name: tensor for name, tensor in batch.items() if not name.startswith("region")}
        plain = model(**without).logits
        again = model(**batch, region_generator=torch.Generator().manual_seed(1)).logits
        once_more = model(**batch, region_generator=torch.Generator().manual_seed(1)).logits
    assert not torch.allclose(logits[0], plain[0], atol=1e-3)
    torch.testing.assert_close(logits[1], plain[1])
    assert not torch.equal(logits[0], again[0])
    assert torch.equal(again, once_more)


def test_images_and_regions_seen_before_give_the_same_logits(model, batch):
    # Like a trainer that caches the vision tower's features; each prompt has its own image.
    words = {name: batch[name] for name in ("input_ids", "attention_mask")}
    vision = {name: tensor for name, tensor in batch.items() if name not in words}
    with torch.no_grad():
        whole = model(**batch).logits
        seen = [
            model.model.get_image_features(**{name: tensor[k : k + 1] for name, tensor in vision.items()})
            for k in range(3)
        ]
        rows = [one.pooler_output[0] for one in seen]
        again = model(**words, mm_encoder_outputs={"image": SimpleNamespace(pooler_output=rows)}).logits
    # Nine patches and the regions are given as features.
    assert [tuple(row.shape) for row in rows] == [(10, 32), (9, 32), (12, 32)]
    torch.testing.assert_close(again, whole, atol=1e-5, rtol=1e-5)


def test_the_language_model_alone_on_the_embedded_inputs_gives_the_same_logits(model, batch):
    with torch.no_grad():
        whole = model(**batch).logits
        vision = {name: tensor for name, tensor in batch.items() if name not in ("input_ids", "attention_mask")}
        embeds = model.model.embed_inputs(batch["input_ids"], model.get_image_features(**vision).pooler_output)
        keep = batch["attention_mask"].bool()
        length = keep.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril() & keep[:, None, None, :]
        causal = causal | torch.eye(length, dtype=torch.bool)  # a padding position attends to itself
        positions = (keep.cumsum(-1) - 1).clamp(min=0)
        hidden = model.model.language_model(
            inputs_embeds=embeds, attention_mask=causal, position_ids=positions
        ).last_hidden_state
        logits = model.lm_head(hidden)
    # Without position_ids, transformers also counts the padding, which rotary positions allow.
    torch.testing.assert_close(logits[keep], whole[keep], atol=1e-4, rtol=1e-4)


def test_several_answers_per_prompt_use_its_image_and_regions(model, batch):
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2, "num_return_sequences": 2}
    together = model.generate(**batch, **options)
    repeated = {name: tensor.repeat_interleave(2, dim=0) for name, tensor in batch.items()}
    single = model.generate(**repeated, **{**options, "num_return_sequences": 1})
    # Each of two equal prompts gets the best of two beams.
    assert torch.equal(together[::2], single[::2])
    assert torch.equal(together[::2], single[1::2])
    assert len({tuple(row) for row in together.tolist()}) == 6


def test_a_region_token_without_a_region_stays_a_word(model, batch):
    more = torch.full((3, 1), model.config.region_token_index)
    ids = torch.cat([batch["input_ids"], more], dim=1)
    attention = torch.cat([batch["attention_mask"], torch.ones_like(more)], dim=1)
    with torch.no_grad():
        vision = {name: tensor for name, tensor in batch.items() if name not in ("input_ids", "attention_mask")}
        embeds = model.model.embed_inputs(ids, model.get_image_features(**vision).pooler_output)
        model(**{**batch, "input_ids": ids, "attention_mask": attention})
    word = model.get_input_embeddings().weight[model.config.region_token_index]
    assert torch.equal(embeds[:, -1], word.expand(3, -1))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # raised by PEFT
def test_lora_trains_only_the_language_model_and_can_be_disabled(model, batch):
    with torch.no_grad():
        before = model(**batch).logits
    targets = r".*\.language_model\..*\.(q_proj|v_proj|up_proj|down_proj)"
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1.0)
    losses = []
    for _ in range(3):
        loss = tuned(**batch, labels=labels).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[2] < losses[1] < losses[0]
    trained = {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert trained
    assert all("language_model" in name and "lora_" in name for name in trained)
    with torch.no_grad(), tuned.disable_adapter():
        torch.testing.assert_close(tuned(**batch).logits, before)


def test_gradient_checkpointing_changes_no_gradient(model, batch):
    labels = batch["input_ids"]

    def gradients(model):
        model.zero_grad()
        model(**batch, labels=labels).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.train()
    plain = gradients(model)
    checkpointed = copy.deepcopy(model)
    checkpointed.activation_checkpointing_enable()
    assert checkpointed.is_activation_checkpointing
    found = gradients(checkpointed)
    assert found.keys() == plain.keys()
    assert any("region_sampler.diff_projector_list.0" in name for name in found)
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_single_precision(dtype, model, batch):
    with torch.no_grad():
        single = model(**batch).logits
        half = model.to(dtype)
        pixels = batch["pixel_values"].to(dtype)
        logits = half(**{**batch, "pixel_values": pixels}).logits
    assert logits.dtype == dtype
    keep = batch["attention_mask"].bool()
    assert (logits.float() - single)[keep].abs().mean() < 0.05 * single[keep].abs().mean()


def test_saving_and_loading_gives_the_same_model(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    register_custom_models()
    register_custom_models()
    again = load_pretrained(AutoModelForImageTextToText, tmp_path)
    assert type(again) is FerretForConditionalGeneration
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_a_folder_with_other_tensors_is_refused_with_a_list(model, tmp_path):
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    missing = next(name for name in tensors if "region_sampler.dim_projector.weight" in name)
    del tensors[missing]
    tensors["model.more"] = torch.ones(2)
    tensors["lm_head.weight"] = torch.ones(112, 31)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        FerretForConditionalGeneration.from_pretrained(tmp_path)
    for part in (f"1 missing: {missing}", "1 unexpected: model.more", "misshapen: lm_head.weight (112, 31)"):
        assert part in str(caught.value)


def test_inconsistent_inputs_are_refused(model, batch):
    def without(*names):
        return {name: tensor for name, tensor in batch.items() if name not in names}

    def with_one_less(*names):
        return {name: tensor[:2] if name in names else tensor for name, tensor in batch.items()}

    with pytest.raises(InputError, match=r"image tokens[\s\S]*\[9, 9, 9\] tokens[\s\S]*2 prompts with 9"):
        model(**with_one_less("pixel_values", "region_points", "region_sizes"))
    ids = batch["input_ids"].clone()
    ids[0, (ids[0] == model.config.image_token_index).nonzero()[0]] = 5
    with pytest.raises(InputError, match=r"image tokens[\s\S]*\[8, 9, 9\] tokens"):
        model(**{**batch, "input_ids": ids})
    points = batch["region_points"].clone()
    points[1] = 3
    with pytest.raises(
        InputError, match=r"more regions than <region_fea>[\s\S]*\[1, 3, 3\] regions for \[1, 0, 3\] tok"
    ):
        model(**{**batch, "region_points": points})
    with pytest.raises(InputError, match=r"do not match the images[\s\S]*points of 3, sizes of 0"):
        model(**without("region_sizes"))
    with pytest.raises(InputError, match=r"do not match the images[\s\S]*points of 2, sizes of 3"):
        model(**with_one_less("region_points"))
    with pytest.raises(InputError, match="`input_ids` or `inputs_embeds`"):
        model(attention_mask=batch["attention_mask"])
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(InputError, match="given twice"):
        model(inputs_embeds=embeds, pixel_values=batch["pixel_values"])


def test_a_processor_counts_the_image_for_the_planning_of_batches(folder):
    processor = FerretProcessor.from_pretrained(folder)
    assert processor._get_num_multimodal_tokens(image_sizes=[(3, 4), (5, 6)])["num_image_tokens"] == [9, 9]
