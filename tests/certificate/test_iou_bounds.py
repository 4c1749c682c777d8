"""Lowest and highest IoU of uncertain boxes, against a dense search over the boxes themselves.

LIPDET_IOU_CASES=3000 LIPDET_IOU_SAMPLES=100000 runs all cases, as densely as the bar asks.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from lipdet.boxes import BoxCoding
from lipdet.boxes.coding import corners
from lipdet.certificate.conditions.clique_cover import OVERLAP_SLACK, in_float32, surely_overlap
from lipdet.certificate.geometry.box_range import (
    BoxRange,
    box_range,
    centers_and_sides,
    corner_range,
)
from lipdet.certificate.geometry.iou_bounds import (
    max_iou_fixed,
    max_iou_pair,
    min_iou_fixed,
    min_iou_of_pairs,
)
from lipdet.certificate.ragged import take
from lipdet.types import Canvas
from tests.certificate.dense_search import CANVAS, KINDS, random_ranges, search
from tests.certificate.scenes import clipped, iou_of

# Over all kinds, clipped and not, one and two uncertain boxes. All of them take ten minutes.
CASES = int(os.environ.get("LIPDET_IOU_CASES", "560"))
SAMPLES = int(os.environ.get("LIPDET_IOU_SAMPLES", "6000"))
# What float64 can be off by.
ROUNDING = 1e-12
AT_ONCE = 20
ROUNDS = -(-CASES // (4 * len(KINDS) * AT_ONCE))


def iou(a: Tensor, b: Tensor, canvas: Canvas | None) -> Tensor:
    """IoU of boxes cx, cy, w, h."""
    a, b = corners(a), corners(b)
    return iou_of(a, b) if canvas is None else iou_of(clipped(a, canvas), clipped(b, canvas))


def point(boxes: Tensor) -> BoxRange:
    """Known boxes xyxy as ranges."""
    return BoxRange(*[centers_and_sides(boxes)] * 2)


def min_iou_pair(a: BoxRange, b: BoxRange, canvas: Canvas | None) -> Tensor:
    """The bound of pairs for two lists of boxes; those far from any border are not clipped."""
    moved = torch.tensor([0.0 if canvas else 1000.0] * 2 + [0.0, 0.0], dtype=torch.float64)
    boxes = BoxRange(*(torch.cat(ends) + moved for ends in zip(a, b, strict=True)))
    first = torch.arange(len(a.low))
    return min_iou_of_pairs(boxes, first, first + len(first), canvas or Canvas(2000, 2000))


@pytest.mark.parametrize("canvas", [None, CANVAS])
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_with_a_known_box(kind: str, canvas: Canvas | None) -> None:
    generator = torch.Generator().manual_seed(KINDS.index(kind))
    for _ in range(ROUNDS):
        known = clipped(corners(random_ranges("anywhere", AT_ONCE, generator).low), CANVAS)
        ranges = random_ranges(kind, AT_ONCE, generator, near=point(known))
        lowest, highest = search(
            lambda a, b: iou(a, b, canvas), [ranges, point(known)], SAMPLES, generator
        )
        found = min_iou_pair(ranges, point(known), canvas)
        assert (found <= lowest + ROUNDING).all()
        assert (lowest - found).max() < 1e-3
        # The known box lies in the image, where a box that is not clipped has the lower IoU.
        assert (min_iou_fixed(ranges, known) <= lowest + ROUNDING).all()
        assert (max_iou_fixed(ranges, known, canvas) >= highest - ROUNDING).all()
        assert (max_iou_fixed(ranges, known, canvas) <= 1 + ROUNDING).all()


@pytest.mark.parametrize("canvas", [None, CANVAS])
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_of_two_uncertain_boxes(kind: str, canvas: Canvas | None) -> None:
    generator = torch.Generator().manual_seed(100 + KINDS.index(kind))
    for first in range(ROUNDS):
        a = random_ranges(KINDS[first % 3], AT_ONCE, generator)
        b = random_ranges(kind, AT_ONCE, generator, near=a)
        lowest, highest = search(lambda x, y: iou(x, y, canvas), [a, b], SAMPLES, generator)
        found = min_iou_pair(a, b, canvas)
        assert (found <= lowest + ROUNDING).all()
        assert (lowest - found).max() < 1e-3
        assert (max_iou_pair(a, b, canvas) >= highest - ROUNDING).all()
        assert (max_iou_pair(a, b, canvas) <= 1 + ROUNDING).all()


def test_known_boxes_have_their_iou() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (random_ranges("certain", 300, generator).low for _ in range(2))
    first, second = BoxRange(a, a), BoxRange(b, b)
    for canvas in (None, CANVAS):
        wanted = iou(a, b, canvas)
        for bound in (min_iou_pair, max_iou_pair):
            torch.testing.assert_close(bound(first, second, canvas), wanted)
        torch.testing.assert_close(
            max_iou_fixed(first, clipped(corners(b), CANVAS), CANVAS), iou(a, b, CANVAS)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_bounds_of_pairs_are_no_higher(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = random_ranges(kind, 400, generator, near=random_ranges(kind, 400, generator))
    first, second = torch.arange(400), torch.randperm(400, generator=generator)
    exact = min_iou_of_pairs(boxes, first, second, CANVAS)
    rounded = min_iou_of_pairs(in_float32(boxes, CANVAS), first, second, CANVAS).double()
    assert (rounded <= exact + 1e-6).all()
    # Boxes are widened by 2⁻¹⁹ of their largest coordinate: little, but for the tiniest.
    large = (boxes.low[:, 2:] > 1).all(dim=1)
    large = large[first] & large[second]
    assert (rounded >= exact - 2e-3)[large].all()


def test_boxes_that_surely_overlap() -> None:
    generator = torch.Generator().manual_seed(0)
    offsets = torch.randn(120, 4, generator=generator, dtype=torch.float64)
    default_boxes = torch.rand(120, 4, generator=generator, dtype=torch.float64) * 40 + 15
    boxes = box_range(offsets, torch.full_like(offsets, 0.4), default_boxes, BoxCoding())
    members = (torch.rand(120, 3, generator=generator) < 0.5).float()
    nms_iou, images = 0.2, [torch.arange(0, 50), torch.arange(50, 120)]
    of_images = [take(members, index) for index in images]
    found = surely_overlap(boxes, images, of_images, nms_iou, CANVAS)
    for index, of_image, overlaps in zip(images, of_images, found, strict=True):
        first, second = torch.cartesian_prod(index, index).T
        lowest = min_iou_of_pairs(boxes, first, second, CANVAS).reshape(len(index), -1)
        in_common = (of_image @ of_image.T > 0).fill_diagonal_(False)
        sure = torch.from_numpy(overlaps)
        assert (lowest > nms_iou)[sure].all()
        assert in_common[sure].all()
        assert torch.equal(sure, sure.T)
        # What the first test leaves out is hardly ever wrong.
        wanted = in_common & (lowest > nms_iou + 2 * OVERLAP_SLACK)
        assert wanted.sum() > 100
        assert (wanted & sure).sum() >= 0.99 * wanted.sum()


def test_clipping_breaks_the_vertex_rule() -> None:
    # theory §4, in an image of side 1 (all of y is covered): vertices .571, centre .444.
    known = torch.tensor([[0.3, 0.0, 0.7, 1.0]], dtype=torch.float64)
    low = torch.tensor([[0.25, 0.5, 0.9, 1.0]], dtype=torch.float64)
    high = torch.tensor([[0.75, 0.5, 0.9, 1.0]], dtype=torch.float64)
    at_vertices = torch.stack([iou(x, point(known).low, Canvas(1, 1)) for x in (low, high)])
    torch.testing.assert_close(at_vertices, torch.full_like(at_vertices, 4 / 7))
    at_center = iou((low + high) / 2, point(known).low, Canvas(1, 1))
    assert at_center == pytest.approx(4 / 9)
    ranges = BoxRange(low, high)
    # Oracle: w = .9 covers the known .4 wherever it is clipped by less than it sticks out.
    assert min_iou_pair(ranges, point(known), Canvas(1, 1)) == pytest.approx(4 / 9)
    # Not clipped, the box at a vertex reaches from −.2 to .7.
    assert min_iou_fixed(ranges, known) == pytest.approx(4 / 9)


def test_boxes_without_area_overlap_nothing() -> None:
    outside = torch.tensor([[-20.0, 30, 10, 10]], dtype=torch.float64)
    line = torch.tensor([[30.0, 30, 0, 10]], dtype=torch.float64)
    box = torch.tensor([[30.0, 30, 10, 10]], dtype=torch.float64)
    for a, b in ((outside, outside), (line, line), (line, box), (outside, box)):
        first, second = BoxRange(a, a), BoxRange(b, b)
        for bound in (min_iou_pair, max_iou_pair):
            assert bound(first, second, CANVAS) == pytest.approx(0, abs=1e-50)
        # Oracle: torchvision keeps both.
        boxes = clipped(corners(torch.cat([a, b])), CANVAS)
        assert len(nms(boxes, torch.tensor([1.0, 0.5], dtype=torch.float64), 0.0)) == 2
    # A box that may have no area surely overlaps nothing, not even itself.
    thin = BoxRange(line, torch.tensor([[30.0, 30, 5, 10]], dtype=torch.float64))
    assert min_iou_pair(thin, thin, CANVAS) < 1e-50
    assert max_iou_pair(thin, thin, CANVAS) == pytest.approx(1)


def test_ranges_hold_what_float32_decodes() -> None:
    torch.manual_seed(0)
    coding = BoxCoding()
    count = 20_000
    default_boxes = torch.cat([torch.rand(count, 2) * 74, torch.rand(count, 2) * 60 + 1], dim=1)
    offsets = torch.randn(count, 4) * 12
    radius = torch.rand(count, 4) * 2
    low, high = corner_range(box_range(offsets, radius, default_boxes, coding))
    moved = offsets.double() + radius * (2 * torch.rand(count, 4, dtype=torch.float64) - 1)
    # Oracle: the detector's own decode in float32; the ends of the intervals as well.
    for places in (moved, offsets.double() + radius, offsets.double() - radius):
        inside = places.float().double()
        allowed = (inside - offsets.double()).abs() <= radius
        boxes = coding.decode(places.float(), default_boxes).double()
        fits = (boxes >= low) & (boxes <= high)
        assert (fits | ~allowed.all(dim=-1, keepdim=True)).all()


def test_ranges_lose_nothing() -> None:
    coding = BoxCoding()
    default_boxes = torch.tensor([[37.0, 37.0, 20.0, 10.0]])
    offsets, radius = torch.tensor([[0.5, -0.5, 1.0, 0.0]]), torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    low, high = box_range(offsets, radius, default_boxes, coding)
    # Oracle: eq. 2 of Liu et al. (2016), by hand: c = t·0.1·d + c₀ and s = d·exp(0.2 t).
    torch.testing.assert_close(
        low[0],
        torch.tensor([37.8, 36.3, 20 * 2.718281828**0.14, 10 * 2.718281828**-0.08]).double(),
        rtol=0, atol=1e-3,
    )  # fmt: skip
    torch.testing.assert_close(
        high[0],
        torch.tensor([38.2, 36.7, 20 * 2.718281828**0.26, 10 * 2.718281828**0.08]).double(),
        rtol=0, atol=1e-3,
    )  # fmt: skip
