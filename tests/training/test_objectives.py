"""Every objective against a plain computation: one sequence per answer, the model's own forward pass, in float64."""

import copy
import dataclasses
import itertools
import json
from statistics import NormalDist, fmean, pstdev

import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import logsigmoid

from spr.models.image_processors import encode
from spr.training.batches import collate
from spr.training.checkpoint import TrainingState
from spr.training.loss import PairLogps, bco_pair, pair_losses, uses
from spr.training.pairs import trl_pairs
from spr.training.trainee import load_trainee
from spr.training.trainer import train
from spr.training.vision_cache import Features

CPU = torch.device("cpu")
ALL = {"loss_type": "mpo", "anchor_weight": 0.7, "anchor_margin": 0.1, "box_token_weight": 3.0, "beta": 0.3}
OBJECTIVES = {
    "dpo": {},
    "boxes": {"box_token_weight": 5.0},
    "ipo, boxes": {"loss_type": "ipo", "box_token_weight": 5.0},
    "bco": {"loss_type": "bco_pair"},
    "mpo": {"loss_type": "mpo"},
    "dpo and nll, anchored": {"nll_weight": 0.5, "anchor_weight": 2.0},
    "all": ALL,
}
SHIFT, PAIR_WEIGHTS = 0.2, (0.4, 1.6)


def plain_sum(model, processor, planned, ids, heavy):
    """The weighted sum of an answer's log-probabilities and the sum of its weights, by the model's own forward pass."""
    inputs = encode(processor, [planned.turn], [planned.pair.load()])
    prompt = inputs.pop("input_ids")
    inputs.pop("attention_mask", None)
    whole = torch.cat([prompt, ids[None]], dim=1)
    vision = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    logits = model(input_ids=whole, attention_mask=torch.ones_like(whole), **vision).logits[0]
    logps = logits.log_softmax(-1)[prompt.shape[1] - 1 : -1].gather(-1, ids[:, None])[:, 0]
    assert logps.dtype == torch.float64
    weights = torch.ones(len(ids), dtype=torch.float64)
    # One character per token in these vocabularies: the weights by the text of the answer, without offsets.
    for place, weight in heavy.items():
        weights[place] = weight
    return (logps * weights).sum(), weights.sum()


def places_of(tokenizer, ids, numbers, weight):
    """The tokens that spell the pieces of text, one character each."""
    tokens = [tokenizer.decode([token]) for token in ids.tolist()]
    text = "".join(token if len(token) == 1 else "\0" for token in tokens)
    places = {}
    for piece in numbers:
        start = text.index(piece)
        inside = [place for place in range(start, start + len(piece)) if text[place] in "0123456789."]
        places |= dict.fromkeys(inside, weight)
    return places


def plain_loss(sums, sizes, reference, config):
    """Written out by the formulas of the papers; ``sums`` are those of the chosen and of the rejected answer."""
    (c, r), (n, m), (cr, rr), beta = sums, sizes, reference, config.beta
    wins, loses = beta * (c - cr), beta * (r - rr)
    parts = {
        "dpo": -logsigmoid(wins - loses),
        "ipo": ((c - cr) / n - (r - rr) / m - 1 / (2 * beta)) ** 2,
        "bco_pair": -logsigmoid(wins - SHIFT) - logsigmoid(-(loses - SHIFT)),
        "sft": -c / n,
    }
    mixture = {"mpo": {"dpo": 0.8, "bco_pair": 0.2, "sft": 1.0}}.get(config.loss_type, {config.loss_type: 1.0})
    loss = sum(weight * parts[name] for name, weight in mixture.items()) + config.nll_weight * parts["sft"]
    return loss - config.anchor_weight * logsigmoid(wins - config.anchor_margin)


@pytest.fixture
def pairs(pairs_folder):
    """Two pairs whose boxes differ; of the second, the rejected answer was cut."""
    one, two, *_ = trl_pairs(pairs_folder)
    chosen, rejected = "a cat [0.10, 0.20, 0.50, 0.60]", "a cat [0.15, 0.20, 0.50, 0.65] on a mat"
    both = "a dog [0.11, 0.21, 0.51, 0.61]"
    return [
        dataclasses.replace(one, chosen=chosen, rejected=rejected),
        dataclasses.replace(
            two, chosen=f"{both}, {chosen}", rejected=f"{both}, a cat [0.9, 0.9, 0.95, 0.9], ", rejected_complete=False
        ),
    ]


