"""Raw output to detections: decode, hard greedy NMS per class, top-k.

Notable choices:
- Boxes are clipped to the image before NMS, so that what is shown is what was compared.
- NMS compares boxes of one class where they are; on coordinates shifted for each class, IoU would
  be rounded differently.
- Everything ranks on log-odds; see `lipdet.boxes.scores`.
- What is shown of that has one detection for each place: there classes compete, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lipdet.boxes.coding import BoxCoding, pairwise_iou
from lipdet.boxes.scores import Scores
from lipdet.types import Canvas, Detections, Objects, RawOutput

# Of the reference experiment.
NMS_IOU = 0.3
# Of two boxes, one of which covers more than this share of the other, the better one is shown.
MOST_COVERED = 0.5
# Boxes whose overlaps NMS looks at together; all pairs of a large picture would take gigabytes.
BLOCK = 512


class Decoder(NamedTuple):
    """The way from the raw output of one detector to scored boxes.

    Attributes:
        default_boxes: (A, 4) cx, cy, w, h in pixels, in the order of the raw output.
        coding: how offsets relate to default boxes.
        scores: how logits become scores.
        canvas: the input's height and width in pixels; boxes are clipped to it.
        nms_iou: a kept box suppresses lower ones of its class that overlap it by more.
    """

    default_boxes: Tensor
    coding: BoxCoding
    scores: Scores
    canvas: Canvas
    nms_iou: float = NMS_IOU

    def boxes(self, offsets: Tensor) -> Tensor:
        """Map offsets (..., A, 4) to boxes (..., A, 4), xyxy pixels inside the image; float32."""
        decoded = self.coding.decode(offsets.float(), self.default_boxes.float())
        return decoded.clamp(min=0).minimum(decoded.new_tensor(self.canvas.limits))


@dataclass(frozen=True)
class Selection:
    """The rule by which boxes become detections.

    Attributes:
        score_floor: a candidate's score must exceed it.
        top_k: at most this many detections per image, over all classes.
    """

    score_floor: float
    top_k: int


# The reference experiment's settings for pictures; a detector may show more.
DISPLAY_SELECTION = Selection(score_floor=0.2, top_k=20)
# The low floor that a full precision-recall curve needs; COCO counts 100 detections per image.
AP_SELECTION = Selection(score_floor=0.01, top_k=100)


def select_detections(raw: RawOutput, decoder: Decoder, selection: Selection) -> list[Detections]:
    """Return detections of each image of a batch, best first.

    Args:
        raw: logits (B, A, K), offsets (B, A, 4).
        decoder: of the detector that the raw output comes from.
        selection: score floor and top-k.

    Returns:
        B dictionaries; boxes in pixels of the network's input.
    """
    return [
        _select_one(logits, image_boxes, decoder, selection)
        for logits, image_boxes in zip(raw.logits, decoder.boxes(raw.offsets), strict=True)
    ]


def _select_one(
    logits: Tensor, boxes: Tensor, decoder: Decoder, selection: Selection
) -> Detections:
    candidates = decoder.scores.candidates(logits, selection.score_floor)
    found = boxes[candidates.anchors]
    order = nms(found, candidates.log_odds, candidates.labels, decoder.nms_iou, selection.top_k)
    return Detections(
        boxes=found[order],
        labels=candidates.labels[order],
        scores=candidates.log_odds[order].double().sigmoid(),
    )


def nms(boxes: Tensor, log_odds: Tensor, labels: Tensor, iou: float, most: int) -> Tensor:
    """Return up to `most` boxes, best first, that no better one of their class overlaps too much.

    Class by class the same as torchvision's, in the arithmetic too: what certificates reason about
    is here, and importing that package takes half as long again as torch.

    Args:
        boxes: (N, 4) xyxy.
        log_odds: (N,); of equal ones the lower label, then the earlier box is better.
        labels: (N,) classes.
        iou: a kept box suppresses what overlaps it by more.
        most: how many to return.
    """
    order = labels.argsort(stable=True)
    order = order[log_odds[order].argsort(descending=True, stable=True)]

    def suppresses(better: Tensor, worse: Tensor) -> Tensor:
        same = labels[better].unsqueeze(1) == labels[worse]
        return same & (pairwise_iou(boxes[better], boxes[worse]).double() > iou)

    kept = order[:0]
    for block in torch.split(order, BLOCK):
        block = block[~suppresses(kept, block).any(dim=0)]
        pairs = suppresses(block, block).cpu().numpy()
        alive = np.ones(len(block), dtype=bool)
        for row in range(len(block)):
            if alive[row]:
                alive[row + 1 :] &= ~pairs[row, row + 1 :]
        kept = torch.cat([kept, block[torch.from_numpy(alive).to(block.device)]])
        if len(kept) >= most:
            break
    return kept[:most]


def one_per_place(found: Detections, square: Tensor | None = None) -> Detections:
    """Keep of boxes that cover each other only the best; see `best_rows`."""
    rows = best_rows(found, square)
    return Detections(
        boxes=found["boxes"][rows], labels=found["labels"][rows], scores=found["scores"][rows]
    )


def best_rows(found: Detections, square: Tensor | None = None) -> list[int]:
    """Return which boxes no better one covers, or is covered by, to more than MOST_COVERED.

    Overlap is relative to the smaller box: a part of a digit may be read as another.

    Args:
        found: detections.
        square: (N,) where each was found; boxes of one square then leave each other alone.

    Returns:
        Rows, best first.
    """
    covered = covered_share(found["boxes"])
    if square is not None:
        covered = covered.masked_fill(square[:, None] == square, 0)
    kept: list[int] = []
    for index in found["scores"].argsort(descending=True, stable=True).tolist():
        if not kept or covered[index, kept].max() <= MOST_COVERED:
            kept.append(index)
    return kept


def covered_share(boxes: Tensor) -> Tensor:
    """Return the intersection of each pair of boxes (N, N) as a share of the smaller one."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    corner = torch.maximum(boxes[:, None, :2], boxes[:, :2])
    opposite = torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
    shared = (opposite - corner).clamp(min=0).prod(dim=2)
    return shared / torch.minimum(areas[:, None], areas).clamp(min=1e-9)


def left_to_right(shown: Objects) -> Tensor:
    """Return the labels (N,) in the order of the left edges of their boxes."""
    return shown["labels"][shown["boxes"][:, 0].argsort(stable=True)]
