"""What the objectives know about a batch besides the raw output: the objects and their anchors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from lipdet.boxes import Decoder
from lipdet.boxes.coding import corners
from lipdet.detector.matching import match, pad_targets
from lipdet.types import Target


class Scene(NamedTuple):
    """The objects of B images, M ≥ 1 at most, and how A default boxes relate to them.

    Attributes:
        boxes: (B, M, 4) xyxy pixels.
        labels: (B, M) int64.
        valid: (B, M) bool; the rest is padding.
        positive: (B, A) bool, default boxes that answer for an object in the multibox loss.
        wanted_labels: (B, A) int64, the object's label; meaningful where positive.
        wanted_offsets: (B, A, 4), the object's box as offsets; meaningful where positive.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    positive: Tensor
    wanted_labels: Tensor
    wanted_offsets: Tensor

    def at(self, rows: Tensor) -> Scene:
        """Return the objects of some of the images."""
        return Scene(*(tensor[rows] for tensor in self))


def scene_of(targets: Sequence[Target], decoder: Decoder) -> Scene:
    """Match the objects of a batch once; they stay where they are while an image is attacked."""
    default_boxes = decoder.default_boxes
    padded = pad_targets(targets).to(default_boxes.device)
    positive, objects, _ = match(corners(default_boxes), padded)
    own_boxes = padded.boxes.gather(1, objects.unsqueeze(2).expand(-1, -1, 4))
    return Scene(
        boxes=padded.boxes,
        labels=padded.labels,
        valid=padded.valid,
        positive=positive,
        wanted_labels=padded.labels.gather(1, objects),
        wanted_offsets=decoder.coding.encode(own_boxes, default_boxes),
    )
