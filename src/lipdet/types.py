"""What travels between the stages.

Notable choices:
- Targets and detections are plain dictionaries of tensors, one per image, as in torchvision.
- Boxes are `xyxy` in absolute pixels of the image given; labels are int64 class indices in which
  background has no number. N = 0 is legal everywhere.
- The raw output of a detector is typed and carries logits, never probabilities: what ranks
  detections must not saturate.
"""

from __future__ import annotations

from typing import NamedTuple, TypedDict

from torch import Tensor


class Target(TypedDict):
    """The objects of one image: `boxes` (N, 4) float32 xyxy pixels, `labels` (N,) int64."""

    boxes: Tensor
    labels: Tensor


class Detections(TypedDict):
    """The detections of one image, best first.

    `boxes` (N, 4) float32 xyxy pixels, `labels` (N,) int64, `scores` (N,) float64 in [0, 1]:
    float32 would tie at 1.0 what log-odds of 18 and of 30 keep apart.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor


class RawOutput(NamedTuple):
    """What a detector returns for a batch of B images and A default boxes (anchors).

    Attributes:
        logits: (B, A, K) class logits; with softmax scores K = classes + 1 and index 0 is the
            background.
        offsets: (B, A, 4) box offsets relative to the default boxes, in the encoding of
            `lipdet.boxes.coding`.
    """

    logits: Tensor
    offsets: Tensor
