"""Which default box answers for which object: batched and vectorised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.boxes.coding import pairwise_iou
from lipdet.types import Objects, Target, ignored_of

POSITIVE_IOU = 0.5
# From which share inside on a box lies in an ignored area, as at COCO's lowest threshold.
IGNORED_SHARE = 0.5


class PaddedTargets(NamedTuple):
    """The targets of a batch as rectangular tensors; M ≥ 1 is the largest number of objects.

    Attributes:
        boxes: (B, M, 4) float32 xyxy pixels.
        labels: (B, M) int64.
        valid: (B, M) bool; the rest is padding.
        ignored_boxes: (B, J, 4) areas that are not judged, J ≥ 0; padding has no area.
        ignored_labels: (B, J) int64, of which class.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    ignored_boxes: Tensor
    ignored_labels: Tensor

    def to(self, device: torch.device) -> PaddedTargets:
        """Return the same targets on another device."""
        return PaddedTargets(*(tensor.to(device) for tensor in self))


def pad_targets(targets: Sequence[Target]) -> PaddedTargets:
    """Stack per-image targets, padding with invalid unit boxes."""
    boxes, labels, valid = _padded(targets, torch.tensor([0.0, 0.0, 1.0, 1.0]), least=1)
    areas, of_class, _ = _padded([ignored_of(one) for one in targets], torch.zeros(4), least=0)
    return PaddedTargets(boxes, labels, valid, areas, of_class)


def _padded(
    targets: Sequence[Objects], padding: Tensor, least: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes (B, M, 4), labels (B, M) and which are there (B, M), M ≥ least."""
    most = max([least, *(len(target["labels"]) for target in targets)])
    boxes = padding.repeat(len(targets), most, 1)
    labels = torch.zeros(len(targets), most, dtype=torch.int64)
    valid = torch.zeros(len(targets), most, dtype=torch.bool)
    for row, target in enumerate(targets):
        count = len(target["labels"])
        boxes[row, :count] = target["boxes"]
        labels[row, :count] = target["labels"]
        valid[row, :count] = True
    return boxes, labels, valid


class Matches(NamedTuple):
    """For each image and default box: is it positive, and for which object.

    Attributes:
        positive: (B, A) bool.
        objects: (B, A) int64 index into the padded objects; meaningful where positive or near.
        near: (B, A) bool: not positive, but close to the object.
    """

    positive: Tensor
    objects: Tensor
    near: Tensor


def match(
    default_corners: Tensor, targets: PaddedTargets, near_iou: float = POSITIVE_IOU
) -> Matches:
    """Match as SSD does (Liu et al., 2016, §2.2).

    A default box is positive for the object it overlaps best if their IoU reaches POSITIVE_IOU;
    besides, each object claims the default box that overlaps it best. Where two objects claim the
    same one, the later object has it.

    Args:
        default_corners: (A, 4) default boxes as xyxy pixels.
        targets: the objects of B images.
        near_iou: from which IoU on a default box that is not positive is near its object; none is
            near at POSITIVE_IOU or more.
    """
    overlap = pairwise_iou(default_corners, targets.boxes)
    overlap = overlap.masked_fill(~targets.valid.unsqueeze(1), -1.0)
    best_overlap, objects = overlap.max(dim=2)
    positive = best_overlap >= POSITIVE_IOU
    # The highest index wins: later objects take the default box that earlier ones claim, too.
    claims = torch.arange(overlap.shape[2], device=overlap.device).where(targets.valid, -1)
    unclaimed = torch.full_like(objects, -1)
    claimed = unclaimed.scatter_reduce(1, overlap.argmax(dim=1), claims, "amax")
    objects = claimed.where(claimed >= 0, objects)
    positive = positive | (claimed >= 0)
    return Matches(positive, objects, (best_overlap >= near_iou) & ~positive)


def no_negatives(
    default_corners: Tensor, targets: PaddedTargets, matches: Matches, classes: int
) -> Tensor:
    """Return of which classes default boxes (A, 4) may be one or not, (B, A, classes) bool.

    Those near an object, of its class; those in an ignored area, of the area's.
    """
    columns = torch.arange(classes, device=default_corners.device)
    labels = targets.labels.gather(1, matches.objects).masked_fill(~matches.near, -1)
    areas = not_judged(default_corners, targets.ignored_boxes, targets.ignored_labels, classes)
    return areas | (labels.unsqueeze(-1) == columns)


def not_judged(
    default_corners: Tensor, ignored_boxes: Tensor, ignored_labels: Tensor, classes: int
) -> Tensor:
    """Return in areas of which classes default boxes (A, 4) lie, (B, A, classes) bool."""
    columns = torch.arange(classes, device=default_corners.device)
    inside = share_inside(default_corners, ignored_boxes) >= IGNORED_SHARE
    result = torch.zeros_like(columns, dtype=torch.bool).expand(*inside.shape[:2], classes)
    for area, label in zip(inside.unbind(2), ignored_labels.unbind(1), strict=True):
        result = result | area.unsqueeze(-1) & (label[:, None, None] == columns)
    return result


def share_inside(boxes: Tensor, areas: Tensor) -> Tensor:
    """Return which share of boxes (…, A, 4) lies in each of the areas (…, J, 4), (…, A, J).

    It is COCO's overlap of a detection with a crowd.
    """
    first = torch.maximum(boxes[..., :, None, :2], areas[..., None, :, :2])
    last = torch.minimum(boxes[..., :, None, 2:], areas[..., None, :, 2:])
    inside = (last - first).clamp(min=0).prod(dim=-1)
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)
    return inside / size.unsqueeze(-1).clamp(min=torch.finfo(boxes.dtype).tiny)
