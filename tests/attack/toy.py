"""Detectors whose raw output is linear in the image: what an attack can reach is a formula."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lipdet.boxes import NMS_IOU, BoxCoding, Scores
from lipdet.config import DetectorConfig
from lipdet.detector import SSD
from lipdet.types import Canvas, RawOutput, Target

SIZE = 8
VALUES = 3 * SIZE * SIZE


class LinearDetector(SSD):
    """Logits `images @ logit_weights + logit_biases`, offsets alike, in float64.

    `logit_weights` (A, K, VALUES), `logit_biases` (A, K), `offset_weights` (A, 4, VALUES),
    `offset_biases` (A, 4).
    """

    def __init__(
        self,
        default_boxes: Tensor,
        scores: Scores,
        logit_weights: Tensor,
        logit_biases: Tensor,
        offset_weights: Tensor,
        offset_biases: Tensor,
    ) -> None:
        nn.Module.__init__(self)
        self.config = DetectorConfig(canvas=Canvas(SIZE, SIZE))
        self.coding = BoxCoding()
        self.scores, self.nms_iou = scores, NMS_IOU
        self.register_buffer("default_boxes", default_boxes)
        self.logit_weights = nn.Parameter(logit_weights)
        self.logit_biases = nn.Parameter(logit_biases)
        self.offset_weights = nn.Parameter(offset_weights)
        self.offset_biases = nn.Parameter(offset_biases)

    def forward(self, images: Tensor) -> RawOutput:
        # One product per output: a matrix product, or a gradient summed over outputs, may add in
        # another order for another batch size.
        flat = (images - 0.5).flatten(1)

        def per_box(weights: Tensor, biases: Tensor) -> Tensor:
            rows = [[(flat * one).sum(1) for one in row] for row in weights]
            return torch.stack([torch.stack(row, 1) for row in rows], 1) + biases

        return RawOutput(
            per_box(self.logit_weights, self.logit_biases),
            per_box(self.offset_weights, self.offset_biases),
        )


def linear_detector(
    scores: Scores, logit_weights: Tensor, bias: float = 0.0, offsets: Tensor | None = None
) -> LinearDetector:
    """One default box per row of `logit_weights` (A, K, VALUES): the left half, the right half.

    `offsets` (4, VALUES): weights of every box's offsets, whose biases are then 3 or -3 by turns;
    without it all offsets are 0.
    """
    anchors, classes, _ = logit_weights.shape
    half = SIZE / 2
    boxes = torch.tensor([[half / 2, half, half, SIZE], [1.5 * half, half, half, SIZE]])[:anchors]
    biases = torch.tensor([3.0, -3.0, 3.0, -3.0], dtype=torch.float64)
    still = torch.zeros(4, VALUES, dtype=torch.float64)
    return LinearDetector(
        boxes,
        scores,
        logit_weights,
        torch.full((anchors, classes), bias, dtype=torch.float64),
        (still if offsets is None else offsets).expand(anchors, 4, VALUES).clone(),
        (0 * biases if offsets is None else biases).expand(anchors, 4).clone(),
    )


def on_left(label: int = 0) -> Target:
    """One object that covers the first default box exactly."""
    return Target(boxes=torch.tensor([[0.0, 0.0, SIZE / 2, SIZE]]), labels=torch.tensor([label]))


def on_both(first: int = 0, second: int = 0) -> Target:
    """Two objects, one on each default box."""
    return Target(
        boxes=torch.tensor([[0.0, 0.0, SIZE / 2, SIZE], [SIZE / 2, 0.0, SIZE, SIZE]]),
        labels=torch.tensor([first, second]),
    )


def nothing() -> Target:
    """No object."""
    return Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))


def grey(count: int) -> Tensor:
    """Images far from 0 and 1, so that clipping plays no part at small radii."""
    return torch.full((count, 3, SIZE, SIZE), 0.5, dtype=torch.float64)


def weights(*shape: int, seed: int = 0) -> Tensor:
    """Random weights (…, VALUES) of norm near 1."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(*shape, VALUES, generator=generator, dtype=torch.float64)
    return drawn / VALUES**0.5
