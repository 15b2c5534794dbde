"""Tiny multimodal LLMs of every family's real classes, randomly initialized and saved like the published ones."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from spr.models.ported.cogvlm.configuration import CogVLMConfig
from spr.models.ported.cogvlm.modeling import CogVLMForCausalLM
from spr.models.ported.ferret.configuration import FerretConfig
from spr.models.ported.ferret.modeling import FerretForConditionalGeneration
from spr.models.ported.ferret.processing import FerretProcessor
from spr.models.protocols import DescribeRequest
from spr.records import RegionObject, RegionQuery

QWEN_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


def tokenizer(specials: list[str], named: dict[str, str] | None = None, **roles: str) -> hf.PreTrainedTokenizerFast:
    """A tokenizer whose tokens are printable ASCII, space and newline, followed by the special tokens."""
    alphabet = [*map(chr, range(33, 127)), "Ġ", "Ċ"]
    backend = Tokenizer(models.BPE(vocab={char: k for k, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokens = {f"{role}_token": token for role, token in roles.items()}
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=named or {}, **tokens)


def chat_template(image: str, *, start: str, end: str, answer: str) -> str:
    """Jinja for one turn: ``start``, then image and text in their order, ``end`` and the start of the ``answer``."""
    parts = "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + image
    parts += "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    turns = "{% for message in messages %}" + start + parts + end + "{% endfor %}"
    return turns + "{% if add_generation_prompt %}" + answer + "{% endif %}"


CHAT_ML = {"start": "<|im_start|>user\n", "end": "<|im_end|>\n", "answer": "<|im_start|>assistant\n"}
QWEN_TEMPLATE = chat_template("<|vision_start|><|image_pad|><|vision_end|>", **CHAT_ML)


def save(folder: Path, model: torch.nn.Module, parts: list, settings: dict, processor: type) -> None:
    # The weights are large enough for image, text and position to influence the answer.
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    # The folders of most models set other sampling defaults than ours, which must have no effect.
    model.generation_config = hf.GenerationConfig(do_sample=True, top_k=1, repetition_penalty=2.0, eos_token_id=4)
    model.save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)
    template = settings.pop("chat_template", None)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    if settings:
        (folder / "processor_config.json").write_text(json.dumps({**settings, "processor_class": processor.__name__}))


def make_llava(folder: Path) -> None:
    words = tokenizer(["<s>", "</s>", "<image>", "<pad>"], bos="<s>", eos="</s>", pad="<pad>")
    config = hf.LlavaConfig(
        tie_word_embeddings=False,
        vision_config=hf.CLIPVisionConfig(**VISION, image_size=42, patch_size=14),
        text_config=hf.LlamaConfig(**TEXT, vocab_size=112),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    images = hf.CLIPImageProcessorPil(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42})
    template = chat_template("<image>\n", start="USER: ", end=" ", answer="ASSISTANT:")
    settings = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    settings["chat_template"] = template
    save(folder, hf.LlavaForConditionalGeneration(config), [words, images], settings, hf.LlavaProcessor)


def make_llava_onevision(folder: Path) -> None:
    words = tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"],
        eos="<|im_end|>",
        pad="<|endoftext|>",
    )
    grid = [[h, w] for h in (42, 84, 126) for w in (42, 84, 126)]
    config = hf.LlavaOnevisionConfig(
        tie_word_embeddings=False,
        vision_config=hf.SiglipVisionConfig(**VISION, image_size=42, patch_size=14, vision_use_head=False),
        text_config=hf.Qwen2Config(**TEXT, vocab_size=112),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        vision_feature_select_strategy="full",
        image_grid_pinpoints=grid,
        vision_aspect_ratio="anyres_max_9",
    )
    images = hf.LlavaOnevisionImageProcessorPil(size={"height": 42, "width": 42}, image_grid_pinpoints=grid)
    settings = {"num_image_tokens": 9, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"}
    settings["chat_template"] = chat_template(
        "<image>\n", start="<|im_start|>user ", end="<|im_end|>", answer="<|im_start|>assistant\n"
    )
    model = hf.LlavaOnevisionForConditionalGeneration(config)
    save(folder, model, [words, images], settings, hf.LlavaOnevisionProcessor)


def qwen_parts(patch: int) -> tuple[hf.PreTrainedTokenizerFast, hf.Qwen2VLImageProcessorPil, dict]:
    words = tokenizer(QWEN_TOKENS, eos="<|im_end|>", pad="<|endoftext|>")
    side = 2 * patch
    limits = {"shortest_edge": 4 * side * side, "longest_edge": 16 * side * side}
    images = hf.Qwen2VLImageProcessorPil(size=limits, patch_size=patch, merge_size=2)
    names = ("image", "video", "vision_start", "vision_end")
    tokens = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    ids = {f"{name}_token_id": words.convert_tokens_to_ids(token) for name, token in zip(names, tokens, strict=True)}
    return words, images, {**ids, "tie_word_embeddings": False}


def make_qwen2_vl(folder: Path) -> None:
    words, images, ids = qwen_parts(14)
    text = {**TEXT, "vocab_size": 112, "rope_parameters": MROPE}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 14}
    model = hf.Qwen2VLForConditionalGeneration(hf.Qwen2VLConfig(text_config=text, vision_config=vision, **ids))
    save(folder, model, [words, images], {"chat_template": QWEN_TEMPLATE}, hf.Qwen2VLProcessor)


def make_qwen2_5_vl(folder: Path) -> None:
    words, images, ids = qwen_parts(14)
    text = {**TEXT, "vocab_size": 112, "rope_parameters": MROPE}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": 32,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    model = hf.Qwen2_5_VLForConditionalGeneration(hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))
    save(folder, model, [words, images], {"chat_template": QWEN_TEMPLATE}, hf.Qwen2_5_VLProcessor)


def make_qwen3_vl(folder: Path) -> None:
    words, images, ids = qwen_parts(16)
    text = {**TEXT, "vocab_size": 112, "head_dim": 8, "rope_parameters": {**MROPE, "mrope_interleaved": True}}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": 32,
        "patch_size": 16,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    model = hf.Qwen3VLForConditionalGeneration(hf.Qwen3VLConfig(text_config=text, vision_config=vision, **ids))
    save(folder, model, [words, images], {"chat_template": QWEN_TEMPLATE}, hf.Qwen3VLProcessor)


def make_internvl(folder: Path, text: hf.PreTrainedConfig | None = None) -> None:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    boxes = ["<ref>", "</ref>", "<box>", "</box>"]
    words = tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *named.values(), *boxes],
        eos="<|im_end|>",
        pad="<|endoftext|>",
        named=named,
    )
    vision = {**VISION, "image_size": [28, 28], "patch_size": [7, 7], "use_qk_norm": False}
    config = hf.InternVLConfig(
        tie_word_embeddings=False,
        vision_config=hf.InternVLVisionConfig(**vision),
        text_config=text or hf.Qwen2Config(**TEXT, vocab_size=112),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    images = hf.GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=6)
    settings = {"image_seq_length": 4, "chat_template": chat_template("<IMG_CONTEXT>\n", **CHAT_ML)}
    save(folder, hf.InternVLForConditionalGeneration(config), [words, images], settings, hf.InternVLProcessor)


def make_paligemma(folder: Path) -> None:
    words = tokenizer(["<pad>", "<eos>", "<bos>", "<image>"], bos="<bos>", eos="<eos>", pad="<pad>")
    # As in the published tokenizer, whose vocabulary already contains them.
    words.add_tokens([f"<loc{k:04d}>" for k in range(1024)] + [f"<seg{k:03d}>" for k in range(128)])
    config = hf.PaliGemmaConfig(
        tie_word_embeddings=False,
        vision_config=hf.SiglipVisionConfig(**VISION, image_size=42, patch_size=14, vision_use_head=False),
        text_config=hf.GemmaConfig(**TEXT, head_dim=8, vocab_size=1252),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        projection_dim=32,
    )
    images = hf.SiglipImageProcessorPil(size={"height": 42, "width": 42}, image_seq_length=9)
    save(folder, hf.PaliGemmaForConditionalGeneration(config), [words, images], {}, hf.PaliGemmaProcessor)


def make_ferret(folder: Path) -> None:
    words = tokenizer(["<unk>", "<s>", "</s>", "<region_fea>", "<image>"], bos="<s>", eos="</s>", pad="<unk>")
    config = FerretConfig(
        vision_config=hf.CLIPVisionConfig(**VISION, image_size=42, patch_size=14).to_dict(),
        text_config=hf.LlamaConfig(**TEXT, vocab_size=112).to_dict(),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        region_token_index=words.convert_tokens_to_ids("<region_fea>"),
    )
    images = hf.CLIPImageProcessorPil(size={"height": 42, "width": 42}, do_center_crop=False)
    settings = {"patch_size": 14, "region_points": 512}
    model = FerretForConditionalGeneration(config)
    with torch.no_grad():
        model.model.multi_modal_projector.weight *= 20  # so that the image's colour influences the answer
    save(folder, model, [words, images], settings, FerretProcessor)


def make_cogvlm(folder: Path) -> None:
    words = tokenizer(["<unk>", "<s>", "</s>"], bos="<s>", eos="</s>", unk="<unk>")
    ids = {f"{name}_token_id": words.convert_tokens_to_ids(t) for name, t in (("pad", "<unk>"), ("bos", "<s>"))}
    vision = {**VISION, "num_heads": VISION["num_attention_heads"], "image_size": 42, "patch_size": 14}
    del vision["num_attention_heads"]
    sizes = {name: number for name, number in TEXT.items() if name != "num_key_value_heads"}
    config = CogVLMConfig(
        **{**sizes, **ids},
        eos_token_id=words.convert_tokens_to_ids("</s>"),
        vocab_size=112,
        vision_config={**vision, "num_positions": 10},
        template_version="base",
    )
    save(folder, CogVLMForCausalLM(config), [words], {}, type(None))
    # As published: a class name instead of a model type, remote code, and no processor files.
    published = json.loads((folder / "config.json").read_text())
    del published["model_type"], published["vision_config"]["model_type"]
    published["auto_map"] = {
        "AutoConfig": "configuration_cogvlm.CogVLMConfig",
        "AutoModelForCausalLM": "modeling_cogvlm.CogVLMForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(published))


MAKERS = {
    "llava": make_llava,
    "llava_onevision": make_llava_onevision,
    "qwen2_vl": make_qwen2_vl,
    "qwen2_5_vl": make_qwen2_5_vl,
    "qwen3_vl": make_qwen3_vl,
    "internvl": make_internvl,
    "paligemma": make_paligemma,
    "ferret": make_ferret,
    "cogvlm": make_cogvlm,
}
MAKERS_OF = ("tiny_gemma_kimi", "tiny_others", "tiny_qwen_glm")  # modules that import the helpers of this one


def all_makers() -> dict[str, Callable[[Path], None]]:
    """Those of all modules, by ``model_type`` or the name of another model of a family."""
    return MAKERS | {k: v for name in MAKERS_OF for k, v in importlib.import_module(name).MAKERS.items()}


@pytest.fixture(scope="session")
def mllm_folder(tmp_path_factory) -> Callable[[str], Path]:
    """A family's ``model_type`` → folder of a tiny model, created once."""
    made: dict[str, Path] = {}

    def make(model_type: str) -> Path:
        if model_type not in made:
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp("mllms") / model_type
            all_makers()[model_type](folder)
            made[model_type] = folder
        return made[model_type]

    return make


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """``width, height`` → an RGB image with colour gradients and a bright square."""

    def draw(width: int, height: int, tint: int = 0) -> Image.Image:
        across = Image.linear_gradient("L").rotate(90).resize((width, height))
        down = Image.linear_gradient("L").resize((width, height))
        image = Image.merge("RGB", (across, down, Image.new("L", (width, height), tint)))
        image.paste((255, 255, 0), (width // 4, height // 4, width // 2, height // 2))
        return image

    return draw


@pytest.fixture(scope="session")
def ask() -> Callable[..., DescribeRequest]:
    """``image, prompt, seed`` → a request."""

    def make(image: Image.Image, prompt: str = "Where is it?", seed: int = 0) -> DescribeRequest:
        width, height = image.size
        window = (0.0, 0.0, float(width), float(height))
        query = RegionQuery(
            query_id="q",
            image_id="1",
            file_name="1.png",
            width=width,
            height=height,
            region=window,
            start_object="a",
            objects=(RegionObject("a", "box", window, inside=True),),
        )
        return DescribeRequest(image, prompt, seed, query, window)

    return make
