"""Box encoding: round trip, and torchvision's BoxCoder as an independent oracle."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from lipdet.boxes import BoxCoding
from lipdet.boxes.coding import MAX_LOG_RATIO, corners

SIZE = 74.0
CODING = BoxCoding()

centres = st.floats(0, SIZE, width=32)
sides = st.floats(1, SIZE, width=32)


@st.composite
def cxcywh(draw: st.DrawFn) -> list[float]:
    return [draw(centres), draw(centres), draw(sides), draw(sides)]


pairs = st.lists(st.tuples(cxcywh(), cxcywh()), min_size=1, max_size=8)


def as_tensors(chosen: list[tuple[list[float], list[float]]]) -> tuple[Tensor, Tensor]:
    """xyxy boxes and cx, cy, w, h default boxes, in float64."""
    boxes, defaults = (torch.tensor(list(column)).double() for column in zip(*chosen, strict=True))
    return corners(boxes), defaults


@given(pairs)
def test_encoding_equals_torchvision(chosen: list[tuple[list[float], list[float]]]) -> None:
    boxes, defaults = as_tensors(chosen)
    # Oracle: torchvision's BoxCoder, whose weights are the inverse variances.
    expected = BoxCoder((10.0, 10.0, 5.0, 5.0)).encode_single(boxes, corners(defaults))
    torch.testing.assert_close(CODING.encode(boxes, defaults), expected, rtol=1e-9, atol=1e-7)


@given(pairs, st.lists(st.floats(-60, 60), min_size=4, max_size=4))
def test_decoding_equals_torchvision(
    chosen: list[tuple[list[float], list[float]]], offset: list[float]
) -> None:
    _, defaults = as_tensors(chosen)
    offsets = torch.tensor(offset).double().expand(len(defaults), 4)
    # Oracle: as above; it clamps the size at the same ratio.
    expected = BoxCoder((10.0, 10.0, 5.0, 5.0)).decode_single(offsets, corners(defaults))
    torch.testing.assert_close(CODING.decode(offsets, defaults), expected, rtol=1e-9, atol=1e-7)


def test_one_box_by_hand() -> None:
    # Default box centre (20, 30), sides 10 × 20. Box 15..25 × 25..65: centre (20, 45), sides
    # 10 × 40: t = (0, 15 / 20 / 0.1, 0, ln 2 / 0.2).
    offsets = CODING.encode(torch.tensor([15.0, 25, 25, 65]), torch.tensor([20.0, 30, 10, 20]))
    torch.testing.assert_close(offsets, torch.tensor([0, 7.5, 0, math.log(2) / 0.2]))


def test_each_coordinate_depends_on_its_own_offset_alone() -> None:
    # Worst-case boxes are built on it: the Jacobian of (cx, cy, w, h) by the offsets is diagonal.
    default = torch.tensor([20.0, 30, 10, 20]).double()

    def centre_and_sides(offsets: Tensor) -> Tensor:
        box = CODING.decode(offsets, default)
        return torch.cat([(box[:2] + box[2:]) / 2, box[2:] - box[:2]])

    at = torch.tensor([0.3, -1.2, 0.7, -0.4]).double()
    slopes = torch.autograd.functional.jacobian(centre_and_sides, at)
    # By hand: d cx / d t = 0.1 w; d w / d t = 0.2 · w · exp(0.2 t).
    expected = [1.0, 2.0, 2 * math.exp(0.14), 4 * math.exp(-0.08)]
    torch.testing.assert_close(slopes, torch.diag(torch.tensor(expected).double()))


def test_huge_offsets_stay_finite() -> None:
    offsets = torch.tensor([[1e6, -1e6, 1e6, 1e6], [0, 0, -1e6, -1e6], [0, 0, 1e30, 0]])
    boxes = CODING.decode(offsets, torch.tensor([37.0, 37, 10, 10]))
    assert boxes.isfinite().all()
    width = boxes[2, 2] - boxes[2, 0]
    torch.testing.assert_close(width, torch.tensor(10 * math.exp(MAX_LOG_RATIO)))
