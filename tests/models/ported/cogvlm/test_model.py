"""CogVLM as a transformers model: padding, cache, attention kernels, custom masks, adapters and files."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.testing import assert_close

from spr.models.errors import ModelError
from spr.models.families import FAMILIES
from spr.models.ported.cogvlm.configuration import CogVLMConfig
from spr.models.ported.cogvlm.experts import build_position_ids, route
from spr.models.ported.cogvlm.modeling import CogVLMForCausalLM

EQUAL = {"atol": 1e-5, "rtol": 0}


def generate(model, inputs, **options):
    return model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0, **options)


def test_the_patches_of_an_image_share_a_position():
    # Padding, beginning of text, begin mark, three patches, end mark, two words.
    types = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 0, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1, 1]])
    assert build_position_ids(types, mask).tolist() == [[0, 0, 0, 1, 2, 2, 2, 3, 4, 5]]
    assert build_position_ids(torch.tensor([[0, 0, 0]])).tolist() == [[0, 1, 2]]
    assert build_position_ids(torch.tensor([[0, 1, 1, 1]])).tolist() == [[0, 1, 2, 3]]


def test_the_end_mark_is_read_by_the_language_expert():
    routing = route(torch.tensor([[0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]]))
    assert routing.order[: routing.vision].tolist() == [1, 2, 3]
    assert routing.order[routing.inverse].tolist() == list(range(12))
    assert route(torch.zeros(2, 3)) is None


@torch.no_grad()
def test_padding_on_the_left_changes_nothing(cogvlm, rows, pixels):
    padded = cogvlm(**rows((0, 4, 3), (1, 0, 7)), pixel_values=pixels).logits
    alone = cogvlm(**rows((0, 0, 3)), pixel_values=pixels[:1]).logits
    assert_close(padded[:1, 4:], alone, **EQUAL)


@torch.no_grad()
def test_a_cache_changes_nothing(cogvlm, rows, pixels):
    inputs = rows((0, 4, 3), (1, 0, 7))
    with_cache = generate(cogvlm, inputs, pixel_values=pixels)
    assert with_cache.tolist() == generate(cogvlm, inputs, pixel_values=pixels, use_cache=False).tolist()
    # A prompt that ends with its image also gets a text answer.
    bare = rows((0, 0, 0))
    with_cache = generate(cogvlm, bare, pixel_values=pixels[:1])
    assert with_cache.tolist() == generate(cogvlm, bare, pixel_values=pixels[:1], use_cache=False).tolist()


@torch.no_grad()
def test_a_batch_may_mix_prompts_with_and_without_an_image(cogvlm, rows, pixels):
    image, text = rows((0, 0, 3)), rows((1, 0, 14), image=False)
    both = {name: torch.cat([image[name], text[name]]) for name in image}
    logits = cogvlm(**both, pixel_values=pixels[:1]).logits
    assert_close(logits[:1], cogvlm(**image, pixel_values=pixels[:1]).logits, **EQUAL)
    assert_close(logits[1:], cogvlm(**text).logits, **EQUAL)


@torch.no_grad()
def test_token_types_are_derived_from_the_ids(cogvlm, rows, pixels):
    inputs = rows((0, 4, 3), (1, 0, 7))
    expected = cogvlm(**inputs, pixel_values=pixels).logits
    types = inputs.pop("token_type_ids")
    assert_close(cogvlm(**inputs, pixel_values=pixels).logits, expected, **EQUAL)
    features = cogvlm.get_image_features(pixels)
    assert_close(cogvlm(**inputs, mm_encoder_outputs={"image": features}).logits, expected, **EQUAL)
    positions = cogvlm.model.prompt_positions(inputs["input_ids"], inputs["attention_mask"])
    assert positions.tolist() == build_position_ids(types, inputs["attention_mask"]).tolist()


def shared_prefix(model, prompt, answers):
    """Ids, positions and mask of [prompt | chosen | rejected]: the answers don't attend to each other."""
    ids = torch.cat([prompt, *answers])[None]
    positions = model.model.prompt_positions(prompt[None])[0]
    behind = [positions.max() + 1 + torch.arange(len(answer)) for answer in answers]
    mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    middle = len(prompt) + len(answers[0])
    mask[middle:, len(prompt) : middle] = False
    return ids, torch.cat([positions, *behind])[None], mask[None, None]


def answer_logps(logits, before, answer, start):
    """Sum of an answer's log-probabilities, its first token predicted at ``before``, the others from ``start`` on."""
    steps = torch.cat([logits[before : before + 1], logits[start : start + len(answer) - 1]])
    return steps.log_softmax(-1).gather(-1, answer[:, None]).sum()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("given", ["ids", "embeddings"])
