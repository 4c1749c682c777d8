"""Condition 2 for every object and every candidate of its class, each pair once (theory §5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.certificate.candidates import Candidates
from lipdet.certificate.conditions import stays_on
from lipdet.certificate.cover import BLOCK
from lipdet.certificate.iou_bounds import iou_of_corners
from lipdet.certificate.segments import expand, take
from lipdet.certificate.truths import Truths
from lipdet.errors import InputError

NEVER = -1.0


class Staying(NamedTuple):
    """Up to which IoU threshold candidates match objects wherever they move, of M pairs.

    Attributes:
        truth: (M,) index of the object, ascending.
        candidate: (M,) index of the candidate; of an object the first ones of its group.
        iou: (M,) threshold; NEVER where it is below the lowest of interest.
        first: (G,) for each object its first pair minus its first candidate.
    """

    truth: Tensor
    candidate: Tensor
    iou: Tensor
    first: Tensor

    def at(self, truth: Tensor, candidate: Tensor) -> Tensor:
        """Return the thresholds of pairs (P,) of an object and a candidate of its group."""
        return take(self.iou, take(self.first, truth) + candidate)

    def of_first(self, truths: int) -> Staying:
        """Return the pairs of the first so many objects."""
        pairs = int(torch.searchsorted(self.truth, truths))
        return Staying(
            self.truth[:pairs], self.candidate[:pairs], self.iou[:pairs], self.first[:truths]
        )


def staying(
    candidates: Candidates,
    cleared: Tensor,
    truths: Truths,
    size: int,
    lowest_iou: float,
    ball: bool,
) -> Staying:
    """Check condition 2 of what may vouch, of what can outscore that, and of the first block.

    Args:
        candidates: all.
        cleared: (N,) whether each may vouch for an object.
        truths: objects; those without area or not inside the image have no pairs.
        size: of the image, in pixels.
        lowest_iou: the lowest IoU threshold of interest.
        ball: whether the ball of offsets is used.

    Raises:
        InputError: a label is none of the detector's classes; its group would be another image's.
    """
    if not ((truths.label >= 0) & (truths.label < candidates.classes)).all():
        raise InputError(f"Labels must lie between 0 and {candidates.classes - 1}.")
    group = truths.image * candidates.classes + truths.label
    starts, members = candidates.starts(group), candidates.members(group)
    truth, own = expand(starts, members)
    low = take(torch.where(cleared, candidates.low, torch.inf), own)
    lowest = torch.full((len(group),), torch.inf, dtype=torch.float64)
    lowest = lowest.scatter_reduce(0, truth, low, "amin")
    counts = torch.maximum(candidates.reaching(group, lowest), members.clamp(max=BLOCK))
    counts = torch.where(can_be_certified(truths.box, size), counts, 0)
    truth, own = expand(starts, counts)
    found = torch.full((len(own),), NEVER, dtype=torch.float64)
    objects, place = take(truths.box, truth), take(candidates.boxes.place, own)
    # No box matches for sure at more than where it can lie. What that leaves is looked at closely.
    near = torch.arange(len(own))
    for boxes in _some_places(candidates):
        matches = iou_of_corners(take(boxes, place[near]), objects[near]) >= lowest_iou
        near = near[matches]
    balls = candidates.balls.at(own[near]) if ball else None
    found[near] = stays_on(candidates.boxes.at(own[near]), objects[near], balls)
    return Staying(truth, own, found, counts.cumsum(0) - counts - starts)


def _some_places(candidates: Candidates) -> Iterator[Tensor]:
    """Where boxes (U, 4) xyxy lie without perturbation, and with one coordinate at either end.

    A perturbation that moves a single offset as far as it can is in the ball of the four, too.
    """
    clean = candidates.clean_boxes
    yield clean
    centered = torch.cat([(clean[:, :2] + clean[:, 2:]) / 2, clean[:, 2:] - clean[:, :2]], dim=1)
    for ends in candidates.boxes.boxes:
        for coordinate in range(4):
            moved = centered.clone()
            moved[:, coordinate] = ends[:, coordinate]
            middle, half = moved[:, :2], moved[:, 2:] / 2
            yield torch.cat([middle - half, middle + half], dim=1)


def can_be_certified(boxes: Tensor, size: int) -> Tensor:
    """Return whether objects (G, 4) have an area and lie inside the image."""
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return has_area & (boxes >= 0).all(dim=1) & (boxes <= size).all(dim=1)
