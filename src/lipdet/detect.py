"""Detections in a picture of any size.

Notable choices:
- A photograph is searched in two passes. The coarse one runs the detector on overlapping squares
  of several sizes; digits found side by side are taken as one number. The fine one runs it once
  more on a square around each number, which is the framing that it was trained on.
- A given crop is taken as it is: one pass.
- A place has one reading: classes compete there, within a square in its own pixels, so that
  certificates can speak of it, and then between squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lipdet.boxes import DISPLAY_SELECTION, Selection, select_detections
from lipdet.certificate.radius import Remaining, remaining_detections
from lipdet.certificate.verifier import Verifier
from lipdet.detector import SSD
from lipdet.errors import InputError
from lipdet.evaluate.certified import outputs
from lipdet.evaluate.run import BATCH_SIZE, Network, detect_batch
from lipdet.images.crop import Region, cut, full_region, out_of_region, picture_part
from lipdet.images.resize import resized
from lipdet.types import Detections

# The coarse pass accepts only what is surely a digit, and the fine pass decides.
COARSE = Selection(score_floor=0.5, top_k=20)
SCALE_STEP = 2**0.5
SMALLEST_SQUARE = 40
OVERLAP = 0.5
MARGIN = 1.2
MOST_COVERED = 0.5
# Coordinates of one box, in pixels of the picture, from batches of two sizes.
SAME_BOX = 0.1
# A larger photograph is searched at this size; its numbers are still larger than a square.
SEARCHED_SIDE = 384


@dataclass(frozen=True)
class Found:
    """What was found in one picture.

    Attributes:
        detections: boxes in pixels of the picture, best first.
        regions: the squares on which the final pass ran.
    """

    detections: Detections
    regions: tuple[Region, ...]


def detect_in_region(detector: Network, image: Image.Image, region: Region) -> Found:
    """Return detections in one rectangle of a picture.

    Raises:
        InputError: the rectangle has no area or lies outside the picture.
    """
    if region.left >= region.right or region.top >= region.bottom:
        raise InputError(f"The crop {_text(region)} has no area; give LEFT,TOP,RIGHT,BOTTOM.")
    if not (region.left >= 0 and region.right <= image.width) or not (
        region.top >= 0 and region.bottom <= image.height
    ):
        raise InputError(
            f"The crop {_text(region)} reaches outside the picture of {image.width}×{image.height} "
            "pixels."
        )
    [found] = _detect_in_regions(detector, image, [region], DISPLAY_SELECTION)
    return Found(found, (region,))


def detect_in_photograph(detector: Network, image: Image.Image) -> Found:
    """Return detections in a whole photograph, wherever the numbers are."""
    shrink = max(1.0, max(image.size) / SEARCHED_SIDE)
    size = (max(1, round(image.width / shrink)), max(1, round(image.height / shrink)))
    small = resized(image, size, Image.Resampling.BICUBIC)
    squares = search_squares(small.width, small.height)
    coarse = _merge(_detect_in_regions(detector, small, squares, COARSE))
    boxes = (coarse["boxes"] * shrink).numpy()
    regions = tuple(_around(group) for group in _numbers(boxes))
    fine = _detect_in_regions(detector, image, regions, DISPLAY_SELECTION)
    return Found(_merge(fine), regions)


def one_per_place(found: Detections) -> Detections:
    """Of the boxes of one square that cover each other only the best; best first.

    Overlap is relative to the smaller box: a part of a digit may be read as another.
    """
    return _merge([found], apart=False)


class CertifiedRegion(NamedTuple):
    """What was found in one square of a picture, and how much perturbation of it that survives.

    Attributes:
        region: the square.
        pixels: (S, S, 3) uint8, what the network sees of it; radii are about these values.
        detections: boxes in pixels of the network's input; with one reading, what the picture has
            of them.
        remaining: for each detection the radius, and the region that its box stays in.
    """

    region: Region
    pixels: NDArray[np.uint8]
    detections: Detections
    remaining: Remaining


def certify_regions(
    detector: SSD,
    verifier: Verifier,
    image: Image.Image,
    regions: Sequence[Region],
    iou: float,
    one_reading: bool = False,
) -> list[CertifiedRegion]:
    """Detections in squares of a picture with the largest L2 perturbation that each survives.

    With one reading, a box is shown as far as the picture reaches, and that is what must remain.
    *Proof.* Let P be the part of the square that shows the picture, and g what is shown of the box.
    For any box B that NMS puts out, P has all that B and g have in common, and B ∩ P is no larger
    than B: IoU(B ∩ P, g) ≥ IoU(B, g), and the right side is what is certified. A box of which
    nothing is shown has no area to remain on, and radius 0.

    Args:
        detector: in eval mode.
        verifier: of it.
        image: RGB.
        regions: squares of it.
        iou: how much of a box must remain.
        one_reading: whether classes compete for a place, as in what `lipdet detect` shows; then the
            reading must remain the best one there.
    """
    if not regions:
        return []
    cuts = np.stack([cut(image, region, detector.config.image_size) for region in regions])
    raw = outputs(detector, torch.from_numpy(cuts).permute(0, 3, 1, 2).float() / 255)
    found = select_detections(raw, verifier.decoder, verifier.selection)
    if one_reading:
        found = [
            _on_picture(one_per_place(one), region, image, detector.config.image_size)
            for one, region in zip(found, regions, strict=True)
        ]
    competing = MOST_COVERED if one_reading else None
    kept = remaining_detections(verifier, raw, found, iou, most_covered=competing)
    return [CertifiedRegion(*row) for row in zip(regions, cuts, found, kept, strict=True)]


def radii_in_photograph(
    found: Found, certified: Sequence[CertifiedRegion], image: Image.Image, size: int
) -> list[float]:
    """How much perturbation of its square each detection of a picture survives as it is shown.

    The squares stay where they are, and what was found in other ones as it was. Where that comes
    near, nothing is promised.

    Args:
        found: what is shown.
        certified: its regions, with `one_reading`.
        image: the picture.
        size: of the network's input.
    """
    parts = [_in_photograph(one.detections, one.region, image, size) for one in certified]
    result = []
    for box, label in zip(found.detections["boxes"], found.detections["labels"], strict=True):
        radius = 0.0
        for place, (one, part) in enumerate(zip(certified, parts, strict=True)):
            same = (part["boxes"] - box).abs().amax(dim=1) <= SAME_BOX
            [rows] = torch.nonzero(same & (part["labels"] == label), as_tuple=True)
            if len(rows):
                reach = out_of_region(one.remaining.region[rows[:1]].numpy(), one.region, size)
                others = [other["boxes"] for other in [*parts[:place], *parts[place + 1 :]]]
                if _apart(torch.from_numpy(reach), torch.cat([*others, torch.zeros(0, 4)])):
                    radius = float(one.remaining.radius[rows[0]])
        result.append(radius)
    return result


def _apart(box: torch.Tensor, boxes: torch.Tensor) -> bool:
    """Return whether a box (1, 4) surely has no point in common with any of boxes (N, 4)."""
    return bool(((boxes[:, :2] > box[:, 2:]) | (boxes[:, 2:] < box[:, :2])).any(dim=1).all())


def _on_picture(found: Detections, region: Region, image: Image.Image, size: int) -> Detections:
    """Return boxes in pixels of the network's input, without what lies beyond the picture."""
    left, top, right, bottom = picture_part(region, image.width, image.height, size).tolist()
    low, high = torch.tensor([left, top] * 2), torch.tensor([right, bottom] * 2)
    boxes = torch.minimum(torch.maximum(found["boxes"], low), high)
    return Detections(boxes=boxes, labels=found["labels"], scores=found["scores"])


