"""Reference answers: transformers' own `generate` on batches of equal-length prompts, sampled by seed.

Nothing is padded, shared or refilled. The sampling is written again, with NumPy's unsigned integers and a full sort.
"""

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList

from spr.models.describers.answer_tokens import AnswerTokens
from spr.models.image_processors import encode
from spr.models.protocols import Answer

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(bits):
    """The finalizer of splitmix64 (Steele et al. 2014) on uint64."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return bits ^ (bits >> np.uint64(31))


def noise(seed, step, vocabulary):
    """Standard Gumbel noise of each token, float32, from the seed and the index of the drawn token."""
    stream = mix(mix(np.array([seed], np.uint64)) + np.array([step + 1], np.uint64) * GOLDEN)
    bits = mix(stream + np.arange(1, vocabulary + 1, dtype=np.uint64) * GOLDEN)
    uniform = torch.from_numpy(((bits >> np.uint64(11)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-53))
    return -torch.log(-torch.log1p(-uniform.clamp(max=1 - 2.0**-24)))


class DrawBySeed(LogitsProcessor):
    """Scores whose argmax is a sample of the nucleus."""

    def __init__(self, seeds, start, temperature, top_p):
        self.seeds, self.start, self.temperature, self.top_p = seeds, start, temperature, top_p

    def __call__(self, input_ids, scores):
        logps = (scores.float() / self.temperature).log_softmax(-1)
        ordered = logps.sort(descending=True).values
        needed = (ordered.exp().cumsum(-1) < self.top_p).sum(-1, keepdim=True).clamp(max=logps.shape[-1] - 1)
        step = input_ids.shape[1] - self.start
        drawn = torch.stack([noise(seed, step, logps.shape[-1]) for seed in self.seeds])
        least = ordered.gather(-1, needed) if self.top_p < 1 else torch.full((len(logps), 1), -math.inf)
        return torch.where(logps >= least, logps + drawn.to(logps.device), -math.inf)


@dataclass
class Reference:
    """A copy of a describer's model that answers by `generate`.

    Attributes:
        describer: The describer whose prompts, sampling and decoding are used.
        model: The copy.
        tokens: What ends an answer.
    """

    describer: object
    model: object
    tokens: AnswerTokens

    @classmethod
    def of(cls, describer, max_new_tokens, stop_strings=()):
        model = copy.deepcopy(describer.model)
        saved, tokenizer = model.generation_config, describer.processor.tokenizer
        turn = describer.render("")
        tokens = AnswerTokens.of(tokenizer, describer.family, describer.dialect, saved, turn=turn)
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=sorted(tokens.ends),
            pad_token_id=tokenizer.pad_token_id,
            stop_strings=list(stop_strings) or None,
            decoder_start_token_id=saved.decoder_start_token_id,
            forced_bos_token_id=saved.forced_bos_token_id,
        )
        for module in model.modules():  # Kosmos-2's language model generates, with a config of its own
            if isinstance(module, GenerationMixin):
                module.generation_config = config
        return cls(describer, model, tokens)

    def answers(self, requests, *, temperature, top_p):
        """The answer of each request, and its number of tokens."""
        groups = {}
        for k, request in enumerate(requests):
            groups.setdefault((request.image.size, self._inputs([request])["input_ids"].shape[1]), []).append(k)
        found = {}
        for members in groups.values():
            rows = self._generate([requests[k] for k in members], temperature, top_p)
            found |= dict(zip(members, map(self._read, rows), strict=True))
        return [found[k] for k in range(len(requests))]

    def _inputs(self, requests):
        texts = [self.describer.render(request.prompt) for request in requests]
        inputs = encode(self.describer.processor, texts, [request.image for request in requests])
        assert bool(inputs["attention_mask"].all()), "a reference batch must not be padded"
        return {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}

    def _generate(self, requests, temperature, top_p):
        inputs = self._inputs(requests)
        encoder = self.describer.family is not None and self.describer.family.encoder_decoder
        start = 1 if encoder else inputs["input_ids"].shape[1]
        draw = DrawBySeed([request.seed for request in requests], start, temperature, top_p)
        processors = LogitsProcessorList([draw] if temperature > 0 else [])
        ids = self.model.generate(**inputs, logits_processor=processors, tokenizer=self.describer.processor.tokenizer)
        return ids[:, start:].tolist()

    def _read(self, row):
        turn = self.tokens.turn(row)
        text, stops = self.describer.decode(row), self.model.generation_config.stop_strings or []
        written = self.describer.processor.tokenizer.decode(turn)
        if any(stop in written for stop in stops):
            for stop in stops:
                text = text.partition(stop)[0]
            return Answer(text, "stop_string"), len(turn)
        return Answer(text, "stop" if len(turn) < len(row) else "length"), len(turn)
