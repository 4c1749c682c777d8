"""1-Lipschitz changes of resolution and of the number of channels.

`torch.nn.ZeroPad2d` is 1-Lipschitz as it is.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from lipdet.layers.conv import Size, as_pair


class SpaceToDepth(nn.Module):
    """Move each block × block square of pixels to channels: a permutation, so norm preserving."""

    def __init__(self, block_size: int) -> None:
        super().__init__()
        if block_size < 1:
            raise ValueError(f"SpaceToDepth: block_size={block_size} must be at least 1.")
        self.block_size = block_size

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C·block², H/block, W/block).

        Raises:
            ValueError: the height or width is no multiple of the block size.
        """
        height, width = x.shape[-2:]
        if height % self.block_size or width % self.block_size:
            raise ValueError(
                f"SpaceToDepth: {height}x{width} is not divisible by block_size={self.block_size}; "
                "pad the input with ZeroPad2d."
            )
        return functional.pixel_unshuffle(x, self.block_size)

    def extra_repr(self) -> str:
        """Return the block size."""
        return f"{self.block_size}"


class ScaledAvgPool2d(nn.Module):
    """Average pooling with stride = kernel_size, times √(k1 k2): its rows are orthonormal.

    A plain average over k1·k2 pixels has norm 1/√(k1 k2); rows and columns of pixels that fill no
    window are dropped.
    """

    def __init__(self, kernel_size: Size) -> None:
        super().__init__()
        self.kernel_size = as_pair(kernel_size)
        if min(self.kernel_size) < 1:
            raise ValueError(f"ScaledAvgPool2d: kernel_size={kernel_size} must be at least 1.")

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H // k1, W // k2)."""
        return functional.avg_pool2d(x, self.kernel_size) * math.sqrt(math.prod(self.kernel_size))

    def extra_repr(self) -> str:
        """Return the window."""
        return f"kernel_size={self.kernel_size}"


class DisjointMaxPool2d(nn.MaxPool2d):
    """Max pooling over windows that do not overlap: 1-Lipschitz.

    A pixel in several windows can be the maximum of all: 3×3 windows at stride 2 reach 2.

    Raises:
        ValueError: the stride is smaller than the window.
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode=ceil_mode)
        window, step = as_pair(kernel_size), as_pair(kernel_size if stride is None else stride)
        if step[0] < window[0] or step[1] < window[1]:
            raise ValueError(
                f"DisjointMaxPool2d: windows of {window} at stride={step} overlap, so the layer "
                "would not be 1-Lipschitz; use a stride of at least kernel_size."
            )


class _ToChannels(nn.Module):
    """Keep the number of channels that comes out."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels

    def extra_repr(self) -> str:
        """Return the number of channels."""
        return f"{self.out_channels}"


class ZeroPadChannels(_ToChannels):
    """Append channels of zeros up to `out_channels`: norm preserving."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, H, W).

        Raises:
            ValueError: the input has more channels than that.
        """
        missing = self.out_channels - x.shape[-3]
        if missing < 0:
            raise ValueError(
                f"ZeroPadChannels: {x.shape[-3]} channels cannot be padded to {self.out_channels}."
            )
        return functional.pad(x, (0, 0, 0, 0, 0, missing))


class DropChannels(_ToChannels):
    """Keep the first `out_channels` channels: a projection, so 1-Lipschitz."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, H, W).

        Raises:
            ValueError: the input has fewer channels than that.
        """
        if x.shape[-3] < self.out_channels:
            raise ValueError(
                f"DropChannels: {self.out_channels} of {x.shape[-3]} channels cannot be kept."
            )
        return x.narrow(-3, 0, self.out_channels)
