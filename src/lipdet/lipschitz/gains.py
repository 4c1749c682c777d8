"""Lipschitz constants of single operations: upper bounds in the L2 norm (theory §2).

Those without weights take the input (1, ...) of the operation and then its own arguments, as the
function of `torch.nn.functional` takes them. All raise UnknownLipschitz for arguments and weights
that their constant does not cover; the message says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipdet.errors import UnknownLipschitz
from lipdet.layers import FoldedResidual, ScaledAvgPool2d
from lipdet.norms import SLACK, TINY, circular_conv_norm, conv_norm, matrix_norm, real

Size = int | Sequence[int]
# Pooling and interpolation weights are applied as float32 numbers.
_FLOAT32_SLACK = 1.0 + 1e-6
_CALL_EVAL = "call eval() first"


def one(x: Tensor, *_: object, **__: object) -> float:
    """Bound what moves, drops or reflects entries, or has slopes of at most 1: constant 1."""
    return 1.0


def leaky_relu(x: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> float:
    """Bound by the larger slope."""
    slopes = _as_used(as_double(negative_slope), x.dtype)
    largest = max(float(slope.abs()) for slope in slopes)
    if not math.isfinite(largest):
        raise UnknownLipschitz("its slope is not finite")
    return max(1.0, largest)


def clamp(x: Tensor, min: object = None, max: object = None) -> float:
    """Bound clamping between numbers."""
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        raise UnknownLipschitz("clamping to tensors has no rule")
    return 1.0


def sigmoid(x: Tensor) -> float:
    """Return the largest slope, at 0."""
    return 0.25


def gelu(x: Tensor, approximate: str = "none") -> float:
    """Bound the slope Φ(x) + xφ(x), largest at √2 since its derivative is (2 − x²)φ(x): 1.12891.

    That of the approximation by tanh ends at 1.12900 (docs/theory.md, section 3.1).
    """
    return 1.129 if approximate == "none" else 1.1291


def silu(x: Tensor) -> float:
    """Bound the slope σ(x)(1 + x(1 − σ(x))), which ends at 1.09984 (docs/theory.md, §3.1)."""
    return 1.0999


def mish(x: Tensor) -> float:
    """Bound the slope of x·tanh(softplus(x)), which ends at 1.08850 (docs/theory.md, §3.1)."""
    return 1.0886


def hardswish(x: Tensor) -> float:
    """Bound the slope (2x + 3)/6 between −3 and 3, largest at its end."""
    return 1.5


def elu(x: Tensor, alpha: float = 1.0) -> float:
    """Bound the slopes 1 and α·exp(x), x ≤ 0."""
    return leaky_relu(x, alpha)


def prelu(x: Tensor, weight: Tensor) -> float:
    """Bound by the larger slope of any channel."""
    return max(1.0, _largest(_as_used(real(weight.detach()).double(), x.dtype)))


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> float:
    """Bound the slope σ(βx) ≤ 1, in the precision of x."""
    # At the threshold the function jumps down to the identity, which must be less than rounding.
    jump, unit = math.exp(-threshold), torch.finfo(x.dtype).eps
    if not (beta > 0 and threshold >= 20 and jump <= threshold * unit):
        raise UnknownLipschitz(
            "softplus needs a positive beta and a threshold of at least 20, in float64 of 33"
        )
    return 1.0


def mean(x: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> float:
    """Return the norm 1/√n of a mean of n numbers each."""
    axes = () if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    if not axes or 0 in {axis % x.ndim for axis in axes}:
        raise UnknownLipschitz("a mean over the batch mixes images; name the other axes")
    return _FLOAT32_SLACK / math.sqrt(math.prod(x.shape[axis] for axis in axes))


def adaptive_avg_pool(x: Tensor, output_size: Any) -> float:
    """Return the norm of adaptive average pooling, of which each axis is a matrix of its own.

    The windows of each axis depend on the size of the input, which is known here.
    """
    sizes = output_size if isinstance(output_size, list | tuple) else (output_size,) * 2

    def along(axis: int) -> Callable[[Tensor], Tensor]:
        size = x.shape[axis - 2] if sizes[axis] is None else sizes[axis]
        return lambda lines: functional.adaptive_avg_pool1d(lines, size)

    return _separable_norm(x, along)


def softmax(x: Tensor, *_: object, **__: object) -> float:
    """Bound the Jacobian diag(p) − ppᵀ: Gershgorin's rows are p(1 − p) + p·Σ others ≤ 1/2."""
    return 0.5


def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> float:
    """Bound dropout in eval mode, an identity."""
    if training:
        raise UnknownLipschitz("it is in training mode; call eval() first", _CALL_EVAL)
    return 1.0


