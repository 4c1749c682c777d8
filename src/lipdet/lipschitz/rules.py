"""Rules: what is known of each kind of module and function, one row each, in two tables.

A row of `MODULES` or `FUNCTIONS` holds the Lipschitz constant, what the kind computes in functions
of torch, how often a number is rounded, and what to use where the constant is too large.

Notable choices:
- A module that only calls a function of torch is known by that function's row.
- A row serves subclasses, too, as long as they keep the forward method of their class. A module is
  held against what its row computes, operation by operation (`same_function`), so that nothing is
  trusted but the weights and numbers that the row reads: no forward method, hook or replaced part.
- What only moves entries of a tensor, or compares them, is known by which entries come out
  (`entries`).
- A function is found by itself or by the name of the method, so that a function of the user's that
  only shares a name with one of torch's is unknown. Methods that only work in place have no row.
  `inplace=True` changes no row: that nothing reads what was there before is proven elsewhere.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipdet.errors import UnknownLipschitz
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
from lipdet.lipschitz import gains
from lipdet.lipschitz.entries import Entries, all_of, joint_bound, moved
from lipdet.lipschitz.gains import as_pair

_LAYER = "a layer of lipdet.layers, all of norm 1"
_LARGEST = "its largest gain"


@dataclass(frozen=True)
class Bounded:
    """A value that depends on the input: itself, the bound of the map to it, and what it holds."""

    value: Any
    bound: float
    entries: Entries


@dataclass(frozen=True)
class ModuleRule:
    """Facts about a kind of module.

    Attributes:
        gain: the module, its input (1, ...) and its output to its constant.
        computes: the module and its input to its output, by functions of torch.
        rounding: by how many units in the last place of the size of its input its output may be
            off; 0 for what only moves or compares numbers, None where nothing is known.
        instead: what to use where the constant is above 1.
        cause: what makes it so large.
    """

    gain: Callable[[Any, Tensor, Tensor], float]
    computes: Callable[[Any, Tensor], Any]
    rounding: float | None = None
    instead: str = _LAYER
    cause: str | Callable[[Any], str] = _LARGEST


@dataclass(frozen=True)
class FunctionRule:
    """Facts about a function of torch, or of a method of tensors.

    Attributes:
        bound: the result of a call, and its arguments, of which the dependent ones are `Bounded`,
            to a bound of the map from the network's input to the result, or to its entries.
        gain: of a function of one tensor, that tensor and the other arguments to the constant.
        rounding: as of a module, of the size of the output.
        instead: as of a module.
        cause: as of a module; of several branches, what is done with them.
    """

    bound: Callable[..., float | Entries]
    gain: Callable[..., float] | None = None
    rounding: float | None = None
    instead: str = _LAYER
    cause: str = _LARGEST


def find_rule(module: nn.Module) -> ModuleRule | None:
    """Return the row of the class whose forward method the module runs, if there is one."""
    for kind in type(module).__mro__:
        if kind in MODULES:
            same = type(module).forward is kind.forward and "forward" not in vars(module)
            return MODULES[kind] if same else None
    return None


def describes(target: object, arguments: tuple[Any, ...]) -> bool:
    """Return whether a call only asks for a shape or type, which no perturbation changes."""
    if target is getattr:
        return arguments[1] in ("shape", "ndim", "dtype", "device")
    return target in ("size", "dim", "numel")


def bound_call(
    target: object, arguments: tuple[Any, ...], options: dict[str, Any], y: Any
) -> float | Entries:
    """Bound the map from the network's input to the result y of a call, or name its entries.

    Args:
        target: the function, or the name of the tensor method.
        arguments: positional arguments, of which the dependent ones are `Bounded`.
        options: keyword arguments, likewise.
        y: the result of the call.

    Raises:
        UnknownLipschitz: there is no rule, or it does not cover these arguments.
    """
    if target not in FUNCTIONS:
        raise UnknownLipschitz("it has no rule")
    try:
        return FUNCTIONS[target].bound(y, *arguments, **options)
    except TypeError as error:
        raise UnknownLipschitz("its rule does not cover these arguments") from error


def _of_one(
    gain: Callable[..., float],
    rounding: float | None = None,
    instead: str = _LAYER,
    cause: str = _LARGEST,
) -> FunctionRule:
    """Make the row of a function whose first argument alone may depend on the input."""

    def bound(y: Any, x: Any, *others: Any, **options: Any) -> float:
        _check_of_one(y, x, *others, **options)
        return gains.times(x.bound, gain(x.value, *others, **options))

    return FunctionRule(bound, gain, rounding, instead, cause)


def _moving(target: Any) -> FunctionRule:
    """Make the row of a function of one tensor, or list, that only moves, drops or repeats."""

    def bound(y: Any, x: Any, *others: Any, **options: Any) -> Entries:
        _check_of_one(y, x, *others, **options)
        if target is operator.getitem and isinstance(x.value, Tensor):
            _check_index(*others)
        if isinstance(target, str):
            places = getattr(x.entries.places, target)(*others, **options)
        else:
            places = target(x.entries.places, *others, **options)
        return moved(x.entries, places, y)

    return FunctionRule(bound, gains.one, rounding=0, cause="entries are repeated")


def _check_index(index: Any) -> None:
    parts = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(part, int | slice) or part is None or part is ... for part in parts):
        raise UnknownLipschitz("indexing by a list or tensor has no rule")


def _check_of_one(y: Any, x: Any, *others: Any, **options: Any) -> None:
    if not isinstance(x, Bounded) or any(map(_depends, [*others, *options.values()])):
        raise UnknownLipschitz("only its first argument may depend on the image")
    other_type = isinstance(y, Tensor) and isinstance(x.value, Tensor) and y.dtype != x.value.dtype
    if "out" in options or other_type:
        raise UnknownLipschitz("its rule does not cover other types of numbers, or out=")


def _depends(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_depends, value))
    return isinstance(value, Bounded)


def _terms(y: Tensor, a: Any, b: Any) -> list[float]:
    dependent = [term for term in (a, b) if isinstance(term, Bounded)]
    for term in dependent:
        gains.check_same_shape(term.value, y)
    return [term.bound for term in dependent]


def _product(y: Tensor, a: Any, b: Any) -> float:
    if isinstance(a, Bounded) and isinstance(b, Bounded):
        raise UnknownLipschitz(
            "a product of two maps of the image has no constant",
            "no gates (squeeze and excitation, attention): their product grows without limit",
        )
    x, factor = (a, b) if isinstance(a, Bounded) else (b, a)
    return gains.times(x.bound, gains.scale(factor, x.value, y))


def _quotient(y: Tensor, a: Any, b: Any) -> float:
    if isinstance(b, Bounded):
        raise UnknownLipschitz(
            "dividing by a map of the image has no constant",
            "no normalisation by the picture's own statistics",
        )
    return gains.times(a.bound, gains.divide(b, a.value, y))


def _extreme(
    which: int, y: Any, x: Any, dim: Any = None, keepdim: bool = False, other: Any = None
) -> float | Entries:
    """Bound the first or the last of what is sorted: pairs of two tensors, or along an axis."""
    other = dim if isinstance(dim, Bounded | Tensor) else other
    if other is not None:
        return _of_pairs(which, y, x, other)
    ordered = _ordered(x, dim)
    places = ordered.places.select(dim, which)
    places = places.unsqueeze(dim) if keepdim else places
    return moved(ordered, places if isinstance(y, Tensor) else (places, None), y)


def _of_pairs(which: int, y: Tensor, a: Any, b: Any) -> float | Entries:
    """Bound one half of sorted pairs; both halves together move at most as far as a and b do.

    Beside a constant, an entry moves by at most as much as its own.
    """
    bounds = _terms(y, a, b)
    if len(bounds) == 1:
        return bounds[0]
    name = "pairs", frozenset((a.entries.name, b.entries.name))
    pairs = all_of(name, joint_bound((a.entries, b.entries)), [y, y])
    return moved(pairs, pairs.places[which], y)


def _sorted(
    y: Any, x: Any, dim: int = -1, descending: bool = False, stable: bool = False
) -> Entries:
    """Bound sorting along an axis, and the positions that come with it."""
    ordered = _ordered(x, dim)
    places = ordered.places.flip(dim) if descending else ordered.places
    return moved(ordered, (places, None), y)


def _ordered(x: Any, dim: int | None) -> Entries:
    """Return all of a tensor as it is when sorted upwards along an axis: of constant 1.

    Sorted alike, two lines are as near to each other as any pairing of their entries (theory §2.2).

    Raises:
        UnknownLipschitz: it is over all axes or the first, and mixes the images of a batch.
    """
    axis = None if dim is None else dim % x.value.ndim
    if not axis:
        raise UnknownLipschitz("comparing along the batch mixes images; name another axis")
    return all_of(("sorted", x.entries.name, axis), x.bound, x.value)


def _concatenation(y: Tensor, tensors: Any, dim: int = 0) -> float:
    if isinstance(tensors, Bounded):
        return tensors.bound
    return joint_bound(part.entries for part in tensors if isinstance(part, Bounded))


def _attribute(y: Any, x: Any, name: str) -> Entries:
    """Return the values or the positions of what was compared or sorted."""
    if name not in ("values", "indices"):
        raise UnknownLipschitz("it has no rule")
    return moved(x.entries, x.entries.places[name == "indices"], y)


def _comparing(bound: Callable[..., float | Entries]) -> FunctionRule:
    return FunctionRule(bound, rounding=0, cause="branches are compared")


def _spellings(*names: str) -> list[object]:
    """Return the names, for methods, and the functions of torch that have them."""
    places = torch, functional, operator
    functions = [getattr(place, name) for name in names for place in places if hasattr(place, name)]
    return [*names, *functions]


_MOVING = (
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "movedim", "squeeze"),
    *("unsqueeze", "contiguous", "clone", "flip", "roll", "pixel_shuffle", "pixel_unshuffle"),
    *("channel_shuffle", "narrow", "select", "chunk", "split", "unbind", "expand"),
)
_CONTRACTING = ("relu", "relu6", "hardtanh", "abs", "neg")
_RESIZE = "pixel_shuffle, which repeats no pixel: norm 1"
_ADD = FunctionRule(
    lambda y, a, b: sum(_terms(y, a, b)),
    rounding=1,
    instead="SLLBlock: a residual block of norm 1; or the branches' mean",
    cause="branches are added up",
)
_CONVOLUTION = "AOLConv2d or BCOPConv2d: norm 1 by construction"
_MATRIX = "OrthogonalConv1x1 on a 1×1 map: norm 1 by construction"
_KERNEL = "norm of its kernel"
_SMOOTH = "MaxMin, ReLU or Softplus: norm 1"
_CONSTANT = "a constant of at most 1"
_JOIN = FunctionRule(
    _concatenation,
    instead="bounds of each output alone; or branches scaled by √share",
    cause="branches are joined",
)

FUNCTIONS: dict[object, FunctionRule] = {
    **{target: _moving(target) for target in (*_spellings(*_MOVING), operator.getitem)},
    **dict.fromkeys(_spellings(*_CONTRACTING), _of_one(gains.one, rounding=0)),
    **dict.fromkeys(_spellings("tanh"), _of_one(gains.one)),
    **dict.fromkeys(_spellings("clamp", "clip"), _of_one(gains.clamp)),
    **dict.fromkeys(_spellings("sigmoid"), _of_one(gains.sigmoid)),
    **dict.fromkeys(_spellings("softmax"), _of_one(gains.softmax)),
    **dict.fromkeys(
        _spellings("leaky_relu"),
        _of_one(gains.leaky_relu, instead="MaxMin: norm 1, and it keeps gradients"),
    ),
    functional.gelu: _of_one(gains.gelu, instead=_SMOOTH),
    functional.silu: _of_one(gains.silu, instead=_SMOOTH),
    functional.mish: _of_one(gains.mish, instead=_SMOOTH),
    functional.hardswish: _of_one(gains.hardswish, instead=_SMOOTH),
    functional.elu: _of_one(gains.elu, instead="ELU with an alpha of at most 1"),
    **dict.fromkeys(_spellings("prelu"), _of_one(gains.prelu, instead=_SMOOTH)),
    functional.softplus: _of_one(gains.softplus),
    **dict.fromkeys(_spellings("mean"), _of_one(gains.mean)),
    functional.adaptive_avg_pool2d: _of_one(gains.adaptive_avg_pool),
    functional.dropout: _of_one(gains.dropout, rounding=0),
    functional.pad: _of_one(gains.pad, rounding=0, instead="ZeroPad2d"),
    functional.max_pool2d: _of_one(
        gains.max_pool,
        rounding=0,
        instead="DisjointMaxPool2d (stride = kernel size), or SpaceToDepth: norm 1",
    ),
    functional.avg_pool2d: _of_one(gains.avg_pool, instead="ScaledAvgPool2d: norm 1"),
    functional.interpolate: _of_one(gains.interpolate, instead=_RESIZE),
    **dict.fromkeys(_spellings("add", "sub"), _ADD),
    **dict.fromkeys(_spellings("mul"), FunctionRule(_product, rounding=1, instead=_CONSTANT)),
    **dict.fromkeys(_spellings("div", "truediv"), FunctionRule(_quotient, instead=_CONSTANT)),
    **dict.fromkeys(_spellings("max", "maximum", "amax"), _comparing(partial(_extreme, -1))),
    **dict.fromkeys(_spellings("min", "minimum", "amin"), _comparing(partial(_extreme, 0))),
    **dict.fromkeys(_spellings("sort"), _comparing(_sorted)),
    getattr: FunctionRule(_attribute, rounding=0),
    functional.conv2d: _of_one(gains.conv2d, instead=_CONVOLUTION, cause=_KERNEL),
    functional.conv_transpose2d: _of_one(gains.conv_transpose2d, cause=_KERNEL),
    functional.linear: _of_one(gains.linear, instead=_MATRIX, cause="norm of its matrix"),
    **dict.fromkeys((torch.cat, torch.stack), _JOIN),
}


def _calling(
    function: Callable[..., Any],
    *attributes: str,
    cause: str | Callable[[Any], str] = _LARGEST,
    **options: Any,
) -> ModuleRule:
    """Make the row of a module that calls a function with some of its attributes."""
    row = FUNCTIONS[function]
    gain = row.gain
    assert gain is not None

    def arguments(module: nn.Module) -> list[Any]:
        return [getattr(module, name) for name in attributes]

    return ModuleRule(
        lambda module, x, y: gain(x, *arguments(module), **options),
        lambda module, x: function(x, *arguments(module), **options),
        row.rounding,
        row.instead,
        cause,
    )


def _own(kind: type[nn.Module], rounding: float | None = None) -> ModuleRule:
    """Make the row of a layer of this package that has constant 1: what its own class computes."""
    return ModuleRule(lambda module, x, y: 1.0, kind.forward, rounding)


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


def _residual(block: FoldedResidual, x: Tensor) -> Tensor:
    inner, outer = block.inner, block.outer
    padding = inner.weight.shape[-1] // 2
    hidden = functional.conv2d(x, inner.weight, inner.bias, padding=padding).relu()
    return x - functional.conv2d(hidden, outer.weight, padding=padding)


def _windows(pool: nn.MaxPool2d | nn.AvgPool2d) -> str:
    window, step = as_pair(pool.kernel_size), as_pair(pool.stride)
    overlap = "overlap" if window[0] > step[0] or window[1] > step[1] else "do not overlap"
    return f"{window[0]}×{window[1]} windows at stride {step[0]} {overlap}"


def _largest_factor(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> str:
    return f"BatchNorm scales by up to {gains.batch_norm_factors(norm).abs().max():.3g}"


_BATCH_NORM = ModuleRule(
    lambda norm, x, y: gains.batch_norm_gain(norm),
    _batch_norm,
    instead="none: 1-Lipschitz layers keep a signal's size (layers.gain_profile)",
    cause=_largest_factor,
)
_DROPOUT = ModuleRule(
    lambda layer, x, y: gains.dropout(x, training=layer.training), lambda layer, x: x, rounding=0
)

MODULES: dict[type[nn.Module], ModuleRule] = {
    nn.Conv2d: ModuleRule(gains.conv_gain, _conv, instead=_CONVOLUTION),
    nn.ConvTranspose2d: _calling(
        functional.conv_transpose2d,
        *("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    ),
    nn.Linear: _calling(functional.linear, "weight", "bias"),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), _BATCH_NORM),
    nn.Identity: ModuleRule(lambda layer, x, y: 1.0, lambda layer, x: x, rounding=0),
    **dict.fromkeys((nn.Dropout, nn.Dropout2d), _DROPOUT),
    nn.MaxPool2d: _calling(
        functional.max_pool2d,
        *("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
        cause=_windows,
    ),
    nn.AvgPool2d: _calling(
        functional.avg_pool2d,
        *("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
        "divisor_override",
        cause=_windows,
    ),
    nn.Upsample: _calling(
        functional.interpolate,
        *("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor"),
    ),
    nn.ReLU: _calling(functional.relu),
    nn.LeakyReLU: _calling(functional.leaky_relu, "negative_slope"),
    nn.Sigmoid: _calling(torch.sigmoid),
    nn.GELU: ModuleRule(
        lambda layer, x, y: gains.gelu(x, layer.approximate),
        lambda layer, x: functional.gelu(x, approximate=layer.approximate),
        instead=_SMOOTH,
    ),
    nn.SiLU: _calling(functional.silu, cause="slope of up to 1.1"),
    nn.Mish: _calling(functional.mish),
    nn.Hardswish: _calling(functional.hardswish),
    nn.ELU: _calling(functional.elu, "alpha"),
    nn.PReLU: _calling(functional.prelu, "weight"),
    nn.Softplus: _calling(functional.softplus, "beta", "threshold"),
    nn.AdaptiveAvgPool2d: _calling(functional.adaptive_avg_pool2d, "output_size"),
    nn.Softmax: _calling(functional.softmax, "dim"),
    nn.Tanh: _calling(torch.tanh),
    **dict.fromkeys((nn.ReLU6, nn.Hardtanh), _calling(functional.hardtanh, "min_val", "max_val")),
    nn.Flatten: _calling(torch.flatten, "start_dim", "end_dim"),
    nn.Unflatten: _calling(torch.unflatten, "dim", "unflattened_size"),
    nn.ZeroPad2d: ModuleRule(
        lambda layer, x, y: gains.pad(x, layer.padding),
        lambda layer, x: functional.pad(x, layer.padding, "constant", layer.value),
        rounding=0,
    ),
    nn.ReflectionPad2d: _calling(functional.pad, "padding", mode="reflect"),
    nn.ReplicationPad2d: _calling(functional.pad, "padding", mode="replicate"),
    nn.CircularPad2d: _calling(functional.pad, "padding", mode="circular"),
    nn.PixelShuffle: _calling(functional.pixel_shuffle, "upscale_factor"),
    nn.PixelUnshuffle: _calling(functional.pixel_unshuffle, "downscale_factor"),
    nn.ChannelShuffle: _calling(functional.channel_shuffle, "groups"),
    # A difference, and two sums of it with what it was made of.
    MaxMin: _own(MaxMin, rounding=4),
    Householder: _own(Householder),
    ScaledAvgPool2d: ModuleRule(
        lambda pool, x, y: gains.scaled_avg_pool(pool), ScaledAvgPool2d.forward
    ),
    **{kind: _own(kind, 0) for kind in (Abs, SpaceToDepth, ZeroPadChannels, DropChannels)},
    FoldedResidual: ModuleRule(
        lambda block, x, y: gains.residual_gain(block, x),
        _residual,
        instead="SLLBlock: norm 1 by construction",
    ),
}
