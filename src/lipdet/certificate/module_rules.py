"""Lipschitz constants of the modules that are known as a unit.

A rule takes the module, its input (1, ...) and its output. It serves subclasses too, as long as
they keep the forward method of the class that the rule was written for. A rule speaks of what
`references` has for that class, from the same attributes; that the module computes this is proven
elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lipdet.certificate import gains
from lipdet.certificate.gains import as_pair, times
from lipdet.certificate.operator_norm import (
    SLACK,
    TINY,
    UnknownLipschitz,
    circular_norm_bound,
    conv_norm_bound,
    matrix_norm_bound,
    real,
)
from lipdet.layers import (
    Abs,
    DropChannels,
    FoldedResidual,
    Householder,
    MaxMin,
    ScaledAvgPool2d,
    SpaceToDepth,
    ZeroPadChannels,
)

Rule = Callable[[nn.Module, Tensor, Tensor], float]


def find_rule(module: nn.Module) -> Rule | None:
    """Return the rule of the class whose forward method the module runs, if there is one."""
    kind = known_kind(module)
    return RULES[kind] if kind else None


def known_kind(module: nn.Module) -> type[nn.Module] | None:
    """Return the class with a rule whose forward method the module runs, if there is one."""
    for kind in type(module).__mro__:
        if kind in RULES:
            same = type(module).forward is kind.forward and "forward" not in vars(module)
            return kind if same else None
    return None


def conv_gain(conv: nn.Conv2d, x: Tensor, y: Tensor, factors: Tensor | None = None) -> float:
    """Bound a convolution x ↦ y, its output channels multiplied by `factors` (c_out,) if given.

    Raises:
        UnknownLipschitz: a weight is not finite.
    """
    kernel = real(conv.weight.detach()).double()
    if factors is not None:
        if vanishes(kernel, factors):
            return times(conv_gain(conv, x, y), float(factors.abs().max()) * SLACK)
        kernel = kernel * factors[:, None, None, None]
    stride, dilation = as_pair(conv.stride), as_pair(conv.dilation)
    size = as_pair(x.shape[-2:])
    if conv.padding_mode == "zeros":
        return conv_norm_bound(kernel, stride, dilation, conv.groups, size)
    if conv.padding_mode == "circular":
        output = as_pair(y.shape[-2:])
        return circular_norm_bound(kernel, stride, dilation, conv.groups, size, output)
    # The amounts that nn.Conv2d itself hands to functional.pad.
    sides = conv._reversed_padding_repeated_twice
    padded = size[0] + sides[2] + sides[3], size[1] + sides[0] + sides[1]
    unpadded_norm = conv_norm_bound(kernel, stride, dilation, conv.groups, padded)
    return gains.pad(x, sides, conv.padding_mode) * unpadded_norm


def batch_norm_factors(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> Tensor:
    """Return γ / √(σ² + eps) (channels,) in float64 of a BatchNorm in eval mode.

    Raises:
        UnknownLipschitz: it would use the statistics of the batch.
    """
    if uses_batch_statistics(norm):
        raise UnknownLipschitz("it uses batch statistics; call eval() first")
    assert norm.running_var is not None
    factors = (norm.running_var.double() + norm.eps).rsqrt()
    # As torch does, whatever `affine` says.
    return factors if norm.weight is None else factors * real(norm.weight.detach()).double()


def vanishes(kernel: Tensor, factors: Tensor) -> bool:
    """Whether a weight times the factor of its output channel may be lost below float64's range."""
    products = (kernel * factors[:, None, None, None]).abs()
    nonzero = (kernel != 0) & (factors != 0)[:, None, None, None]
    return bool((nonzero & (products < TINY)).any())


