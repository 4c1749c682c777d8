"""The largest ε of a certificate, where it can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lipdet.boxes.scores import logit
from lipdet.boxes.select import Selection
from lipdet.certificate.conditions.certify import ALL, certified_up_to
from lipdet.certificate.conditions.ground_truth import ground_truth_of
from lipdet.certificate.radius import (
    LARGEST_RADIUS,
    TOLERANCE,
    certified_radii,
    largest_radius,
    remaining_detections,
)
from tests.certificate.directed import AT_THE_BORDER, HUB, STRAYS, TIED_RIVALS
from tests.certificate.scenes import Scene, detect, random_scene

FLOOR = logit(0.01)


def _radii(scene: Scene, iou: float = 0.5) -> list[float]:
    truths = ground_truth_of(scene.targets)
    found: list[float] = certified_radii(scene.verifier, scene.raw, truths, iou, FLOOR).tolist()
    return found


def _certified_at(scene: Scene, epsilon: float) -> Tensor:
    """What the certificate of the whole batch at one ε says of each object, all switches on."""
    verifier, truths = scene.verifier, ground_truth_of(scene.targets)
    radius = torch.full((len(scene.targets),), epsilon, dtype=torch.float64)
    candidates = verifier.candidates(scene.raw, radius)
    cover = verifier.clique_cover(candidates, radius)
    found = verifier.certifiers(candidates, truths, radius, 0.5, cover)
    floor = logit(verifier.selection.score_floor)
    return certified_up_to(found, len(truths.image), [0.5])[:, 0] >= floor


@pytest.mark.slow
def test_radii_are_where_the_certificate_of_the_batch_ends() -> None:
    # Oracle: the certificate of all images at one ε, whose soundness test_fuzz shows. It must hold
    # at each radius and below it, and not beyond it by more than the tolerance.
    sharper = 0
    for seed in range(9):
        scene = random_scene(seed)
        verifier, truths = scene.verifier, ground_truth_of(scene.targets)
        floor = logit(verifier.selection.score_floor)
        radii = certified_radii(verifier, scene.raw, truths, 0.5, floor)
        for index, radius in enumerate(radii.tolist()):
            if radius > 0:
                assert _certified_at(scene, radius)[index], (seed, index)
                assert _certified_at(scene, radius / 2)[index], (seed, index)
            if radius < LARGEST_RADIUS:
                assert not _certified_at(scene, radius + TOLERANCE)[index], (seed, index)
                assert not _certified_at(scene, 1.3 * radius + 0.1)[index], (seed, index)
        blunt = replace(verifier, tightenings=replace(ALL, counted_cliques=False))
        without = certified_radii(blunt, scene.raw, truths, 0.5, floor)
        assert (without <= radii).all(), seed
        sharper += int((radii > without + TOLERANCE).sum())
    assert sharper >= 1


def test_bisection_ends_just_below_each_limit() -> None:
    limits = torch.tensor([0.0, 0.3, 0.125, 5.0, -1.0, 1000.0], dtype=torch.float64)

    def holds(index: Tensor, epsilon: Tensor) -> Tensor:
        return epsilon <= limits[index]

    found = largest_radius(holds, 6)
    wanted = limits.clamp(0, 64)
    assert (found <= wanted).all()
    assert (found >= wanted - TOLERANCE).all()


def test_a_rival_limits_the_radius() -> None:
    # Log-odds of 2 and 0 that move by ε each meet at ε = 1; the rival does not match.
    [radius] = _radii(TIED_RIVALS.scene)
    assert 1 - TOLERANCE - 1e-5 < radius < 1


def test_the_floor_limits_the_radius() -> None:
    # The true one falls from 1 to the floor. The three others cannot suppress it.
    [radius] = _radii(HUB.scene)
    assert radius == pytest.approx(1 - FLOOR, abs=2 * TOLERANCE)


def test_another_object_limits_the_radius() -> None:
    # The box, 10 wide, moves by 2ε pixels; the second object is 3 pixels away. At a move of x the
    # IoU with the own object is at least (10 − x) / (10 + x), that with the other at most
    # (7 + x) / (13 − x): they meet where x = 1.5.
    radius, _ = _radii(STRAYS.scene)
    assert radius <= 0.75
    assert radius == pytest.approx(0.75, abs=0.02)


def test_what_is_never_certified_has_radius_zero() -> None:
    assert _radii(AT_THE_BORDER.scene) == [0.0, 0.0]


def test_a_detection_needs_no_object() -> None:
    scene = STRAYS.scene
    found = detect(scene, scene.raw)
    [remaining] = remaining_detections(scene.verifier, scene.raw, found, iou=0.5)
    # By hand: the only box moves by 2ε along x; its IoU with where it was falls to 0.5 at 10 / 3.
    assert remaining.radius.item() == pytest.approx(10 / 6, abs=2 * TOLERANCE)
    left, top, right, bottom = remaining.region[0].tolist()
    move = 2 * remaining.radius.item()
    assert (left, right) == (pytest.approx(4 - move, abs=0.01), pytest.approx(14 + move, abs=0.01))
    assert (top, bottom) == (pytest.approx(4, abs=0.01), pytest.approx(14, abs=0.01))


def test_images_without_detections() -> None:
    scene = STRAYS.scene
    verifier = replace(scene.verifier, selection=Selection(0.99, 100))
    strict = replace(scene, verifier=verifier)
    found = detect(strict, strict.raw)
    assert len(found[0]["labels"]) == 0
    [remaining] = remaining_detections(strict.verifier, strict.raw, found, iou=0.5)
    assert remaining.radius.shape == (0,)
    assert remaining.region.shape == (0, 4)
