"""What travels between the stages.

Notable choices:
- Targets and detections are plain dictionaries of tensors, one per image, as in torchvision.
- Boxes are `xyxy` in absolute pixels of the image given; labels are int64 class indices in which
  background has no number. N = 0 is legal everywhere.
- The raw output of a detector is typed and carries logits, never probabilities: what ranks
  detections must not saturate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor

# In masks: a pixel whose class is not known, as in Cityscapes.
IGNORED = 255


class Canvas(NamedTuple):
    """Height and width in pixels of the pictures that a network takes."""

    height: int
    width: int

    def __str__(self) -> str:
        """Return `74x74`, as `--image_size` takes it."""
        return f"{self.height}x{self.width}"

    @property
    def limits(self) -> tuple[int, int, int, int]:
        """The largest x, y, x, y of a box inside."""
        return self.width, self.height, self.width, self.height

    def grey_levels(self, epsilon: float, norm: str = "l2") -> float:
        """Return what a radius means to people: a change of ε, as its root mean square.

        Args:
            epsilon: radius, of values in [0, 1].
            norm: `l2`, over all 3·H·W values, or `linf`, where every value may change by ε.

        Returns:
            The largest root mean square over all values, in grey levels, of which white is 255.
        """
        values = 3 * self.height * self.width if norm == "l2" else 1
        return 255 * epsilon / math.sqrt(values)

    def in_grey_levels(self, epsilon: float, norm: str = "l2") -> str:
        """Return `0.5 grey levels at 74x74`."""
        return f"{self.grey_levels(epsilon, norm):.2g} grey levels at {self}"


class Framing(NamedTuple):
    """The way of a picture onto the canvas of a network, in training and ever after.

    Attributes:
        canvas: what the network takes.
        whole: the whole picture, letter-boxed; else squares around objects, which have to be
            searched for where nobody says where they are. None if the network does not say.
    """

    canvas: Canvas
    whole: bool | None = False

    def __str__(self) -> str:
        """Return `whole pictures of 240x320 pixels`, or crops."""
        return f"{'whole pictures' if self.whole else 'crops'} of {self.canvas} pixels"


class Objects(TypedDict):
    """Boxes of one image with their classes: `boxes` (N, 4) float32 xyxy pixels, `labels` (N,)."""

    boxes: Tensor
    labels: Tensor


class Target(Objects):
    """The objects of one image, and the areas in which what is found of a class is not judged.

    `ignored` are COCO's crowds and VOC's difficult objects; see `ignored_of`. Where pixels are
    labelled, `mask` (H, W) uint8 has the class of each, or IGNORED.
    """

    ignored: NotRequired[Objects]
    mask: NotRequired[Tensor]


def ignored_of(target: Target) -> Objects:
    """Return the areas that are not judged; most targets have none."""
    return target.get("ignored") or Objects(
        boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)
    )


def spell(class_names: Sequence[str]) -> bool:
    """Return whether objects from left to right are writing: all names have one character."""
    return all(len(name) == 1 for name in class_names)


class Detections(TypedDict):
    """The detections of one image, best first.

    `boxes` (N, 4) float32 xyxy pixels, `labels` (N,) int64, `scores` (N,) float64 in [0, 1]:
    float32 would tie at 1.0 what log-odds of 18 and of 30 keep apart.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor


class RawOutput(NamedTuple):
    """The output of a detector for a batch of B images and A default boxes (anchors).

    Attributes:
        logits: (B, A, K) class logits; with softmax scores K = classes + 1 and index 0 is the
            background.
        offsets: (B, A, 4) box offsets relative to the default boxes, in the encoding of
            `lipdet.boxes.coding`.
    """

    logits: Tensor
    offsets: Tensor
