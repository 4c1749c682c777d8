"""Default boxes of a data set: as few shapes as cover its objects, on the coarsest map that fits.

Notable choices:
- Classes count equally, however many objects each has: else the rare ones go without.
- Shapes are clustered by IoU, as in YOLOv2 (Redmon & Farhadi 2017, §2), by medians.
- A finer map costs time in training and in use, and is taken where the coarser one covers too
  little.
- What a set of default boxes covers is measured where objects are: a centre may lie half a cell off
  the next default box in both directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lipdet.detector.matching import POSITIVE_IOU

STRIDES = (16, 8, 4)
# The shorter side of all but a tenth of the objects is at least so many cells long.
SHORTEST_CELLS = 1.25
# Default boxes are added until they cover this share of the objects, or there are so many; then
# as few are kept as cover nearly what most of them do.
ENOUGH_COVERED, MOST_SHAPES, NEARLY = 0.99, 12, 0.98
# Below it a finer map is tried, and a training says so.
LEAST_COVERED = 0.9
# Objects that are looked at, and attempts at each number of shapes.
MOST_OBJECTS, STARTS, ROUNDS = 5_000, 4, 30

Floats = NDArray[np.float64]


class Fit(NamedTuple):
    """Default boxes for some objects.

    Attributes:
        stride: pixels between cells.
        sides: (width, height) in pixels of each default box of a cell, by area.
        covered: share of each class's objects that a default box overlaps by POSITIVE_IOU or more;
            NaN for a class without objects.
    """

    stride: int
    sides: tuple[tuple[float, float], ...]
    covered: tuple[float, ...]

    @property
    def share(self) -> float:
        """Return the share of objects that is covered, with classes counting equally."""
        return float(np.nanmean(self.covered))


def fit_default_boxes(
    boxes: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    classes: int,
    seed: int,
    stride: int = 0,
) -> Fit:
    """Fit default boxes to objects.

    Args:
        boxes: (N, 4) xyxy pixels of the network's input, N ≥ 1.
        labels: (N,) of their classes.
        classes: how many there are.
        seed: of the objects that are looked at, where there are many, and of the clustering.
        stride: of the map; 0 for the coarsest one that fits.
    """
    rng = np.random.default_rng([seed, 4])
    if len(boxes) > MOST_OBJECTS:
        chosen = rng.choice(len(boxes), MOST_OBJECTS, replace=False)
        boxes, labels = boxes[chosen], labels[chosen]
    exact = boxes.astype(np.float64)
    sizes = exact[:, 2:] - exact[:, :2]
    weights = 1 / np.bincount(labels, minlength=classes)[labels]
    coarsest = STRIDES.index(fitting_stride(sizes, weights))
    strides = (stride,) if stride else STRIDES[coarsest:]
    fits = (_fit_to_map(exact, labels, classes, stride, weights, rng) for stride in strides)
    for fit in fits:
        if fit.share >= LEAST_COVERED:
            break
    return fit


def _fit_to_map(
    boxes: Floats,
    labels: NDArray[np.int64],
    classes: int,
    stride: int,
    weights: Floats,
    rng: np.random.Generator,
) -> Fit:
    """Fit as few default boxes as cover enough on a map of one stride."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    fits: list[Fit] = []
    while len(fits) < MOST_SHAPES and (not fits or fits[-1].share < ENOUGH_COVERED):
        sides = cluster(sizes, weights, len(fits) + 1, rng)
        fits.append(Fit(stride, sides, coverage(boxes, labels, classes, sides, stride)))
    most = max(fit.share for fit in fits)
    return next(fit for fit in fits if fit.share >= NEARLY * most)


def fitting_stride(sizes: Floats, weights: Floats) -> int:
    """Return the largest of STRIDES for which objects (N, 2) are not too small, or the smallest."""
    shorter = sizes.min(axis=1)
    order = np.argsort(shorter)
    shares = np.cumsum(weights[order]) / weights.sum()
    tenth = shorter[order][np.searchsorted(shares, 0.1)]
    return next((one for one in STRIDES if tenth >= SHORTEST_CELLS * one), STRIDES[-1])


