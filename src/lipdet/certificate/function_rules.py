"""Lipschitz constants of functions, operators and tensor methods in a traced graph.

A rule is found by the function itself or by the name of the method, so that a function of the
user's that only shares a name with one of torch's is unknown. Methods that only work in place have
no rule, and `inplace=True` changes none: nothing may read what was there before, which is proven
elsewhere.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lipdet.certificate import gains
from lipdet.certificate.operator_norm import UnknownLipschitz

Gain = Callable[..., float]


class Bounded:
    """A value that depends on the input: the value itself, and the bound of the map to it."""

    def __init__(self, value: Any, bound: float) -> None:
        self.value = value
        self.bound = bound


def describes(target: object, arguments: tuple[Any, ...]) -> bool:
    """Whether a call only asks for the shape or type of a tensor, which no perturbation changes."""
    if target is getattr:
        return arguments[1] in ("shape", "ndim", "dtype", "device")
    return target in ("size", "dim", "numel")


def bound_call(
    target: object, arguments: tuple[Any, ...], options: dict[str, Any], y: Any
) -> float:
    """Bound the map from the network's input to the result y of a call.

    Args:
        target: the function, or the name of the tensor method.
        arguments: positional arguments, of which the dependent ones are `Bounded`.
        options: keyword arguments, likewise.
        y: the result of the call.

    Raises:
        UnknownLipschitz: there is no rule, or it does not cover these arguments.
    """
    if target not in _COMBINATIONS and target not in _GAINS:
        raise UnknownLipschitz("it has no rule")
    try:
        if target in _COMBINATIONS:
            return _COMBINATIONS[target](y, *arguments, **options)
        return _gain_times_bound(_GAINS[target], y, *arguments, **options)
    except TypeError as error:
        raise UnknownLipschitz("its rule does not cover these arguments") from error


def _gain_times_bound(gain: Gain, y: Any, x: Any, *others: Any, **options: Any) -> float:
    if not isinstance(x, Bounded) or any(map(_depends, [*others, *options.values()])):
        raise UnknownLipschitz("only its first argument may depend on the image")
    if "out" in options or (isinstance(y, Tensor) and y.dtype != x.value.dtype):
        raise UnknownLipschitz("its rule does not cover other types of numbers, or out=")
    return gains.times(x.bound, gain(x.value, *others, **options))


def _terms(y: Tensor, a: Any, b: Any) -> list[float]:
    dependent = [term for term in (a, b) if isinstance(term, Bounded)]
    for term in dependent:
        gains.check_same_shape(term.value, y)
    return [term.bound for term in dependent]


def _sum(y: Tensor, a: Any, b: Any) -> float:
    return sum(_terms(y, a, b))


def _product(y: Tensor, a: Any, b: Any) -> float:
    if isinstance(a, Bounded) and isinstance(b, Bounded):
        raise UnknownLipschitz("a product of two maps of the image has no constant")
    x, factor = (a, b) if isinstance(a, Bounded) else (b, a)
    return gains.times(x.bound, gains.scale(factor, x.value, y))


def _quotient(y: Tensor, a: Any, b: Any) -> float:
    if isinstance(b, Bounded):
        raise UnknownLipschitz("dividing by a map of the image has no constant")
    return gains.times(a.bound, gains.scale(1 / gains.as_double(b), a.value, y))


def _larger_or_smaller(y: Tensor, a: Any, b: Any) -> float:
    """Each entry moves by at most the larger of two moves."""
    return math.hypot(*_terms(y, a, b))


def _concatenation(y: Tensor, tensors: Any, dim: int = 0) -> float:
    if isinstance(tensors, Bounded):
        return tensors.bound
    return math.hypot(*(part.bound for part in tensors if isinstance(part, Bounded)))


def _item(y: Any, x: Any, index: Any) -> float:
    """Bound a part of a list, or of a tensor by an index without repeats, like the whole."""
    parts = index if isinstance(index, tuple) else (index,)
    if isinstance(x.value, Tensor) and not all(
        isinstance(part, int | slice) or part is None or part is ... for part in parts
    ):
        raise UnknownLipschitz("indexing by a list or tensor may repeat entries")
    return float(x.bound)


def _depends(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_depends, value))
    return isinstance(value, Bounded)


def _spellings(*names: str) -> list[object]:
    """Return the names, for methods, and the functions of torch that have them."""
    places = torch, functional, operator
    functions = [getattr(place, name) for name in names for place in places if hasattr(place, name)]
    return [*names, *functions]


_ISOMETRIES = (
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "movedim", "squeeze"),
    *("unsqueeze", "contiguous", "clone", "flip", "roll", "pixel_shuffle", "pixel_unshuffle"),
    *("channel_shuffle", "narrow", "select", "chunk", "split", "unbind"),
)
_SLOPES_TO_ONE = ("relu", "relu6", "hardtanh", "tanh", "abs", "neg")

_GAINS: dict[object, Gain] = {
    **dict.fromkeys(_spellings(*_ISOMETRIES, *_SLOPES_TO_ONE), gains.one),
    **dict.fromkeys(_spellings("clamp", "clip"), gains.clamp),
    **dict.fromkeys(_spellings("sigmoid"), gains.sigmoid),
    **dict.fromkeys(_spellings("softmax"), gains.softmax),
    **dict.fromkeys(_spellings("leaky_relu"), gains.leaky_relu),
    functional.dropout: gains.dropout,
    functional.pad: gains.pad,
    functional.max_pool2d: gains.max_pool,
    functional.avg_pool2d: gains.avg_pool,
    functional.interpolate: gains.interpolate,
}

_COMBINATIONS: dict[object, Callable[..., float]] = {
    **dict.fromkeys(_spellings("add", "sub"), _sum),
    **dict.fromkeys(_spellings("mul"), _product),
    **dict.fromkeys(_spellings("div", "truediv"), _quotient),
    **dict.fromkeys(_spellings("maximum", "minimum"), _larger_or_smaller),
    torch.cat: _concatenation,
    torch.stack: _concatenation,
    operator.getitem: _item,
}
