"""Scenes of numbers at the limits of what a float holds, and adversaries for them.

Constants are zero, denormal, huge, infinite or no numbers; outputs are huge; default boxes are tiny
or huge; scores are equal. A constant that is no number promises nothing, so there an output may be
anything.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lipdet.boxes.coding import corners
from lipdet.types import Objects, RawOutput, Target
from tests.certificate.adversaries import perturbed
from tests.certificate.directed import _scene
from tests.certificate.promises import broken_promises, certificates, violations
from tests.certificate.scenes import CANVAS, PairwiseTable, Scene, clipped, random_scene

CONSTANTS = (0.0, 1e-310, 1e-170, 1e-45, 1e20, 1e38, 5e40, 1e300, np.inf, np.nan)
OUTPUTS = (1e-45, 1e10, 1e30, 3e38)
SIDES = (1e-38, 1e-20, 1e-6, 1e5, 1e30, 3e38)
RADII = (0.0, 1e-30, 0.5, 1.0, 1.0, 1.0, 1e6)
PERTURBED = 60
# The largest change that an adversary makes of an output.
_FURTHEST = 1e38


def corner_scene(seed: int) -> Scene:
    """A random scene with some of its numbers at a limit."""
    scene, rng = random_scene(seed), np.random.default_rng((seed, 9))
    if scene.rows is not None:
        return _known_less(scene, rng)
    some = torch.from_numpy(rng.random(len(scene.verifier.bounds.logits)) < 0.3)
    bounds, decoder, raw = scene.verifier.bounds, scene.verifier.decoder, scene.raw
    logits, offsets = bounds.logits.clone(), bounds.offsets.clone()
    logits[some], offsets[some] = float(rng.choice(CONSTANTS)), float(rng.choice(CONSTANTS))
    if rng.random() < 0.3:
        sides = decoder.default_boxes.clone()
        sides[some, 2 + int(rng.integers(2)) :] = float(rng.choice(SIDES))
        decoder = decoder._replace(default_boxes=sides)
    if rng.random() < 0.3:
        raw = RawOutput(raw.logits.clone(), raw.offsets.clone())
        part = raw.logits if rng.random() < 0.5 else raw.offsets
        part[:, some, int(rng.integers(part.shape[2])) :] = float(
            rng.choice([-1.0, 1.0]) * rng.choice(OUTPUTS)
        )
    if rng.random() < 0.2:
        raw = RawOutput(torch.full_like(raw.logits, 0.25), raw.offsets)
    changed = replace(bounds, logits=logits, offsets=offsets, offsets_joint=offsets.norm(dim=1))
    verifier = replace(scene.verifier, bounds=changed, decoder=decoder)
    return replace(scene, raw=raw, verifier=verifier, epsilon=float(rng.choice(RADII)))


def _known_less(scene: Scene, rng: np.random.Generator) -> Scene:
    """The outputs move as they did, and constants of some are too large or no numbers."""
    verifier = scene.verifier
    bounds, worse = verifier.bounds, (1e20, 1e300, np.inf, np.nan)

    def spoilt(values: Tensor, share: float = 0.3) -> Tensor:
        return torch.where(
            torch.from_numpy(rng.random(values.shape) < share), rng.choice(worse), values
        )

    assert isinstance(verifier.pairwise, PairwiseTable)
    table = PairwiseTable(spoilt(verifier.pairwise.table), verifier.pairwise.push)
    assert verifier.collective is not None
    assert verifier.contrasts is not None
    changed = replace(
        verifier,
        bounds=replace(
            bounds,
            logits=spoilt(bounds.logits, 0.1),
            offsets=spoilt(bounds.offsets, 0.1),
            offsets_joint=spoilt(bounds.offsets_joint),
        ),
        pairwise=table,
        collective=spoilt(verifier.collective),
        contrasts=spoilt(verifier.contrasts),
    )
    return replace(scene, verifier=changed)


def _corner_outputs(scene: Scene, count: int, seed: int) -> RawOutput:
    """Outputs that an adversary chooses: as far as constants allow and float32 holds."""
    bounds = scene.verifier.bounds
    furthest = _FURTHEST / max(scene.epsilon, 1.0)

    def within(values: Tensor) -> Tensor:
        return values.nan_to_num(nan=furthest, posinf=furthest).clamp(max=furthest)

    limited = replace(bounds, logits=within(bounds.logits), offsets=within(bounds.offsets))
    return perturbed(replace(scene, verifier=replace(scene.verifier, bounds=limited)), count, seed)


def broken_at_limits(number: int) -> list[str]:
    """Everything that is promised of a scene and an adversary takes away."""
    scene = corner_scene(number)
    promised = certificates(scene)
    if not (promised[0] > -torch.inf).any():
        return []
    return broken_promises(scene, promised, _corner_outputs(scene, PERTURBED, number))


# Log-odds of 1.0e39 and 1.2e39: both infinite in float32, and the rival comes first.
BEYOND_SCORES = _scene(
    objects=[(4, 4, 14, 14)],
    boxes=[(8, 4, 18, 14), (4, 4, 14, 14)],
    logits=[1.0e29, 1.2e29],
    temperature=1e10,
)
# An overlap of 0.28. In float32, areas are 3 and what is common is 2 times the smallest number.
_SIDE = (3.45 * 2.0**-149) ** 0.5
NEXT_TO_NOTHING = _scene(
    objects=[(0, 0, _SIDE, _SIDE)],
    boxes=[(0.56 * _SIDE, 0, 1.56 * _SIDE, _SIDE), (0, 0, _SIDE, _SIDE)],
    logits=[3.0, 2.0],
    constants=[0.25, 0.25],
)


def scene_with_areas(seed: int) -> Scene:
    """A random scene with areas that are not judged, around objects, boxes or anything."""
    scene, rng = random_scene(seed), np.random.default_rng((seed, 11))
    default = corners(scene.verifier.decoder.default_boxes)
    targets = []
    for target in scene.targets:
        seen = torch.cat([target["boxes"], default])
        chosen = seen[torch.from_numpy(rng.integers(0, len(seen), int(rng.integers(0, 4))))]
        margin = torch.from_numpy(rng.choice([-2.0, 0.0, 1.0, 3.0, 30.0], (len(chosen), 1))).float()
        grown = torch.cat([chosen[:, :2] - margin, chosen[:, 2:] + margin], dim=1)
        labels = torch.from_numpy(rng.choice([0, 0, 1], len(chosen)))
        areas = Objects(boxes=clipped(grown), labels=labels)
        targets.append(Target(boxes=target["boxes"], labels=target["labels"], ignored=areas))
    return replace(scene, targets=targets)


def broken_beside_areas(number: int) -> list[str]:
    return violations(scene_with_areas(number), PERTURBED, number)


def crowded_scene(seed: int) -> Scene:
    """A random scene with more objects beside each of its own, and in half of them equal scores."""
    scene, rng = random_scene(seed), np.random.default_rng((seed, 10))
    targets = []
    for target in scene.targets:
        boxes, labels = target["boxes"], target["labels"]
        copies = int(rng.integers(1, 4))
        shift = rng.choice([0.0, 0.5, 1.5, 3.0], (copies, len(boxes), 2))
        moved = boxes + torch.from_numpy(np.tile(shift, 2)).float()
        inside = (moved <= moved.new_tensor(CANVAS.limits)).all(dim=2)
        targets.append(
            Target(
                boxes=torch.cat([boxes, moved[inside]]),
                labels=torch.cat([labels, labels.expand(copies, -1)[inside]]),
            )
        )
    raw = scene.raw
    if rng.random() < 0.5:
        raw = RawOutput(raw.logits.round(), raw.offsets)
    return replace(scene, targets=targets, raw=raw)


def broken_in_crowd(number: int) -> list[str]:
    return violations(crowded_scene(number), PERTURBED, number)
