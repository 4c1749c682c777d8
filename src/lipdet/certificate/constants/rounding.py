"""How far the outputs of a forward pass lie from those of real arithmetic (κ, theory §5.3).

A certificate speaks of the detector as it is computed: |Δz| ≤ ε·L + 2κ, as both the clean and the
perturbed outputs are rounded.

Notable choices:
- For float32, κ is *measured*, which is no proof. What can be proven for sums in any order grows
  with their length and with Σ|w·x|, and is beyond any use for a detector in float32.
- For float64 the same proof is of use. Who wants a theorem about what the machine computes
  certifies and detects with `detector.double()`, at the cost of the slower pass. Kernels that
  transform first (FFT, Winograd) are not covered: torch's on a CPU do not in float64, cuDNN's may.
- A detector in float64 still gets no less than what is measured in float32: then what is certified
  in either precision holds in both, |Δz| ≤ ε·L + κ₃₂ + κ₆₄ ≤ ε·L + 2κ.
- The measurement runs on the detector's own device with the settings in force, and so shows what
  TF32, FFT or Winograd do there, at the images that it sees. What it is held against is computed on
  the CPU.
- An output that is not finite has no rounding, and is refused.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from lipdet.certificate.constants.outputs import propagate_detector
from lipdet.detector.forward import forward, on_cpu
from lipdet.detector.ssd import SSD
from lipdet.errors import UnknownLipschitz
from lipdet.layers import fold
from lipdet.lipschitz.gains import as_pair
from lipdet.lipschitz.propagation import Propagation
from lipdet.norms import conv_norm

# Over what is seen on some images. Errors are sums of thousands of roundings, of either sign, so
# that their largest value over many outputs grows slowly with the number of images.
SAFETY = 8.0

Outputs = Callable[[Tensor], Iterable[Tensor]]

# How a bound is known, in the words of reports.
MEASURED, PROVEN = "measured in float32", "proven in float64"


class Rounding(NamedTuple):
    """The distance of any output of a forward pass from that of real arithmetic, at most.

    Attributes:
        bound: κ.
        known: MEASURED or PROVEN.
    """

    bound: float
    known: str


def rounding_of(detector: SSD, images: Tensor) -> Rounding:
    """Prove the rounding of a detector in float64 whose layers allow it, else measure in float32.

    Args:
        detector: in eval mode, in the precision in which it detects.
        images: see `measured_rounding`.
    """
    measured = Rounding(measured_rounding(detector, images), MEASURED)
    if detector.default_boxes.dtype != torch.float64:
        return measured
    try:
        proven = proven_rounding(detector, torch.float64)
    except UnknownLipschitz:
        return measured
    return Rounding(max(proven, measured.bound), PROVEN)


def measured_rounding(detector: SSD, images: Tensor) -> float:
    """Return `largest_difference` of a detector from the same network in float64.

    Args:
        detector: in eval mode, on the device in which it detects; one in float64 is measured in
            float32.
        images: (B, 3, H, W) in [0, 1], B ≥ 1; a batch as large as those to be certified, since its
            size may decide how sums are ordered.

    Raises:
        UnknownLipschitz: an output is not finite, in either precision.
    """
    exact, images = fold(on_cpu(detector)).double(), images.float()
    assert isinstance(exact, SSD)
    if detector.default_boxes.dtype == torch.float64:
        detector = copy.deepcopy(detector).float()
    return largest_difference(
        lambda batch: forward(detector, batch), lambda batch: forward(exact, batch), images
    )


@torch.no_grad()
def largest_difference(network: Outputs, exact: Outputs, images: Tensor) -> float:
    """Return `SAFETY` times the largest difference from a network in float64, at all `probes`.

    Raises:
        UnknownLipschitz: an output is not finite, in either precision.
    """
    largest = 0.0
    for batch in probes(images):
        for outputs, reference in zip(network(batch), exact(batch.double()), strict=True):
            difference = float((outputs.double() - reference).abs().max())
            if not math.isfinite(difference):
                raise UnknownLipschitz(
                    "Outputs are not all finite, so their rounding has no bound."
                )
            largest = max(largest, difference)
    return SAFETY * largest


def probes(images: Tensor) -> tuple[Tensor, ...]:
    """Return images (B, 3, H, W), each with as much noise as fits into [0, 1], and noise alone."""
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    return images, (images + noise - 0.5).clamp(0, 1), noise, noise.round()


def proven_rounding(detector: SSD, dtype: torch.dtype) -> float:
    """Bound the rounding of any output at any image in [0, 1], for sums of products in any order.

    The proof, and what it does not cover, are in theory §5.3: without underflow, and not for an
    image that leaves [0, 1], as a perturbed one may.

    Args:
        detector: in eval mode, of convolutions without BatchNorm, and of layers that only move
            or compare numbers.
        dtype: of its weights and images.

    Raises:
        UnknownLipschitz: there is no such bound for one of its layers.
    """
    propagation = propagate_detector(detector)
    grey = torch.full((1, 3, *detector.config.canvas), 0.5, dtype=torch.float64)
    sizes = _Sizes(propagation, grey).found
    unit = torch.finfo(dtype).eps / 2
    errors: dict[fx.Node, float] = {}
    for node in propagation.bounds:
        sources = [source for source in node.all_input_nodes if source in propagation.bounds]
        if not sources:
            errors[node] = 0.0
            continue
        gain = propagation.gain(node)
        if gain is None or node in propagation.fused:
            raise UnknownLipschitz(f'No bound of the rounding of "{node.name}" is known.')
        before = errors[sources[0]]
        errors[node] = gain * before + _own_error(propagation, node, sizes, before, unit)
    heads = [errors[maps] for level in propagation.outputs for maps in level[1:]]
    if not all(map(math.isfinite, heads)):
        raise UnknownLipschitz("The bound of the rounding leaves the range of float64.")
    return max(heads)


class _Sizes(fx.Interpreter):
    """Bounds the L2 norm of every intermediate for images in [0, 1]."""

    def __init__(self, propagation: Propagation, grey: Tensor) -> None:
        network = fold(propagation.network).double()
        assert isinstance(network, fx.GraphModule)
        super().__init__(network)
        self.bounds = {node.name: bound for node, bound in propagation.bounds.items()}
        self.distance = math.sqrt(grey.numel()) / 2
        self.found: dict[str, float] = {}
        with torch.no_grad():
            self.run(grey)

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.name in self.bounds:
            self.found[n.name] = float(value.norm()) + self.bounds[n.name] * self.distance
        return value


def _own_error(
    propagation: Propagation, node: fx.Node, sizes: dict[str, float], before: float, unit: float
) -> float:
    """Bound what one layer adds, its input being off by `before`."""
    source = next(node for node in node.all_input_nodes if node in propagation.bounds)
    module, rule = propagation.module(node), propagation.rule(node)
    size = sizes[source.name] + before
    if type(module) is nn.Conv2d and module.padding_mode == "zeros":
        cells = math.prod(propagation.shapes[node][-2:])
        image_size = as_pair(propagation.shapes[source][-2:])
        return _conv_error(module, size, image_size, cells, unit)
    if rule is None or rule.rounding is None:
        raise UnknownLipschitz(f'No bound of the rounding of "{node.name}" is known.')
    if module is None:
        size = sizes[node.name] + (propagation.gain(node) or 0.0) * before
    return rule.rounding * unit * size


def _conv_error(
    conv: nn.Conv2d, size: float, image_size: tuple[int, int], cells: int, unit: float
) -> float:
    weight = conv.weight.detach().double().abs()
    roundings = weight[0].numel() + 2
    if roundings * unit >= 1:
        raise UnknownLipschitz(f"No bound of the rounding of sums of {roundings} terms is known.")
    gamma = roundings * unit / (1 - roundings * unit)
    norm = conv_norm(weight, as_pair(conv.stride), as_pair(conv.dilation), conv.groups, image_size)
    bias = 0.0 if conv.bias is None else float(conv.bias.detach().double().norm())
    return gamma * (norm * size + bias * math.sqrt(cells))
