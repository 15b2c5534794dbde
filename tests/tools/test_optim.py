import pytest
import torch
from torch import nn

from tools.embedded.optim import Muon, Optimiser, orthogonalise


def test_orthogonalization_keeps_singular_vectors_and_equalizes_singular_values() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 6, 4)
    orthogonal = orthogonalise(matrices)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inner = left.mT @ orthogonal @ right.mT  # diagonal, in the matrix's own singular vectors
    assert torch.allclose(inner, torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1)), atol=1e-3)
    assert ((inner.diagonal(dim1=-2, dim2=-1) - 1).abs() < 0.4).all()


def test_a_muon_step_moves_a_matrix_by_the_rate_in_every_direction_of_its_gradient() -> None:
    parameter = nn.Parameter(torch.zeros(4, 4))
    optimiser = Muon([parameter], lr=0.1, weight_decay=0.0)
    parameter.grad = torch.diag(torch.tensor([5.0, 1.0, 0.5, 0.25]))
    optimiser.step()
    # Independent of the gradient's size, each direction moves downhill by about the rate, 0.1.
    assert (parameter.diagonal() < -0.06).all()
    assert (parameter.diagonal() > -0.13).all()


def test_the_rate_warms_up_to_its_peak_and_ends_near_nothing() -> None:
    optimiser = Optimiser({"layer": nn.Linear(2, 2)}, steps=100, warmup=0.1)
    rates = [optimiser.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)  # the first of ten warm-up steps
    assert max(rates) == rates[9] == 1.0
    assert rates[99] == pytest.approx(0.001)
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_embeddings_go_to_adamw_and_other_matrices_to_muon() -> None:
    modules = {"embeddings": nn.Embedding(3, 4), "layer": nn.Linear(4, 4)}
    muon, adamw = Optimiser(modules, steps=10).optimisers
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(4, 4)]
    assert sorted(p.shape for p in adamw.param_groups[0]["params"]) == [(3, 4), (4,)]
