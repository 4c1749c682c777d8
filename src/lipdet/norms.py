"""Upper bounds on the spectral norms of matrices and convolutions, in float64.

The bounded operator is the one of real arithmetic with the weights exactly as stored; the rounding
of a float32 forward pass is no part of it (theory §5 adds that at the outputs).

Notable choices:
- A stride is turned into channels (polyphase form: the kernel's space-to-depth), which is exact.
- With a known image size n and zero padding, the frequency response is taken on a grid of at least
  n + d(k − 1) points: the padded convolution is then rows and columns of a circular one on that
  grid. This is below the norm on an endless image, hence below every size-free bound. Only where
  the size is unknown or the grid too costly do the size-free ones come in.
- Every bound is multiplied by 1 + 1e-9. Float64 sums of up to 1e6 terms, transforms and
  eigenvalues are off by less than 1e-10 of the largest singular value. Kernels are divided by their
  largest entry first, so that nothing overflows or vanishes, and no bound is smaller than 1e-300.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from lipdet.errors import UnknownLipschitz

Pair = tuple[int, int]

SLACK = 1.0 + 1e-9
# No bound is smaller but 0: products round down, or to 0, below 2e-308.
TINY = 1e-300
# About eight seconds of one core.
_MOST_EIGEN_WORK = 5e9
# How much a norm's square may be overestimated to spare its eigenvalues.
_CLOSE = 1 + 1e-6
# 64 MiB.
_MOST_GRAM_ENTRIES = 2**23


def matrix_norm(matrix: Tensor) -> float:
    """Bound the largest singular value of a (m, n) matrix: SVD in float64 with slack.

    Raises:
        UnknownLipschitz: an entry is not finite.
    """
    matrix, scale = _rescaled(matrix)
    return _grown(float(torch.linalg.matrix_norm(matrix, 2)), scale) if scale else 0.0


def conv_norm(
    kernel: Tensor,
    stride: Pair = (1, 1),
    dilation: Pair = (1, 1),
    groups: int = 1,
    image_size: Pair | None = None,
) -> float:
    """Bound the norm of a 2-D convolution with zero padding, of any width, or none.

    Args:
        kernel: (c_out, c_in / groups, k1, k2).
        stride: steps between patches.
        dilation: steps between taps.
        groups: the norm is the *maximum* over the groups, which act on disjoint channels.
        image_size: (height, width) of the input. None gives a bound for every size, at most 1 %
            above the norm on an endless image.

    Raises:
        UnknownLipschitz: a weight is not finite.
    """
    kernel, scale = _rescaled(kernel)
    if not scale:
        return 0.0
    kernel = _by_group(kernel, groups)
    if image_size is not None:
        axes = zip(image_size, kernel.shape[-2:], stride, dilation, strict=True)
        cells = [math.ceil((n + d * (taps - 1)) / s) for n, taps, s, d in axes]
        phases = _polyphase(kernel, stride, dilation)
        if _eigen_work(phases, cells) <= _MOST_EIGEN_WORK:
            return _grown(_response_norm(phases, cells), scale)
    # On an endless grid a dilated kernel without stride acts on interleaved images separately.
    needed = [d if s > 1 else 1 for s, d in zip(stride, dilation, strict=True)]
    phases = _polyphase(kernel, stride, (needed[0], needed[1]))
    return max(min(gram_norm(phases, steps=4), sampled_norm(phases)) * scale, TINY)


def circular_conv_norm(
    kernel: Tensor,
    stride: Pair,
    dilation: Pair,
    groups: int,
    image_size: Pair,
    output_size: Pair,
) -> float:
    """Bound the norm of a convolution with circular padding, for one image size.

    Exact up to the slack where the stride divides the size and no output is computed twice. Where
    it does not divide it, the un-strided norm is used, since the patches next to the seam overlap
    more than others. Outputs that go around the image t times cost √t.

    Sizes are (height, width), that of the input before padding; the other arguments and what is
    raised are those of `conv_norm`.
    """
    kernel, scale = _rescaled(kernel)
    if not scale:
        return 0.0
    sizes = list(zip(image_size, output_size, stride, strict=True))
    steps = [s if n % s == 0 else 1 for n, _, s in sizes]
    laps = math.prod(math.ceil(outputs / math.ceil(n / s)) for n, outputs, s in sizes)
    phases = _polyphase(_by_group(kernel, groups), (steps[0], steps[1]), dilation)
    cells = [n // step for n, step in zip(image_size, steps, strict=True)]
    return _grown(_response_norm(phases, cells) * math.sqrt(laps), scale)


def gram_norm(kernel: Tensor, steps: int = 8) -> float:
    """Bound a stride-1 convolution on an endless image by spatial Gram iteration.

    Delattre et al. 2024: with G₁ = WᵀW and Gₜ₊₁ = GₜGₜ, each grown by *full* convolution,
    ‖W‖ = ‖Gₜ‖^(1/2ᵗ), and a Hermitian operator's norm is at most its largest row sum. The first
    step is the bound of AOL over all lags (Prach & Lampert 2022), exact for orthogonal kernels.
    The least of all steps is returned; the growth ends early at 2²³ entries.

    Args:
        kernel: ([groups,] c_out, c_in, k1, k2).
        steps: number of squarings, at least 1.
    """
    kernel, scale = _rescaled(kernel)
    if not scale:
        return 0.0
    if kernel.shape[-4] < kernel.shape[-3]:
        kernel = kernel.transpose(-4, -3).flip(-2, -1)
    kernel = _by_group(kernel) if kernel.ndim == 4 else kernel
    log_scale = kernel.new_zeros(len(kernel))
    best = math.inf
    for step in range(1, steps + 1):
        grown = [2 * size - 1 for size in kernel.shape[-2:]]
        if step > 1 and kernel[..., 0, 0].numel() * math.prod(grown) > _MOST_GRAM_ENTRIES:
            break
        response = torch.fft.rfft2(kernel, s=grown).permute(0, 3, 4, 1, 2)
        gram = torch.fft.irfft2((response.mH @ response).permute(0, 3, 4, 1, 2), s=grown)
        # The next step takes lags in their order, not wrapped around.
        kernel = torch.fft.fftshift(gram, dim=(-2, -1))
        row_sums = _row_sums(kernel).clamp_min(1e-200)
        kernel = kernel / row_sums[:, None, None, None, None]
        log_scale = 2 * log_scale + row_sums.log()
        best = min(best, math.exp(float(log_scale.max()) / 2**step))
    return _grown(best, scale)


def sampled_norm(kernel: Tensor) -> float:
    """Bound a stride-1 convolution on an endless image by samples of its frequency response.

    For a fixed u, p(θ) = ‖K(θ)u‖² is a trigonometric polynomial of degree d = k − 1 per axis with
    values in [0, M]. By M. Riesz's lemma p − M/2 stays above (M/2)·cos(dδ) at a distance δ ≤ π/d
    from its maximum, so p ≥ M·cos²(dδ/2) there, and a grid of N > d points has one at δ ≤ π/N: per
    axis ‖K‖ ≤ max over the grid / cos(πd / 2N). N = 16 d costs 1 % over both axes.

    Args:
        kernel: ([groups,] c_out, c_in, k1, k2).
    """
    kernel, scale = _rescaled(kernel)
    if not scale:
        return 0.0
    cells, between = _sampling(kernel, 16)
    kernel = _by_group(kernel) if kernel.ndim == 4 else kernel
    return _grown(_response_norm(kernel, cells) * between, scale)


def matrix_norm_bound(matrices: Tensor, squarings: int = 6) -> Tensor:
    """Bound the largest singular values of (..., m, n) matrices from above.

    Gram iteration (Delattre et al. 2023): with G = MMᴴ, ||M||² = ||G^(2^t)||₂^(1/2^t), bounded
    after t squarings by the smaller of the Frobenius norm (tight for one large singular value) and
    the largest row sum (tight for orthogonal rows). At most min(m, n)^(1/2^(t+2)) times the truth:
    1.02 for 64 rows and 6 squarings.
    """
    matrices = matrices.to(torch.promote_types(matrices.dtype, torch.float64))
    wide = matrices.shape[-2] <= matrices.shape[-1]
    gram = matrices @ matrices.mH if wide else matrices.mH @ matrices
    log_scale = gram.real.new_zeros(gram.shape[:-2])
    for _ in range(squarings):
        size = _hermitian_norm(gram)
        gram = gram / size[..., None, None]
        gram = gram @ gram
        log_scale = 2 * (log_scale + size.log())
    log_bound = log_scale + _hermitian_norm(gram).log()
    return (log_bound * 0.5 ** (squarings + 1)).exp() * SLACK


def conv_norm_bound(kernel: Tensor, oversampling: int = 4, squarings: int = 6) -> Tensor:
    """Bound the norm of a stride-1 convolution: zero or circular padding, every image size.

    The smaller of two bounds. The sum of the norms of the taps is tight where one tap dominates, as
    at the start of a training. The other is that of `sampled_norm`, with fewer samples and without
    an eigenvalue decomposition.

    Args:
        kernel: (c_out, c_in, k1, k2).
        oversampling: N / d, at least 2; 4 costs 1.17 over both axes, 16 costs 1.01.
        squarings: Gram iterations at each frequency.

    Returns:
        A float64 scalar. It also bounds the strided convolution, a subset of the outputs.
    """
    kernel = kernel.double()
    cells, between = _sampling(kernel, oversampling)
    response = torch.fft.rfft2(kernel, s=cells).permute(2, 3, 0, 1)
    by_frequency = matrix_norm_bound(response, squarings).amax() * between
    by_tap = matrix_norm_bound(kernel.permute(2, 3, 0, 1), squarings).sum()
    return torch.minimum(by_frequency, by_tap)


def reshaped_norm_bound(kernel: Tensor, stride: tuple[int, int], squarings: int = 6) -> Tensor:
    """Bound the norm of a convolution by √(⌈k1/s1⌉⌈k2/s2⌉) times that of its reshaped kernel.

    A patch is mapped by the kernel reshaped to (c_out, c_in·k1·k2), and a pixel is in at most
    ⌈k1/s1⌉⌈k2/s2⌉ patches.
    """
    overlap = math.ceil(kernel.shape[2] / stride[0]) * math.ceil(kernel.shape[3] / stride[1])
    return matrix_norm_bound(kernel.flatten(1), squarings) * math.sqrt(overlap)


def real(weight: Tensor) -> Tensor:
    """Return a tensor unless it is complex, since its imaginary part would be lost in float64.

    Raises:
        UnknownLipschitz: it is complex.
    """
    if weight.is_complex():
        raise UnknownLipschitz("Complex numbers have no rule")
    return weight


def _grown(norm: float, scale: float) -> float:
    """Return a norm times the scale that was divided out, with the slack."""
    return max(norm * scale * SLACK, TINY)


def _response_norm(kernel: Tensor, cells: list[int]) -> float:
    """Bound the largest singular value of the response of (g, o, i, k1, k2) on a circular grid.

    At most 5e-7 of it above it.

    At each frequency, (response)ᴴ(response) is the Fourier sum of the kernel's correlation with
    itself, which is computed once. Summed as it stands instead of by FFT, a kernel larger than the
    grid wraps around by itself.
    """
    if kernel.shape[1] < kernel.shape[2]:
        kernel = kernel.transpose(1, 2)
    height, width = kernel.shape[-2:]
    lags = torch.stack(
        [
            functional.conv2d(taps, taps, padding=(height - 1, width - 1))
            for taps in kernel.transpose(1, 2)
        ]
    )
    down, across = (
        torch.polar(torch.ones_like(angles), -angles)
        for angles in (
            2 * math.pi / n * (torch.outer(torch.arange(1 - k, k), torch.arange(n)) % n).to(kernel)
            for k, n in zip((height, width), cells, strict=True)
        )
    )
    # Those of an orthogonal kernel are nearly m·I at every frequency, and ‖G‖ ≤ |m| + ‖G − m·I‖_F
    # whatever m is; eigenvalues take longest.
    middle = lags[..., height - 1, width - 1].diagonal(dim1=-2, dim2=-1)
    mean = float(middle.mean())
    middle -= mean
    # A real kernel's response at −θ is the conjugate of that at θ.
    columns = (lags.to(down) @ across[:, : cells[1] // 2 + 1]).permute(4, 3, 0, 1, 2)
    largest = allowed = 0.0
    for column in columns:
        apart = (down.T @ column.flatten(1)).view(-1, *lags.shape[1:3])
        bound = abs(mean) + torch.view_as_real(apart).flatten(1).norm(dim=1)
        close = bound <= largest * _CLOSE
        if close.any():
            allowed = max(allowed, float(bound[close].max()))
        if not close.all():
            eigenvalues = torch.linalg.eigvalsh(apart[~close]) + mean
            largest = max(largest, float(eigenvalues[..., -1].max()))
    return math.sqrt(max(largest, allowed))


def _eigen_work(kernel: Tensor, cells: list[int]) -> float:
    groups, rows, columns = kernel.shape[:3]
    return groups * cells[0] * (cells[1] // 2 + 1) * float(min(rows, columns)) ** 3


def _polyphase(kernel: Tensor, stride: Pair, dilation: Pair) -> Tensor:
    """Return the kernel (g, o, i·s1·s2, ⌈·⌉, ⌈·⌉) that acts on the space-to-depth of the image."""
    for axis, step, spread in ((-2, stride[0], dilation[0]), (-1, stride[1], dilation[1])):
        kernel = kernel.movedim(axis, -1)
        taps = spread * (kernel.shape[-1] - 1) + 1
        spaced = kernel.new_zeros(*kernel.shape[:-1], math.ceil(taps / step) * step)
        spaced[..., :taps:spread] = kernel
        # (g, o, i, other, taps) -> (g, o, i·step, other, taps / step)
        split = spaced.reshape(*spaced.shape[:-1], -1, step)
        phases = split.movedim(-1, 3).flatten(2, 3)
        kernel = phases.movedim(-1, axis)
    return kernel


def _row_sums(gram: Tensor) -> Tensor:
    return gram.abs().sum(dim=(-3, -2, -1)).amax(dim=-1)


def _by_group(kernel: Tensor, groups: int = 1) -> Tensor:
    return kernel.reshape(groups, -1, *kernel.shape[1:])


def _rescaled(weight: Tensor) -> tuple[Tensor, float]:
    """Return a weight in float64 with a largest entry of 1, and that entry."""
    weight = real(weight.detach()).double()
    scale = float(weight.abs().max()) if weight.numel() else 0.0
    if not math.isfinite(scale):
        raise UnknownLipschitz("The weights are not all finite, so no bound holds for them.")
    return (weight / scale if scale else weight), scale


def _sampling(kernel: Tensor, oversampling: int) -> tuple[list[int], float]:
    """Return a grid of frequencies, and the most by which what lies between them can be larger."""
    degrees = [size - 1 for size in kernel.shape[-2:]]
    cells = [max(1, oversampling * degree) for degree in degrees]
    between = 1.0
    for degree, n in zip(degrees, cells, strict=True):  # A generator could not be compiled.
        between *= 1 / math.cos(math.pi * degree / (2 * n))
    return cells, between


def _hermitian_norm(gram: Tensor) -> Tensor:
    """Bound ||G||₂ of Hermitian matrices, off 0, where a logarithm would be infinite."""
    size = gram.abs()
    frobenius = size.square().sum(dim=(-2, -1)).clamp_min(1e-200).sqrt()
    return torch.minimum(frobenius, size.sum(dim=-1).amax(dim=-1).clamp_min(1e-100))
