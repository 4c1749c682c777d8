"""The convolutions of a detector's heads, as the linear maps that they are.

Channels are ordered as in `RawOutput`: default box by default box, and value by value within one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipdet.errors import UnknownLipschitz
from lipdet.layers.fold import has_forward_hooks
from lipdet.lipschitz.gains import as_pair, batch_norm_factors, vanishes
from lipdet.norms import SLACK, Pair, conv_norm, real

# Constants and norms below are raised to this. A larger one is a bound, too, and of these no
# square, difference or quotient vanishes. What squares of single numbers lose, at most 1e-308 each,
# does not count beside this one's.
LEAST = 1e-145
# Of weights, so that squares stay finite.
_MOST = 1e100


@dataclass(frozen=True)
class HeadConvolution:
    """A convolution with zero padding, and its BatchNorm folded into it.

    Attributes:
        kernel: (boxes, values, c_in, k1, k2) float64.
        stride: steps between patches.
        padding: zeros at each side.
        dilation: steps between taps.
        size: (height, width) of the features.
    """

    kernel: Tensor
    stride: Pair
    padding: Pair
    dilation: Pair
    size: Pair

    @property
    def columns(self) -> int:
        """The width of the output map."""
        reach = self.dilation[1] * (self.kernel.shape[-1] - 1) + 1
        return (self.size[1] + 2 * self.padding[1] - reach) // self.stride[1] + 1

    @property
    def patches(self) -> tuple[Pair, ...]:
        """What fixes which features each filter sees."""
        kernel = as_pair(tuple(self.kernel.shape[-2:]))
        return kernel, self.stride, self.padding, self.dilation, self.size

    def over_positions(self, taps: Tensor) -> Tensor:
        """Sum what each tap contributes over the taps that fall inside the features.

        Args:
            taps: (boxes, ..., k1, k2).

        Returns:
            (h · w · boxes, ...), one row per default box.
        """
        inside = taps.new_ones(1, 1, *self.size)
        flat = taps.reshape(-1, 1, *taps.shape[-2:])
        maps = functional.conv2d(inside, flat, None, self.stride, self.padding, self.dilation)
        rows = maps[0].permute(1, 2, 0)
        return rows.reshape(-1, *taps.shape[1:-2])

    def norms(self) -> Tensor:
        """‖filter‖_F of each output where it stands, (A, values), or LEAST if that is less."""
        squares = self.over_positions(self.kernel.square().sum(dim=2))
        return squares.clamp_min(LEAST**2).sqrt() * SLACK

    def gram(self) -> Tensor:
        """Inner products of the filters of one default box where it stands, (A, values, values)."""
        taps = torch.einsum("bvikl,bwikl->bvwkl", self.kernel, self.kernel)
        return self.over_positions(taps)

    def norm_bound(self, kernel: Tensor) -> float:
        """Bound the norm of this convolution with other filters (c_out, c_in, k1, k2)."""
        return conv_norm(kernel, self.stride, self.dilation, image_size=self.size)


def head_convolution(
    layers: Sequence[nn.Module], name: str, values: int, size: Pair
) -> HeadConvolution:
    """Read the layers of a head as one convolution.

    Args:
        layers: a convolution, with a BatchNorm2d behind it or without.
        name: what messages call it.
        values: outputs of each default box.
        size: (height, width) of the features it reads.

    Raises:
        UnknownLipschitz: it is something else.
    """
    conv = layers[0] if layers else None
    norms = [layer for layer in layers[1:] if isinstance(layer, nn.BatchNorm2d)]
    if not isinstance(conv, nn.Conv2d) or len(layers) > 2 or len(norms) != len(layers) - 1:
        raise UnknownLipschitz(
            f'No Lipschitz bounds for the outputs of "{name}": it must be a convolution, with a '
            "BatchNorm2d behind it or without."
        )
    if conv.padding_mode != "zeros" or conv.groups != 1 or isinstance(conv.padding, str):
        raise UnknownLipschitz(
            f'No Lipschitz bounds for the outputs of "{name}": its convolution must have zero '
            "padding, given in numbers, since a patch must hold each feature at most once, and "
            "one group."
        )
    kernel = real(conv.weight.detach()).double()
    for norm in norms:
        factors = batch_norm_factors(norm)
        if vanishes(kernel, factors):
            raise UnknownLipschitz(f'The weights of "{name}" are too small for float64.')
        kernel = kernel * factors[:, None, None, None]
    if not bool((kernel.abs() <= _MOST).all()):
        raise UnknownLipschitz(
            f'No Lipschitz bounds for the outputs of "{name}": its weights are too large, or no '
            "numbers."
        )
    return HeadConvolution(
        kernel.reshape(-1, values, *kernel.shape[1:]),
        as_pair(conv.stride),
        as_pair(conv.padding),
        as_pair(conv.dilation),
        size,
    )


def check_plain(module: nn.Module, kind: type[nn.Module], name: str) -> None:
    """Refuse a part whose forward method is not that of its kind.

    Raises:
        UnknownLipschitz: with `name` in its message.
    """
    same = type(module).forward is kind.forward and "forward" not in vars(module)
    if not same or has_forward_hooks(module):
        raise UnknownLipschitz(
            f'No Lipschitz bounds for "{name}": it has forward hooks, or another forward method '
            f"than {kind.__name__}."
        )
