"""Certificates of numbers at the limits of what a float holds, and each guard on its own."""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lipdet.boxes import BoxCoding
from lipdet.boxes.scores import SigmoidScores, SoftmaxScores
from lipdet.certificate import certified_ap
from lipdet.certificate.conditions.ground_truth import ground_truth_of, ignored_areas_of
from lipdet.certificate.conditions.scores_and_votes import log_odds_interval
from lipdet.certificate.geometry.box_range import box_range, corner_range
from lipdet.errors import InputError
from lipdet.evaluate.certified import IOUS
from tests.certificate.corners import (
    OUTPUTS,
    SIDES,
    broken_at_limits,
    broken_beside_areas,
    broken_in_crowd,
    corner_scene,
    crowded_scene,
    scene_with_areas,
)
from tests.certificate.directed import HUB
from tests.certificate.mutants import IN_UNUSUAL_SCENES, apply
from tests.certificate.promises import certificates

SCENES = int(os.environ.get("LIPDET_FUZZ_SCENES", "50"))


@pytest.mark.slow
def test_what_is_certified_at_the_limits_holds() -> None:
    certified = 0
    for number in range(SCENES):
        assert broken_at_limits(number) == [], number
        certified += bool((certificates(corner_scene(number))[0] > -math.inf).any())
    # Without certificates nothing could be lost.
    assert certified > SCENES / 10


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", [0, 1])
def test_outputs_that_are_no_numbers_are_refused(part: int, value: float) -> None:
    scene = HUB.scene
    raw = [output.clone() for output in scene.raw]
    raw[part][0, 1, 0] = value
    with pytest.raises(InputError, match="finite"):
        certificates(replace(scene, raw=type(scene.raw)(*raw)))


@pytest.mark.parametrize("epsilon", [math.nan, math.inf, -0.1])
def test_a_radius_that_is_none_is_refused(epsilon: float) -> None:
    with pytest.raises(InputError, match="ε"):
        certificates(replace(HUB.scene, epsilon=epsilon))


@pytest.mark.parametrize("scores", [SoftmaxScores(), SigmoidScores(2.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_intervals_of_scores_hold_at_the_limits(
    scores: SoftmaxScores | SigmoidScores, dtype: torch.dtype
) -> None:
    # Oracle: the scores themselves, in float64, of logits drawn within what they can move.
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.choice([-3e38, -1e20, -1, 0, 2, 1e20], (400, 3))).to(dtype)
    moved = torch.from_numpy(
        rng.choice([0, 1e-45, 1, 1e20, 3e38, math.inf, math.nan], (400, 3))
    ).to(dtype)
    low, high = log_odds_interval(scores, logits, moved)
    assert not low.isnan().any()
    assert not high.isnan().any()
    reach = moved.double().nan_to_num(nan=1e300, posinf=1e300)
    slack = 1e-5 * (1 + logits.double().abs() + reach).amax(dim=1, keepdim=True)
    for _ in range(50):
        share = torch.from_numpy(rng.choice([-1, 0, 1, rng.uniform(-1, 1)], (400, 3)))
        seen = scores.log_odds(logits.double() + share * reach).to(dtype).double()
        assert (~(low.double() - slack > seen)).all()
        assert (~(high.double() + slack < seen)).all()


def test_ranges_hold_what_float32_decodes_at_the_limits() -> None:
    rng = np.random.default_rng(0)
    coding, count = BoxCoding(), 3000
    offsets = torch.from_numpy(rng.choice([0, 0.5, -2, *OUTPUTS], (count, 4)))
    radius = torch.from_numpy(
        rng.choice([0, 1e-310, 1, 1e20, 1e300, math.inf, math.nan], (count, 4))
    )
    default = torch.from_numpy(rng.choice([0.5, 16.0, *SIDES], (count, 4)))
    ends = corner_range(box_range(offsets, radius, default, coding))
    low, high = (end.double() for end in ends)
    assert not low.isnan().any()
    assert not high.isnan().any()
    everywhere = (low == -math.inf).all(dim=1) | (high == math.inf).all(dim=1)
    for _ in range(20):
        share = torch.from_numpy(rng.uniform(-1, 1, (count, 4)))
        moved = (offsets + share * radius.nan_to_num(nan=1e38, posinf=1e38)).clamp(-3e38, 3e38)
        decoded = coding.decode(moved.float(), default.float()).double()
        numbers = decoded.isfinite().all(dim=1)
        inside = ((decoded >= low) & (decoded <= high)).all(dim=1)
        assert (inside | ~numbers).all()
        assert (everywhere | numbers | (low.isinf() | high.isinf()).any(dim=1)).all()


@pytest.mark.slow
def test_what_is_certified_of_crowds_holds() -> None:
    for number in range(SCENES // 2):
        assert broken_in_crowd(number) == [], number


@pytest.mark.slow
def test_what_is_certified_beside_areas_that_are_not_judged_holds() -> None:
    ignored = 0
    for number in range(SCENES // 2):
        scene = scene_with_areas(number)
        candidates = scene.verifier.candidates(scene.raw, scene.epsilon)
        truths, areas = (of(scene.targets) for of in (ground_truth_of, ignored_areas_of))
        found = certified_ap.judged_beside(candidates, truths, areas, IOUS)
        ignored += int((~found.candidates).sum())
        assert broken_beside_areas(number) == [], number
    assert ignored > SCENES // 2


@pytest.mark.parametrize("name", IN_UNUSUAL_SCENES)
def test_unusual_scenes_catch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, number, mutant = IN_UNUSUAL_SCENES[name]
    apply(monkeypatch, mutant)
    assert broken(number)


@pytest.mark.slow
def test_no_clique_is_claimed_twice_at_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    claim, shared = certified_ap._claim, 0

    def distinct(
        truth: Tensor, clique: Tensor, high: Tensor, heads: Tensor, sure: Tensor, uncounted: Tensor
    ) -> tuple[Tensor, Tensor]:
        nonlocal shared
        first, last = claim(truth, clique, high, heads, sure, uncounted)
        pairs = {
            (int(of), int(one))
            for of, one, height in zip(
                *(column[sure & heads] for column in (truth, clique, high)), strict=True
            )
            if height == first[of]
        }
        for (one, mine), (other, its) in itertools.combinations(pairs, 2):
            if one != other and mine == its:
                shared += 1
                # Of two objects with one clique at most one claims it at any score.
                assert max(last[one], last[other]) >= min(first[one], first[other])
        return first, last

    monkeypatch.setattr(certified_ap, "_claim", distinct)
    for number in range(50):
        certificates(crowded_scene(number))
    assert shared > 0