def test_a_shared_prefix_gives_the_log_probabilities_and_gradients_of_two_sequences(
    attention, given, make_cogvlm, rows, pixels
):
    model = make_cogvlm(attention)
    prompt = rows((0, 0, 4))["input_ids"][0]
    answers = torch.tensor([5, 9, 3, 2]), torch.tensor([7, 20, 2])
    weight = model.model.layers[0].self_attn.language_expert_query_key_value.weight
    features = model.get_image_features(pixels[:1])

    separate = []
    for answer in answers:
        ids = torch.cat([prompt, answer])[None]
        logits = model(input_ids=ids, mm_encoder_outputs={"image": features}, use_cache=False).logits[0]
        separate.append(answer_logps(logits, len(prompt) - 1, answer, len(prompt)))
    expected = torch.autograd.grad(separate[0] - separate[1], weight, retain_graph=True)[0]

    ids, positions, mask = shared_prefix(model, prompt, answers)
    read = {"input_ids": ids, "mm_encoder_outputs": {"image": features}}
    if given == "embeddings":  # only the decoder, with the image features in place
        types = torch.zeros_like(ids)
        types[0, 1:12] = 1
        embeddings = model.model.embed_tokens(ids)
        embeddings = torch.cat([embeddings[:, :1], features.pooler_output[0][None], embeddings[:, 12:]], dim=1)
        read = {"inputs_embeds": embeddings, "token_type_ids": types}
    hidden = model.model.language_model(**read, position_ids=positions, attention_mask=mask, use_cache=False)
    logits = model.lm_head(hidden.last_hidden_state)[0]
    starts = len(prompt), len(prompt) + len(answers[0])
    shared = [answer_logps(logits, len(prompt) - 1, *part) for part in zip(answers, starts, strict=True)]
    assert_close(torch.stack(shared), torch.stack(separate), **EQUAL)
    assert_close(torch.autograd.grad(shared[0] - shared[1], weight)[0], expected, **EQUAL)

    # Without the mask and the positions, the results differ.
    added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    again = model.model(**read, position_ids=positions, attention_mask=added, use_cache=False).last_hidden_state
    assert_close(model.lm_head(again)[0], logits, **EQUAL)
    plain = model.model(**read, position_ids=positions, use_cache=False).last_hidden_state
    assert not torch.allclose(model.lm_head(plain)[0, starts[1] :], logits[starts[1] :], atol=1e-2)


def test_positions_that_cannot_be_derived_are_required(cogvlm, rows, pixels):
    inputs = rows((0, 0, 3))
    with pytest.raises(ModelError, match=r"(?s)mask of four dimensions.*position_ids"):
        cogvlm(**{**inputs, "attention_mask": torch.ones(1, 1, 15, 15, dtype=torch.bool)}, pixel_values=pixels[:1])
    cache = cogvlm(**inputs, pixel_values=pixels[:1], use_cache=True).past_key_values
    with pytest.raises(ModelError, match=r"(?s)a cache of 15 tokens.*position_ids"):
        cogvlm(input_ids=torch.tensor([[5]]), past_key_values=cache)
    with pytest.raises(ModelError, match="`input_ids` or `inputs_embeds`"):
        cogvlm()


def test_images_that_do_not_match_the_prompts_are_refused(cogvlm, rows, pixels):
    inputs = rows((0, 0, 3))
    with pytest.raises(ModelError, match=r"(?s)11 image tokens for features of 22.*11 tokens per image"):
        cogvlm(**inputs, pixel_values=pixels)
    with pytest.raises(ModelError, match="11 image tokens for features of 0"):
        cogvlm(**inputs)
    with pytest.raises(ModelError, match="0 image tokens for features of 11"):
        cogvlm(**rows((0, 0, 3), image=False), pixel_values=pixels[:1])


def test_gradient_checkpointing_changes_neither_loss_nor_gradients(cogvlm, rows, pixels):
    inputs = rows((0, 0, 6))
    labels = inputs["input_ids"].masked_fill(inputs["token_type_ids"] == 1, -100)
    weight = cogvlm.model.layers[0].mlp.vision_mlp.gate_proj.weight

    def step():
        loss = cogvlm(**inputs, pixel_values=pixels[:1], labels=labels, use_cache=False).loss
        return loss, torch.autograd.grad(loss, weight)[0]

    cogvlm.train()
    expected = step()
    cogvlm.activation_checkpointing_enable()
    assert cogvlm.model.layers[0].gradient_checkpointing
    for got, wanted in zip(step(), expected, strict=True):
        assert_close(got, wanted, **EQUAL)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's
