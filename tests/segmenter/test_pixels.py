"""Certificates of pixels: brute force on small linear problems is the optimum, and PGD no more."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lipdet.certificate.flips import (
    NOTHING,
    RATIOS,
    least_iou,
    most_by_budget,
    most_flipped,
    most_lost,
    of_budget,
    overlap,
    reach,
)
from lipdet.certificate.pixels import PixelBounds, PixelMargins, bounds_of_pixels, margins_of
from lipdet.errors import InputError, UnknownLipschitz
from lipdet.segmenter import build_segmenter
from lipdet.segmenter.calibration import add_offsets
from lipdet.types import IGNORED
from tests.segmenter.test_network import SMALL, trained_alike

CLASSES, PIXELS = 3, 3


class OnePictureRow:
    """Stands in for a segmenter whose pictures are one row of pixels, some of them to a cell."""

    def __init__(self, cell: int) -> None:
        self.cell = cell

    def missing(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Say that only rows are missing."""
        return 0, 0, self.cell - 1, 0


def constants(filters: Tensor) -> PixelBounds:
    """Those of filters (K, cell, features) on the features of a cell, which are the picture."""
    apart = (filters[:, None] - filters[None]).norm(dim=3)
    centred = filters - filters.mean(dim=0)
    contrasts = math.sqrt(2) * float(torch.linalg.matrix_norm(centred.flatten(0, 1), 2))
    joint = float(torch.linalg.matrix_norm(filters.flatten(0, 1), 2))
    pairwise = apart[:, :, None].expand(-1, -1, filters.shape[1], -1)
    return PixelBounds(pairwise, joint, contrasts, rounding=0.0)


def in_row(logits: Tensor, bounds: PixelBounds) -> PixelMargins:
    """The margins of a row of pixels, from logits (K, W)."""
    segmenter = OnePictureRow(bounds.pairwise.shape[-1])
    return margins_of(logits[:, None], segmenter, bounds)  # type: ignore[arg-type]


def least_norm(rows: Tensor, margins: Tensor) -> float:
    """The least ‖Δ‖² with rows·Δ ≥ margins: that of the equations that hold, whichever they are."""
    found = math.inf if len(rows) else 0.0
    for count in range(1, len(rows) + 1):
        for held in map(list, itertools.combinations(range(len(rows)), count)):
            moved = torch.linalg.pinv(rows[held]) @ margins[held]
            if bool((rows @ moved >= margins - 1e-9).all()):
                found = min(found, float(moved.square().sum()))
    return found


def every_choice(found: PixelMargins, filters: Tensor, epsilon: float) -> list[np.ndarray]:
    """All predictions (1, W) that a perturbation of ‖Δ‖ ≤ ε can reach, and more.

    Not asked is that the classes that pixels become are ahead of all third ones.
    """
    predicted, margins = found.predicted[0], torch.from_numpy(found.margins[:, 0])
    costs: list[dict[tuple[int, ...], float]] = []
    for start in range(0, len(predicted), PIXELS):
        costs.append({})
        for labels in itertools.product(range(CLASSES), repeat=PIXELS):
            flips = [p for p in range(PIXELS) if labels[p] != predicted[start + p]]
            rows = [filters[labels[p], p] - filters[predicted[start + p], p] for p in flips]
            needed = [margins[labels[p], start + p] for p in flips]
            empty = torch.zeros(0, filters.shape[2], dtype=torch.float64)
            wanted = torch.tensor(needed, dtype=torch.float64)
            costs[-1][labels] = least_norm(torch.stack(rows) if rows else empty, wanted)
    return [
        np.array([sum(labels, ())])
        for labels in itertools.product(*costs)
        if sum(of[one] for of, one in zip(costs, labels, strict=True)) <= epsilon**2
    ]


