"""The losses, against numbers worked out by hand."""

import math
import re
from statistics import NormalDist, fmean, pstdev

import pytest
import torch

from spr.config import TrainingConfig, apply_overrides, make_config
from spr.config.backends import LOSSES
from spr.core.errors import ConfigError
from spr.training.loss import (
    LossInputs,
    PairLogps,
    bco_pair,
    difficulty_weights,
    dpo,
    ipo,
    needs_reference,
    needs_rejected,
    needs_reward_shift,
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
    asked = needs_reference, needs_rejected, needs_reward_shift
    needs = {name: [ask(TrainingConfig(loss_type=name)) for ask in asked] for name in ("dpo", "ipo", "bco_pair", "sft")}
    plain = [True, True, False]
    assert needs == {"dpo": plain, "ipo": plain, "bco_pair": [True, True, True], "sft": [False, False, False]}


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
        assert (needs_reference(settings), needs_rejected(settings)) == (False, True)
    finally:
        LOSSES.unregister("difference")


def test_an_answer_without_tokens_divides_by_no_zero():
    assert nll(torch.tensor([0.0]), torch.tensor([0])).item() == 0


RAW = {"describer": {"backend": "fake"}, "annotations": {"path": "a.json", "images": "images"}}


def test_bco_compares_each_reward_with_the_mean_reward():
    losses = pair_losses(POLICY, REFERENCE, TrainingConfig(loss_type="bco_pair", beta=0.5), reward_shift=0.25)
    # Rewards (1, −0.5) and (−0.5, 0). log(1 + e^−0.75) = 0.3868710 twice: 0.7737421.
    # The second pair: log(1 + e^0.75) + log(1 + e^−0.25) = 1.1368710 + 0.5759394.
    assert losses.loss.tolist() == pytest.approx([0.7737421, 1.7128104], abs=1e-6)
    assert losses.chosen_rewards.tolist() == [1.0, -0.5]


def test_bco_pushes_both_answers_apart_around_the_shift():
    chosen, rejected = (torch.tensor([value], requires_grad=True) for value in (2.0, -1.0))
    inputs = LossInputs(ratios(chosen, rejected).policy, torch.zeros(1), torch.zeros(1), 0.25)
    bco_pair(inputs, TrainingConfig(beta=0.5)).sum().backward()
    # −β σ(−(1 − 0.25)) = −0.5 / (1 + e^0.75) = −0.5 / 3.1170000, and the opposite for the rejected answer.
    assert chosen.grad.item() == pytest.approx(-0.1604107, abs=1e-6)
    assert rejected.grad.item() == pytest.approx(0.1604107, abs=1e-6)


def test_mpo_is_eight_tenths_dpo_two_tenths_bco_and_the_nll_of_the_chosen_answers():
    losses = pair_losses(POLICY, REFERENCE, TrainingConfig(loss_type="mpo", beta=0.5), reward_shift=0.25)
    # 0.8 · (0.2014133, 0.9740770) + 0.2 · (0.7737421, 1.7128104) + 1.0 · (10 / 5, 8 / 4)
    assert losses.loss.tolist() == pytest.approx([2.3158791, 3.1218237], abs=1e-6)


def test_a_mixture_is_the_sum_of_its_losses_times_their_weights_and_needs_what_any_of_them_needs():
    settings = TrainingConfig(loss_type={"dpo": 2, "sft": 0.5}, beta=0.5)
    # 2 · 0.2014133 + 0.5 · 2 and 2 · 0.9740770 + 0.5 · 2
    assert pair_losses(POLICY, REFERENCE, settings).loss.tolist() == pytest.approx([1.4028266, 2.9481540], abs=1e-6)
    assert (needs_reference(settings), needs_rejected(settings), needs_reward_shift(settings)) == (True, True, False)
    assert needs_reward_shift(TrainingConfig(loss_type="mpo"))
    alone = TrainingConfig(loss_type={"sft": 0.5})
    assert (needs_reference(alone), needs_rejected(alone)) == (False, False)


def test_the_anchor_adds_its_weight_times_minus_log_sigmoid_of_the_chosen_reward_over_the_margin():
    plain = pair_losses(POLICY, REFERENCE, TrainingConfig(beta=0.5)).loss
    more = pair_losses(POLICY, REFERENCE, TrainingConfig(beta=0.5, anchor_weight=2.0)).loss
    # Rewards 1 and −0.5: log(1 + e^−1) = 0.3132617 and log(1 + e^0.5) = 0.9740770, twice each.
    assert (more - plain).tolist() == pytest.approx([0.6265234, 1.9481540], abs=1e-6)
    higher = pair_losses(POLICY, REFERENCE, TrainingConfig(beta=0.5, anchor_weight=1.0, anchor_margin=1.5)).loss
    # log(1 + e^0.5) and log(1 + e^2) = 2.1269280
    assert (higher - plain).tolist() == pytest.approx([0.9740770, 2.1269280], abs=1e-6)


def test_an_anchor_or_difficulty_makes_a_loss_need_the_reference(add_loss):
    name = add_loss("nothing", uses(reference=False, rejected=False)(lambda inputs, _: 0 * inputs.policy.chosen))
    asked = [TrainingConfig(loss_type=name, **more) for more in ({}, {"anchor_weight": 1}, {"difficulty_weight": 1})]
    assert [needs_reference(settings) for settings in asked] == [False, True, True]
    assert [needs_rejected(settings) for settings in asked] == [False, False, True]


def test_weights_of_pairs_multiply_the_loss_with_all_its_terms_and_leave_the_rewards():
    settings = TrainingConfig(nll_weight=0.3, anchor_weight=0.5)
    plain = pair_losses(POLICY, REFERENCE, settings)
    weighted = pair_losses(POLICY, REFERENCE, settings, weights=torch.tensor([0.5, 1.5]))
    assert weighted.loss.tolist() == pytest.approx([0.5 * plain.loss[0].item(), 1.5 * plain.loss[1].item()])
    assert weighted.margins.tolist() == plain.margins.tolist()


def test_difficulty_is_one_minus_the_normal_quantile_of_the_gap_with_mean_one():
    gaps = [0.0, 0.2, -0.3, 1.4]
    normal = NormalDist(fmean(gaps), pstdev(gaps))
    difficulty = [1 - normal.cdf(gap) for gap in gaps]
    expected = [value / fmean(difficulty) for value in difficulty]
    weights = difficulty_weights(torch.tensor(gaps), 1.0)
    assert weights.tolist() == pytest.approx(expected, abs=1e-6)
    assert weights.mean().item() == pytest.approx(1)
    assert weights.argsort().tolist() == [3, 1, 0, 2]  # the greater the gap, the smaller the weight
    half = difficulty_weights(torch.tensor(gaps), 0.5)
    assert half.tolist() == pytest.approx([0.5 + 0.5 * value for value in expected], abs=1e-6)


@pytest.mark.parametrize("gaps", [[0.3], [0.3, 0.3, 0.3]])
def test_pairs_that_are_equally_hard_weigh_the_same(gaps):
    assert difficulty_weights(torch.tensor(gaps), 1.0).tolist() == [1.0] * len(gaps)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss_type": "sft", "anchor_weight": 1}, "`training.anchor_weight`: the loss `sft` uses no reference model"),
        (
            {"loss_type": "sft", "difficulty_weight": 1},
            "`training.difficulty_weight`: the loss `sft` uses no reference",
        ),
        ({"loss_type": {"sft": 2}, "anchor_weight": 1}, "`training.anchor_weight`: the loss `sft` uses no reference"),
        ({"loss_type": "mpo", "nll_weight": 1}, "`training.nll_weight`: the loss `sft` is this NLL loss already"),
        ({"loss_type": {"dpo": 1, "sft": 1}, "nll_weight": 1}, "`training.nll_weight`: the loss `sft` is this NLL"),
        ({"anchor_margin": 1}, "`training.anchor_margin`: there is no anchor without a weight"),
        (
            {"box_token_weight": 0.5},
            "`training.box_token_weight` is not valid: got 0.5, expected a finite number, at least 1",
        ),
        (
            {"difficulty_weight": 1.5},
            "`training.difficulty_weight` is not valid: got 1.5, expected a finite number, at least 0 and at most 1",
        ),
        ({"loss_type": {"dpo": 1, "bco": 1}}, "`training.loss_type`: there is no loss `bco`; did you mean `bco_pair`"),
        ({"loss_type": {"mpo": 1}}, "`training.loss_type`: there is no loss `mpo`"),
        ({"loss_type": {"dpo": 0}}, "`training.loss_type`: the weight of `dpo` is not a finite number above 0"),
        ({"loss_type": {"dpo": "1"}}, "`training.loss_type`: the weight of `dpo` is not a finite number above 0"),
        ({"loss_type": {}}, "`training.loss_type`: not a loss, and not a mapping from losses to their weights"),
        ({"loss_type": ["dpo"]}, "`training.loss_type`: not a loss, and not a mapping from losses to their weights"),
    ],
)
def test_combinations_without_a_meaning_are_errors_that_name_the_field(fields, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_config({**RAW, "training": fields})


def test_a_mixture_can_be_given_on_the_command_line():
    raw = apply_overrides(RAW, ["training.loss_type={dpo: 0.8, sft: 1}", "training.anchor_weight=0.5"])
    training = make_config(raw).training
    assert training.losses == {"dpo": 0.8, "sft": 1.0}
    assert make_config({**RAW, "training": training.model_dump(mode="json")}).training == training
