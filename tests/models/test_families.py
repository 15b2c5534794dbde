"""The table of families matches the dialects and the classes of transformers."""

import json
import re
from pathlib import Path
from pkgutil import resolve_name

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from spr.config import TrainingConfig
from spr.core.errors import GroundingError
from spr.grounding import DIALECTS, get_dialect, parse
from spr.models.describers.hf import HfDescriber
from spr.models.families import FAMILIES, HOW_TO_ADD, choose_dialect, is_grounding_token, unknown_family
from spr.models.loading import ModelError
from spr.training.trainee import open_model


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.model_type)
def test_a_family_names_a_dialect_and_classes_that_exist(family):
    assert family.dialect in DIALECTS
    if family.custom is not None:
        assert resolve_name(family.custom.config).model_type == family.model_type
    else:
        assert hasattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[family.model_type])
        assert hasattr(transformers, family.processor_class or PROCESSOR_MAPPING_NAMES[family.model_type])
    assert family.turn.count("{prompt}") == 1
    # The processors of models that only describe may insert the image themselves.
    assert family.turn.count("{image}") in ((1,) if family.trainable else (0, 1))


@pytest.mark.parametrize(
    ("key", "special"),
    [
        ("qwen2_vl", ["<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"]),
        ("internvl", ["<ref>", "</ref>", "<box>", "</box>"]),
        ("paligemma", ["<loc0153>", "<loc0102>", "<loc0205>", "<loc0307>"]),
        ("florence2", ["<loc_100>", "<loc_150>", "<loc_300>", "<loc_200>"]),
        ("kosmos2", ["<phrase>", "</phrase>", "<object>", "</object>", "<patch_index_0131>"]),
    ],
)
def test_the_tokens_of_a_dialect_are_kept(key, special):
    example = DIALECTS[key].example
    for token in special:
        assert token in example
        assert is_grounding_token(token)
        # Without this token, the box can't be parsed.
        whole, spoilt = (parse(text, DIALECTS[key], (640, 428)) for text in (example, example.replace(token, "")))
        assert whole.spans[0].boxes
        assert spoilt != whole


def test_turn_markers_and_placeholders_are_not_kept():
    tokens = "</s> <s> <eos> <pad> <|im_end|> <|endoftext|> <image> <video> <|image_pad|> <|vision_start|> <img>"
    assert not any(map(is_grounding_token, tokens.split()))


class QwenImages:
    patch_size, merge_size = 14, 2
    size = {"shortest_edge": 256 * 784, "longest_edge": 1280 * 784}  # noqa: RUF012


def test_a_dialect_that_counts_resized_pixels_is_set_up_as_the_processor_is():
    dialect = choose_dialect(None, "qwen2_5_vl", QwenImages())
    assert dialect == get_dialect("qwen2_5_vl", min_pixels=256 * 784, max_pixels=1280 * 784)
    # 3000 × 2000 is 6 MP; scaled to at most 1280 · 784 px: √(6e6 / 1003520) = 2.4452, 3000 / 2.4452 / 28 = 43.8.
    assert dialect.geometry.canvas((3000, 2000))[-2:] == (43 * 28, 29 * 28)


def test_a_named_dialect_has_precedence_and_a_dialect_object_is_not_changed():
    assert choose_dialect("shikra", "llava", None) is DIALECTS["shikra"]
    own = get_dialect("qwen2_5_vl", max_pixels=100_000)
    assert choose_dialect(own, "qwen2_5_vl", QwenImages()) is own
    assert choose_dialect("kosmos2", "kosmos-2", None) is DIALECTS["kosmos2"]


def test_an_unknown_family_needs_a_dialect():
    with pytest.raises(ModelError, match=r"idefics3[\s\S]*describer\.dialect"):
        choose_dialect(None, "idefics3", None)
    with pytest.raises(GroundingError, match="Unknown dialect"):
        choose_dialect("lava", "llava", None)


def test_pixels_of_a_resized_image_need_a_known_image_processor():
    for model_type in ("llava", "idefics3"):
        with pytest.raises(ModelError, match=rf"{model_type}[\s\S]*qwen2_5_vl:min_pixels"):
            choose_dialect("qwen2_5_vl", model_type, QwenImages())
    given = choose_dialect("qwen2_5_vl:min_pixels=784,max_pixels=1003520", "idefics3", QwenImages())
    assert given == get_dialect("qwen2_5_vl", min_pixels=784, max_pixels=1_003_520)


@pytest.mark.parametrize(
    ("model_type", "near"),
    [
        ("llavaonevision1_5", "llava_onevision (LLaVA-OneVision"),
        ("minicpmv", "minicpmv4_7 (MiniCPM-V 4.7)"),
        ("Qwen3-VL", "qwen3_vl (Qwen3-VL "),
        ("zzz", None),
    ],
)
def test_the_error_for_an_unknown_family_names_the_nearest_and_the_page_that_shows_how_to_add_one(model_type, near):
    error = unknown_family(model_type, "The model can't be trained", why="it is new", instead="wait")
    assert error.got == f"model_type {model_type}: it is new"
    if near is None:
        assert error.expected.startswith("known are llava, ")
    else:
        assert error.expected.startswith(f"the nearest is {near}")
    assert all(name in error.expected for name in FAMILIES)
    assert error.fix == f"wait, or add the family: {HOW_TO_ADD} shows how"
    assert (Path(__file__).parents[2] / HOW_TO_ADD).is_file()


def folder_of(tmp_path, **config):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    return tmp_path / "model"


REMOTE = {"AutoConfig": "configuration_llavaonevision1_5.Llavaonevision1_5Config"}


@pytest.mark.parametrize("open_one", [HfDescriber, lambda folder: open_model(folder, TrainingConfig())])
@pytest.mark.parametrize(("extra", "why"), [({"auto_map": REMOTE}, r": its classes are Python files"), ({}, "")])
def test_a_model_whose_class_nobody_has_is_refused_by_describers_and_training(open_one, extra, why, tmp_path):
    # As published: LLaVA-OneVision-1.5 has its classes in its repository, and transformers has none of its type.
    architectures = ["LLaVAOneVision1_5_ForConditionalGeneration"]
    folder = folder_of(tmp_path, architectures=architectures, model_type="llavaonevision1_5", **extra)
    with pytest.raises(ModelError, match=r"Neither transformers .* nor SPR has the model class") as caught:
        open_one(str(folder))
    assert re.fullmatch(rf"model_type llavaonevision1_5{why}.*", caught.value.got)
    assert "the nearest is llava_onevision" in caught.value.expected
    assert HOW_TO_ADD in caught.value.fix


def test_a_multimodal_model_of_transformers_needs_a_dialect_to_describe_and_can_not_be_trained(tmp_path):
    folder = folder_of(tmp_path, model_type="idefics3")
    with pytest.raises(ModelError, match="can't be trained, because its family is unknown") as caught:
        open_model(str(folder), TrainingConfig())
    assert caught.value.got == "model_type idefics3"
    assert HOW_TO_ADD in caught.value.fix
    with pytest.raises(ModelError, match="dialect of this model family is unknown") as caught:
        choose_dialect(None, "idefics3", None)
    assert caught.value.fix.startswith("set describer.dialect, or add the family")
