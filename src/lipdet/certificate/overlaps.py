"""Which uncertain boxes of an image overlap so much that NMS can never keep both.

Notable choices:
- A test in float32 on all pairs comes first; the exact bound is for those that it leaves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipdet.certificate.box_range import BoxRange
from lipdet.certificate.iou_bounds import min_iou_of_pairs
from lipdet.certificate.segments import take, true_at

# NMS computes IoU in float32: overlap is sure only from this much above its threshold.
OVERLAP_SLACK = 1e-3


def surely_overlap(
    boxes: BoxRange,
    images: Sequence[Tensor],
    members: Sequence[Tensor],
    nms_iou: float,
    size: int,
) -> list[NDArray[np.bool_]]:
    """Return which boxes of an image overlap by more than η under every perturbation.

    Args:
        boxes: (N, 4).
        images: of each image the indices (U,) of its boxes.
        members: of each image (U, C), 1 for the classes of which a box is a candidate, else 0; only
            boxes with a class in common are compared.
        nms_iou: η.
        size: of the images.

    Returns:
        For each image (U, U), symmetric, false on the diagonal and where nothing was compared.
    """
    if not images:
        return []
    needed = nms_iou + OVERLAP_SLACK
    boxes = in_float32(boxes, size)
    likely = [
        _may_overlap(boxes.at(index), of_class, steady, needed, size)
        for index, of_class, steady in zip(
            images, members, _steady(boxes, images, needed, size), strict=True
        )
    ]
    one, other = (
        torch.cat([take(index, pairs[end]) for index, pairs in zip(images, likely, strict=True)])
        for end in (0, 1)
    )
    sure = min_iou_of_pairs(boxes, one, other, size) > needed
    result = []
    parts = torch.split(sure, [len(a) for a, _ in likely])
    for index, (a, b), kept in zip(images, likely, parts, strict=True):
        matrix = np.zeros((len(index), len(index)), np.bool_)
        matrix[a.numpy(), b.numpy()] = kept.numpy()
        result.append(matrix | matrix.T)
    return result


def in_float32(boxes: BoxRange, size: int) -> BoxRange:
    """The same boxes in float32, so much wider that rounding cannot make an overlap too large.

    What is computed of a pair are sums and differences of at most five of their coordinates and the
    side of the image: off by less than 8 roundings of 2⁻²⁴ of the largest. Centres and sides are
    widened by more than that. Products that follow are off by less than OVERLAP_SLACK / 100.
    """
    largest = torch.maximum(boxes.low.abs(), boxes.high.abs()).amax(dim=1, keepdim=True)
    slack = (largest + size) * 2.0**-19
    low, high = boxes.low - slack, boxes.high + slack
    low[:, 2:].clamp_min_(0)
    return BoxRange(*(end.T.float().contiguous().T for end in (low, high)))


def _steady(
    boxes: BoxRange, images: Sequence[Tensor], needed: float, size: int
) -> Sequence[Tensor]:
    """Indices of the boxes of each image that would surely overlap a box that can move alike.

    At large ε others hardly ever overlap anything for sure, and are most of all boxes.
    """
    every = torch.cat(list(images))
    alike = min_iou_of_pairs(boxes, every, every, size) > needed
    of_images = torch.split(alike, [len(index) for index in images])
    return [true_at(of_image) for of_image in of_images]


def _may_overlap(
    boxes: BoxRange, members: Tensor, steady: Tensor, needed: float, size: int
) -> tuple[Tensor, Tensor]:
    """Pairs of an image's boxes (U, 4) that a test in float32 does not rule out, the first before.

    Only those at the indices `steady` are looked at. Tested are both boxes at their smallest and as
    far apart as can be: that can occur, and nearly always decides. Of the two sides that an overlap
    cannot exceed only one is looked at, which rules out less. A pair that is ruled out wrongly, by
    rounding or as not steady, adds cliques, which is safe.
    """
    boxes, members = boxes.at(steady), take(members, steady)
    (_, ends), (starts, _) = placed = _first_and_last(boxes, size)
    sides = torch.minimum(*(end - start for start, end in placed))
    x, y = (
        torch.minimum(ends[axis, :, None] - starts[axis], ends[axis] - starts[axis, :, None])
        .minimum(sides[axis, :, None])
        .clamp_(min=0)
        for axis in (0, 1)
    )
    # IoU > η is overlap > (sum of areas)·η / (1 + η).
    needed_of_each = sides[0] * sides[1] * (needed / (1 + needed))
    # numpy is several times as fast at comparing and finding.
    overlapping = x.mul_(y).sub_(needed_of_each[:, None]).numpy() > needed_of_each.numpy()
    in_common = torch.from_numpy((members @ members.T).numpy() > 0)
    likely = in_common.triu_(1).numpy() & overlapping
    one, other = torch.from_numpy(np.stack(np.divmod(np.flatnonzero(likely), len(likely))))
    return take(steady, one), take(steady, other)


def _first_and_last(boxes: BoxRange, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return boxes (U, 4) with their shortest sides, at their first and at their last centres.

    Returns:
        Starts and ends of both, (2, U).
    """
    half = boxes.low[:, 2:].T / 2
    return [
        ((center - half).clamp(0, size), (center + half).clamp(0, size))
        for center in (boxes.low[:, :2].T, boxes.high[:, :2].T)
    ]