def search_squares(width: int, height: int) -> list[Region]:
    """Overlapping squares of falling size that cover a picture, the whole picture first."""
    squares = [full_region(width, height)]
    side = float(min(width, height))
    while side >= SMALLEST_SQUARE:
        squares += [
            Region(left, top, left + side, top + side)
            for top in _places(height, side)
            for left in _places(width, side)
        ]
        side /= SCALE_STEP
    return squares


def _places(length: int, side: float) -> NDArray[np.float64]:
    count = 1 + int(np.ceil((length - side) / (side * (1 - OVERLAP))))
    return np.linspace(0, length - side, count)


def _detect_in_regions(
    detector: Network,
    image: Image.Image,
    regions: list[Region] | tuple[Region, ...],
    choice: Selection,
) -> list[Detections]:
    size = detector.decoder.image_size
    found: list[Detections] = []
    for start in range(0, len(regions), BATCH_SIZE):
        batch = regions[start : start + BATCH_SIZE]
        pixels = torch.from_numpy(np.stack([cut(image, region, size) for region in batch]))
        found += [
            _in_photograph(one_per_place(one), region, image, size)
            for one, region in zip(detect_batch(detector, pixels, choice), batch, strict=True)
        ]
    return found


def _in_photograph(found: Detections, region: Region, image: Image.Image, size: int) -> Detections:
    boxes = out_of_region(found["boxes"].numpy(), region, size)
    limits = np.array([image.width, image.height] * 2, np.float32)
    return Detections(
        boxes=torch.from_numpy(boxes.clip(0, limits)),
        labels=found["labels"],
        scores=found["scores"],
    )


def _merge(parts: list[Detections], apart: bool = True) -> Detections:
    """Return all detections, of those that cover each other only the best; best first.

    Args:
        parts: of each square.
        apart: whether only boxes of different squares compete.
    """
    if not parts:
        return Detections(
            boxes=torch.zeros(0, 4),
            labels=torch.zeros(0, dtype=torch.int64),
            scores=torch.zeros(0, dtype=torch.float64),
        )
    boxes = torch.cat([part["boxes"] for part in parts])
    labels = torch.cat([part["labels"] for part in parts])
    scores = torch.cat([part["scores"] for part in parts])
    kept: list[int] = []
    covered = _covered_share(boxes)
    if apart:
        square = torch.repeat_interleave(torch.tensor([len(part["labels"]) for part in parts]))
        covered[square[:, None] == square] = 0
    for index in scores.argsort(descending=True, stable=True).tolist():
        if not kept or covered[index, kept].max() <= MOST_COVERED:
            kept.append(index)
    return Detections(boxes=boxes[kept], labels=labels[kept], scores=scores[kept])


def _covered_share(boxes: torch.Tensor) -> torch.Tensor:
    """Intersection of each pair of boxes (N, N) as a share of the smaller one."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    corner = torch.maximum(boxes[:, None, :2], boxes[:, :2])
    opposite = torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
    shared = (opposite - corner).clamp(min=0).prod(dim=2)
    return shared / torch.minimum(areas[:, None], areas).clamp(min=1e-9)


def _numbers(boxes: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Groups of boxes (n, 4) that stand side by side at similar height: one number each."""
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


def _text(region: Region) -> str:
    return ",".join(f"{value:g}" for value in region)