def test_an_adapter_trains_only_the_language_expert_and_survives_saving(make_cogvlm, rows, pixels, tmp_path):
    inputs = rows((0, 0, 6))
    torch.manual_seed(0)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=list(FAMILIES["cogvlm"].target_modules))
    model = get_peft_model(make_cogvlm(), settings)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in trained}
    linear = ("self_attn.language_expert_query_key_value", "self_attn.language_expert_dense")
    linear += tuple(f"mlp.language_mlp.{part}_proj" for part in ("gate", "up", "down"))
    assert layers == {f"model.layers.{k}.{name}" for k in range(3) for name in linear}

    before = model(**inputs, pixel_values=pixels[:1]).logits
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    labels = inputs["input_ids"].masked_fill(inputs["token_type_ids"] == 1, -100)
    losses = []
    for _ in range(3):
        loss = model(**inputs, pixel_values=pixels[:1], labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = model(**inputs, pixel_values=pixels[:1]).logits
    with model.disable_adapter():
        assert_close(model(**inputs, pixel_values=pixels[:1]).logits, before, **EQUAL)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make_cogvlm(), tmp_path)
    assert_close(again(**inputs, pixel_values=pixels[:1]).logits, after, **EQUAL)


@torch.no_grad()
def test_a_saved_model_loads_unchanged(cogvlm, rows, pixels, tmp_path):
    cogvlm.save_pretrained(tmp_path)
    again, found = CogVLMForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values())
    inputs = rows((0, 0, 6))
    assert_close(
        again(**inputs, pixel_values=pixels[:1]).logits, cogvlm(**inputs, pixel_values=pixels[:1]).logits, **EQUAL
    )
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["CogVLMForCausalLM"]


@torch.no_grad()
def test_rotary_angles_have_the_precision_of_the_weights_as_published(cogvlm, rows, pixels, tmp_path):
    rotary = cogvlm.model.layers[0].self_attn.rotary_emb
    # base^(−2k / 8) for k = 0 … 3
    assert_close(rotary.inv_freq, torch.tensor([1.0, 0.1, 0.01, 0.001]))
    cos, sin = rotary(torch.tensor([[257]]), torch.bfloat16)
    # bfloat16 has 8 bits: 257 is read as 256, and 0.1 as 0.10009765625; 256 times that is 25.625.
    assert cos.dtype == sin.dtype == torch.bfloat16
    assert_close(cos[0, 0, 0, :2].float(), torch.tensor([256.0, 25.625]).cos().bfloat16().float())
    # Published files contain the rounded values, which are loaded unchanged into float32.
    cogvlm.to(torch.bfloat16).save_pretrained(tmp_path)
    wide = CogVLMForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert wide.dtype == torch.float32
    cos, _ = wide.model.layers[0].self_attn.rotary_emb(torch.tensor([[1]]), torch.float32)
    assert cos[0, 0, 0, 1].item() == torch.tensor(0.10009765625).cos().item()
    narrow = CogVLMForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    assert narrow.dtype == torch.bfloat16
    inputs = rows((0, 0, 6))
    logits = narrow(**inputs, pixel_values=pixels[:1]).logits
    assert_close(logits.float(), wide.eval()(**inputs, pixel_values=pixels[:1]).logits, atol=0.15, rtol=0)


def test_angles_missing_from_a_file_are_computed(cogvlm, tmp_path):
    from safetensors.torch import load_file, save_file

    cogvlm.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("inv_freq")}
    assert len(tensors) - len(kept) == 3
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again, found = CogVLMForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values())
    assert_close(again.model.layers[2].self_attn.rotary_emb.inv_freq, torch.tensor([1.0, 0.1, 0.01, 0.001]))


def test_hidden_states_and_attention_can_be_returned(make_cogvlm, rows, pixels):
    made = make_cogvlm("eager")(
        **rows((0, 0, 6)), pixel_values=pixels[:1], output_hidden_states=True, output_attentions=True
    )
    assert [state.shape for state in made.hidden_states] == [(1, 18, 32)] * 4
    assert [weights.shape for weights in made.attentions] == [(1, 4, 18, 18)] * 3
    # Attention is causal for image tokens, too.
    assert made.attentions[0][0, :, 3, 4:].abs().max() == 0


def test_the_config_of_cogvlm2_is_refused():
    with pytest.raises(ModelError, match=r"CogVLM2[\s\S]*cogvlm-grounding-generalist"):
        CogVLMConfig(num_multi_query_heads=8)
