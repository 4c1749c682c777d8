"""Changes of a whole batch that leave its objects what they are, seeded per step.

Notable choices:
- What leaves an object what it is depends on the objects: a mirrored 7 is none, an inverted cell is
  none. So each change has a name and is asked for.
- Every change draws its random numbers whether it is asked for or not: none alters another's.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lipdet.config import Change
from lipdet.types import Target

BRIGHTNESS = 0.2
CONTRAST = (0.6, 1.4)
INVERTED = 0.3
PERMUTED = 0.3
# Objects of which less than this share is left inside are no longer objects.
LEAST_LEFT = 0.5


def augment(
    images: Tensor,
    targets: Sequence[Target],
    changes: Collection[Change],
    generator: torch.Generator,
    scales: tuple[float, float],
) -> tuple[Tensor, list[Target]]:
    """Change pictures and their objects, each picture independently.

    Args:
        images: (B, 3, H, W) float in [0, 1].
        targets: the objects of the B images, in pixels.
        changes: which changes may be made.
        generator: of the random choices, on the CPU.
        scales: smallest and largest factor of a side for `scale`.

    Returns:
        New images of the same shape in [0, 1], and their objects.
    """
    images = _recoloured(images, changes, generator)
    return _moved(images, targets, changes, generator, scales)


def _recoloured(images: Tensor, changes: Collection[Change], generator: torch.Generator) -> Tensor:
    count, device = len(images), images.device

    def uniform(low: float, high: float) -> Tensor:
        values = torch.rand(count, 1, 1, 1, generator=generator) * (high - low) + low
        return values.to(device)

    contrast, brightness = uniform(*CONTRAST), uniform(-BRIGHTNESS, BRIGHTNESS)
    if "light" in changes:
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = torch.addcmul(mean * (1 - contrast) + brightness, images, contrast).clamp_(0, 1)
    inverted = uniform(0, 1) < INVERTED
    if "inversion" in changes:
        images = torch.where(inverted, 1 - images, images)
    order = torch.rand(count, 3, generator=generator).argsort(dim=1)
    order[torch.rand(count, generator=generator) >= PERMUTED] = torch.arange(3)
    return images[torch.arange(count)[:, None], order] if "channels" in changes else images


def _moved(
    images: Tensor,
    targets: Sequence[Target],
    changes: Collection[Change],
    generator: torch.Generator,
    scales: tuple[float, float],
) -> tuple[Tensor, list[Target]]:
    """Enlarge, reduce, place and mirror; beyond the border the edge is repeated."""
    count, (height, width) = len(images), images.shape[-2:]
    low, high = (math.log(factor) for factor in scales)
    scale = torch.exp(low + (high - low) * torch.rand(count, generator=generator))
    place = 2 * torch.rand(count, 2, generator=generator) - 1
    mirror = 1 - 2 * (torch.rand(count, generator=generator) < 0.5).float()
    if "scale" not in changes:
        scale = torch.ones(count)
    if "flip" not in changes:
        mirror = torch.ones(count)
    if not {"scale", "flip"} & set(changes):
        return images, list(targets)
    # An enlarged picture fills the view, a reduced one lies inside it; in units of half a side.
    shift = place * (scale - 1).abs().unsqueeze(1)
    across, down = mirror * scale, scale
    inverse = torch.zeros(count, 2, 3)
    inverse[:, 0, 0], inverse[:, 0, 2] = 1 / across, -shift[:, 0] / across
    inverse[:, 1, 1], inverse[:, 1, 2] = 1 / down, -shift[:, 1] / down
    grid = functional.affine_grid(inverse.to(images), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    half = torch.tensor([width, height]) / 2
    factors = torch.stack([across, down], dim=1)
    return moved, [
        _moved_target(target, factors[index], shift[index], half)
        for index, target in enumerate(targets)
    ]


def _moved_target(target: Target, factors: Tensor, shift: Tensor, half: Tensor) -> Target:
    """Return objects multiplied by factors (x, y) about the centre, shifted in half sides."""
    corners = (target["boxes"].view(-1, 2, 2) - half) * factors + half * (1 + shift)
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    inside = boxes.clamp(min=0).minimum((2 * half).repeat(2))
    left = (inside[:, 2:] - inside[:, :2]).prod(dim=1)
    kept = left >= LEAST_LEFT * (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    return Target(boxes=inside[kept], labels=target["labels"][kept])
