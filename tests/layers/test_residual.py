"""Residual blocks: every Jacobian has norm at most 1."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lipdet.layers import CPLBlock, MaxMin, ResidualBlock, SLLBlock
from tests.layers.helpers import DISTURBANCES, jacobian, train_hard

# Oracle of this file: SVD of the Jacobian by autograd; 1 is what the papers prove.
BOUND = 1 + 1e-5
KINDS: list[type[ResidualBlock]] = [SLLBlock, CPLBlock]


def _largest(block: ResidualBlock, size: tuple[int, int]) -> float:
    points = torch.randn(3, 1, block.channels, *size)
    return max(float(torch.linalg.matrix_norm(jacobian(block, x), 2)) for x in points)


@pytest.mark.parametrize(
    ("hidden", "kernel_size", "size"),
    [(2, 1, (3, 3)), (4, 3, (4, 5)), (7, 3, (1, 6)), (7, 5, (3, 3)), (2, 5, (1, 6))],
)
@pytest.mark.parametrize("kind", KINDS)
def test_is_1_lipschitz(
    kind: type[ResidualBlock], hidden: int, kernel_size: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    block = kind(4, hidden, kernel_size, bias=False)
    for disturb in (lambda _: None, lambda b: nn.init.normal_(b.raw), *DISTURBANCES.values()):
        disturb(block)
        assert _largest(block, size) <= BOUND  # NaN fails too


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_stays_1_lipschitz_in_training(kind: type[ResidualBlock]) -> None:
    torch.manual_seed(0)
    block = kind(4, 7)
    train_hard(block, 4, (4, 5))
    assert _largest(block, (4, 5)) <= BOUND


def test_sll_is_the_published_layer() -> None:
    # Oracle: x − 2 W T⁻¹ relu(Wᵀx + b) with T_ii = Σ_j |WᵀW|_ij q_j/q_i as a dense matrix, on
    # a circle that is large enough for WᵀW to have every lag.
    torch.manual_seed(0)
    block = SLLBlock(2, 3, 1)
    nn.init.normal_(block.raw)
    nn.init.normal_(block.log_q)
    matrix = block.raw.detach()[:, :, 0, 0].T.double()
    q = block.log_q.detach().double().exp()
    t = ((matrix.T @ matrix).abs() * q / q[:, None]).sum(dim=1)
    bias = torch.randn(3).double()
    block.bias.data = (bias / t.sqrt()).float()  # type: ignore[union-attr]
    x = torch.randn(5, 2).double()
    published = x - 2 * ((x @ matrix + bias).relu() / t) @ matrix.T
    ours = block(x.float()[:, :, None, None])[:, :, 0, 0]
    torch.testing.assert_close(ours.double(), published, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_a_reflection(kind: type[ResidualBlock]) -> None:
    # With VᵀV = I the Jacobian I − 2 VᵀDV is orthogonal for 0/1 slopes D.
    torch.manual_seed(0)
    values = torch.linalg.svdvals(jacobian(kind(4), torch.randn(1, 4, 5, 5)))
    assert (values - 1).abs().max() < 1e-4


def test_maxmin_in_a_residual_block_is_not_1_lipschitz() -> None:
    # Where the channels are swapped x − 2 MaxMin(x) is [[1, −2], [−2, 1]], whose norm is 3.
    class Wrong(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - 2 * MaxMin()(x)

    x = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1)
    assert float(torch.linalg.matrix_norm(jacobian(Wrong(), x), 2)) == pytest.approx(3)


@pytest.mark.parametrize("kind", KINDS)
def test_lipschitz_bound_covers_low_precision(kind: type[ResidualBlock]) -> None:
    torch.manual_seed(0)
    block = kind(4).to(torch.bfloat16)
    bound = block.lipschitz_bound()
    assert 1 < bound < 1.1
    x = torch.randn(1, 4, 5, 5)
    assert torch.linalg.matrix_norm(jacobian(block.folded().float(), x), 2) <= bound


@pytest.mark.parametrize("arguments", [(4, 4, 2), (0,), (4, 0), (4, 4, 0)])
def test_refuses_sizes_that_move_the_picture(arguments: tuple[int, ...]) -> None:
    for kind in KINDS:
        with pytest.raises(ValueError, match="kernel_size odd"):
            kind(*arguments)
