"""Constants of several outputs at once, against dense Jacobians of the same detector."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lipdet.certificate.constants.joint_outputs import (
    PairwiseLogits,
    _of_logits,
    class_contrasts,
    collective_class_constants,
)
from lipdet.certificate.constants.outputs import (
    HeadConvolution,
    bounds_of_outputs,
    head_convolution,
    propagate_detector,
)
from lipdet.detector import SSD
from lipdet.layers import fold
from lipdet.lipschitz.propagation import Propagation
from tests.certificate.detectors import small_detector


@pytest.fixture(scope="module")
def detector() -> SSD:
    return small_detector()


@pytest.fixture(scope="module")
def propagation(detector: SSD) -> Propagation:
    return propagate_detector(detector)


@pytest.fixture(scope="module")
def rows(detector: SSD) -> Tensor:
    """The rows of the heads' classification maps: (40, 3, features), level by level.

    Oracle: autograd through the heads themselves, with each level's features as its own input.
    """
    return _rows(detector, "logits")


@pytest.fixture(scope="module")
def offset_rows(detector: SSD) -> Tensor:
    """The same of the localisation maps, (40, 4, features)."""
    return _rows(detector, "offsets")


def _rows(detector: SSD, output: str) -> Tensor:
    heads = fold(nn.ModuleList(detector.heads)).double()
    assert isinstance(heads, nn.ModuleList)
    first = _matrix(lambda x: getattr(heads[0](x), output)[0], (4, 4, 4))
    second = _matrix(lambda x: getattr(heads[1](x), output)[0], (4, 2, 2))
    dense = torch.zeros(40, first.shape[1], 64 + 16, dtype=torch.float64)
    dense[:32, :, :64], dense[32:, :, 64:] = first, second
    return dense


def _matrix(linear: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The matrix of an affine map of inputs (1, *shape) to (n, values), as (n, values, inputs)."""
    zeros = torch.zeros(1, *shape, dtype=torch.float64)
    matrix: Tensor = torch.func.jacrev(linear)(zeros)
    return matrix.detach().flatten(2)


def test_differences_of_logits_of_one_class(
    detector: SSD, propagation: Propagation, rows: Tensor
) -> None:
    bounds = bounds_of_outputs(detector, propagation)
    pairs = torch.tensor(list(itertools.product(range(40), range(40), range(3))))
    a, b, labels = pairs.T
    found = PairwiseLogits(detector, propagation, bounds).constants(a, b, labels)
    first, second = bounds.features
    scales = torch.where(torch.arange(40) < 32, first, second).double()
    same = (a < 32) == (b < 32)
    dense = scales[a] * (rows[b, labels] - rows[a, labels]).norm(dim=1)
    assert (found[same] >= dense[same]).all()
    # Cancellation costs √1e-9 of the larger norm, and only where the difference is small.
    torch.testing.assert_close(found[same], dense[same], rtol=1e-6, atol=1e-4 * float(dense.max()))
    # Two levels: their features move in ways of their own.
    apart = scales[a] * rows[a, labels].norm(dim=1) + scales[b] * rows[b, labels].norm(dim=1)
    torch.testing.assert_close(found[~same], apart[~same], rtol=1e-6, atol=0)


def test_differences_of_logits_of_one_default_box(
    detector: SSD, propagation: Propagation, rows: Tensor
) -> None:
    bounds = bounds_of_outputs(detector, propagation)
    found = class_contrasts(detector, propagation, bounds)
    first, second = bounds.features
    scales = torch.where(torch.arange(40) < 32, first, second).double()
    dense = scales[:, None, None] * torch.cdist(rows, rows)
    assert (found >= dense).all()
    # Exact where no tap falls outside the map, as for one box of each level at least.
    gap = (found - dense).flatten(1).amax(dim=1)
    assert min(gap[:32]) < 1e-5 * dense.max()


