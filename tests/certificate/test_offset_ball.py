"""Lowest IoU over a ball of offsets, against a search in the ball."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lipdet.boxes import BoxCoding
from lipdet.boxes.coding import MAX_LOG_RATIO
from lipdet.certificate.geometry.box_range import box_range
from lipdet.certificate.geometry.iou_bounds import min_iou_fixed
from lipdet.certificate.geometry.offset_ball import OffsetBalls, min_iou_in_ball
from tests.certificate.scenes import iou_of

CODINGS = [BoxCoding(), BoxCoding(0.25, 0.25)]


def scene(coding: BoxCoding, cases: int) -> tuple[Tensor, Tensor, Tensor]:
    """Default boxes, offsets, and known boxes that about match them."""
    default_boxes = torch.cat([torch.rand(cases, 2) * 74, torch.rand(cases, 2) * 30 + 5], dim=1)
    offsets = torch.randn(cases, 4) * 0.15 / coding.center_variance
    near = offsets + torch.randn(cases, 4) * 0.05 / coding.center_variance
    return default_boxes, offsets, coding.decode(near, default_boxes)


def lowest_found(
    offsets: Tensor, radius: Tensor, default_boxes: Tensor, coding: BoxCoding, fixed: Tensor
) -> Tensor:
    """Search in the ball, as the detector decodes: in float32."""

    def inside(points: Tensor) -> Tensor:
        norms: Tensor = points.norm(dim=-1, keepdim=True)
        # A little less than 1, for the rounding of the sum in float32.
        return points / norms.clamp_min(1) * (1 - 1e-6)

    def measure(points: Tensor) -> Tensor:
        boxes = coding.decode(offsets + radius[:, None] * points, default_boxes)
        return iou_of(boxes.double(), fixed.double())

    points = inside(torch.randn(4000, *offsets.shape))
    best, where = measure(points).min(dim=0)
    spot = points[where, torch.arange(len(offsets))]
    for step in range(30):
        tried = inside(spot + torch.randn(200, *offsets.shape) * 0.4 * 0.85**step)
        values, where = measure(tried).min(dim=0)
        found = tried[where, torch.arange(len(offsets))]
        spot = torch.where((values < best)[:, None], found, spot)
        best = torch.minimum(values, best)
    return best


@pytest.mark.parametrize("coding", CODINGS)
def test_no_box_of_the_ball_is_below(coding: BoxCoding) -> None:
    torch.manual_seed(0)
    default_boxes, offsets, fixed = scene(coding, 150)
    radius = torch.rand(150) * 0.4 / coding.center_variance
    bound = min_iou_in_ball(OffsetBalls(offsets, radius, default_boxes, coding), fixed)
    found = lowest_found(offsets, radius, default_boxes, coding, fixed)
    assert (bound <= found).all()
    # The cover of the ball reaches a few per cent beyond it.
    assert (found - bound).max() < 0.06
    assert (found - bound).mean() < 0.02


@pytest.mark.parametrize("coding", CODINGS)
def test_a_ball_may_be_larger_than_its_box(coding: BoxCoding) -> None:
    torch.manual_seed(0)
    default_boxes, offsets, fixed = scene(coding, 150)

    def largest(in_ball: bool) -> Tensor:
        """Bisect for the radius at which the bound is 0.5."""
        low, high = torch.zeros(150), torch.full((150,), 15.0)
        for _ in range(25):
            middle = (low + high) / 2
            if in_ball:
                bound = min_iou_in_ball(OffsetBalls(offsets, middle, default_boxes, coding), fixed)
            else:
                radius = middle[:, None].expand(-1, 4)
                bound = min_iou_fixed(box_range(offsets, radius, default_boxes, coding), fixed)
            low, high = (
                torch.where(bound >= 0.5, middle, low),
                torch.where(bound >= 0.5, high, middle),
            )
        return low

    box, ball = largest(in_ball=False), largest(in_ball=True)
    ratio = (ball / box)[box > 0.05]
    # theory §4: 1.2 to 1.5.
    assert ratio.min() > 1.25
    assert 1.35 < ratio.mean() < 1.6


@pytest.mark.parametrize("coding", CODINGS)
def test_a_ball_without_radius_is_a_box(coding: BoxCoding) -> None:
    torch.manual_seed(0)
    # More than are taken at once.
    default_boxes, offsets, fixed = scene(coding, 5000)
    bound = min_iou_in_ball(OffsetBalls(offsets, torch.zeros(5000), default_boxes, coding), fixed)
    wanted = iou_of(coding.decode(offsets, default_boxes).double(), fixed.double())
    assert (bound <= wanted + 1e-12).all()
    torch.testing.assert_close(bound, wanted, rtol=0, atol=1e-3)


def test_nothing_is_said_of_balls_that_are_too_large_or_clamped() -> None:
    coding = BoxCoding()
    default_boxes = torch.tensor([[37.0, 37.0, 20.0, 20.0]]).expand(3, 4)
    fixed = torch.tensor([[0.0, 0.0, 74.0, 74.0]]).expand(3, 4)
    offsets = torch.zeros(3, 4)
    offsets[1, 2] = MAX_LOG_RATIO / coding.size_variance + 1
    radius = torch.tensor([14.0, 0.1, 1e6])
    assert (min_iou_in_ball(OffsetBalls(offsets, radius, default_boxes, coding), fixed) == 0).all()
    # No candidates, no bounds.
    none = min_iou_in_ball(
        OffsetBalls(offsets[:0], radius[:0], default_boxes[:0], coding), fixed[:0]
    )
    assert none.shape == (0,)
