"""What the modules that have a rule compute, in functions of torch: what their rules speak of.

A module is held against this, operation by operation, so that nothing is trusted but the weights
and numbers that its rule reads: no forward method, hook or replaced part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipdet.certificate.module_rules import known_kind
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

Reference = Callable[[Any, Tensor], Any]


def find_reference(module: nn.Module) -> Reference | None:
    """Return what a module with a rule has to compute, as a function of itself and its input."""
    kind = known_kind(module)
    return REFERENCES[kind] if kind else None


def _conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    padding: Any = conv.padding
    if conv.padding_mode != "zeros":
        sides = conv._reversed_padding_repeated_twice
        x, padding = functional.pad(x, sides, conv.padding_mode), 0
    return functional.conv2d(
        x, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups
    )


def _batch_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    return functional.batch_norm(
        x,
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        momentum=norm.momentum or 0.0,
        eps=norm.eps,
    )


def _max_pool(pool: Any, x: Tensor) -> Any:
    return functional.max_pool2d(
        x,
        pool.kernel_size,
        pool.stride,
        pool.padding,
        pool.dilation,
        ceil_mode=pool.ceil_mode,
        return_indices=pool.return_indices,
    )


def _avg_pool(pool: nn.AvgPool2d, x: Tensor) -> Tensor:
    return functional.avg_pool2d(
        x,
        pool.kernel_size,
        pool.stride,
        pool.padding,
        pool.ceil_mode,
        pool.count_include_pad,
        pool.divisor_override,
    )


def _upsample(layer: nn.Upsample, x: Tensor) -> Tensor:
    return functional.interpolate(
        x,
        layer.size,
        layer.scale_factor,
        layer.mode,
        layer.align_corners,
        layer.recompute_scale_factor,
    )


def _residual(block: FoldedResidual, x: Tensor) -> Tensor:
    inner, outer = block.inner, block.outer
    padding = inner.weight.shape[-1] // 2
    hidden = functional.conv2d(x, inner.weight, inner.bias, padding=padding).relu()
    return x - functional.conv2d(hidden, outer.weight, padding=padding)


def _hardtanh(layer: nn.Hardtanh, x: Tensor) -> Tensor:
    return functional.hardtanh(x, layer.min_val, layer.max_val)


def _pad(mode: str) -> Reference:
    return lambda layer, x: functional.pad(x, layer.padding, mode)


def _same(layer: nn.Module, x: Tensor) -> Tensor:
    return x


# Of the package's own layers, the forward method of the class itself.
_OWN = (MaxMin, Abs, Householder, ScaledAvgPool2d, SpaceToDepth, ZeroPadChannels, DropChannels)

REFERENCES: dict[type[nn.Module], Reference] = {
    nn.Conv2d: _conv,
    nn.Linear: lambda layer, x: functional.linear(x, layer.weight, layer.bias),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), _batch_norm),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout2d), _same),
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.Upsample: _upsample,
    nn.LeakyReLU: lambda layer, x: functional.leaky_relu(x, layer.negative_slope),
    nn.Sigmoid: lambda layer, x: torch.sigmoid(x),
    nn.Softmax: lambda layer, x: functional.softmax(x, layer.dim),
    nn.ReLU: lambda layer, x: functional.relu(x),
    nn.Tanh: lambda layer, x: torch.tanh(x),
    **dict.fromkeys((nn.ReLU6, nn.Hardtanh), _hardtanh),
    nn.Flatten: lambda layer, x: x.flatten(layer.start_dim, layer.end_dim),
    nn.Unflatten: lambda layer, x: torch.unflatten(x, layer.dim, layer.unflattened_size),
    nn.ZeroPad2d: lambda layer, x: functional.pad(x, layer.padding, "constant", layer.value),
    nn.ReflectionPad2d: _pad("reflect"),
    nn.ReplicationPad2d: _pad("replicate"),
    nn.CircularPad2d: _pad("circular"),
    nn.PixelShuffle: lambda layer, x: functional.pixel_shuffle(x, layer.upscale_factor),
    nn.PixelUnshuffle: lambda layer, x: functional.pixel_unshuffle(x, layer.downscale_factor),
    nn.ChannelShuffle: lambda layer, x: functional.channel_shuffle(x, layer.groups),
    **{kind: kind.forward for kind in _OWN},
    FoldedResidual: _residual,
}
