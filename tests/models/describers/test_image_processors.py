"""Processors without video give the ids and pixels of the family's full processor."""

import inspect
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from spr.models.chat import render_turn, user_turn
from spr.models.families import FAMILIES, choose_dialect
from spr.models.image_processors import count_image_tokens, encode, load_processor, without_video
from spr.models.loading import ModelError
from spr.models.ported.kimi_k25 import load_kimi_k25_images

WITH_VIDEO = [
    *("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "internvl"),
    *("glm4v", "glm4v_moe", "glm46v", "gemma4", "kimi_k25"),
]


def load(folder):
    return load_processor(folder, folder.name, family=FAMILIES[folder.name])


@pytest.mark.parametrize("family", WITH_VIDEO)
def test_ids_and_pixels_are_those_of_the_processor_with_video(family, mllm_folder, picture, monkeypatch):
    ours = load(mllm_folder(family))
    whole_class = type(ours).__mro__[1]
    assert whole_class is getattr(transformers, type(ours).__name__)
    assert "video_processor" in whole_class.get_attributes()
    # The parts for video and sound are loaded but never used; only the video processor's class needs torchvision.
    monkeypatch.setattr(whole_class, "check_argument_for_proper_class", lambda *_: None)
    names = inspect.signature(whole_class.__init__).parameters
    settings = {name: getattr(ours, name) for name in names if hasattr(ours, name)}
    others = {name: object() for name in names if name in ("video_processor", "feature_extractor")}
    whole = whole_class(**settings, **others)
    images = [picture(100, 80), picture(33, 90), picture(300, 40)]
    texts = [f"{ours.image_token} a", f"{ours.image_token} much longer", f"b {ours.image_token}"]
    per_text = [[image] for image in images]
    expected = whole(images=per_text, text=texts, padding=True).convert_to_tensors("pt")
    found = encode(ours, texts, images)
    assert found.keys() == expected.keys() >= {"input_ids", "attention_mask", "pixel_values"}
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("family", "tokens"),
    [
        # 42 px are 3 × 3 patches of 14; the class token is added and dropped.
        ("llava", 9),
        ("paligemma", 9),
        # Best of the grid is 126 × 84 (105 × 84 px used): 9 × 6 patches, of which 100 × 80 covers int(7.5) = 7 columns:
        # 7 · 6, and 6 ends of line, and 9 of the thumbnail.
        ("llava_onevision", 7 * 6 + 6 + 9),
        # 100 / 28 = 3.6, 80 / 28 = 2.9: 4 × 3 merged patches. Within 4 and 16 of them.
        ("qwen2_vl", 12),
        ("qwen2_5_vl", 12),
        # 100 / 32 = 3.1, 80 / 32 = 2.5, rounded half to even.
        ("qwen3_vl", 3 * 2),
        # 56 px are 4 × 4 patches of 14, pooled to 2 × 2.
        ("gemma3", 4),
        # At most 630 patches of 4 px: √(630 · 16 / 8000) = 1.12 times 100 × 80 is 112.2 × 89.8, in units of 3 patches.
        ("gemma4", 9 * 7),
        # 7 × 5 patches are within 64, so it stays as it is; padded to 112 × 84, units of 28.
        ("kimi_k25", 4 * 3),
        ("qwen3_vl_moe", 3 * 2),
        ("qwen3_5", 3 * 2),
        # As Qwen2-VL's, but an image counts as two frames, so the limits hold for twice its pixels.
        ("glm4v", 12),
        ("glm4v_moe", 12),
        ("glm46v", 12),
        # 1.25 is as near to 1 as to 3:2, and the larger grid wins: 6 tiles and the thumbnail, 4 tokens each.
        ("internvl", 7 * 4),
        # 100 · 80 / 56² = 2.6, so 2 to 4 slices; 2 × 2 are nearest to 5:4. They and the whole image are 56 × 56 px, of
        # which 4 × 4 patches become a token.
        ("minicpmv4_6", 1 + 4),
        ("minicpmv4_7", 1 + 4),
    ],
)
def test_an_image_of_100_by_80_becomes_as_many_tokens_as_counted_by_hand(family, tokens, mllm_folder, picture):
    processor = load(mllm_folder(family))
    ids = encode(processor, [processor.image_token], [picture(100, 80)])["input_ids"]
    # Of Gemma 3, the token in the prompt is another one than those that the image becomes.
    token = getattr(processor.tokenizer, "image_token_id", processor.image_token_id)
    assert int((ids == token).sum()) == tokens