def pad(x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> float:
    """Return the norm of padding or cropping: 1 with a constant, more where pixels are repeated.

    The other modes pad one axis after the other, so the map is a Kronecker product.
    """
    if mode == "constant":
        return 1.0
    if mode == "circular":
        _check_no_cropping(pad)
    if x.ndim != 4 or len(pad) != 4:
        raise UnknownLipschitz(f'padding mode "{mode}" has a rule for height and width only')

    def along(axis: int) -> Callable[[Tensor], Tensor]:
        sides = list(pad[:2] if axis else pad[2:])
        return lambda lines: functional.pad(lines, sides, mode)

    return _separable_norm(x, along)


def _check_no_cropping(sides: Sequence[int]) -> None:
    """Refuse wrapping by negative amounts, for which torch returns uninitialised memory."""
    if min(sides) < 0:
        raise UnknownLipschitz('cropping by padding mode "circular" has no rule')


def max_pool(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> float:
    """Bound max pooling by √(⌈k1/s1⌉⌈k2/s2⌉), and by 1 where windows do not overlap.

    An output moves by at most the largest move in its window, hence the sum of squares by at most
    the number of windows that hold an entry, ⌈k/s⌉ per axis whatever the padding: windows start s
    apart. 3×3 windows at stride 2 attain 2.
    """
    if as_pair(dilation) != (1, 1) or return_indices:
        raise UnknownLipschitz("max pooling with dilation or return_indices has no rule")
    window = as_pair(kernel_size)
    steps = as_pair(stride) if stride else window
    return math.sqrt(math.prod(math.ceil(k / s) for k, s in zip(window, steps, strict=True)))


def scaled_avg_pool(pool: ScaledAvgPool2d) -> float:
    """Return the norm of means of disjoint windows times √(k1 k2), which have orthonormal rows."""
    window = pool.kernel_size
    if type(window) is not tuple or [type(side) for side in window] != [int, int]:
        raise UnknownLipschitz("its kernel_size must be a tuple of two numbers")
    return 1.0


def avg_pool(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> float:
    """Return the norm of average pooling at this image size: the product of those of the two axes.

    The divisor is a product over the axes too, so the map is a Kronecker product. 1/√(k1 k2) for
    stride = kernel_size without padding; above 1 where border windows are divided by fewer pixels.
    """
    if divisor_override is not None:
        raise UnknownLipschitz("average pooling with divisor_override has no rule")
    window, pads = as_pair(kernel_size), as_pair(padding)
    steps = as_pair(stride) if stride else window

    def along(axis: int) -> Callable[[Tensor], Tensor]:
        arguments = window[axis], steps[axis], pads[axis], ceil_mode, count_include_pad
        return lambda lines: functional.avg_pool1d(lines, *arguments)

    return _separable_norm(x, along)


def interpolate(
    x: Tensor,
    size: Size | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> float:
    """Return the norm of nearest or bilinear resizing at this image size, axis by axis.

    Nearest up-sampling by an integer s × s repeats each pixel s² times and has norm s.
    """
    modes = {"nearest": "nearest", "nearest-exact": "nearest-exact", "bilinear": "linear"}
    if mode not in modes or antialias or recompute_scale_factor or x.ndim != 4:
        raise UnknownLipschitz(f'resizing in mode "{mode}" with these options has no rule')

    def along(axis: int) -> Callable[[Tensor], Tensor]:
        return lambda lines: functional.interpolate(
            lines,
            _of_axis(size, axis),
            _of_axis(scale_factor, axis),
            mode=modes[mode],
            align_corners=align_corners,
        )

    return _separable_norm(x, along)


def _separable_norm(x: Tensor, along: Callable[[int], Callable[[Tensor], Tensor]]) -> float:
    """Multiply the norms of a linear map along the two last axes of x, each by its dense matrix."""
    norm = _FLOAT32_SLACK
    for axis, length in enumerate(x.shape[-2:]):
        lines = torch.eye(length, dtype=x.dtype, device=x.device).unsqueeze(1)
        norm *= matrix_norm(along(axis)(lines).squeeze(1))
    return norm


def conv_gain(conv: nn.Conv2d, x: Tensor, y: Tensor, factors: Tensor | None = None) -> float:
    """Bound a convolution x ↦ y, its output channels multiplied by `factors` (c_out,) if given."""
    kernel = real(conv.weight.detach()).double()
    if factors is not None:
        if vanishes(kernel, factors):
            return times(conv_gain(conv, x, y), float(factors.abs().max()) * SLACK)
        kernel = kernel * factors[:, None, None, None]
    stride, dilation = as_pair(conv.stride), as_pair(conv.dilation)
    size = as_pair(x.shape[-2:])
    if conv.padding_mode == "zeros":
        return conv_norm(kernel, stride, dilation, conv.groups, size)
    if conv.padding_mode == "circular":
        _check_no_cropping(conv._reversed_padding_repeated_twice)
        output = as_pair(y.shape[-2:])
        return circular_conv_norm(kernel, stride, dilation, conv.groups, size, output)
    # The amounts that nn.Conv2d itself hands to functional.pad.
    sides = conv._reversed_padding_repeated_twice
    padded = size[0] + sides[2] + sides[3], size[1] + sides[0] + sides[1]
    unpadded_norm = conv_norm(kernel, stride, dilation, conv.groups, padded)
    return pad(x, sides, conv.padding_mode) * unpadded_norm


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> float:
    """Bound a convolution by a constant kernel, with zero padding of any width."""
    return conv_norm(weight, as_pair(stride), as_pair(dilation), groups, as_pair(x.shape[-2:]))


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> float:
    """Bound the transpose of a convolution of its outputs, or of some rows of one."""
    arguments = (x, weight, None, stride, padding, output_padding, groups, dilation)
    size = functional.conv_transpose2d(*arguments).shape[-2:]
    return conv_norm(weight, as_pair(stride), as_pair(dilation), groups, as_pair(size))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> float:
    """Return the norm of a constant matrix."""
    return matrix_norm(weight)


def batch_norm_gain(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> float:
    """Return the largest factor of a BatchNorm in eval mode."""
    largest = float(batch_norm_factors(norm).abs().max())
    if not math.isfinite(largest):
        raise UnknownLipschitz("its factors are not finite")
    return largest * SLACK


def batch_norm_factors(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> Tensor:
    """Return γ / √(σ² + eps) (channels,) in float64 of a BatchNorm in eval mode."""
    if uses_batch_statistics(norm):
        raise UnknownLipschitz("it uses batch statistics; call eval() first", _CALL_EVAL)
    assert norm.running_var is not None
    factors = (norm.running_var.double() + norm.eps).rsqrt()
    # Torch does so whatever `affine` says.
    return factors if norm.weight is None else factors * real(norm.weight.detach()).double()


def vanishes(kernel: Tensor, factors: Tensor) -> bool:
    """Return whether a weight times the factor of its output may be lost below float64's range."""
    products = (kernel * factors[:, None, None, None]).abs()
    nonzero = (kernel != 0) & (factors != 0)[:, None, None, None]
    return bool((nonzero & (products < TINY)).any())


def uses_batch_statistics(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> bool:
    """Return whether a BatchNorm mixes the images of a batch."""
    return norm.training or norm.running_var is None


def residual_gain(block: FoldedResidual, x: Tensor) -> float:
    """Bound x − 2 Vᵀ relu(V x + b) by max(1, 2‖V‖² − 1), with the norm of V recomputed.

    The Jacobian I − 2 VᵀDV, 0 ≤ D ≤ 1, is symmetric with eigenvalues in [1 − 2‖V‖², 1]
    (Meunier et al. 2022; Araujo et al. 2023).
    """
    kernel = block.inner.weight.detach()
    if kernel.shape[-1] != kernel.shape[-2] or kernel.shape[-1] % 2 == 0:
        raise UnknownLipschitz("its padding keeps the size for square kernels of odd sides only")
    if not torch.equal(block.outer.weight, 2 * kernel.flip(2, 3).transpose(0, 1)):
        raise UnknownLipschitz("its second kernel is not twice the transpose of its first")
    return max(1.0, 2 * conv_norm(kernel, image_size=as_pair(x.shape[-2:])) ** 2 - 1)


def scale(factor: object, x: Tensor, y: Tensor) -> float:
    """Bound a product y of x and a constant number or tensor, of which x has the full shape."""
    check_same_shape(x, y)
    return _largest(_as_used(as_double(factor), x.dtype))


def divide(divisor: object, x: Tensor, y: Tensor) -> float:
    """Bound a quotient y of x, which has the full shape, and a constant number or tensor."""
    check_same_shape(x, y)
    inverse = [1 / used for used in _as_used(as_double(divisor), x.dtype)]
    return _largest([used for one in inverse for used in _as_used(one, x.dtype)])


def _as_used(factor: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return a factor in all types that torch may round it to, up or down: those of operands.

    Half precision is computed in float32.
    """
    computed = torch.float32 if dtype.itemsize < torch.float32.itemsize else dtype
    return [factor, *(factor.to(one).double() for one in {dtype, computed})]


def _largest(factors: list[Tensor]) -> float:
    largest = max(float(one.abs().max()) for one in factors)
    if not math.isfinite(largest):
        raise UnknownLipschitz("a factor is not finite")
    return largest * SLACK


def as_double(factor: object) -> Tensor:
    """Return a number or a tensor in float64, exactly."""
    if isinstance(factor, complex):
        raise UnknownLipschitz("complex numbers have no rule")
    if isinstance(factor, Tensor):
        return real(factor).double()
    return torch.as_tensor(factor, dtype=torch.float64)


def times(bound: float, gain: float) -> float:
    """Multiply two bounds; what would vanish in float64 becomes a larger number that does not."""
    product = bound * gain
    return max(product, TINY) if bound and gain else product


def check_same_shape(x: object, y: object) -> None:
    """Refuse broadcasting of an input x to the shape of an output y."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise UnknownLipschitz("joining or repeating lists of tensors may repeat entries")
    if x.shape != y.shape:
        raise UnknownLipschitz(f"broadcasting {tuple(x.shape)} to {tuple(y.shape)} repeats entries")


def as_pair(value: Size) -> tuple[int, int]:
    """Return (height, width) for a number or a sequence of one or two."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values[0], values[-1]


def _of_axis(value: Any, axis: int) -> Any:
    return value[axis] if isinstance(value, Sequence) else value
