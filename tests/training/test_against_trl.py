"""TRL's DPOTrainer, on the same model, adapter and pairs: the same loss, rewards and gradients."""

import copy
import warnings

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from spr.models.image_features import Features
from spr.training.batches import collate
from spr.training.loss import PairLogps, pair_losses
from spr.training.pairs import trl_pairs
from spr.training.trainee import load_trainee

FAMILIES = ["llava_onevision", "llava", "qwen2_vl", "qwen2_5_vl"]
CPU = torch.device("cpu")


TRL_LOSSES = {"dpo": "sigmoid", "bco_pair": "bco_pair", "sft": "sft", "ipo": "ipo"}


def trl_step(trainee, rows, config, folder):
    """Loss, rewards and gradients by name of TRL on these rows; the adapter is trained in place of the model given."""
    arguments = DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=len(rows),
        beta=config.beta,
        loss_type=[TRL_LOSSES[name] for name in config.losses],
        loss_weights=list(config.losses.values()),
        max_length=None,
        use_cpu=True,
        bf16=False,
        report_to=[],
        activation_checkpointing=False,
    )
    # Given an adapted model, TRL would take its adapter as the reference: so the base, and the adapter's values after.
    adapted = copy.deepcopy(trainee.model.peft)
    values = {name: p.detach().clone() for name, p in adapted.named_parameters() if p.requires_grad}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = DPOTrainer(
            model=adapted.unload(),
            peft_config=trainee.model.peft.peft_config["default"],
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=copy.deepcopy(trainee.encoder.processor),
        )
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(values.pop(name))
        assert not values
        batch = trainer.data_collator([dict(row) for row in rows])
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    seen = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    return loss.item(), seen, gradients


def our_step(trainee, planned, config, *, shared):
    """The same of ours."""
    model = trainee.model.train()
    model.zero_grad()

    def features(vision):
        with torch.no_grad():
            return Features(*model(vision=vision))

    encoder = trainee.encoder
    batch = collate([encoder.finish(p, encoder.process(p), features) for p in planned], encoder.pad, shared=shared)
    with torch.no_grad(), model.peft.disable_adapter():
        reference = PairLogps(*model(batch))
    logps = PairLogps(*model(batch))
    losses = pair_losses(logps, (reference.chosen, reference.rejected), config)
    loss = losses.loss.mean()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.peft.named_parameters() if p.grad is not None}
    return loss.item(), losses, logps, gradients


def assert_gradients_equal(ours, theirs):
    assert set(ours) == set(theirs)
    assert ours
    largest = max(gradient.abs().max() for gradient in theirs.values())
    for name, gradient in theirs.items():
        scale = max(gradient.abs().max().item(), 1e-3 * largest.item())
        assert (ours[name] - gradient).abs().max().item() <= 1e-4 * scale, name


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_loss_rewards_and_gradients_are_trls(
    model_type, count, trainable_folder, pair_rows, pairs_folder, settings, stir, tmp_path
):
    config = settings(beta=0.3)
    trainee = load_trainee(str(trainable_folder(model_type)), config, CPU, features=tmp_path)
    stir(trainee.model)
    start = 0 if count == 3 else 3
    rows = pair_rows[start : start + count]
    planned, dropped = trainee.encoder.plan(list(trl_pairs(pairs_folder))[start : start + count], 4096)
    assert not dropped
    loss, seen, gradients = trl_step(trainee, rows, config, tmp_path)
    assert trainee.shared
    for shared in (True, False):
        own, losses, logps, own_gradients = our_step(trainee, planned, config, shared=shared)
        assert own == pytest.approx(loss, rel=1e-4)
        assert losses.chosen_rewards.mean().item() == pytest.approx(seen["rewards/chosen"], rel=1e-4, abs=1e-5)
        assert losses.rejected_rewards.mean().item() == pytest.approx(seen["rewards/rejected"], rel=1e-4, abs=1e-5)
        assert losses.margins.mean().item() == pytest.approx(seen["rewards/margins"], rel=1e-4, abs=1e-5)
        assert logps.chosen.mean().item() == pytest.approx(seen["logps/chosen"], rel=1e-5)
        assert logps.rejected.mean().item() == pytest.approx(seen["logps/rejected"], rel=1e-5)
        assert_gradients_equal(own_gradients, gradients)


@pytest.mark.parametrize(
    ("loss", "count"),
    # TRL's `sft` averages over all tokens of a batch, ours over each answer's: one pair, so that both are the same.
    [("mpo", 1), ({"dpo": 0.3, "ipo": 0.2, "bco_pair": 2.0}, 3), ("bco_pair", 3), ("ipo", 2), ("sft", 1)],
)
def test_mixtures_of_losses_are_trls(loss, count, trainable_folder, pair_rows, pairs_folder, settings, stir, tmp_path):
    config = settings(loss_type=loss, beta=0.3)
    trainee = load_trainee(str(trainable_folder("llava_onevision")), config, CPU, features=tmp_path)
    stir(trainee.model)
    planned, _ = trainee.encoder.plan(list(trl_pairs(pairs_folder))[:count], 4096)
    expected, _, gradients = trl_step(trainee, pair_rows[:count], config, tmp_path)
    for shared in (True, False):
        own, *_, own_gradients = our_step(trainee, planned, config, shared=shared)
        assert own == pytest.approx(expected, rel=1e-4)
        assert_gradients_equal(own_gradients, gradients)


@pytest.mark.parametrize(
    "model_type", ["qwen3_vl", "qwen3_vl_moe", "internvl", "glm4v", "glm4v_moe", "glm46v", "ferret", "cogvlm"]
)
def test_one_sequence_a_pair_gives_what_two_give(model_type, trainable_folder, pairs_folder, settings, stir, tmp_path):
    config = settings()
    trainee = load_trainee(str(trainable_folder(model_type)), config, CPU, features=tmp_path)
    stir(trainee.model)
    planned, _ = trainee.encoder.plan(list(trl_pairs(pairs_folder))[:3], 4096)
    assert trainee.shared
    loss, losses, logps, gradients = our_step(trainee, planned, config, shared=True)
    plain_loss, plain_losses, plain_logps, plain_gradients = our_step(trainee, planned, config, shared=False)
    assert loss == pytest.approx(plain_loss, rel=1e-4)
    torch.testing.assert_close(logps.chosen, plain_logps.chosen, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses.margins, plain_losses.margins, rtol=1e-4, atol=1e-5)
    assert_gradients_equal(gradients, plain_gradients)
