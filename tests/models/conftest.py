"""Tiny models of the real classes, randomly initialized and saved like the published ones."""

import pytest
import torch
from transformers import (
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessorPil,
)

WORDS = [
    "a",
    "the",
    "cat",
    "dog",
    "man",
    "bird",
    "red",
    "blue",
    "umbrella",
    "chair",
    "tree",
    "on",
    "with",
    ",",
    "##s",
    "cats",
]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}


def clip_tokenizer() -> CLIPTokenizer:
    """A tokenizer with one token per byte, one per byte at a word's end, two merges, and the special tokens last."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    chars = [chr(b) for b in kept] + [chr(256 + k) for k in range(256 - len(kept))]
    tokens = [*chars, *(char + "</w>" for char in chars), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: k for k, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[("c", "a"), ("ca", "t</w>")], model_max_length=77)


def bert_tokenizer() -> BertTokenizer:
    """A tokenizer whose special tokens have the ids of BERT, which GroundingDINO hard-codes."""
    own = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    free = iter(sorted(set(range(1100)) - set(own.values())))
    names = [*WORDS, *LETTERS, *("##" + letter for letter in LETTERS)]
    vocab = own | {name: next(free) for name in dict.fromkeys(names) if name not in own}
    vocab |= {f"[unused{k}]": k for k in free}
    return BertTokenizer(vocab=vocab, model_max_length=512)


def randomise(model: torch.nn.Module, scale: float) -> torch.nn.Module:
    """Scale the weights so that images and texts influence the outputs."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=draw)
    return model.eval()


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1}
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 77, **ids}
    vision = {**VISION, "image_size": 56, "patch_size": 14}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    folder = tmp_path_factory.mktemp("models") / "clip"
    randomise(CLIPModel(config), 0.1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    CLIPImageProcessorPil(**size).save_pretrained(folder)
    return folder


def _dino_config(kind, **changes):
    backbone = {
        "model_type": "swin",
        "embed_dim": 16,
        "depths": [1, 1, 1, 1],
        "num_heads": [2, 2, 2, 2],
        "window_size": 4,
        "image_size": 64,
        "out_indices": [2, 3, 4],
    }
    text = {
        "model_type": "bert",
        "vocab_size": 1100,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    return kind(
        backbone_config=backbone,
        text_config=text,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=12,
        **changes,
    )


def _save_dino(folder, model):
    randomise(model, 0.03)
    with torch.no_grad():
        model.model.decoder.layer_norm.weight *= 0.1  # scores near 0.5 are more informative than scores near 1
    model.save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    size = {"shortest_edge": 96, "longest_edge": 160}
    GroundingDinoImageProcessorPil(size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def grounding_dino_folder(tmp_path_factory):
    torch.manual_seed(1)
    model = GroundingDinoForObjectDetection(_dino_config(GroundingDinoConfig))
    return _save_dino(tmp_path_factory.mktemp("models") / "grounding-dino", model)


@pytest.fixture(scope="session")
def mm_grounding_dino_folder(tmp_path_factory):
    torch.manual_seed(2)
    model = MMGroundingDinoForObjectDetection(_dino_config(MMGroundingDinoConfig))
    return _save_dino(tmp_path_factory.mktemp("models") / "mm-grounding-dino", model)


def _save_owl(folder, config_class, model_class, processor_class):
    tokenizer = clip_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 16, **ids}
    vision = {**VISION, "image_size": 64, "patch_size": 16}
    config = config_class(text_config=text, vision_config=vision, projection_dim=TEXT["hidden_size"])
    model = randomise(model_class(config), 0.01)
    with torch.no_grad():
        for head in (model.box_head.dense2, model.class_head.logit_shift, model.class_head.logit_scale):
            head.weight *= 0.02  # boxes of some size, and scores that differ
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor_class(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def owlv2_folder(tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("models") / "owlv2"
    return _save_owl(folder, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessorPil)


@pytest.fixture(scope="session")
def owlvit_folder(tmp_path_factory):
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("models") / "owlvit"
    return _save_owl(folder, OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessorPil)