CHANGED = [
    ("0.10, 0.20, 0.50, 0.60", "0.15, 0.20, 0.50, 0.65"),
    ("0.10, 0.20, 0.50, 0.60", "0.9, 0.9, 0.95, 0.9"),
]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("model_type", ["llava_onevision", "internvl"])
def test_losses_and_gradients_are_those_of_a_plain_computation(
    model_type, name, shared, pairs, trainable_folder, settings, stir, tmp_path
):
    config = settings(**OBJECTIVES[name])
    folder = str(trainable_folder(model_type))
    trainee = load_trainee(folder, config, CPU, features=tmp_path, dialect="llava")
    stir(trainee.model)
    model, encoder = trainee.model.train(), trainee.encoder
    planned, dropped = encoder.plan(pairs, 4096)
    assert not dropped
    plain = copy.deepcopy(trainee.model.peft).double()

    def features(vision):
        with torch.no_grad():
            return Features(*model(vision=vision))

    batch = collate([encoder.finish(p, encoder.process(p), features) for p in planned], encoder.pad, shared=shared)
    with torch.no_grad(), model.peft.disable_adapter():
        reference = PairLogps(*model(batch))
    weights = torch.tensor(PAIR_WEIGHTS)
    logps = PairLogps(*model(batch))
    known = reference.chosen, reference.rejected
    losses = pair_losses(logps, known, config, reward_shift=SHIFT, weights=weights)
    losses.loss.sum().backward()

    expected = []
    for one, changed, weight in zip(planned, CHANGED, PAIR_WEIGHTS, strict=True):
        sums, sizes, references = [], [], []
        for ids, numbers in zip((one.chosen, one.rejected), changed, strict=True):
            heavy = places_of(encoder.processor.tokenizer, ids, [numbers], config.box_token_weight)
            value, size = plain_sum(plain, encoder.processor, one, ids, heavy)
            with torch.no_grad(), plain.disable_adapter():
                references.append(plain_sum(plain, encoder.processor, one, ids, heavy)[0])
            sums.append(value)
            sizes.append(size)
        expected.append(weight * plain_loss(sums, sizes, references, config))
        ours = [getattr(logps, side)[len(expected) - 1].item() for side in ("chosen", "rejected")]
        assert ours == pytest.approx([value.item() for value in sums], rel=1e-5)
    assert losses.loss.tolist() == pytest.approx([value.item() for value in expected], rel=1e-4)
    sum(expected).backward()
    ours, theirs = (
        {name: p.grad for name, p in part.named_parameters() if p.grad is not None} for part in (model.peft, plain)
    )
    assert set(ours) == set(theirs)
    largest = max(gradient.abs().max().item() for gradient in theirs.values())
    for parameter, gradient in theirs.items():
        scale = max(gradient.abs().max().item(), 1e-3 * largest)
        assert (ours[parameter] - gradient).abs().max().item() <= 2e-4 * scale, parameter


# ── whole trainings ───────────────────────────────────────────────────────────────────────────────────────────────────


def steps_of(out):
    lines = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


def values_of(out, *names):
    return [[line[name] for name in names] for line in steps_of(out)]


@pytest.fixture
def model(trainable_folder):
    return str(trainable_folder("llava_onevision"))


def test_accumulated_batches_take_the_steps_of_one_large_batch(model, pairs_folder, settings, tmp_path):
    options = {**ALL, "difficulty_weight": 1.0, "num_train_epochs": 4}
    train(trl_pairs(pairs_folder), model, settings(**options, per_device_train_batch_size=6), tmp_path / "large")
    small = settings(**options, per_device_train_batch_size=2, gradient_accumulation_steps=3)
    train(trl_pairs(pairs_folder), model, small, tmp_path / "small")
    names = "loss", "margin", "chosen_rewards", "reward_shift", "grad_norm"
    ours, theirs = values_of(tmp_path / "small", *names), values_of(tmp_path / "large", *names)
    assert len(ours) == 4
    assert abs(theirs[-1][3]) > 1e-3  # the shift is not zero, so that it matters
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_the_shift_is_the_mean_reward_of_all_answers_in_the_steps_before(
    model, pairs_folder, settings, tmp_path, add_loss
):
    seen = []

    @uses(reward_shift=True)
    def spy(inputs, config):
        seen.append(inputs.reward_shift)
        return bco_pair(inputs, config)

    # Batches of 4 and 2 pairs: pairs count, not steps.
    config = settings(loss_type=add_loss("spy", spy), per_device_train_batch_size=4, num_train_epochs=2)
    train(trl_pairs(pairs_folder), model, config, tmp_path)
    total, pairs, expected = 0.0, 0, [0.0]
    for line, size in zip(steps_of(tmp_path), step_sizes(tmp_path), strict=True):
        total += size * (line["chosen_rewards"] + line["rejected_rewards"]) / 2
        pairs += size
        expected.append(total / pairs)
    assert seen == pytest.approx(expected[:-1])
    assert [line["reward_shift"] for line in steps_of(tmp_path)] == pytest.approx(expected[1:])
    assert len(set(seen)) == 3  # all rewards are 0 in the first step