@pytest.mark.parametrize(
    ("family", "patch", "rows", "columns"),
    # 80 and 100 px in merged patches of 28 or 32 px, rounded half to even: 3 × 4 and 2 × 3, of 2 × 2 patches each.
    [
        *[(name, 14, 6, 8) for name in ("qwen2_vl", "qwen2_5_vl", "glm4v", "glm4v_moe", "glm46v")],
        *[(name, 16, 4, 6) for name in ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")],
    ],
)
def test_ids_and_pixels_of_qwen_and_glm_equal_those_computed_without_transformers(
    family, patch, rows, columns, mllm_folder, picture
):
    processor, image = load(mllm_folder(family)), picture(100, 80)
    found = encode(processor, [f"a{processor.image_token}b"], [image])
    pad, *letters = (processor.tokenizer.convert_tokens_to_ids(t) for t in (processor.image_token, "a", "b"))
    assert found["input_ids"][0].tolist() == [letters[0], *[pad] * (rows * columns // 4), letters[1]]
    assert found["image_grid_thw"].tolist() == [[1, rows, columns]]
    shown = image.resize((columns * patch, rows * patch), Image.Resampling.BICUBIC)
    mean, std = processor.image_processor.image_mean, processor.image_processor.image_std
    values = ((np.asarray(shown) / 255 - mean) / std).transpose(2, 0, 1)
    # Merged patches in row-major order, then the four patches of each; a patch is channel-first with two equal frames.
    places = itertools.product(range(0, rows, 2), range(0, columns, 2), range(2), range(2))
    corners = [((y + dy) * patch, (x + dx) * patch) for y, x, dy, dx in places]
    tiles = [values[:, None, y : y + patch, x : x + patch].repeat(2, axis=1).ravel() for y, x in corners]
    np.testing.assert_allclose(found["pixel_values"].numpy(), np.stack(tiles), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_is_on_the_left_of_a_decoders_prompt_and_on_the_right_of_an_encoders(family, mllm_folder, picture):
    processor, entry = load(mllm_folder(family)), FAMILIES[family]
    texts = [render_turn(processor, entry, user_turn(text)) for text in ("a", "a long one")]
    mask = encode(processor, texts, [picture(60, 60)] * 2)["attention_mask"]
    assert mask[0].tolist() == sorted(mask[0].tolist(), reverse=entry.encoder_decoder)
    assert not mask[0].all()
    assert mask[1].all()


@pytest.mark.parametrize("family", ["minicpmv4_6", "minicpmv4_7"])
@pytest.mark.parametrize(
    ("size", "slices"),
    [((100, 80), "<slice>P</slice><slice>P</slice>\n<slice>P</slice><slice>P</slice>"), ((40, 60), "")],
)
def test_minicpm_writes_the_whole_image_and_then_its_slices_by_row(family, size, slices, mllm_folder, picture):
    processor = load(mllm_folder(family))
    ids = encode(processor, ["a<|image_pad|>b"], [picture(*size)])["input_ids"][0].tolist()
    text = f"a<image_id>0</image_id><image>P</image>{slices}b".replace("P", "<|image_pad|>")
    assert ids == processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_llava_sees_the_whole_image_padded_to_a_square(mllm_folder):
    processor = load(mllm_folder("llava"))
    assert type(processor.image_processor) is transformers.LlavaImageProcessorPil
    white = Image.new("RGB", (120, 60), "white")
    pixels = encode(processor, ["<image>"], [white])["pixel_values"][0]
    assert pixels.shape == (3, 42, 42)
    # 30 of 120 rows above and below are the mean colour, which normalises to 0 (to within a grey level): 10 of 42.
    assert pixels[:, :9].abs().max() < 0.02
    assert pixels[:, -9:].abs().max() < 0.02
    assert (pixels[:, 12:30] > 1.5).all()  # the image reaches both sides


@pytest.mark.parametrize(
    ("size", "scaled", "padded"),
    [
        ((100, 80), (100, 80), (112, 84)),
        # 14 × 10 patches for at most 64: √(64 / 140) = 0.6761, so that 200 × 150 becomes 135.2 × 101.4.
        ((200, 150), (135, 101), (140, 112)),
        ((28, 28), (28, 28), (28, 28)),
        # 71 × 1 patches: √(64 / 71) = 0.9494 of 1000 × 10.
        ((1000, 10), (949, 9), (952, 28)),
        ((1, 1), (1, 1), (28, 28)),
    ],
)
def test_ids_and_pixels_of_kimi_equal_those_computed_without_transformers(size, scaled, padded, mllm_folder, picture):
    processor, image = load(mllm_folder("kimi_k25")), picture(*size)
    found = encode(processor, [f"a{processor.image_token}"], [image])
    columns, rows = padded[0] // 14, padded[1] // 14
    assert found["image_grid_thw"].tolist() == [[1, rows, columns]]
    assert found["input_ids"].shape[1] == 1 + rows * columns // 4
    assert processor.image_processor.get_number_of_image_patches(size[1], size[0]) == rows * columns
    # As the publisher: PIL's bicubic, black on the right and below, then −1 to 1, patches row by row.
    shown = Image.new("RGB", padded)
    shown.paste(image.resize(scaled, Image.Resampling.BICUBIC))
    values = (np.asarray(shown) / 255 - 0.5) / 0.5
    tiles = [values[y : y + 14, x : x + 14] for y in range(0, padded[1], 14) for x in range(0, padded[0], 14)]
    np.testing.assert_allclose(found["pixel_values"].numpy(), np.stack(tiles).transpose(0, 3, 1, 2), atol=1e-6)


def test_the_settings_of_kimis_image_processor_are_read_in_the_publishers_layout_and_in_transformers(tmp_path):
    own = {"max_patches": 1024, "size": {"max_height": 16, "max_width": 16}, "merge_size": 2, "image_mean": [0.4] * 3}
    published = {"in_patch_limit": 1024, "patch_limit_on_one_side": 16, "merge_kernel_size": [2, 2]}
    published |= {"image_mean": [0.4] * 3, "timestamp_mode": "hh:mm:ss.fff"}
    for settings in (own, {"media_proc_cfg": published, "auto_map": {"AutoImageProcessor": "x.Y"}}):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        read = load_kimi_k25_images(tmp_path)
        assert (read.max_patches, read.size["max_height"], read.merge_size) == (1024, 16, 2)
        assert list(read.image_mean) == [0.4] * 3
        # 16 patches of 14 px are the most along a side: 300 × 100 becomes 224 × 74, padded to 8 × 3 units of 28.
        assert read.resized(100, 300) == (74, 224)
        assert read.get_number_of_image_patches(100, 300) == 4 * 8 * 3


@pytest.mark.parametrize("family", ["gemma3", "gemma4"])
def test_pixels_of_gemma_equal_those_computed_without_transformers(family, mllm_folder, picture):
    processor, image = load(mllm_folder(family)), picture(100, 80)
    found = encode(processor, [processor.image_token], [image])["pixel_values"][0].numpy()
    if family == "gemma3":  # squashed to a square, −1 to 1
        values = np.asarray(image.resize((56, 56), Image.Resampling.BILINEAR)) / 255
        np.testing.assert_allclose(found, ((values - 0.5) / 0.5).transpose(2, 0, 1), atol=1e-6)
        return
    # At its own aspect ratio, 0 to 1, patches row by row, padded to the 630 of the largest image.
    values = np.asarray(image.resize((108, 84), Image.Resampling.BICUBIC)) / 255
    tiles = [values[y : y + 4, x : x + 4].ravel() for y in range(0, 84, 4) for x in range(0, 108, 4)]
    np.testing.assert_allclose(found[: 27 * 21], np.stack(tiles), atol=1e-6)
    assert not found[27 * 21 :].any()


@pytest.mark.parametrize("size", [(100, 80), (640, 427), (28, 900), (9, 5), (1, 1), (199, 1), (131, 402)])
def test_the_dialect_counts_the_pixels_that_qwens_processor_makes(size, mllm_folder, picture):
    processor = load(mllm_folder("qwen2_5_vl"))
    dialect = choose_dialect(None, "qwen2_5_vl", processor.image_processor)
    _, rows, columns = processor.image_processor([picture(*size)], return_tensors="pt")["image_grid_thw"][0].tolist()
    assert dialect.geometry.canvas(size)[-2:] == (14 * columns, 14 * rows)


def test_a_processor_class_without_video_is_not_changed():
    assert without_video(transformers.PaliGemmaProcessor) is transformers.PaliGemmaProcessor


@pytest.mark.parametrize(
    ("named", "used"), [("LlavaNextProcessor", "LlavaNextProcessor"), ("NoSuchProcessor", "LlavaOnevisionProcessor")]
)
def test_the_class_that_the_folder_names_is_used_if_transformers_has_it(named, used, mllm_folder, tmp_path):
    folder = shutil.copytree(mllm_folder("llava_onevision"), tmp_path / "llava_onevision")
    path = folder / "processor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "processor_class": named, "patch_size": 14}))
    assert isinstance(load(folder), getattr(transformers, used))


def test_a_template_saved_with_the_tokenizer_is_found(mllm_folder, tmp_path):
    processor = load(mllm_folder("qwen2_vl"))
    processor.tokenizer.chat_template = "{{ 'hi' }}"
    processor.tokenizer.save_pretrained(tmp_path / "qwen2_vl")
    processor.image_processor.save_pretrained(tmp_path / "qwen2_vl")
    assert load(tmp_path / "qwen2_vl").chat_template == "{{ 'hi' }}"


def test_missing_files_give_one_clear_error(tmp_path, mllm_folder):
    with pytest.raises(ModelError, match="no processor"):
        load_processor(mllm_folder("llava"), "bert")
    (tmp_path / "llava").mkdir()
    with pytest.raises(ModelError, match="not a complete model"):
        load(tmp_path / "llava")


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.count_function])
@pytest.mark.parametrize("size", [(100, 80), (40, 60), (56, 56), (57, 56), (300, 40), (33, 90), (500, 500), (1, 190)])
def test_tokens_are_counted_by_an_images_size_alone(family, size, mllm_folder, picture):
    processor = load(mllm_folder(family))
    words = encode(processor, [f"a{processor.image_token}\nb"], [picture(*size)])["input_ids"].shape[1]
    assert count_image_tokens(processor, FAMILIES[family], [size[::-1]]) == [words - len("a\nb")]
