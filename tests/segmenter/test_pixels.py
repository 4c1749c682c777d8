"""Certificates of pixels: brute force on small linear problems is the optimum, and PGD no more."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lipdet.certificate.pixels import (
    Front,
    PixelBounds,
    PixelMargins,
    bounds_of_pixels,
    front,
    least_iou,
    margins_of,
    most,
    reach,
)
from lipdet.errors import UnknownLipschitz
from lipdet.types import IGNORED
from tests.segmenter.test_network import SMALL, trained_alike


def problem(seed: int) -> tuple[PixelMargins, PixelBounds, np.ndarray]:
    """Seven pixels in a row, each with logits of its own: z = picture, and orthogonal classes.

    Its constants are exact: two logits of a pixel differ by √2, and all together by √2 as well. The
    perturbation that flips some pixels at least cost moves just these logits, each pair by m/2.
    """
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 0.3, (3, 1, 7)))
    mask = rng.integers(0, 3, (1, 7)).astype(np.uint8)
    mask[0, rng.integers(7)] = IGNORED
    pairwise = torch.full((3, 3, 1, 1), math.sqrt(2), dtype=torch.float64)
    bounds = PixelBounds(pairwise, joint=1.0, contrasts=math.sqrt(2), rounding=0.0)

    class Alike:
        cell = 1

        def missing(self, height: int, width: int) -> tuple[int, int, int, int]:
            return 0, 0, 0, 0

    return margins_of(logits, Alike(), bounds), bounds, mask  # type: ignore[arg-type]


def every_choice(found: PixelMargins, epsilon: float) -> list[np.ndarray]:
    """All predictions (1, 7) whose pixels pay for what they become within ε, by brute force.

    With more than two classes a pixel may have to pay more than that, to pass a third one.
    """
    choices = []
    for labels in itertools.product(range(3), repeat=7):
        wanted = np.array([labels])
        changed = wanted != found.predicted
        paid = np.take_along_axis(found.margins, wanted[None], axis=0)[0][changed]
        if np.square(paid).sum() / 2 <= epsilon**2:
            choices.append(wanted)
    return choices


@pytest.mark.parametrize("seed", range(12))
def test_the_sorted_budget_is_the_optimum(seed: int) -> None:
    found, bounds, mask = problem(seed)
    epsilon = [0.1, 0.2, 0.4][seed % 3]
    costs, choices = reach(found, bounds, epsilon), every_choice(found, epsilon)
    known = mask != IGNORED
    right = known & (found.predicted == mask)
    kept = int(right.sum()) - most(costs.flip[right], costs.budget)
    assert kept == min(int((right & (one == mask)).sum()) for one in choices)
    flipped = max(int((one != found.predicted).sum()) for one in choices)
    assert most(costs.flip.ravel(), costs.budget) == flipped
    for label in range(3):
        worst = []
        for one in choices:
            is_class, shown = known & (mask == label), known & (one == label)
            union = int((is_class | shown).sum())
            worst += [int((is_class & shown).sum()) / union] if union else []
        expected = min(worst, default=None)
        assert least_iou([front(found, mask, label, costs)]) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(6))
def test_pooled_iou_is_the_lowest_of_all_choices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fronts = []
    for _ in range(3):
        inside, union = sorted(rng.integers(0, 20, 2).tolist())
        steps = np.arange(min(inside, 4) + 1)
        fronts.append(Front(inside, union, steps, np.sort(rng.integers(0, 9, len(steps)))[::-1]))
    ratios = []
    for chosen in itertools.product(*(range(len(one.lost)) for one in fronts)):
        picked = list(zip(fronts, chosen, strict=True))
        union = sum(one.union + one.gained[at] for one, at in picked)
        kept = sum(one.intersection - one.lost[at] for one, at in picked)
        ratios += [kept / union] if union else []
    assert least_iou(fronts) == pytest.approx(min(ratios))


def test_a_class_that_nothing_can_show_has_no_iou() -> None:
    assert least_iou([]) is None
    nothing = Front(0, 0, np.array([0]), np.array([0]))
    assert least_iou([nothing]) is None
    assert least_iou([nothing._replace(gained=np.array([2]))]) == 0


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
        promised = [
            most(costs.flip.ravel(), costs.budget)
            for costs in (
                reach(found, bounds, epsilon, single=single, joint=joint)
                for single, joint in ((True, True), (True, False), (False, True))
            )
        ]
        assert flipped.sum() <= promised[0] <= min(promised[1:])


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
