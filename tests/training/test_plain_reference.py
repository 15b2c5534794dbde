"""A training step against the plain one: two whole sequences per pair, from text and pixels, by transformers alone."""

import pytest
import torch

from spr.models.families import FAMILIES
from spr.models.image_processors import encode
from spr.training.batches import collate
from spr.training.loss import PairLogps
from spr.training.pairs import trl_pairs
from spr.training.trainee import load_trainee
from spr.training.vision_cache import Features

CPU = torch.device("cpu")
QWEN = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
GLM = "[gMASK]<sop><|user|>\n<|begin_of_image|><|image|><|end_of_image|>{}<|assistant|>\n<think></think>\n"
EMPTY = "<think>\n\n</think>\n\n"
WRITTEN = {  # by hand: the prompt, and what follows the answer
    "qwen3_vl": (QWEN, "<|im_end|>"),
    "qwen3_vl_moe": (QWEN, "<|im_end|>"),
    "qwen3_5": (QWEN + EMPTY, "<|im_end|>"),
    "qwen3_5_moe": (QWEN + EMPTY, "<|im_end|>"),
    "internvl": ("<|im_start|>user\n<IMG_CONTEXT>\n{}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
    "internvl3_5": ("<|im_start|>user\n<IMG_CONTEXT>\n{}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
    "internvl3_5_moe": ("<|im_start|>user\n<IMG_CONTEXT>\n{}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
    "glm4v": (GLM, "<|user|>"),
    "glm4v_moe": (GLM.replace("{}", "{}/nothink"), "<|user|>"),
    "glm46v": (GLM.replace("{}", "{}/nothink"), "<|user|>"),
}


def plain_logps(model, processor, pair, prompt, answer):
    """The log-probability of an answer and its number of tokens, without padding, cached features or own positions."""
    inputs = encode(processor, [prompt + answer], [pair.load()])
    count = len(processor.tokenizer(answer, add_special_tokens=False)["input_ids"])
    logits = model(**inputs).logits[0, -count - 1 : -1]
    labels = inputs["input_ids"][0, -count:]
    return torch.log_softmax(logits, -1).gather(-1, labels[:, None]).sum(), count


@pytest.mark.parametrize("name", WRITTEN)
def test_log_probabilities_and_gradients_are_those_of_whole_sequences(
    name, trainable_folder, pairs_folder, settings, stir, tmp_path
):
    trainee = load_trainee(str(trainable_folder(name)), settings(), CPU, features=tmp_path)
    model, encoder = trainee.model.train(), trainee.encoder
    stir(model)
    pairs = list(trl_pairs(pairs_folder))[:3]
    planned, dropped = encoder.plan(pairs, 4096)
    assert not dropped

    def look(vision):
        with torch.no_grad():
            return Features(*model(vision=vision))

    encoded = [encoder.finish(one, encoder.process(one), look) for one in planned]
    logps = PairLogps(*model(collate(encoded, encoder.pad, shared=trainee.shared)))
    assert trainee.shared == FAMILIES[model.base.config.model_type].shared_prefix
    (logps.chosen - 2 * logps.rejected).sum().backward()
    gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    prompt, end = WRITTEN[name]
    for number, pair in enumerate(pairs):
        asked = prompt.format(pair.messages[0]["content"][1]["text"])
        chosen, tokens = plain_logps(model.peft, encoder.processor, pair, asked, pair.chosen + end)
        rejected, _ = plain_logps(model.peft, encoder.processor, pair, asked, pair.rejected + end)
        torch.testing.assert_close(logps.chosen[number], chosen, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(logps.rejected[number], rejected, rtol=1e-5, atol=1e-4)
        assert logps.chosen_tokens[number] == tokens
        (chosen - 2 * rejected).backward()
    largest = max(gradient.abs().max() for gradient in gradients.values())
    assert len(gradients) == sum(p.requires_grad for p in model.parameters())
    for key, gradient in gradients.items():
        expected = dict(model.named_parameters())[key].grad
        assert (gradient - expected).abs().max() <= 1e-4 * max(expected.abs().max(), 1e-3 * largest), key
