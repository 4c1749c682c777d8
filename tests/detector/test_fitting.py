"""Default boxes that fit the objects: few shapes, the right ones, and an honest coverage."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from lipdet.detector.fitting import (
    LEAST_COVERED,
    cluster,
    coverage,
    described,
    fit_default_boxes,
    fitting_stride,
    warning_of,
)

Shapes = list[tuple[float, float]]


def objects(shapes: Shapes, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Boxes anywhere in 400 pixels, a class for each shape."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(shapes)
    corners = rng.uniform(0, 300, (count, 2))
    return np.concatenate([corners, corners + np.array(shapes)[labels]], axis=1), labels


def test_distinct_shapes_are_found_again() -> None:
    shapes = [(30.0, 20.0), (25.0, 80.0), (90.0, 90.0)]
    boxes, labels = objects(shapes, 300)
    fit = fit_default_boxes(boxes, labels, 3, seed=0)
    assert fit.sides == tuple(shapes)
    # Of 30×20 a map of 16 covers too little.
    assert fit.stride == 8
    assert fit.covered == (1.0, 1.0, 1.0)
    assert fit == fit_default_boxes(boxes, labels, 3, seed=0)


def test_no_more_boxes_than_nearly_all_that_can_be_covered_takes() -> None:
    # Some objects are too small for any default box of the map.
    shapes = [(60.0, 60.0), (120.0, 60.0), (3.0, 3.0)]
    boxes, labels = objects(shapes, 600)
    # By hand: at most one object of the third class in fifty has a centre where a box of its size
    # overlaps it, and every further box can only be for these.
    fit = fit_default_boxes(boxes, labels, 3, seed=0, stride=16)
    assert fit.stride == 16
    assert {(60.0, 60.0), (120.0, 60.0)} <= set(fit.sides)
    assert len(fit.sides) <= 3


def test_rare_classes_count_as_much_as_common_ones() -> None:
    common, _ = objects([(60.0, 60.0)], 1000)
    rare, _ = objects([(20.0, 60.0)], 5)
    labels = np.repeat([0, 1], [1000, 5])
    fit = fit_default_boxes(np.concatenate([common, rare]), labels, 2, seed=0)
    assert (20.0, 60.0) in fit.sides
    assert fit.share == 1


def test_clusters_are_those_of_the_best_choice() -> None:
    # Oracle: every pair of the objects' own shapes, by mean IoU.
    rng = np.random.default_rng(1)
    sizes = np.concatenate([rng.normal(c, 2, (6, 2)) for c in ((20, 40), (60, 30))])
    weights = np.ones(12)

    def value(shapes: np.ndarray) -> float:  # type: ignore[type-arg]
        shared = np.minimum(sizes[:, None], shapes).prod(2)
        iou = shared / (sizes.prod(1)[:, None] + shapes.prod(1) - shared)
        return float(iou.max(1).mean())

    found = np.array(cluster(sizes, weights, 2, rng))
    best = max(value(sizes[list(pair)]) for pair in itertools.combinations(range(12), 2))
    assert value(found) > best - 0.02


def test_coverage_is_that_of_the_grid() -> None:
    # Oracle: torchvision's IoU with every default box of a grid.
    boxes, labels = objects([(14.0, 30.0), (22.0, 9.0)], 200, seed=2)
    sides = ((12.0, 28.0), (20.0, 14.0))
    centres = np.arange(-96, 500, 8) + 4.0
    x, y = np.meshgrid(centres, centres)
    grid = np.concatenate(
        [
            np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1).reshape(-1, 4)
            for w, h in sides
        ]
    )
    best = box_iou(torch.from_numpy(boxes), torch.from_numpy(grid)).amax(dim=1).numpy()
    expected = [float((best[labels == label] >= 0.5).mean()) for label in range(2)]
    assert 0 < expected[1] < 1
    assert coverage(boxes, labels, 3, sides, 8)[:2] == pytest.approx(expected)
    assert np.isnan(coverage(boxes, labels, 3, sides, 8)[2])


@pytest.mark.parametrize(("side", "stride"), [(40, 16), (20, 16), (12, 8), (6, 4), (3, 4)])
def test_small_objects_need_fine_maps(side: float, stride: int) -> None:
    assert fitting_stride(np.full((10, 2), side), np.ones(10)) == stride


def test_what_is_not_covered_is_said() -> None:
    rng = np.random.default_rng(3)
    many = np.exp(rng.uniform(0, 5, (400, 2)))
    boxes = np.concatenate([np.zeros((400, 2)), many], axis=1)
    fit = fit_default_boxes(boxes, np.zeros(400, np.int64), 1, seed=0)
    assert fit.share < LEAST_COVERED
    assert f"{100 * fit.share:.1f} %" in described(fit)
    assert warning_of(fit, ("speck",)).startswith(
        f"Warning: of speck they cover {100 * fit.share:.0f}"
    )