@pytest.mark.parametrize("seed", range(8))
def test_nothing_worse_is_reached_by_any_choice_of_cells(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Filters of one class resemble each other, as those of neighbours do.
    alike = torch.randn(CLASSES, 1, 4, generator=generator, dtype=torch.float64)
    filters = alike + torch.randn(CLASSES, PIXELS, 4, generator=generator, dtype=torch.float64)
    filters /= filters.norm(dim=2, keepdim=True)
    features = 0.3 * torch.randn(2, 4, generator=generator, dtype=torch.float64)
    logits = torch.einsum("kpf,cf->kcp", filters, features).flatten(1)
    bounds = constants(filters)
    found = in_row(logits, bounds)
    mask = torch.randint(CLASSES, (1, 2 * PIXELS), generator=generator).numpy().astype(np.uint8)
    mask[0, seed % mask.size] = IGNORED
    known, tight = mask != IGNORED, 0
    for epsilon in (0.05, 0.1, 0.2, 0.4):
        choices, within = every_choice(found, filters, epsilon), reach(found, bounds, epsilon)
        right = known & (found.predicted == mask)
        lost = max(int((right & (one != mask)).sum()) for one in choices)
        assert lost <= most_lost(within, right) <= right.sum()
        tight += lost == most_lost(within, right)
        flipped = max(int((one != found.predicted).sum()) for one in choices)
        assert flipped <= most_flipped(found, bounds, epsilon)
        for label in range(CLASSES):
            worst = []
            for one in choices:
                is_class, shown = known & (mask == label), known & (one == label)
                union = int((is_class | shown).sum())
                worst += [int((is_class & shown).sum()) / union] if union else []
            least = least_iou(overlap(found, mask, label, within))
            if worst:
                assert least is not None
                assert least <= min(worst) + 1e-9
    assert tight


def row_of_alone(seed: int, pixels: int) -> tuple[PixelMargins, PixelBounds, np.ndarray]:
    """Pixels in a row, each a cell of its own with two logits that are its features."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 0.3, (2, pixels)))
    mask = rng.integers(0, 2, (1, pixels)).astype(np.uint8)
    bounds = constants(torch.eye(2, dtype=torch.float64)[:, None])
    return in_row(logits, bounds), bounds, mask


@pytest.mark.parametrize("seed", range(6))
def test_bounds_are_nearly_the_optimum_where_each_pixel_is_a_cell(seed: int) -> None:
    found, bounds, mask = row_of_alone(seed, 400)
    epsilon = [0.3, 0.8, 2.0][seed % 3]
    # It costs half of the squared margin to flip a pixel, and all costs add up.
    costs = np.square(found.margins).min(axis=0) / 2
    within, right = reach(found, bounds, epsilon), found.predicted == mask
    cheapest = np.cumsum(np.sort(costs[right])) <= epsilon**2
    assert most_lost(within, right) == cheapest.sum() > 3
    lose = np.cumsum([0.0, *np.sort(costs[right & (mask == 1)])])
    gain = np.cumsum(np.sort(costs[right & (mask == 0)]))
    ratios = [
        ((right & (mask == 1)).sum() - lost)
        / (
            ((mask == 1) | (found.predicted == 1)).sum()
            + np.searchsorted(gain, epsilon**2 - spent, side="right")
        )
        for lost, spent in enumerate(lose)
        if spent <= epsilon**2
    ]
    here = overlap(found, mask, 1, within)
    least = least_iou(here)
    assert least is not None
    # A part of a pixel, and lines between ratios.
    assert min(ratios) - 2.5 / here.union < least <= min(ratios)


def test_iou_is_pooled_over_pictures_of_which_each_has_its_own_perturbation() -> None:
    parts = []
    for seed in range(3):
        found, bounds, mask = row_of_alone(seed, 40)
        parts.append(overlap(found, mask, 1, reach(found, bounds, 0.3)))
    one, other, third = parts
    whole = one.beside(other).beside(third)
    assert whole.intersection == sum(part.intersection for part in parts)
    assert np.allclose(whole.harm, sum(part.harm for part in parts))
    least = [least_iou(part) or 0.0 for part in parts]
    assert min(least) <= (least_iou(whole) or 0.0) <= max(least)
    # At the ratio that is stated, what is left is worth what the union costs.
    ratio = least_iou(whole) or 0.0
    harm = np.interp(ratio, RATIOS, whole.harm)
    assert whole.intersection - ratio * whole.union == pytest.approx(harm)


def test_a_class_that_nothing_can_show_has_no_iou() -> None:
    assert least_iou(NOTHING) is None
    assert least_iou(NOTHING._replace(harm=RATIOS)) == 0
    assert least_iou(NOTHING._replace(union=3)) == 0
    assert least_iou(NOTHING._replace(intersection=3, union=3)) == 1


@pytest.mark.parametrize("seed", range(4))
def test_pictures_near_by_break_no_promise(seed: int) -> None:
    segmenter = trained_alike(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    picture = torch.rand(3, *SMALL.canvas, generator=generator)
    bounds = bounds_of_pixels(segmenter, picture[None])
    with torch.no_grad():
        found = margins_of(segmenter(picture[None])[0], segmenter, bounds)
    for epsilon in (0.1, 0.4, 1.6):
        changed = picture.clone().requires_grad_(True)
        for _ in range(15):
            logits = segmenter(changed[None])[0]
            own = logits.gather(0, torch.from_numpy(found.predicted)[None])
            ahead = own[0] - logits.scatter(0, torch.from_numpy(found.predicted)[None], -9e9).amax(
                0
            )
            (gradient,) = torch.autograd.grad(torch.sigmoid(-8 * ahead).sum(), changed)
            step = changed.detach() + epsilon / 3 * gradient / gradient.norm() - picture
            step *= min(1.0, epsilon * (1 - 1e-6) / float(step.norm()))
            changed = (picture + step).requires_grad_(True)
        with torch.no_grad():
            after = segmenter(changed[None])[0].argmax(dim=0).numpy()
        flipped = after != found.predicted
        assert flipped.any() or epsilon < 1
        distance = float((changed.detach() - picture).norm())
        assert (found.radius[flipped] <= distance + 1e-6).all()
        together = of_budget(found.margins.min(axis=0), bounds, epsilon)
        alone = (found.radius <= epsilon).sum(), most_by_budget(together.ravel())
        assert flipped.sum() <= most_flipped(found, bounds, epsilon) <= min(alone)


def test_classes_with_the_same_filters_change_places_by_rounding() -> None:
    segmenter = build_segmenter(replace(SMALL, class_names=("a", "b"))).eval()
    add_offsets(segmenter, torch.tensor([0.0, 1e-9]))
    picture = torch.rand(1, 3, *SMALL.canvas, generator=torch.Generator().manual_seed(0))
    bounds = bounds_of_pixels(segmenter, picture)
    with torch.no_grad():
        found = margins_of(segmenter(picture)[0], segmenter, bounds)
    assert bounds.contrasts == 0
    assert (found.radius == 0).all()
    assert most_flipped(found, bounds, 0.1) == found.radius.size
    assert most_by_budget(of_budget(found.margins.min(axis=0), bounds, 0.1)) == found.radius.size


@pytest.mark.parametrize("epsilon", [math.nan, math.inf, -1.0])
def test_a_radius_that_is_no_number_is_refused(epsilon: float) -> None:
    found, bounds, _ = row_of_alone(0, 4)
    with pytest.raises(InputError, match="finite number"):
        most_flipped(found, bounds, epsilon)
    assert most_flipped(found, bounds, 0.0) == 0


def test_rounding_is_taken_from_every_margin() -> None:
    segmenter = trained_alike()
    picture = torch.rand(1, 3, *SMALL.canvas, generator=torch.Generator().manual_seed(0))
    bounds = bounds_of_pixels(segmenter, picture)
    assert 0 < bounds.rounding < 1e-3
    with torch.no_grad():
        logits = segmenter(picture)[0]
    exact = margins_of(logits, segmenter, replace(bounds, rounding=0.0)).margins
    off = margins_of(logits, segmenter, replace(bounds, rounding=0.01)).margins
    there = np.isfinite(exact)
    assert np.allclose(off[there], np.maximum(exact[there] - 0.04, 0))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_promise_nothing(value: float) -> None:
    segmenter = trained_alike()
    picture = torch.rand(1, 3, *SMALL.canvas)
    bounds = bounds_of_pixels(segmenter, picture)
    with torch.no_grad():
        logits = segmenter(picture)[0]
    logits[0, 0, 0] = value
    with pytest.raises(UnknownLipschitz, match="not all finite"):
        margins_of(logits, segmenter, bounds)