def cluster(
    sizes: Floats, weights: Floats, count: int, rng: np.random.Generator
) -> tuple[tuple[float, float], ...]:
    """Return `count` shapes (width, height) that overlap objects' shapes (N, 2) most, by area."""
    tries = [_clustered(sizes, weights, count, rng) for _ in range(STARTS)]
    best = max(tries, key=lambda shapes: float(weights @ _shape_iou(sizes, shapes).max(axis=1)))
    by_area = best[np.argsort(best.prod(axis=1))].round(2).tolist()
    return tuple((width, height) for width, height in by_area)


def _clustered(sizes: Floats, weights: Floats, count: int, rng: np.random.Generator) -> Floats:
    chances = weights / weights.sum()
    shapes = sizes[rng.choice(len(sizes), 1, p=chances)]
    while len(shapes) < count:
        far = weights * (1 - _shape_iou(sizes, shapes).max(axis=1)) ** 2
        chances = far / far.sum() if far.sum() > 0 else weights / weights.sum()
        shapes = np.concatenate([shapes, sizes[rng.choice(len(sizes), 1, p=chances)]])
    for _ in range(ROUNDS):
        nearest = _shape_iou(sizes, shapes).argmax(axis=1)
        moved = np.stack(
            [
                _medians(sizes[nearest == index], weights[nearest == index])
                if (nearest == index).any()
                else shapes[index]
                for index in range(count)
            ]
        )
        if np.array_equal(moved, shapes):
            break
        shapes = moved
    return shapes


def _medians(sizes: Floats, weights: Floats) -> Floats:
    order = np.argsort(sizes, axis=0)
    shares = np.cumsum(weights[order], axis=0) / weights.sum()
    rows = [np.searchsorted(shares[:, axis], 0.5) for axis in range(2)]
    return np.array([sizes[order[row, axis], axis] for axis, row in enumerate(rows)])


def _shape_iou(sizes: Floats, shapes: Floats) -> Floats:
    """Return the IoU (N, K) of boxes with one centre."""
    shared = np.minimum(sizes[:, None], shapes).prod(axis=2)
    return np.asarray(shared / (sizes.prod(axis=1)[:, None] + shapes.prod(axis=1) - shared))


def coverage(
    boxes: Floats,
    labels: NDArray[np.int64],
    classes: int,
    sides: tuple[tuple[float, float], ...],
    stride: int,
) -> tuple[float, ...]:
    """Return the share of each class's objects that a default box covers; see `Fit.covered`.

    Cells are taken to begin at the image's corner; padding moves all of them by the same amount.
    """
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    off = (centres / stride) % 1 * stride - stride / 2
    sizes = boxes[:, 2:] - boxes[:, :2]
    shapes = np.array(sides)
    reach = (sizes[:, None] + shapes) / 2 - np.abs(off[:, None])
    shared = np.minimum(np.minimum(sizes[:, None], shapes), reach).clip(0).prod(axis=2)
    iou = shared / (sizes.prod(axis=1)[:, None] + shapes.prod(axis=1) - shared)
    found = iou.max(axis=1) >= POSITIVE_IOU
    return tuple(
        float(found[labels == label].mean()) if (labels == label).any() else np.nan
        for label in range(classes)
    )


def described(fit: Fit) -> str:
    """Say in one sentence what was fitted and what it covers."""
    shapes = ", ".join(f"{width:.0f}×{height:.0f}" for width, height in fit.sides)
    return (
        f"Default boxes: {shapes} pixels wide and high, every {fit.stride} pixels; they cover "
        f"{100 * fit.share:.1f} % of the objects at an IoU of {POSITIVE_IOU}, with classes "
        "counting equally."
    )


def warning_of(fit: Fit, class_names: Sequence[str]) -> str:
    """Say which class is covered least, where too little is covered."""
    worst = int(np.nanargmin(fit.covered))
    return (
        f"Warning: of {class_names[worst]} they cover {100 * fit.covered[worst]:.0f} %; what they "
        "do not cover can hardly be found. A larger --image_size makes small objects larger; "
        "without --start_from a finer map may be chosen."
    )
