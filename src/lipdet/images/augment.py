"""Photometric changes of a whole batch, seeded per step."""

from __future__ import annotations

import torch
from torch import Tensor

BRIGHTNESS = 0.2
CONTRAST = (0.6, 1.4)
INVERTED = 0.3
PERMUTED = 0.3


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast, polarity and channel order, independently per picture.

    House numbers come in every colour, dark on light and light on dark; only their shape names
    the digit.

    Args:
        images: (B, 3, H, W) float in [0, 1].
        generator: of the random choices, on the CPU.

    Returns:
        A new tensor of the same shape in [0, 1].
    """
    count, device = len(images), images.device

    def uniform(low: float, high: float) -> Tensor:
        values = torch.rand(count, 1, 1, 1, generator=generator) * (high - low) + low
        return values.to(device)

    contrast, brightness = uniform(*CONTRAST), uniform(-BRIGHTNESS, BRIGHTNESS)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    changed = torch.addcmul(mean * (1 - contrast) + brightness, images, contrast).clamp_(0, 1)
    changed = torch.where(uniform(0, 1) < INVERTED, 1 - changed, changed)
    channels = torch.rand(count, 3, generator=generator).argsort(dim=1)
    keep = torch.rand(count, generator=generator) >= PERMUTED
    channels[keep] = torch.arange(3)
    return changed[torch.arange(count)[:, None], channels]
