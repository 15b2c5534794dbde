"""Tiny models of Gemma 3 and 4, Kimi K2.5, Florence-2 and Kosmos-2, saved as their publishers save them."""

import json
from functools import partial
from pathlib import Path

import torch
import transformers as hf

from spr.models.ported.kimi_k25 import KimiK25ImageProcessor
from tiny_mllms import TEXT, VISION, save, tokenizer

# Every user and model turn starts with its role. An image is a placeholder between blank lines.
GEMMA_TURNS = (
    "{{ bos_token }}{% for message in messages %}START{{ 'model' if message['role'] == 'assistant' else "
    "message['role'] }}{{ '\\n' }}{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}END\n{% endfor %}"
)
GEMMA3_TEMPLATE = (
    GEMMA_TURNS.replace("START", "<start_of_turn>").replace("END", "<end_of_turn>").replace("IMAGE", "<start_of_image>")
    + "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GEMMA4_TEMPLATE = (
    GEMMA_TURNS.replace(
        "{{ bos_token }}",
        "{{ bos_token }}{% if enable_thinking | default(false) %}<|turn>system\n<|think|>\n<turn|>\n{% endif %}",
    )
    .replace("START", "<|turn>")
    .replace("END", "<turn|>")
    .replace("IMAGE", "{{ '\\n\\n<|image|>\\n\\n' }}")
    + "{% if add_generation_prompt %}<|turn>model\n{% if not enable_thinking | default(false) %}"
    + "<|channel>thought\n<channel|>{% endif %}{% endif %}"
)
KIMI_TEMPLATE = (
    "{% for message in messages %}<|im_{{ message['role'] }}|>{{ message['role'] }}<|im_middle|>"
    "{% if message['role'] == 'assistant' %}<think></think>{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>"
    "{{ '<think></think>' if thinking is defined and not thinking else '<think>' }}{% endif %}"
)
GEMMA_TEXT = {**TEXT, "num_hidden_layers": 3, "head_dim": 8, "sliding_window": 24}
LAYER_TYPES = ["sliding_attention", "sliding_attention", "full_attention"]
GEMMA4_TOKENS = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}


GEMMA4_SIZES = {
    # Embeddings per layer, last layers that take their keys and values from others, and causal attention.
    "E2B": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
    },
    # A mixture of experts. Image tokens attend in both directions in sliding layers.
    "26B-A4B": {
        "use_bidirectional_attention": "vision",
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
    },
    # Layers of full attention whose keys are also their values.
    "31B": {"use_bidirectional_attention": "vision", "attention_k_eq_v": True, "num_global_key_value_heads": 1},
}
"""Fields of the language model's config in which the sizes of Gemma 4 differ."""


def make_gemma3(folder: Path) -> None:
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    specials = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", *named.values()]
    words = tokenizer(specials, named, bos="<bos>", eos="<eos>", pad="<pad>")
    config = hf.Gemma3Config(
        tie_word_embeddings=False,
        vision_config=hf.SiglipVisionConfig(**VISION, image_size=56, patch_size=14, vision_use_head=False).to_dict(),
        text_config=hf.Gemma3TextConfig(
            **GEMMA_TEXT, layer_types=LAYER_TYPES, query_pre_attn_scalar=8, vocab_size=112
        ).to_dict(),
        mm_tokens_per_image=4,
        boi_token_index=words.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=words.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=words.convert_tokens_to_ids("<image_soft_token>"),
    )
    images = hf.Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    settings = {"image_seq_length": 4, "chat_template": GEMMA3_TEMPLATE}
    save(folder, hf.Gemma3ForConditionalGeneration(config), [words, images], settings, hf.Gemma3Processor)


def make_gemma4(folder: Path, size: str) -> None:
    specials = ["<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|think|>", "<|channel>", "<channel|>", "<|video|>"]
    words = tokenizer([*specials, *GEMMA4_TOKENS.values()], GEMMA4_TOKENS, bos="<bos>", eos="<eos>", pad="<pad>")
    ids = {f"{name}_id": words.convert_tokens_to_ids(token) for name, token in GEMMA4_TOKENS.items()}
    defaults = {"vocab_size": 112, "vocab_size_per_layer_input": 112, "hidden_size_per_layer_input": 0}
    defaults |= {"global_head_dim": 16, "final_logit_softcapping": 30.0, "layer_types": LAYER_TYPES}
    config = hf.Gemma4Config(
        tie_word_embeddings=False,
        vision_config=hf.Gemma4VisionConfig(
            **VISION, num_key_value_heads=4, head_dim=8, patch_size=4, pooling_kernel_size=3
        ).to_dict(),
        text_config=hf.Gemma4TextConfig(**(GEMMA_TEXT | defaults | GEMMA4_SIZES[size])).to_dict(),
        audio_config=None,
        video_token_id=words.convert_tokens_to_ids("<|video|>"),
        **ids,
    )
    images = hf.Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70)
    settings = {"image_seq_length": 70, "chat_template": GEMMA4_TEMPLATE}
    save(folder, hf.Gemma4ForConditionalGeneration(config), [words, images], settings, hf.Gemma4Processor)


