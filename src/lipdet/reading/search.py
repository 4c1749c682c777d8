"""Search a photograph for numbers, and join what is found in its squares.

Notable choices:
- The search is for detectors of crops. It runs them on overlapping squares of several sizes; digits
  found side by side are taken as one number. What it yields is a square around each number, which
  is the framing that they were trained on.
- A place has one reading: boxes compete there within a square in its own pixels, so that
  certificates can speak of it, and then between squares.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lipdet.boxes import Selection
from lipdet.boxes.select import one_per_place
from lipdet.detector.forward import Network
from lipdet.images.crop import Region, full_region, out_of_region
from lipdet.images.resize import resized
from lipdet.reading.views import View, look
from lipdet.types import Canvas, Detections

# The coarse pass accepts only what is surely a digit; those who look at its squares decide.
COARSE = Selection(score_floor=0.5, top_k=20)
SCALE_STEP = 2**0.5
SMALLEST_SQUARE = 40
OVERLAP = 0.5
MARGIN = 1.2
# A larger photograph is searched at this size, its longer side or, if it is long and narrow, its
# shorter one; its numbers are still larger than a square.
SEARCHED_SIDE, SEARCHED_SHORT_SIDE = 384, 96


def searched_regions(network: Network, image: Image.Image) -> list[Region]:
    """Return a square around each number that a network of crops sees in a photograph."""
    shrink = min(max(image.size) / SEARCHED_SIDE, min(image.size) / SEARCHED_SHORT_SIDE)
    shrink = max(1.0, shrink)
    size = (max(1, round(image.width / shrink)), max(1, round(image.height / shrink)))
    small = resized(image, size, Image.Resampling.BICUBIC)
    views = look(network, (), small, search_squares(*size, network.framing.canvas), COARSE)
    boxes = one_per_place(*put_together(views, size))["boxes"] * shrink
    return [_around(group) for group in _numbers(boxes.numpy())]


def search_squares(width: int, height: int, canvas: Canvas) -> list[Region]:
    """Return overlapping squares of falling size that cover a picture, the whole of it first."""
    squares = [full_region(width, height, canvas)]
    side = float(min(width, height))
    while side >= SMALLEST_SQUARE:
        squares += [
            Region(left, top, left + side, top + side)
            for top in _places(height, side)
            for left in _places(width, side)
        ]
        side /= SCALE_STEP
    return squares


def in_picture(
    found: Detections, region: Region, canvas: Canvas, size: tuple[int, int]
) -> Detections:
    """Return detections in a region with boxes in pixels of the picture, inside it.

    Args:
        found: boxes in pixels of the network's input.
        region: the one that they are in.
        canvas: of the network.
        size: width and height of the picture.
    """
    boxes = out_of_region(found["boxes"].numpy(), region, canvas)
    inside = torch.from_numpy(boxes.clip(0, np.array([*size, *size], np.float32)))
    return Detections(boxes=inside, labels=found["labels"], scores=found["scores"])


def put_together(views: Sequence[View], size: tuple[int, int]) -> tuple[Detections, Tensor]:
    """Return the detections of all views, in pixels of a picture of this size, and their views."""
    parts = [
        in_picture(one_per_place(view.found), view.region, view.canvas, size) for view in views
    ]
    counts = torch.tensor([len(part["labels"]) for part in parts])
    return joined(parts), torch.repeat_interleave(counts)


def joined(parts: Sequence[Detections]) -> Detections:
    """Return the detections of all parts (at least one), one part after the other."""
    return Detections(
        boxes=torch.cat([one["boxes"] for one in parts]),
        labels=torch.cat([one["labels"] for one in parts]),
        scores=torch.cat([one["scores"] for one in parts]),
    )


def _places(length: int, side: float) -> NDArray[np.float64]:
    count = 1 + int(np.ceil((length - side) / (side * (1 - OVERLAP))))
    return np.linspace(0, length - side, count)


def _numbers(boxes: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Group boxes (n, 4) that stand side by side at similar height: one number each."""
    groups: list[list[NDArray[np.float32]]] = []
    for box in sorted(boxes, key=lambda corner: float(corner[0])):
        home = next((group for group in groups if _continues(group[-1], box)), None)
        if home is None:
            groups.append([box])
        else:
            home.append(box)
    return [np.stack(group) for group in groups]


def _continues(last: NDArray[np.float32], box: NDArray[np.float32]) -> bool:
    """Return whether `box` may be the next digit of the number that ends with `last`."""
    heights = (last[3] - last[1], box[3] - box[1])
    gap = box[0] - last[2]
    drift = abs((box[1] + box[3]) - (last[1] + last[3])) / 2
    smaller, larger = min(heights), max(heights)
    return bool(gap < larger and drift < larger / 2 and smaller > 0.6 * larger)


def _around(boxes: NDArray[np.float32]) -> Region:
    left, top = boxes[:, :2].min(axis=0).tolist()
    right, bottom = boxes[:, 2:].max(axis=0).tolist()
    half = max(right - left, bottom - top) * MARGIN / 2
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    return Region(middle_x - half, middle_y - half, middle_x + half, middle_y + half)