def uses_batch_statistics(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> bool:
    """Whether a BatchNorm mixes the images of a batch."""
    return norm.training or norm.running_var is None


def residual_gain(block: FoldedResidual, x: Tensor) -> float:
    """Bound x − 2 Vᵀ relu(V x + b) by max(1, 2‖V‖² − 1), with the norm of V recomputed.

    The Jacobian I − 2 VᵀDV, 0 ≤ D ≤ 1, is symmetric with eigenvalues in [1 − 2‖V‖², 1]
    (Meunier et al. 2022; Araujo et al. 2023).

    Raises:
        UnknownLipschitz: the two kernels are not V and exactly 2 Vᵀ, of odd and equal sides.
    """
    kernel = block.inner.weight.detach()
    if kernel.shape[-1] != kernel.shape[-2] or kernel.shape[-1] % 2 == 0:
        raise UnknownLipschitz("its padding keeps the size for square kernels of odd sides only")
    if not torch.equal(block.outer.weight, 2 * kernel.flip(2, 3).transpose(0, 1)):
        raise UnknownLipschitz("its second kernel is not twice the transpose of its first")
    return max(1.0, 2 * conv_norm_bound(kernel, image_size=as_pair(x.shape[-2:])) ** 2 - 1)


def _one(module: nn.Module, x: Tensor, y: Tensor) -> float:
    return 1.0


def _conv(module: nn.Module, x: Tensor, y: Tensor) -> float:
    assert isinstance(module, nn.Conv2d)
    return conv_gain(module, x, y)


def _linear(module: nn.Module, x: Tensor, y: Tensor) -> float:
    assert isinstance(module, nn.Linear)
    return matrix_norm_bound(module.weight)


def _batch_norm(module: nn.Module, x: Tensor, y: Tensor) -> float:
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    largest = float(batch_norm_factors(module).abs().max())
    if not math.isfinite(largest):
        raise UnknownLipschitz("its factors are not finite")
    return largest * SLACK


def _residual(module: nn.Module, x: Tensor, y: Tensor) -> float:
    assert isinstance(module, FoldedResidual)
    return residual_gain(module, x)


def _dropout(module: nn.Module, x: Tensor, y: Tensor) -> float:
    return gains.dropout(x, training=module.training)


def _leaky_relu(module: nn.Module, x: Tensor, y: Tensor) -> float:
    assert isinstance(module, nn.LeakyReLU)
    return gains.leaky_relu(x, module.negative_slope)


def _pad(mode: str) -> Rule:
    def rule(module: nn.Module, x: Tensor, y: Tensor) -> float:
        assert isinstance(module, nn.ReflectionPad2d | nn.ReplicationPad2d | nn.CircularPad2d)
        return gains.pad(x, module.padding, mode)

    return rule


def _max_pool(module: nn.Module, x: Tensor, y: Tensor) -> float:
    assert isinstance(module, nn.MaxPool2d)
    return gains.max_pool(
        x,
        as_pair(module.kernel_size),
        as_pair(module.stride),
        dilation=as_pair(module.dilation),
        return_indices=module.return_indices,
    )


def _avg_pool(module: nn.Module, x: Tensor, y: Tensor) -> float:
    assert isinstance(module, nn.AvgPool2d)
    return gains.avg_pool(
        x,
        module.kernel_size,
        module.stride,
        module.padding,
        module.ceil_mode,
        module.count_include_pad,
        module.divisor_override,
    )


def _upsample(module: nn.Module, x: Tensor, y: Tensor) -> float:
    assert isinstance(module, nn.Upsample)
    return gains.interpolate(
        x,
        module.size,
        module.scale_factor,
        module.mode,
        module.align_corners,
        module.recompute_scale_factor,
    )


RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), _batch_norm),
    **dict.fromkeys((nn.Dropout, nn.Dropout2d), _dropout),
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.Upsample: _upsample,
    nn.LeakyReLU: _leaky_relu,
    nn.Sigmoid: lambda module, x, y: gains.sigmoid(x),
    nn.Softmax: lambda module, x, y: gains.softmax(x),
    **dict.fromkeys((nn.Identity, nn.ReLU, nn.ReLU6, nn.Tanh, nn.Hardtanh), _one),
    **dict.fromkeys((nn.Flatten, nn.Unflatten, nn.ZeroPad2d), _one),
    **dict.fromkeys((nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle), _one),
    # Averages of disjoint windows times √(k1 k2) have orthonormal rows.
    **dict.fromkeys((MaxMin, Abs, Householder, ScaledAvgPool2d), _one),
    **dict.fromkeys((SpaceToDepth, ZeroPadChannels, DropChannels), _one),
    nn.ReflectionPad2d: _pad("reflect"),
    nn.ReplicationPad2d: _pad("replicate"),
    nn.CircularPad2d: _pad("circular"),
    FoldedResidual: _residual,
}
