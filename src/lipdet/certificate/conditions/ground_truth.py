"""Ground truth, and up to which IoU candidates match it wherever they move: condition 2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.boxes.coding import corners
from lipdet.certificate.conditions.candidates import Candidates
from lipdet.certificate.conditions.clique_cover import BLOCK
from lipdet.certificate.conditions.five_conditions import matches_up_to
from lipdet.certificate.geometry.box_range import centers_and_sides
from lipdet.certificate.geometry.iou_bounds import iou_of_corners
from lipdet.certificate.ragged import expand_ranges, take
from lipdet.errors import InputError
from lipdet.types import Canvas, Objects, Target, ignored_of

NO_MATCH = -1.0


class GroundTruth(NamedTuple):
    """G objects of a batch, and for each the others that a detection of its class may match.

    Attributes:
        image: (G,) which image of the batch.
        label: (G,) class of the detection that is to stay.
        box: (G, 4) float64 xyxy pixels.
        other_starts: (G,) index in `others` of the first other of each object.
        other_counts: (G,) how many it has.
        others: (R, 4) float64 boxes of the others.
    """

    image: Tensor
    label: Tensor
    box: Tensor
    other_starts: Tensor
    other_counts: Tensor
    others: Tensor

    def group(self, classes: int) -> Tensor:
        """Return the group of candidates (G,) of each object, as `Candidates` numbers them.

        Raises:
            InputError: a label is none of the detector's classes; its group would be another
                image's.
        """
        if not ((self.label >= 0) & (self.label < classes)).all():
            raise InputError(f"Labels must lie between 0 and {classes - 1}.")
        return self.image * classes + self.label

    def at(self, index: Tensor) -> GroundTruth:
        """Return the objects at an index, each with all others that it has."""
        *columns, others = self
        return GroundTruth._make([*(column[index] for column in columns), others])

    def and_independent(self, added: GroundTruth) -> GroundTruth:
        """Return these objects and after them `independent_objects`."""
        *columns, others = self
        pairs = zip(columns, added[:-1], strict=True)
        return GroundTruth._make([*map(torch.cat, pairs), others])


def ground_truth_of(targets: Sequence[Target]) -> GroundTruth:
    """Return the objects of a batch; the others of each are those of its image and class."""
    image, label, box = _together(targets)
    alike = (image[:, None] == image) & (label[:, None] == label)
    own, other = torch.nonzero(alike.fill_diagonal_(False), as_tuple=True)
    counts = torch.bincount(own, minlength=len(image))
    return GroundTruth(image, label, box, counts.cumsum(0) - counts, counts, box[other])


def ignored_areas_of(targets: Sequence[Target]) -> GroundTruth:
    """Return the areas of a batch in which detections of a class are not judged."""
    return independent_objects(*_together([ignored_of(target) for target in targets]))


def _together(parts: Sequence[Objects | Target]) -> tuple[Tensor, Tensor, Tensor]:
    """Return image, label and box of all objects of a batch."""
    image = torch.repeat_interleave(
        torch.tensor([len(part["labels"]) for part in parts], dtype=torch.int64)
    )
    label = torch.cat([part["labels"].cpu() for part in parts])
    return image, label, torch.cat([part["boxes"].cpu().double() for part in parts])


def independent_objects(image: Tensor, label: Tensor, box: Tensor) -> GroundTruth:
    """Return objects (G,) that have no others: of each one a detection shall merely remain."""
    none = torch.zeros_like(image)
    return GroundTruth(
        image, label, box.double(), none, none, torch.zeros(0, 4, dtype=torch.float64)
    )


class SureMatches(NamedTuple):
    """Up to which IoU threshold candidates match objects wherever they move, for M pairs.

    Attributes:
        truth: (M,) index of the object, ascending.
        candidate: (M,) index of the candidate; of an object the first ones of its group.
        iou: (M,) threshold; NO_MATCH where it is below the lowest of interest.
        first: (G,) for each object its first pair minus its first candidate.
    """

    truth: Tensor
    candidate: Tensor
    iou: Tensor
    first: Tensor

    def at(self, truth: Tensor, candidate: Tensor) -> Tensor:
        """Return the thresholds of pairs (P,) of an object and a candidate of its group."""
        return take(self.iou, take(self.first, truth) + candidate)

    def of_first(self, truths: int) -> SureMatches:
        """Return the pairs of the first `truths` objects."""
        pairs = int(torch.searchsorted(self.truth, truths))
        return SureMatches(
            self.truth[:pairs], self.candidate[:pairs], self.iou[:pairs], self.first[:truths]
        )


def sure_matches(
    candidates: Candidates,
    cleared: Tensor,
    truths: GroundTruth,
    lowest_iou: float,
    ball: bool,
) -> SureMatches:
    """Check condition 2 of what may vouch, of what can outscore that, and of the first block.

    Args:
        candidates: all.
        cleared: (N,) whether each may vouch for an object.
        truths: objects; those without area or not inside the image have no pairs.
        lowest_iou: the lowest IoU threshold of interest.
        ball: whether the ball of offsets is used.
    """
    group = truths.group(candidates.classes)
    starts, members = candidates.members(group)
    truth, own = expand_ranges(starts, members)
    low = take(torch.where(cleared, candidates.low, torch.inf), own)
    lowest = torch.full((len(group),), torch.inf, dtype=torch.float64)
    lowest = lowest.scatter_reduce(0, truth, low, "amin")
    counts = torch.maximum(candidates.reaching(group, lowest), members.clamp(max=BLOCK))
    counts = torch.where(can_be_certified(truths.box, candidates.canvas), counts, 0)
    truth, own = expand_ranges(starts, counts)
    found = torch.full((len(own),), NO_MATCH, dtype=torch.float64)
    objects, place = take(truths.box, truth), take(candidates.boxes.place, own)
    # No box matches for sure at more than where it can lie. What that leaves is looked at closely.
    near = torch.arange(len(own))
    for boxes in _some_places(candidates):
        matches = iou_of_corners(take(boxes, place[near]), objects[near]) >= lowest_iou
        near = near[matches]
    balls = candidates.balls.at(own[near]) if ball else None
    found[near] = matches_up_to(candidates.boxes.at(own[near]), objects[near], balls)
    return SureMatches(truth, own, found, counts.cumsum(0) - counts - starts)


def _some_places(candidates: Candidates) -> Iterator[Tensor]:
    """Yield boxes (U, 4) xyxy without perturbation, and with one coordinate at either end.

    A perturbation that moves a single offset as far as it can is in the ball of the four, too.
    """
    clean = candidates.clean_boxes
    yield clean
    centered = centers_and_sides(clean)
    for ends in candidates.boxes.boxes:
        for coordinate in range(4):
            moved = centered.clone()
            moved[:, coordinate] = ends[:, coordinate]
            yield corners(moved)


def can_be_certified(boxes: Tensor, canvas: Canvas) -> Tensor:
    """Return whether objects (G, 4) have an area and lie inside the image."""
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    limits = boxes.new_tensor(canvas.limits)
    return has_area & (boxes >= 0).all(dim=1) & (boxes <= limits).all(dim=1)