def test_what_it_takes_to_pass_another(
    detector: SSD, propagation: Propagation, rows: Tensor, offset_rows: Tensor
) -> None:
    bounds = bounds_of_outputs(detector, propagation)
    pairs = torch.tensor(list(itertools.product(range(40), range(40), range(3))))
    a, b, labels = pairs[pairs[:, 0] != pairs[:, 1]].T
    pairwise = PairwiseLogits(detector, propagation, bounds)
    found, free = pairwise.lifts(a, b, labels), pairwise.yielding(a, b, labels)
    first, second = bounds.features
    scales = torch.where(torch.arange(40) < 32, first, second).double()
    same = (a < 32) == (b < 32)
    # By hand: on one level the difference rises, on two b's own logit does.
    up = torch.where(same[:, None], rows[b, labels] - rows[a, labels], rows[b, labels])
    push = torch.einsum("pof,pf->po", offset_rows[b], up) / up.square().sum(dim=1, keepdim=True)
    falls = torch.where(same, 0.0, scales[a] * rows[a, labels].norm(dim=1))
    known = b < 32
    torch.testing.assert_close(found.push[known], push[known], rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(free[known], falls[known], rtol=1e-6, atol=0)
    constant = scales[b] * up.norm(dim=1)
    torch.testing.assert_close(found.constant[known], constant[known], rtol=1e-6, atol=0)
    # The second head's offsets see other patches than its logits: nothing is known.
    assert free[~known].isinf().all()
    assert found.constant[~known].isinf().all()


def test_all_logits_of_a_class(detector: SSD, propagation: Propagation, rows: Tensor) -> None:
    bounds = bounds_of_outputs(detector, propagation)
    found = collective_class_constants(detector, propagation, bounds)
    # Oracle: norms of the dense matrices of each level.
    levels = [
        bound * torch.linalg.matrix_norm(part.transpose(0, 1), 2)
        for bound, part in zip(bounds.features, (rows[:32], rows[32:]), strict=True)
    ]
    dense = torch.stack(levels).norm(dim=0)
    assert (found >= dense).all()
    torch.testing.assert_close(found, dense, rtol=1e-6, atol=0)
    # Far below what single outputs add up to.
    assert (found < 0.7 * bounds.logits.norm(dim=0)).all()


def test_large_maps_have_the_bound_of_a_convolution(
    detector: SSD, propagation: Propagation, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = bounds_of_outputs(detector, propagation)
    exact = collective_class_constants(detector, propagation, bounds)
    monkeypatch.setattr("lipdet.certificate.constants.joint_outputs._MOST_DENSE_ROWS", 0)
    found = collective_class_constants(detector, propagation, bounds)
    assert (found > exact).all()
    # The convolution acts on a larger map, with more taps inside: it is no tight bound at 2 × 2.
    assert (found < 1.7 * exact).all()


@pytest.mark.parametrize(
    ("stride", "padding", "dilation"), [(1, 1, 1), (2, 1, 1), (1, 2, 2), (2, 0, 3), (3, 2, 2)]
)
def test_inner_products_where_the_filters_stand(stride: int, padding: int, dilation: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, (3, 2), stride, padding=padding, dilation=dilation).double()
    conv = head_convolution([layer], "head", 2, (9, 7))
    matrix = _matrix(lambda x: layer(x)[0].permute(1, 2, 0).reshape(-1, 2), (3, 9, 7))
    torch.testing.assert_close(conv.gram(), matrix @ matrix.mT)
    torch.testing.assert_close(conv.norms(), matrix.norm(dim=-1))
    found = _products(conv, len(matrix))
    wanted = torch.einsum("avf,bvf->abv", matrix, matrix)
    torch.testing.assert_close(found, wanted.flatten())


def _products(conv: HeadConvolution, boxes: int) -> Tensor:
    pairs = torch.tensor(list(itertools.product(range(boxes), range(boxes), range(2))))
    return _of_logits(conv).products(*pairs.T)[:, 0]
