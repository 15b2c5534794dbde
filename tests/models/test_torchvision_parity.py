"""Pixels of the processors in use, which need no torchvision, beside those of transformers' default ones, which do.

The grids and sizes are the same. Values differ by rounding where an image is resized: both round to bytes, one after
each axis.
"""

import importlib

import numpy as np
import pytest
from PIL import Image

from spr.models.ported.molmo2 import Molmo2ImageProcessor

pytest.importorskip("torchvision", reason="torchvision, which the other processors need, is not installed")

SQUARE = {"do_center_crop": False}
CLIP_336, CLIP_768 = ({"size": {"height": side, "width": side}, **SQUARE} for side in (336, 768))
PADDED = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "do_pad": True}
TILES = {"size": {"height": 448, "width": 448}, "crop_to_patches": True, "max_patches": 12}
# By family: the module, the class without its ending, and the settings of the published folder.
PROCESSORS = {
    "llava": ("llava", "LlavaImageProcessor", PADDED),
    "llava_onevision": ("llava_onevision", "LlavaOnevisionImageProcessor", {}),
    "qwen2_vl": ("qwen2_vl", "Qwen2VLImageProcessor", {"size": {"shortest_edge": 3136, "longest_edge": 1003520}}),
    "qwen3_vl": ("qwen2_vl", "Qwen2VLImageProcessor", {"patch_size": 16}),
    "internvl": ("got_ocr2", "GotOcr2ImageProcessor", TILES),
    "paligemma": ("siglip", "SiglipImageProcessor", {"size": {"height": 448, "width": 448}, "resample": 3}),
    "glm4v": ("glm4v", "Glm4vImageProcessor", {}),
    "glm46v": ("glm46v", "Glm46VImageProcessor", {}),
    "gemma3": ("gemma3", "Gemma3ImageProcessor", {"size": {"height": 896, "width": 896}, "resample": 2}),
    "gemma4": ("gemma4", "Gemma4ImageProcessor", {}),
    "minicpmv4_6": ("minicpmv4_6", "MiniCPMV4_6ImageProcessor", {}),
    "ferret": ("clip", "CLIPImageProcessor", CLIP_336),
    "florence2": ("clip", "CLIPImageProcessor", CLIP_768),
}


@pytest.fixture(scope="module")
def photographs(photos):
    return [Image.open(path).convert("RGB") for path in sorted(photos.rglob("*.jpg"))[:4]]


@pytest.mark.parametrize("family", PROCESSORS)
def test_grids_are_equal_and_pixels_are_within_rounding(family, photographs):
    module, name, settings = PROCESSORS[family]
    classes = importlib.import_module(f"transformers.models.{module}")
    ours, default = (getattr(classes, name + end)(**settings, do_normalize=False) for end in ("Pil", ""))
    for image in photographs:
        found, expected = (dict(processor([image], return_tensors="pt")) for processor in (ours, default))
        assert found.keys() == expected.keys()
        levels = 255 * (found.pop("pixel_values") - expected.pop("pixel_values")).abs().numpy()
        assert {key: np.asarray(value).tolist() for key, value in found.items()} == {
            key: np.asarray(value).tolist() for key, value in expected.items()
        }
        assert levels.mean() < 0.3
        assert (levels > 1.5).mean() < 5e-3
        assert levels.max() < 16


def test_molmo2s_pixels_are_those_of_transformers_to_the_bit(photographs):
    default = importlib.import_module("transformers.models.molmo2").Molmo2ImageProcessor()
    ours = Molmo2ImageProcessor()
    for image in photographs:
        found, expected = (processor([image], return_tensors="np") for processor in (ours, default))
        for name, values in expected.items():
            assert np.array_equal(found[name], values), name
