"""Constants of a detector's outputs, against the rows of dense Jacobians."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lipdet.certificate import UnknownLipschitz, lipschitz_bound, output_bounds
from lipdet.certificate.constants.outputs import OutputBounds
from lipdet.detector import SSD
from lipdet.layers import fold
from tests.certificate.detectors import small_detector


@pytest.fixture(scope="module")
def detector() -> SSD:
    return small_detector()


@pytest.fixture(scope="module")
def bounds(detector: SSD) -> OutputBounds:
    return output_bounds(detector)


def _jacobians(detector: SSD) -> tuple[Tensor, Tensor]:
    """Return the Jacobians (40, K, 192) of the logits and (40, 4, 192) of the offsets."""
    detector = fold(detector).double()  # type: ignore[assignment]
    images = torch.rand(1, 3, 8, 8, dtype=torch.float64).expand(280, 3, 8, 8).clone()
    images.requires_grad_()
    raw = detector(images)
    values = torch.cat([raw.logits.flatten(1), raw.offsets.flatten(1)], dim=1)
    (rows,) = torch.autograd.grad(values.diagonal().sum(), images)
    rows = rows.flatten(1)
    return rows[:120].reshape(40, 3, -1), rows[120:].reshape(40, 4, -1)


def test_every_output_is_within_its_constant(detector: SSD, bounds: OutputBounds) -> None:
    assert bounds.logits.shape == (40, 3)
    assert bounds.offsets.shape == (40, 4)
    assert bounds.logits.dtype == bounds.offsets.dtype == torch.float64
    highest = 0.0
    for _ in range(5):
        logits, offsets = _jacobians(detector)
        # Oracle: the norm of a row of the Jacobian is the local constant of that output.
        assert (logits.norm(dim=2) <= bounds.logits).all()
        assert (offsets.norm(dim=2) <= bounds.offsets).all()
        of_four = torch.linalg.matrix_norm(offsets, 2)
        assert (of_four <= bounds.offsets_joint).all()
        joint = torch.linalg.matrix_norm(torch.cat([logits, offsets], 1).flatten(0, 1), 2)
        assert joint <= bounds.joint
        highest = max(highest, float((logits.norm(dim=2) / bounds.logits).max()))
    assert highest > 0.2  # The constants are of the right size, not just large.


def test_unit_norm_heads_have_the_constant_of_their_features(bounds: OutputBounds) -> None:
    # Level 2 has 2 × 2 cells: 3 × 3 filters of unit norm see at most 2 × 2 of their taps.
    assert (bounds.logits[32:] < bounds.features[1]).all()
    assert bounds.features[1] == pytest.approx(bounds.features[0], rel=1e-6)  # orthogonal layer


def test_constants_of_four_offsets_together(detector: SSD, bounds: OutputBounds) -> None:
    head = detector.heads[1].localisation
    assert isinstance(head, nn.Conv2d)
    # Oracle: a 1 × 1 filter is a matrix, whose norm torch finds by SVD.
    filters = head.weight.detach().double().reshape(2, 4, 4)
    wanted = torch.linalg.svdvals(filters)[:, 0].repeat(4)
    found = bounds.offsets_joint[32:] / bounds.features[1]
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=0)
    assert (bounds.offsets_joint < bounds.offsets.norm(dim=1)).all()


def test_constants_of_the_taps_inside_the_map(detector: SSD, bounds: OutputBounds) -> None:
    head = detector.heads[1].localisation
    assert isinstance(head, nn.Conv2d)
    # Oracle: a 1 × 1 filter's constant is its norm times that of the features.
    wanted = head.weight.detach().double().flatten(1).norm(dim=1).reshape(2, 4)
    for cell in range(4):
        found = bounds.offsets[32 + 2 * cell : 34 + 2 * cell] / bounds.features[1]
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


def test_the_bound_of_a_detector_is_the_joint_one(detector: SSD, bounds: OutputBounds) -> None:
    assert lipschitz_bound(detector, (3, 8, 8)) == bounds.joint


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU()), r"heads.0.localisation.*must be"),
        (nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular"), r"heads.0.localisation.*zero"),
        (nn.Conv2d(4, 8, 1, groups=2), r"heads.0.localisation.*one group"),
    ],
)
def test_other_heads_are_refused_by_name(head: nn.Module, message: str) -> None:
    detector = small_detector()
    detector.heads[0].localisation = head.eval()
    with pytest.raises(UnknownLipschitz, match=message):
        output_bounds(detector)


def test_training_mode_is_refused() -> None:
    with pytest.raises(UnknownLipschitz, match=r'BatchNorm2d at "backbone.first.1"'):
        output_bounds(small_detector().train())
