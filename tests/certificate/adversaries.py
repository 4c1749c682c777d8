"""Outputs that adversaries choose in a scene, within what its constants allow.

Half of them are extreme: every output stands at an end of its interval, or, where outputs depend on
a hidden image, one output or the difference of two is pushed as far as it goes. The others are
drawn at random, with some outputs left in place.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lipdet.types import RawOutput
from tests.certificate.scenes import CODING, Scene


def perturbed(scene: Scene, count: int, seed: int) -> RawOutput:
    """Outputs that the scene's constants allow: (count · B, A, K) and (count · B, A, 4).

    Args:
        scene: whose outputs they are.
        count: of perturbations; the first half of them is extreme.
        seed: of all choices.
    """
    rng = np.random.default_rng(seed)
    parts = _linear_outputs if scene.rows is not None else _free_outputs
    found = [parts(scene, rng, count - count // 2, False), parts(scene, rng, count // 2, True)]
    logits, offsets = (torch.cat(part) for part in zip(*reversed(found), strict=True))
    return RawOutput(logits.flatten(0, 1).float(), offsets.flatten(0, 1).float())


def _linear_outputs(
    scene: Scene, rng: np.random.Generator, count: int, extreme: bool
) -> tuple[Tensor, Tensor]:
    """Push the hidden image along single outputs, differences of two, and at random."""
    rows = scene.rows
    assert rows is not None
    anchors, values, hidden = rows.shape
    flat = rows.reshape(-1, hidden)
    shape = (count, len(scene.targets))
    first = flat[rng.integers(0, len(flat), shape)]
    # The second row is often the same output of another anchor: what a rival gains on another.
    index = rng.integers(0, anchors, shape) * values + rng.integers(0, values, shape)
    direction = rng.choice([-1.0, 0, 1], (*shape, 1)) * first.numpy()
    direction = direction + rng.choice([-1.0, 0, 1], (*shape, 1)) * flat[index].numpy()
    same = rng.integers(0, values, shape)
    pair = rows[rng.integers(0, anchors, shape), same] - rows[rng.integers(0, anchors, shape), same]
    direction = np.where(rng.random((*shape, 1)) < 0.4, pair.numpy(), direction)
    noise = [1e-6] if extreme else [1e-6, 0.1, 3.0]
    direction = direction + rng.choice(noise, (*shape, 1)) * rng.normal(size=direction.shape)
    length = np.linalg.norm(direction, axis=-1, keepdims=True)
    # A little less than allowed: these outputs are rounded to float32.
    moved = torch.from_numpy(scene.epsilon * (1 - 1e-6) * direction / length)
    change = (moved @ flat.T).reshape(*shape, anchors, values)
    return (
        scene.raw.logits.double() + change[..., : scene.raw.logits.shape[-1]],
        scene.raw.offsets.double() + change[..., scene.raw.logits.shape[-1] :],
    )


def _free_outputs(
    scene: Scene, rng: np.random.Generator, count: int, extreme: bool
) -> tuple[Tensor, Tensor]:
    """Move every output on its own: to an end, towards what does harm, at random, or not.

    Logits go to an end all together more often than not, with one anchor against all others.
    Offsets go to vertices, or as near as they can to an object or to another anchor's box.
    """
    bounds, epsilon = scene.verifier.bounds, scene.epsilon
    images, anchors, classes = scene.raw.logits.shape
    shape = (count, images, anchors)
    steps = [-1.0, 1] if extreme else [-1.0, 0, 1]
    common = rng.choice(steps, (count, images, 1, classes))
    own = rng.choice(steps, (*shape, classes))
    signs = np.where(rng.random((count, images, 1, 1)) < 0.6, common, own)
    chosen = rng.integers(0, anchors, (count, images, 1)) == np.arange(anchors)
    favour = rng.choice([-1.0, 1.0, 0.0], (count, images, 1, 1))
    signs = np.where(chosen[..., None] & (favour != 0), favour, signs)
    if not extreme:
        loose = rng.random((count, images, 1, 1)) < 0.1
        signs = np.where(loose, rng.uniform(-1, 1, own.shape), signs)
    logits = scene.raw.logits.double() + epsilon * torch.from_numpy(signs) * bounds.logits

    clean = scene.raw.offsets.double()
    reach = epsilon * bounds.offsets.expand(count, images, anchors, 4)
    ends = clean + reach * torch.from_numpy(rng.choice([-1.0, 1.0], (*shape, 4)))
    anywhere = clean + reach * torch.from_numpy(rng.uniform(-1, 1, (*shape, 4)))
    towards = _towards_harm(scene, rng, count).clamp(clean - reach, clean + reach)
    if extreme:
        at_end = torch.from_numpy(rng.random((*shape, 1)) < 0.5)
        return logits, torch.where(at_end, ends, towards)
    mode = torch.from_numpy(rng.integers(0, 4, shape))[..., None]
    together = torch.from_numpy(rng.integers(0, 5, (count, images, 1, 1)))
    mode = torch.where(together < 4, together, mode)
    offsets = clean.expand(count, images, anchors, 4)
    for index, moved in enumerate((ends, anywhere, towards)):
        offsets = torch.where(mode == index, moved, offsets)
    return logits, offsets


def _towards_harm(scene: Scene, rng: np.random.Generator, count: int) -> Tensor:
    """Offsets (count, B, A, 4) that put each box on an object or on another anchor's box."""
    anchors = scene.raw.offsets.shape[1]
    default = scene.verifier.decoder.default_boxes.double()
    decoded = CODING.decode(scene.raw.offsets.double(), default)
    goals = [
        torch.cat([decoded[image], target["boxes"].double(), target["boxes"].double()])
        for image, target in enumerate(scene.targets)
    ]
    picked = torch.stack(
        [goal[rng.integers(0, len(goal), (count, anchors))] for goal in goals], dim=1
    )
    sides = (picked[..., 2:] - picked[..., :2]).clamp(min=0.01)
    return CODING.encode(torch.cat([picked[..., :2], picked[..., :2] + sides], dim=-1), default)
