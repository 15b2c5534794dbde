"""Several prompts about one image: it is processed once, and the vision tower reads it once."""

import gc
import weakref
from collections import Counter

import pytest
from peft import LoraConfig, get_peft_model

from spr.config import DescriberConfig
from spr.models.describers import shared_images
from spr.models.describers.hf import HfDescriber
from spr.models.describers.shared_images import SharedImages
from tiny_mllms import all_makers

FEW = ("llava_onevision", "internvl", "qwen3_vl", "minicpmv4_6")  # of different outputs of their image processors
ONLY_GENERATE = ("florence2", "kosmos-2")  # can't be trained: not known to take features in place of pixels
MODELS = [name for name in all_makers() if name not in ONLY_GENERATE]


@pytest.fixture
def seen(monkeypatch):
    """The sizes of the images that went through an image processor, and the number of tokens of features."""
    found = {"images": Counter(), "tokens": 0, "pixels": 0}
    real = shared_images._ImagesOnce, shared_images.compute_features, shared_images.SharedImages.inputs

    class Counted:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __call__(self, images, **settings):
            for image in images:
                found["images"][(image[0] if isinstance(image, list) else image).size] += 1
            return self.inner(images, **settings)

    def computed(*given, **settings):
        features = real[1](*given, **settings)
        found["tokens"] += len(features.tokens)
        return features

    def inputs(*given):
        result = real[2](*given)
        found["pixels"] += result is None
        return result

    monkeypatch.setattr(shared_images, "_ImagesOnce", lambda inner: real[0](Counted(inner)))
    monkeypatch.setattr(shared_images, "compute_features", computed)
    monkeypatch.setattr(shared_images.SharedImages, "inputs", inputs)
    return found


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in MODELS])
@pytest.mark.parametrize("batch_size", [2, 16])
def test_each_image_is_processed_and_read_once(name, batch_size, mllm_folder, ask, picture, seen):
    describer = HfDescriber(mllm_folder(name), device="cpu", dtype="float32", max_new_tokens=2, batch_size=batch_size)
    first, second, third = picture(100, 80), picture(60, 130, 90), picture(120, 60, 30)
    texts = ["Where?", "Where is it?", "What is in the picture, and where is all that, from the left to the right?"]
    asked = [(first, text) for text in texts] + [(second, text) for text in texts] + [(third, texts[0])]
    equal = picture(100, 80)  # another object of the same content
    describer.describe([ask(image, text, seed) for image, text in [*asked, (equal, texts[1])] for seed in (0, 1)])
    assert seen["pixels"] == 0
    assert seen["images"] == {(100, 80): 1, (60, 130): 1, (120, 60): 1}
    tokens, seen["tokens"] = seen["tokens"], 0
    for image in (first, second, third):
        describer.describe([ask(image, text, 0) for text in texts[:2]])
    assert tokens == seen["tokens"] > 0


@pytest.mark.parametrize("batch_size", [2, 16])
def test_with_no_room_images_are_read_again_and_answers_stay(batch_size, ask, picture, seen, monkeypatch):
    describer = HfDescriber("embedded/describer", device="cpu", dtype="float32", batch_size=batch_size)
    images = [picture(100, 80), picture(60, 130, 90)]
    long = "Describe the image and locate its objects: " + "; ".join(
        f"{k} circle [0.1, 0.2, 0.3, 0.4]" for k in range(9)
    )
    requests = [
        ask(image, text, 0) for image in images for text in ("Describe the image and locate its objects.", long)
    ]
    answers = describer.describe(requests)
    assert seen["images"] == {(100, 80): 1, (60, 130): 1}
    monkeypatch.setattr(shared_images, "LARGEST_STORE", 0)
    seen["images"].clear()
    assert describer.describe(requests) == answers
    assert seen["images"] == ({(100, 80): 2, (60, 130): 2} if batch_size == 2 else {(100, 80): 1, (60, 130): 1})


def test_prompts_about_different_images_keep_their_pixels(ask, picture, seen):
    describer = HfDescriber("embedded/describer", device="cpu", dtype="float32", max_new_tokens=2)
    describer.describe([ask(picture(100, 80, shade), "Where?", seed) for shade in (0, 90) for seed in (0, 1)])
    assert seen["images"] == {}
    assert seen["tokens"] == 0


def test_the_features_of_ferret_depend_on_the_regions_in_a_prompt(mllm_folder, ask, picture, seen):
    describer = HfDescriber(mllm_folder("ferret"), device="cpu", dtype="float32", max_new_tokens=4, batch_size=2)
    image = picture(100, 80)
    texts = [
        "What is in [10, 20, 500, 600] <region_fea>?",
        "What is in [300, 200, 900, 700] <region_fea>?",
        "What is it?",
        "Where is it?",
    ]
    together = describer.describe([ask(image, text, 0) for text in texts])
    assert seen["pixels"] > 0
    assert together == [describer.describe([ask(image, text, 0)])[0] for text in texts]


@pytest.mark.parametrize("name", ["internvl", "minicpmv4_6", "minicpmv4_7"])
def test_features_of_an_image_of_one_tile_are_used_beside_an_image_of_many(name, mllm_folder, ask, picture):
    describer = HfDescriber(mllm_folder(name), device="cpu", dtype="float32", max_new_tokens=4, batch_size=4)
    small, large = picture(20, 20), picture(400, 400, 90)
    long = "What is in the picture, and where is all that? " * 40  # of the prompts that are read first, and together
    requests = [ask(small, long + end) for end in "abcd"] + [ask(large, "Where?"), ask(small, "Where?")]
    assert describer.describe(requests) == [describer.describe([request])[0] for request in requests]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "minicpmv4_6"])
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_model_with_an_adapter_that_is_not_merged_reads_each_image_once(name, mllm_folder, ask, picture, seen):
    loaded = HfDescriber(mllm_folder(name), device="cpu", dtype="float32")
    adapter = LoraConfig(target_modules=r".*(q_proj|v_proj|qkv|linear_1)", init_lora_weights=False)
    model = get_peft_model(loaded.model, adapter).eval()
    section = DescriberConfig(model=name, max_new_tokens=4)
    describer = HfDescriber.around(model, loaded.processor, section, name=name)
    requests = [ask(picture(100, 80), text) for text in ("Where?", "What?", "Where is it?")]
    answers = describer.describe(requests)
    assert seen["images"] == {(100, 80): 1}
    assert answers == [describer.describe([request])[0] for request in requests]


@pytest.mark.parametrize(("name", "question"), [("qwen2_5_vl", "Where?"), ("ferret", "[1, 2, 500, 600] <region_fea>?")])
def test_pixels_are_freed_while_features_are_kept(name, question, mllm_folder, picture):
    describer = HfDescriber(mllm_folder(name), device="cpu", dtype="float32")
    pixels, inner = [], describer.processor.image_processor

    class Watched:
        def __getattr__(self, name):
            return getattr(inner, name)

        def __call__(self, images, **settings):
            outputs = inner(images, **settings)
            value = outputs["pixel_values"]
            pixels.extend(map(weakref.ref, value if isinstance(value, list) else [value]))
            return outputs

    describer.processor.image_processor = Watched()
    shared = SharedImages(describer.model, describer.processor, describer.family, {"key": 3})
    inputs = shared.inputs([describer.render(question)], [picture(100, 80)], ["key"])
    assert (inputs is None) == (name == "ferret")  # its regions need the pixels
    gc.collect()
    assert [pixel() for pixel in pixels] == [None]
