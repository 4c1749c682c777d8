"""The optimizer of the certified presets, against torch's own Muon and AdamW."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lipdet.train.muon import STEP_SIZE, Muon, orthogonalised


def steps_of(optimizer: torch.optim.Optimizer, parameter: Tensor, gradients: Tensor) -> Tensor:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach().clone()


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(12, 12), (7, 30), (30, 7), (3, 9, 8), (6, 2, 3, 3)])
def test_matrices_move_as_with_torchs_muon(shape: tuple[int, ...], decay: float) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(4, *shape)
    own = start.clone().requires_grad_()
    found = steps_of(Muon([own], lr=0.1, weight_decay=decay), own, gradients)
    assert own.grad is None
    # Oracle: torch's, which takes single matrices and computes in bf16.
    matrices = (1, shape[0], -1) if len(shape) == 4 else (-1, *shape[-2:])
    expected = []
    for first, its in zip(
        start.reshape(matrices),
        gradients.reshape(4, *start.reshape(matrices).shape).unbind(1),
        strict=True,
    ):
        matrix = first.clone().requires_grad_()
        other = torch.optim.Muon(
            [matrix], lr=0.1, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
        expected.append(steps_of(other, matrix, its))
    moved = torch.stack(expected).reshape(shape) - start
    assert (found - start - moved).norm() < 0.02 * moved.norm()


def test_vectors_move_as_with_adamw() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(9), torch.randn(5, 9)
    own, other = (start.clone().requires_grad_() for _ in range(2))
    found = steps_of(Muon([own], lr=0.1), own, gradients)
    assert torch.equal(found, steps_of(torch.optim.AdamW([other], lr=0.1), other, gradients))


@pytest.mark.parametrize("shape", [(20, 20), (5, 40), (40, 5)])
def test_all_directions_count_alike(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    left, _, right = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = torch.logspace(0, -2, min(shape), dtype=torch.float64)
    found = orthogonalised(left * values @ right)
    # Oracle: the singular vectors that the matrix was made of.
    inside = left.T @ found @ right.T
    assert ((inside.diagonal() > 0.6) & (inside.diagonal() < 1.3)).all()
    assert (inside - inside.diagonal().diag()).abs().max() < 1e-9


def test_skew_symmetric_matrices_stay_so() -> None:
    # The part of a Cayley transform's gradient that turns the basis is skew-symmetric.
    raw = torch.randn(16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = orthogonalised(raw - raw.T)
    torch.testing.assert_close(found, -found.T)


def test_steps_by_hand() -> None:
    weight = torch.zeros(8, 8, requires_grad=True)
    weight.grad = torch.zeros(8, 8)
    Muon([weight], lr=1.0).step()
    assert torch.equal(weight.detach(), torch.zeros(8, 8))
    weight.grad = torch.eye(8)
    Muon([weight], lr=1.0).step()
    # By hand: eight singular values between 0.7 and 1.2, times 0.2·√8.
    assert 0.7 < weight.norm() / (STEP_SIZE * 8) < 1.2