def make_kimi_k25(folder: Path) -> None:
    named = {"image_token": "<|media_pad|>", "video_token": "<|kimi_k25_video_placeholder|>"}
    specials = ["[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>"]
    specials += ["<|media_begin|>", "<|media_content|>", "<|media_end|>", "<think>", "</think>", "[PAD]"]
    words = tokenizer([*specials, *named.values()], named, bos="[BOS]", eos="<|im_end|>", pad="[PAD]")
    text = {**TEXT, "num_hidden_layers": 3, "vocab_size": 112, "num_key_value_heads": 4}
    # Latent attention, and a mixture of experts from the second layer on.
    text |= {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    text |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
    text |= {"moe_intermediate_size": 16, "first_k_dense_replace": 1}
    config = hf.Kimi_K25Config(
        tie_word_embeddings=False,
        text_config=hf.DeepseekV3Config(**text).to_dict(),
        vision_config={**VISION, "pos_emb_height": 8, "pos_emb_width": 8, "patch_size": 14},
        projection_hidden_size=32,
        image_token_id=words.convert_tokens_to_ids("<|media_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|kimi_k25_video_placeholder|>"),
    )
    images = KimiK25ImageProcessor(max_patches=64)
    settings = {"chat_template": KIMI_TEMPLATE}
    save(folder, hf.Kimi_K25ForConditionalGeneration(config), [words, images], settings, hf.Kimi_K25Processor)
    # As published: the settings of the publisher's own image processor, whose class is remote code.
    published = {"in_patch_limit": 64, "patch_limit_on_one_side": 512, "patch_size": 14, "merge_kernel_size": 2}
    published |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "fixed_output_tokens": None}
    (folder / "preprocessor_config.json").write_text(json.dumps({"media_proc_cfg": published}))


def make_florence2(folder: Path) -> None:
    named = {"image_token": "<image>"}
    words = tokenizer(
        ["<s>", "<pad>", "</s>", "<unk>", "<image>", *(f"<loc_{k}>" for k in range(1000))],
        named,
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        unk="<unk>",
    )
    ids = {f"{name}_token_id": words.convert_tokens_to_ids(t) for name, t in (("bos", "<s>"), ("eos", "</s>"))}
    ids |= {"pad_token_id": words.convert_tokens_to_ids("<pad>"), "decoder_start_token_id": ids["eos_token_id"]}
    text = hf.BartConfig(
        tie_word_embeddings=False,
        vocab_size=len(words),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=512,
        forced_bos_token_id=ids["bos_token_id"],
        forced_eos_token_id=ids["eos_token_id"],
        **ids,
    )
    vision = {
        "depths": [1, 1, 1, 1],
        "embed_dim": [8, 16, 16, 32],
        "num_heads": [1, 2, 2, 4],
        "num_groups": [1, 2, 2, 4],
    }
    config = hf.Florence2Config(
        tie_word_embeddings=False,
        vision_config={**vision, "window_size": 2, "projection_dim": 32},
        text_config=text.to_dict(),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        **ids,
    )
    images = hf.CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False, image_seq_length=5)
    model = hf.Florence2ForConditionalGeneration(config)
    save(folder, model, [words, images], {"num_additional_image_tokens": 0}, hf.Florence2Processor)
    defaults = {
        "num_beams": 3,
        "no_repeat_ngram_size": 3,
        "early_stopping": True,
        "forced_bos_token_id": ids["bos_token_id"],
    }
    path = folder / "generation_config.json"
    path.write_text(json.dumps(defaults | ids))


def make_kosmos2(folder: Path) -> None:
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<image>", "</image>"]
    words = tokenizer(specials, bos="<s>", eos="</s>", pad="<pad>", unk="<unk>")
    processor = hf.Kosmos2Processor(
        hf.CLIPImageProcessorPil(size={"height": 42, "width": 42}, crop_size={"height": 42, "width": 42}), words
    )
    roles = {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}
    ids = {f"{name}_token_id": words.convert_tokens_to_ids(token) for name, token in roles.items()}
    text = {"vocab_size": len(words), "embed_dim": 32, "layers": 2, "ffn_dim": 64, "attention_heads": 4, **ids}
    text["tie_word_embeddings"] = False
    config = hf.Kosmos2Config(
        tie_word_embeddings=False,
        text_config={**text, "max_position_embeddings": 512},
        vision_config={**VISION, "image_size": 42, "patch_size": 14},
        latent_query_num=64,
    )
    model = hf.Kosmos2ForConditionalGeneration(config)
    with torch.no_grad():  # so that the image influences the answer
        model.vision_model.model.embeddings.patch_embedding.weight *= 50
        model.image_to_text_projection.dense.weight *= 50
        model.image_to_text_projection.x_attn.v_proj.weight *= 10
    save(folder, model, [words, processor.image_processor], {}, hf.Kosmos2Processor)


MAKERS = {
    "gemma3": make_gemma3,
    "gemma4": partial(make_gemma4, size="26B-A4B"),
    "gemma4_e2b": partial(make_gemma4, size="E2B"),
    "gemma4_31b": partial(make_gemma4, size="31B"),
    "kimi_k25": make_kimi_k25,
    "florence2": make_florence2,
    "kosmos-2": make_kosmos2,
}
