"""The losses, against numbers worked out by hand."""

import math

import pytest
import torch

from spr.config import TrainingConfig, make_config
from spr.config.backends import LOSSES
from spr.core.errors import ConfigError
from spr.training.loss import (
    LossInputs,
    PairLogps,
    dpo,
    ipo,
    needs_reference,
    needs_rejected,
    nll,
    pair_losses,
    uses,
)

# Two pairs. Policy − reference: chosen −10 − (−12) = 2 and −8 − (−7) = −1; rejected −9 − (−8) = −1 and −6 − (−6) = 0.
POLICY = PairLogps(torch.tensor([-10.0, -8.0]), torch.tensor([-9.0, -6.0]), torch.tensor([5, 4]), torch.tensor([2, 3]))
REFERENCE = torch.tensor([-12.0, -7.0]), torch.tensor([-8.0, -6.0])


def ratios(chosen, rejected, tokens=(1, 1)):
    """Inputs of a loss with these log-ratios for one pair."""
    zero = torch.zeros(1)
    policy = PairLogps(chosen, rejected, *(torch.tensor([count]) for count in tokens))
    return LossInputs(policy, zero, zero)


def test_dpo_is_minus_log_sigmoid_of_the_scaled_difference():
    losses = pair_losses(POLICY, REFERENCE, TrainingConfig(beta=0.5))
    # Rewards: 0.5 · (2, −1) = (1, −0.5) and 0.5 · (−1, 0) = (−0.5, 0); margins 1.5 and −0.5.
    assert losses.chosen_rewards.tolist() == [1.0, -0.5]
    assert losses.rejected_rewards.tolist() == [-0.5, 0.0]
    assert losses.margins.tolist() == [1.5, -0.5]
    assert losses.accuracies.tolist() == [1.0, 0.0]
    # log(1 + e^−1.5) = log 1.2231302 = 0.2014133; log(1 + e^0.5) = log 2.6487213 = 0.9740770
    assert losses.loss.tolist() == pytest.approx([0.2014133, 0.9740770], abs=1e-6)


def test_where_the_policy_is_the_reference_dpo_is_log_2_and_no_answer_is_preferred():
    same = PairLogps(*REFERENCE, torch.tensor([1, 1]), torch.tensor([1, 1]))
    losses = pair_losses(same, REFERENCE, TrainingConfig())
    assert losses.loss.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-6)
    assert losses.accuracies.tolist() == [0.0, 0.0]


def test_the_slope_of_dpo_is_beta_times_the_chance_that_rejected_is_preferred():
    chosen = torch.tensor([2.0], requires_grad=True)
    dpo(ratios(chosen, torch.tensor([-1.0])), TrainingConfig(beta=0.5)).sum().backward()
    # d/dx −log σ(0.5 (x + 1)) = −0.5 σ(−1.5) = −0.5 / (1 + e^1.5) = −0.5 / 5.4816891 = −0.0912128
    assert chosen.grad.item() == pytest.approx(-0.0912128, abs=1e-6)


def test_dpo_of_a_margin_that_is_far_off_is_finite_with_a_slope_of_beta():
    chosen = torch.tensor([-4000.0], requires_grad=True)
    loss = dpo(ratios(chosen, torch.tensor([4000.0])), TrainingConfig(beta=0.1))
    loss.sum().backward()
    assert loss.item() == pytest.approx(800.0)
    assert chosen.grad.item() == pytest.approx(-0.1)


def test_ipo_asks_for_a_difference_a_token_of_one_over_two_beta():
    losses = pair_losses(POLICY, REFERENCE, TrainingConfig(loss_type="ipo", beta=0.25))
    # A token: 2/5 − (−1/2) = 0.9 and −1/4 − 0/3 = −0.25; the goal is 1 / 0.5 = 2: (−1.1)² = 1.21, (−2.25)² = 5.0625.
    assert losses.loss.tolist() == pytest.approx([1.21, 5.0625], abs=1e-6)
    # The rewards stay β times the whole log-ratio: 0.25 · 2 and 0.25 · −1.
    assert losses.chosen_rewards.tolist() == [0.5, -0.25]
    at_goal = ipo(ratios(torch.tensor([8.0]), torch.tensor([0.0]), (4, 1)), TrainingConfig(beta=0.25))
    assert at_goal.item() == 0  # 8 over 4 tokens is 2


