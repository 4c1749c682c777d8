"""The 2-D convolution that all layers with a constructed kernel share.

Notable choices:
- These layers are not subclasses of `nn.Conv2d`: code that takes `conv.weight` for a free parameter
  must not mistake one for a plain convolution.
- Padding modes that repeat pixels, dilation and groups are refused rather than left to the user.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipdet.layers.base import ConstructedWeight

Size = int | tuple[int, int]
PaddingMode = Literal["zeros", "circular"]


class LipschitzConv2d(ConstructedWeight):
    """A 2-D convolution with a constructed kernel; the arguments are those of `nn.Conv2d`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: height and width of the kernel.
        stride: step between patches.
        padding: zeros (or wrapped pixels) added on each side, or "same" or "valid".
        dilation: must be 1.
        groups: must be 1.
        bias: whether a learned offset is added to each output channel; it starts at 0.
        padding_mode: "zeros" or "circular".

    Raises:
        ValueError: an argument for which the constraint would not hold or is not implemented.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = as_pair(kernel_size)
        self.stride = as_pair(stride)
        self.padding_mode = padding_mode
        if min(in_channels, out_channels, *self.kernel_size, *self.stride) < 1:
            raise ValueError(f"{name}: channels, kernel_size and stride must be at least 1.")
        if padding_mode not in ("zeros", "circular"):
            raise ValueError(
                f'{name}: padding_mode="{padding_mode}" repeats pixels, so the layer would exceed '
                'its Lipschitz constant; use "zeros" or "circular".'
            )
        if groups != 1 or as_pair(dilation) != (1, 1):
            raise ValueError(f"{name} supports groups=1 and dilation=1 only.")
        self.padding = self._checked_padding(padding)
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_channels)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H', W')."""
        down, across = self._pads(0), self._pads(1)
        if self.padding_mode == "zeros" and down[0] == down[1] and across[0] == across[1]:
            padding = (down[0], across[0])
            return functional.conv2d(x, self._ready_weight(), self.bias, self.stride, padding)
        if self.padding_mode == "circular":
            self._check_wrapping(x.shape[-2:])
        mode = "constant" if self.padding_mode == "zeros" else "circular"
        padded = functional.pad(x, [*across, *down], mode=mode)
        return functional.conv2d(padded, self._ready_weight(), self.bias, self.stride)

    def folded(self) -> nn.Conv2d:
        """Return the plain convolution with this layer's kernel."""
        conv = plain_conv(
            self._ready_weight(), self.bias, self.stride, self.padding, self.padding_mode
        )
        return conv.train(self.training)

    def extra_repr(self) -> str:
        """Return the arguments that differ from the defaults, as `nn.Conv2d` prints them."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", stride={self.stride}" if self.stride != (1, 1) else ""
        text += f", padding={self.padding}" if self.padding != (0, 0) else ""
        text += ", bias=False" if self.bias is None else ""
        return text + (", padding_mode=circular" if self.padding_mode == "circular" else "")

    def _checked_padding(self, padding: Size | str) -> tuple[int, int] | str:
        name = type(self).__name__
        if not isinstance(padding, str):
            pair = as_pair(padding)
            if min(pair) < 0:
                raise ValueError(f"{name}: padding={padding} must not be negative.")
            return pair
        if padding not in ("same", "valid"):
            raise ValueError(f'{name}: padding="{padding}" must be a number, "same" or "valid".')
        if padding == "same" and self.stride != (1, 1):
            raise ValueError(f'{name}: padding="same" needs stride=1.')
        return padding

    def _check_wrapping(self, image: torch.Size) -> None:
        """Refuse patches that overlap more on this circle than on an endless image."""
        for axis, size in enumerate(image):
            free = size + sum(self._pads(axis)) - self.kernel_size[axis]
            if (free // self.stride[axis] + 1) * self.stride[axis] > size:
                raise ValueError(
                    f"{type(self).__name__}: with circular padding={self.padding}, stride="
                    f"{self.stride} and size {size} some pixels would be used more often than "
                    "others; use less padding or a size that the stride divides."
                )

    def _pads(self, axis: int) -> tuple[int, int]:
        if not isinstance(self.padding, str):
            return self.padding[axis], self.padding[axis]
        total = self.kernel_size[axis] - 1 if self.padding == "same" else 0
        return total // 2, total - total // 2


@torch.no_grad()
def plain_conv(
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int] = (1, 1),
    padding: Size | str = 0,
    padding_mode: PaddingMode = "zeros",
) -> nn.Conv2d:
    """Return an `nn.Conv2d` with copies of a weight (c_out, c_in, k1, k2) and a bias."""
    # Without memory, nothing is drawn at random.
    c_out, c_in, height, width = weight.shape
    conv = nn.Conv2d(
        c_in,
        c_out,
        (height, width),
        stride,
        padding,
        bias=bias is not None,
        padding_mode=padding_mode,
        device="meta",
    )
    conv.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone())
    return conv


@torch.no_grad()
def tiled_dirac_(kernel: Tensor) -> Tensor:
    """Fill a (c_out, c_in, k1, k2) kernel with a semi-orthogonal identity at the central tap.

    With unequal channels, inputs are copied to several outputs or several inputs are merged into
    one output, with the weight that keeps rows or columns orthonormal. No row or column is zero, so
    none is without a gradient, and W^T W has row sums of 1: AOL keeps this kernel as it is.
    """
    c_out, c_in, height, width = kernel.shape
    few = min(c_out, c_in)
    match = torch.arange(c_out)[:, None] % few == torch.arange(c_in) % few
    copies = match.sum(dim=0, keepdim=True) if c_out >= c_in else match.sum(dim=1, keepdim=True)
    kernel.zero_()
    kernel[:, :, (height - 1) // 2, (width - 1) // 2] = (match / copies.sqrt()).to(kernel)
    return kernel


@torch.no_grad()
def centred_orthogonal_(kernel: Tensor) -> Tensor:
    """Fill a (c_out, c_in, k1, k2) kernel with a random semi-orthogonal matrix at the centre."""
    height, width = kernel.shape[2:]
    kernel.zero_()
    centre = nn.init.orthogonal_(torch.empty(kernel.shape[:2]))
    kernel[:, :, (height - 1) // 2, (width - 1) // 2] = centre.to(kernel)
    return kernel


def as_pair(value: Size) -> tuple[int, int]:
    """Return (height, width) for a number or a pair."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])