def step_sizes(out, pairs=6):
    epochs = [0.0] + [line["epoch"] for line in steps_of(out)]
    return [round((after - before) * pairs) for before, after in itertools.pairwise(epochs)]


def test_losses_without_a_shift_log_none(model, pairs_folder, settings, tmp_path):
    train(trl_pairs(pairs_folder), model, settings(per_device_train_batch_size=6), tmp_path)
    assert "reward_shift" not in steps_of(tmp_path)[0]


def test_a_training_that_was_cut_short_resumes_with_its_shift(model, pairs_folder, settings, tmp_path, monkeypatch):
    options = {**ALL, "difficulty_weight": 1.0, "num_train_epochs": 3, "save_steps": 1}
    config, save = settings(**options, per_device_train_batch_size=4), TrainingState.save
    train(trl_pairs(pairs_folder), model, config, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def save_then_stop(self, folder, step, *arguments):
        path = save(self, folder, step, *arguments)
        if step == 3:
            raise Killed
        return path

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save", save_then_stop)
        with pytest.raises(Killed):
            train(trl_pairs(pairs_folder), model, config, tmp_path / "cut")
    train(trl_pairs(pairs_folder), model, config, tmp_path / "cut")
    names = "step", "loss", "margin", "reward_shift", "grad_norm"
    assert values_of(tmp_path / "cut", *names) == values_of(tmp_path / "whole", *names)
    adapters = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("cut", "whole")]
    assert adapters[0] == adapters[1]


def test_difficulty_is_measured_by_the_reference_per_token(model, pairs_folder, settings, tmp_path):
    # A step per pair, and no learning: the loss of a pair is its weight times log 2.
    config = settings(difficulty_weight=1.0, per_device_train_batch_size=1, learning_rate=1e-30)
    pairs = list(trl_pairs(pairs_folder))
    train(pairs, model, config, tmp_path)
    rows = pq.read_table(tmp_path / "training" / "reference.parquet").to_pylist()
    encoder = load_trainee(model, config, CPU, features=tmp_path).encoder
    sizes = {one.key: (len(one.chosen), len(one.rejected)) for one in encoder.plan(pairs, 4096)[0]}
    gaps = [row["chosen"] / sizes[row["key"]][0] - row["rejected"] / sizes[row["key"]][1] for row in rows]
    normal = NormalDist(fmean(gaps), pstdev(gaps))
    difficulty = [1 - normal.cdf(gap) for gap in gaps]
    losses = [line["loss"] for line in steps_of(tmp_path)]
    expected = sorted(0.6931472 * value / fmean(difficulty) for value in difficulty)
    assert sorted(losses) == pytest.approx(expected, rel=1e-4)
    assert fmean(losses) == pytest.approx(0.6931472, rel=1e-4)


def test_another_box_weight_computes_the_reference_of_pairs_with_changed_boxes_again(
    model, pairs_folder, settings, tmp_path
):
    def told(weight, out, reference=None):
        lines = []
        config = settings(box_token_weight=weight, per_device_train_batch_size=6)
        train(trl_pairs(pairs_folder), model, config, tmp_path / out, reference=reference, report=lines.append)
        return [line for line in lines if line.startswith("Reference")]

    # Two of the six pairs have no boxes, so no weight changes their log-probabilities.
    changed = ["Reference log-probabilities of 4 pairs"]
    known = tmp_path / "a" / "training" / "reference.parquet"
    assert told(3, "a") == ["Reference log-probabilities of 6 pairs"]
    assert told(3, "b", known) == []
    assert told(5, "c", known) == changed
    assert told(1, "d", known) == changed


def test_fine_tuning_weighs_the_boxes_that_the_rejected_answer_lacks(model, pairs_folder, settings, tmp_path):
    pairs = [dataclasses.replace(pair, rejected="") for pair in trl_pairs(pairs_folder)]
    losses = []
    for weight in (1, 5):
        out = tmp_path / str(weight)
        config = settings(loss_type="sft", box_token_weight=weight, per_device_train_batch_size=6)
        train(pairs, model, config, out)
        losses += values_of(out, "loss", "chosen_logps")
        assert not (out / "training" / "reference.parquet").exists()
    assert losses[0] != losses[1]
