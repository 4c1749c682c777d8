"""Pictures of 8 bits as tensors in [0, 1], and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_tensor(pixels: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> Tensor:
    """Return pixels (..., H, W, 3) uint8 as float32 (..., 3, H, W) in [0, 1]."""
    # A copy: arrays of pillow's are read-only, which tensors cannot be.
    return torch.from_numpy(np.array(pixels)).movedim(-1, -3).float() / 255


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """Return images (..., 3, H, W), clipped to [0, 1], as pixels (..., H, W, 3) uint8."""
    levels = (images.detach().cpu().float().clamp(0, 1) * 255).round().byte()
    return np.asarray(levels.movedim(-3, -1).contiguous().numpy(), np.uint8)
