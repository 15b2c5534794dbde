"""A tiny Ferret with random weights under the published names, and the inputs that the published code was run on.

The published code (github.com/apple/ml-ferret at 3c9e5c9, with transformers 4.31.0 and torch 2.13.0 on a CPU) got the
same weights and inputs; what it answered is in published.npz.
"""

import json
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

SEED = 11
VISION = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "projection_dim": 16,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VOCABULARY, REGION = 64, 63


def published_config(vocabulary: int = VOCABULARY, **changes) -> dict:
    """The config.json of the published code, for the tiny model."""
    return {
        **TEXT,
        "architectures": ["FERRETLlamaForCausalLM"],
        "model_type": "ferret",
        "hidden_act": "silu",
        "vocab_size": vocabulary,
        "im_region_fea_token": vocabulary - 1,
        "mm_hidden_size": 24,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "region_geo_sampler": True,
        "sampler_pooler_mode": "max",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.31.0",
        "use_mm_proj": True,
        **changes,
    }


def published_shapes(vocabulary: int = VOCABULARY) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tiny model's tensors as the published code names them, without the vision tower."""
    d, f, c = TEXT["hidden_size"], TEXT["intermediate_size"], VISION["hidden_size"]
    shapes = {
        "model.embed_tokens.weight": (vocabulary, d),
        "lm_head.weight": (vocabulary, d),
        "model.norm.weight": (d,),
    }
    for k in range(TEXT["num_hidden_layers"]):
        layer = f"model.layers.{k}."
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (d, d) for name in "qkvo"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (f, d) for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = (d, f)
        shapes |= {f"{layer}{name}.weight": (d,) for name in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {"model.mm_projector.weight": (d, c), "model.mm_projector.bias": (d,)}
    sampler = "model.region_geo_sampler."
    for k in range(2):
        shapes |= {f"{sampler}diff_projector_list.{k}.weight": (c + 2, c + 2)}
        shapes |= {f"{sampler}diff_projector_list.{k}.bias": (c + 2,)}
        shapes |= {f"{sampler}agg_projector_list.{k}.net.0.weight": (c, 2 * c + 4, 1)}
        shapes |= {
            f"{sampler}agg_projector_list.{k}.{name}": (c,) for name in ("net.0.bias", "norm.weight", "norm.bias")
        }
    shapes |= {f"{sampler}flatten_projector.weight": (c, 32 * c), f"{sampler}flatten_projector.bias": (c,)}
    shapes |= {f"{sampler}dim_projector.weight": (d, c), f"{sampler}dim_projector.bias": (d,)}
    return shapes


def vision_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes in a file of CLIP's vision half, for the tiny model."""
    c, f, top = VISION["hidden_size"], VISION["intermediate_size"], "vision_model."
    shapes = {f"{top}embeddings.class_embedding": (c,), f"{top}embeddings.patch_embedding.weight": (c, 3, 14, 14)}
    shapes[f"{top}embeddings.position_embedding.weight"] = (17, c)
    norms = [f"{top}pre_layrnorm", f"{top}post_layernorm"]
    for k in range(VISION["num_hidden_layers"]):
        layer = f"{top}encoder.layers.{k}."
        norms += [f"{layer}layer_norm1", f"{layer}layer_norm2"]
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (c, c) for name in ("k", "v", "q", "out")}
        shapes |= {f"{layer}self_attn.{name}_proj.bias": (c,) for name in ("k", "v", "q", "out")}
        shapes |= {f"{layer}mlp.fc1.weight": (f, c), f"{layer}mlp.fc1.bias": (f,)}
        shapes |= {f"{layer}mlp.fc2.weight": (c, f), f"{layer}mlp.fc2.bias": (c,)}
    return shapes | {f"{norm}.{part}": (c,) for norm in norms for part in ("weight", "bias")}


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A published tensor of the tiny model: small normal values, around 1 for norm scales."""
    values = 0.1 * np.random.default_rng([SEED, zlib.crc32(name.encode())]).standard_normal(shape)
    around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
    return torch.from_numpy((around + values).astype(np.float32))


def save_published(folder: Path, vocabulary: int = VOCABULARY, **changes) -> Path:
    """The tiny model in the published layout: two pickles, and the vision tower in a separate folder."""
    tower = folder / "vision_tower"
    tower.mkdir(parents=True)
    tensors = {name: weight(name, shape) for name, shape in published_shapes(vocabulary).items()}
    names = sorted(tensors)
    files = [f"pytorch_model-{k:05d}-of-00002.bin" for k in (1, 2)]
    index = {name: files[k % 2] for k, name in enumerate(names)}
    for file in files:
        torch.save({name: tensors[name] for name in names if index[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(published_config(vocabulary, **changes)))
    long = "model.vision_tower.vision_tower."
    seen = {name: weight(long + name, shape) for name, shape in vision_shapes().items()}
    torch.save(seen, tower / "pytorch_model.bin")
    (tower / "config.json").write_text(json.dumps({**VISION, "model_type": "clip_vision_model"}))
    return folder


def save_tokenizer(folder: Path) -> Path:
    """A SentencePiece vocabulary of 600 pieces, and ``<region_fea>`` added as 600."""
    shutil.copy(Path(__file__).parent / "tokenizer.model", folder)
    (folder / "added_tokens.json").write_text('{"<region_fea>": 600}')
    return folder


def save_parts(folder: Path) -> tuple[Path, Path]:
    """A base of 600 tokens (every number a quarter) and a delta of 601 (every number a half), each in two pickles."""
    base, delta = folder / "vicuna", folder / "delta"
    base.mkdir(parents=True)
    save_published(delta, 601, torch_dtype="float16")
    save_tokenizer(delta)
    shapes = published_shapes(601)
    names = sorted(shapes)
    (delta / "pytorch_model.bin.index.json").unlink()
    for k in (0, 1):
        file = f"pytorch_model-{k + 1:05d}-of-00002.bin"
        torch.save({name: torch.full(shapes[name], 0.5).half() for name in names[k::2]}, delta / file)
        shared = [name for name in names[k::2] if "mm_projector" not in name and "region_geo" not in name]
        tensors = {name: torch.full(shapes[name], 0.25).half() for name in shared}
        tensors = {name: t[:600] if "embed" in name or "lm_head" in name else t for name, t in tensors.items()}
        # Old versions of transformers saved these too.
        tensors[f"model.layers.{k}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        torch.save(tensors, base / file)
    return base, delta


@pytest.fixture(scope="session")
def published_folder(tmp_path_factory) -> Path:
    return save_published(tmp_path_factory.mktemp("ferret") / "published")


@pytest.fixture(scope="session")
def answers() -> dict[str, np.ndarray]:
    """The outputs of the published code."""
    with np.load(Path(__file__).parent / "published.npz") as kept:
        return dict(kept)


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The functions above, for tests."""
    return SimpleNamespace(
        seed=SEED,
        region=REGION,
        image=VOCABULARY,
        weight=weight,
        save_published=save_published,
        published_config=published_config,
        published_shapes=published_shapes,
        save_tokenizer=save_tokenizer,
        save_parts=save_parts,
        vision_shapes=vision_shapes,
    )
