"""AdamW with moments in 8 bits: what it is made with, and that training resumes with its state.

Where bitsandbytes is not installed, a class of its signature stands in, which keeps its moments as AdamW does.
"""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from spr.config import changed_fields
from spr.core.errors import SprError
from spr.training.checkpoint import TrainingState
from spr.training.optimizer import check_optimizer, make_optimizer
from spr.training.pairs import trl_pairs
from spr.training.trainer import train


class StandIn(torch.optim.AdamW):
    """The signature of `AdamW8bit` in bitsandbytes 0.50."""

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        amsgrad=False,
        optim_bits=32,
        args=None,
        min_8bit_size=4096,
        is_paged=False,
    ):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad)
        assert (optim_bits, args, min_8bit_size, is_paged) == (32, None, 4096, False)


@pytest.fixture(params=["stand-in", "bitsandbytes"])
def optimizer_class(request, monkeypatch):
    """`AdamW8bit`, or what stands in for it."""
    if request.param == "bitsandbytes":
        return pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed").optim.AdamW8bit
    monkeypatch.setattr("spr.training.optimizer.find_spec", lambda name: name)
    monkeypatch.setattr("spr.training.optimizer.adamw_8bit", lambda: StandIn)
    return StandIn


def test_the_package_is_asked_for_before_a_model_is_loaded(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("spr.training.optimizer.find_spec", lambda _: None)
    check_optimizer(settings())
    with pytest.raises(SprError, match="needs bitsandbytes") as caught:
        train([], "no/such-model", settings(optim="adamw_8bit"), tmp_path)
    assert caught.value.fix == "pip install 'bitsandbytes>=0.45', or set training.optim=adamw_torch"


def test_a_training_of_a_version_without_the_field_is_the_same_one(settings):
    config = settings(optim="adamw_torch")
    assert config == settings()
    now = config.model_dump(mode="json")
    before = {name: value for name, value in now.items() if name != "optim"}
    assert changed_fields(before, now) == {}
    in_8_bits = settings(optim="adamw_8bit").model_dump(mode="json")
    assert changed_fields(before, in_8_bits) == {"optim": (None, "adamw_8bit")}


def test_its_values_are_those_of_the_settings(optimizer_class, settings):
    layer = nn.Linear(8, 8)
    config = settings(optim="adamw_8bit", weight_decay=0.03, learning_rate=2e-4)
    optimizer = make_optimizer(layer.parameters(), config)
    assert type(optimizer) is optimizer_class
    (group,) = optimizer.param_groups
    plain = make_optimizer(layer.parameters(), settings(weight_decay=0.03, learning_rate=2e-4)).param_groups[0]
    # bitsandbytes and PyTorch have other defaults for the decay; those of β and ε are given too.
    for name in ("lr", "betas", "eps", "weight_decay"):
        assert group[name] == plain[name], name


def test_its_state_is_in_the_checkpoints(optimizer_class, settings, tmp_path):
    config, accelerator = settings(optim="adamw_8bit"), Accelerator(cpu=True)

    def trained(steps, model, optimizer):
        for step in range(*steps):
            inputs = torch.randn(4, 128, generator=torch.Generator().manual_seed(step))
            (model(inputs) - inputs).pow(2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    def fresh():
        torch.manual_seed(1)
        model = nn.Linear(128, 128)  # large enough for 8 bits; its bias is not
        return accelerator.prepare(model, make_optimizer(model.parameters(), config))

    model, optimizer = fresh()
    trained((0, 3), model, optimizer)
    TrainingState(accelerator, model, optimizer).save(tmp_path, 3, {}, {})
    trained((3, 6), model, optimizer)
    again, resumed = fresh()
    TrainingState(accelerator, again, resumed).load(tmp_path, {})
    trained((3, 6), again, resumed)
    assert torch.equal(again.weight, model.weight)
    assert torch.equal(again.bias, model.bias)
    moments = next(iter(resumed.optimizer.state.values()))
    if optimizer_class is not StandIn:
        assert moments["state1"].dtype == torch.uint8


def test_a_training_uses_it(optimizer_class, trainable_folder, pairs_folder, settings, tmp_path, monkeypatch):
    made = []

    def make(parameters, given):
        made.append(make_optimizer(parameters, given))
        return made[0]

    monkeypatch.setattr("spr.training.trainer.make_optimizer", make)
    config = settings(optim="adamw_8bit", max_steps=1)
    train(trl_pairs(pairs_folder), str(trainable_folder("llava")), config, tmp_path)
    (optimizer,) = made
    assert type(optimizer) is optimizer_class
    assert optimizer.state, "it has taken a step"