def test_fine_tuning_is_the_chosen_answers_mean_over_its_tokens_and_needs_no_reference():
    losses = pair_losses(POLICY, None, TrainingConfig(loss_type="sft"))
    assert losses.loss.tolist() == [2.0, 2.0]  # 10 / 5 and 8 / 4
    assert losses.margins.tolist() == [0.0, 0.0]
    assert losses.accuracies.tolist() == [0.0, 0.0]


def test_fine_tuning_leaves_the_rejected_answer_alone():
    rejected = torch.tensor([-9.0, -6.0], requires_grad=True)
    chosen = torch.tensor([-10.0, -8.0], requires_grad=True)
    policy = PairLogps(chosen, rejected, POLICY.chosen_tokens, POLICY.rejected_tokens)
    pair_losses(policy, None, TrainingConfig(loss_type="sft")).loss.sum().backward()
    assert rejected.grad is None
    assert chosen.grad.tolist() == pytest.approx([-0.2, -0.25])


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_the_nll_term_adds_its_weight_times_the_chosen_answers_mean(loss):
    plain = pair_losses(POLICY, REFERENCE, TrainingConfig(loss_type=loss)).loss
    more = pair_losses(POLICY, REFERENCE, TrainingConfig(loss_type=loss, nll_weight=0.3)).loss
    assert (more - plain).tolist() == pytest.approx([0.6, 0.6], abs=1e-6)  # 0.3 · 2


def test_an_nll_weight_with_fine_tuning_is_an_error_that_names_the_field_and_the_fix():
    raw = {"describer": {"backend": "fake"}, "annotations": {"path": "a.json", "images": "images"}}
    with pytest.raises(ConfigError, match=r"`training\.nll_weight`: the loss `sft` .* set nll_weight to 0.*, got 0\.5"):
        make_config({**raw, "training": {"loss_type": "sft", "nll_weight": 0.5}})
    assert make_config({**raw, "training": {"loss_type": "sft", "nll_weight": 0}}).training.loss_type == "sft"


def test_the_nll_term_is_added_to_any_other_loss_even_without_rejected_answers(add_loss):
    @uses(reference=False, rejected=False)
    def nothing(inputs, settings):
        return 0 * settings.beta * inputs.policy.chosen

    settings = TrainingConfig(loss_type=add_loss("nothing", nothing), nll_weight=0.3)
    assert pair_losses(POLICY, None, settings).loss.tolist() == pytest.approx([0.6, 0.6])  # 0.3 · 2


def test_rewards_have_no_gradient():
    chosen = torch.tensor([-10.0, -8.0], requires_grad=True)
    policy = PairLogps(chosen, POLICY.rejected, POLICY.chosen_tokens, POLICY.rejected_tokens)
    losses = pair_losses(policy, REFERENCE, TrainingConfig())
    assert losses.loss.requires_grad
    assert not losses.margins.requires_grad


def test_a_loss_declares_what_it_needs_and_needs_both_by_default():
    needs = {name: (needs_reference(name), needs_rejected(name)) for name in ("dpo", "ipo", "sft")}
    assert needs == {"dpo": (True, True), "ipo": (True, True), "sft": (False, False)}


def test_a_new_loss_is_one_function_that_the_config_names():
    @uses(reference=False)
    def difference(inputs, settings):
        return settings.beta * (inputs.policy.rejected - inputs.policy.chosen)

    LOSSES.register("difference", difference)
    try:
        settings = TrainingConfig(loss_type="difference", beta=0.5)
        losses = pair_losses(POLICY, None, settings)
        assert losses.loss.tolist() == [0.5, 1.0]  # 0.5 · (−9 + 10) and 0.5 · (−6 + 8)
        assert losses.margins.tolist() == [0.0, 0.0]
        assert (needs_reference("difference"), needs_rejected("difference")) == (False, True)
    finally:
        LOSSES.unregister("difference")


def test_an_answer_without_tokens_divides_by_no_zero():
    assert nll(torch.tensor([0.0]), torch.tensor([0])).item() == 0
