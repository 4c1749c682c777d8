"""Lipschitz constants of every single output of a detector, and of all of them together.

Channels of heads are ordered as in `RawOutput`: default box by default box, and value by value
within one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from lipdet.detector.ssd import SSD, Head
from lipdet.errors import InputError, UnknownLipschitz
from lipdet.layers.fold import is_changed
from lipdet.lipschitz.gains import as_pair, batch_norm_factors, vanishes
from lipdet.lipschitz.profile import LayerRow, layer_profile
from lipdet.lipschitz.propagation import Propagation, bound_graph, example, propagate
from lipdet.lipschitz.same_function import Meaning, prove_same
from lipdet.norms import SLACK, Pair, real

# Constants and norms below are raised to this. A larger one is a bound, too, and of these no
# square, difference or quotient vanishes. What squares of single numbers lose, at most 1e-308 each,
# does not count beside this one's.
LEAST = 1e-145
# Largest weight, so that squares stay finite.
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
        """Everything that decides which features each filter sees."""
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
        """Return ‖filter‖_F of outputs where they stand, (A, values), or LEAST if that is less."""
        squares = self.over_positions(self.kernel.square().sum(dim=2))
        return squares.clamp_min(LEAST**2).sqrt() * SLACK

    def gram(self) -> Tensor:
        """Return inner products of the filters of each default box, (A, values, values)."""
        taps = torch.einsum("bvikl,bwikl->bvwkl", self.kernel, self.kernel)
        return self.over_positions(taps)


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


def _check_plain(module: nn.Module, kind: type[nn.Module], name: str) -> None:
    """Refuse a part whose forward method is not that of its kind, `name` in the message."""
    if type(module).forward is not kind.forward or is_changed(module):
        raise UnknownLipschitz(
            f'No Lipschitz bounds for "{name}": it has forward hooks, or another forward method '
            f"than {kind.__name__}."
        )


@dataclass(frozen=True)
class OutputBounds:
    """Upper bounds of Lipschitz constants with respect to the image in [0, 1], in the L2 norm.

    Attributes:
        features: per level, of the map to the feature map that its head reads.
        anchors: per level, the rows of its default boxes.
        logits: (A, K) float64, of each class logit of each default box.
        offsets: (A, 4) float64, of each box offset of each default box.
        offsets_joint: (A,) float64, of the map to the four offsets of a default box together.
        joint: of the map to all outputs together.
    """

    features: tuple[float, ...]
    anchors: tuple[slice, ...]
    logits: Tensor
    offsets: Tensor
    offsets_joint: Tensor
    joint: float


class FeaturesAndHeads(nn.Module):
    """The parts of a detector that can be traced: per level the features and both head maps."""

    def __init__(self, detector: SSD) -> None:
        super().__init__()
        self.normalize = detector.normalize
        self.backbone = detector.backbone
        self.heads = detector.heads

    def forward(self, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Map images (B, 3, H, W) to (features, class logits, box offsets) of each level."""
        features = self.backbone(self.normalize(images))
        heads = [head for head in self.heads if isinstance(head, Head)]
        return [
            (level, head.classification(level), head.localisation(level))
            for head, level in zip(heads, features, strict=True)
        ]


def lipschitz_bound(module: nn.Module, input_shape: Sequence[int]) -> float:
    """Bound the Lipschitz constant of a network in the L2 norm, from its input to all its outputs.

    Chains multiply, sums add, concatenations of maps of the same input take √Σ L² (theory §2). The
    bound holds for the function of real arithmetic with the weights as stored, in the mode the
    module is in.

    Args:
        module: any composition of the modules and functions that have a rule, with one input.
        input_shape: shape of one input without the batch axis, such as (3, 74, 74).

    Returns:
        The bound, with a factor of 1 + 1e-9 for the rounding of the composition itself.

    Raises:
        UnknownLipschitz: something has no rule; its name and the reason are in the message.
        InputError: the module cannot process this shape.
    """
    if isinstance(module, SSD):
        return bounds_of_outputs(module, propagate_detector(module, input_shape)).joint
    return propagate(module, input_shape).joint


def output_bounds(detector: SSD) -> OutputBounds:
    """Bound every scalar output of a detector on its own, and all of them together.

    The constant of a logit or offset is (bound of the features) × ‖filter‖_F (theory §1), with
    BatchNorm folded into the filter and only those taps counted that fall inside the feature map
    (§6.4). For the four offsets of a default box together, the largest singular value of their
    filters takes the place of ‖filter‖_F.

    Raises:
        UnknownLipschitz: a layer has no rule, or a head is no convolution with optional BatchNorm.
    """
    return bounds_of_outputs(detector, propagate_detector(detector))


def propagate_detector(
    detector: SSD, input_shape: Sequence[int] | None = None, past_obstacles: bool = False
) -> Propagation:
    """Bound every intermediate of a detector, for its own image size.

    Args:
        detector: in eval mode.
        input_shape: the shape that the caller expects, (3, H, W).
        past_obstacles: as in `propagate`.

    Raises:
        InputError: the caller expects another image size.
        UnknownLipschitz: a layer has no rule, or the detector or a head computes something else
            than `SSD` and `Head` do.
    """
    shape = (3, *detector.config.canvas)
    if input_shape is not None and tuple(input_shape) != shape:
        raise InputError(
            f"The detector does not accept inputs {tuple(input_shape)}: it takes {shape}."
        )
    _check_plain(detector, SSD, "the detector")
    for index, head in enumerate(detector.heads):
        _check_plain(head, Head, f"heads.{index}")
    propagation = bound_graph(FeaturesAndHeads(detector), shape, past_obstacles)
    for index, maps in enumerate(propagation.outputs):
        if any(part not in propagation.bounds for part in maps):
            raise UnknownLipschitz(f"What heads.{index} reads does not depend on the image.")
    if not propagation.obstacles:
        _prove(detector, propagation)
    return propagation


def detector_profile(propagation: Propagation, images: Tensor | None = None) -> list[LayerRow]:
    """List the layers, as `layer_profile` does; the last two rows of each head are its outputs."""
    return layer_profile(propagation, images, [maps for _, *maps in propagation.outputs])


def _prove(detector: SSD, propagation: Propagation) -> None:
    """Prove that the detector's outputs are those of the graph of its parts, reordered."""
    numbers = [head.logits for head in detector.heads if isinstance(head, Head)]
    graph = Meaning(propagation.network)

    def assembled(images: Tensor) -> tuple[Tensor, Tensor]:
        pairs = list(zip(numbers, graph.run(images), strict=True))
        logits = [_per_box(maps, values) for values, (_, maps, _) in pairs]
        offsets = [_per_box(maps, 4) for _, (_, _, maps) in pairs]
        return torch.cat(logits, dim=1), torch.cat(offsets, dim=1)

    what = "The detector computes something else than its parts show"
    prove_same(detector, assembled, example(detector, (3, *detector.config.canvas)), what)


def bounds_of_outputs(detector: SSD, propagation: Propagation) -> OutputBounds:
    """Derive the constants of the outputs from the bounds of all intermediates.

    Raises:
        UnknownLipschitz: the bound of a level's features is no number, or see `head_convolutions`.
    """
    bounds = propagation.bounds
    levels: list[tuple[fx.Node, fx.Node, fx.Node]] = propagation.outputs
    features = tuple(
        _of_features(bounds[level], place) for place, (level, _, _) in enumerate(levels)
    )
    logits, offsets, offsets_joint = [], [], []
    classifications, localisations = head_convolutions(detector, propagation)
    for bound, classification, localisation in zip(
        features, classifications, localisations, strict=True
    ):
        logits.append(bound * classification.norms())
        offsets.append(bound * localisation.norms())
        largest = torch.linalg.eigvalsh(localisation.gram())[:, -1].clamp_min(LEAST**2).sqrt()
        offsets_joint.append(bound * largest * SLACK)
    joint = math.hypot(*(bounds[maps] for level in levels for maps in level[1:])) * SLACK
    ends = list(itertools.accumulate(map(len, logits), initial=0))
    anchors = tuple(slice(*pair) for pair in itertools.pairwise(ends))
    return OutputBounds(
        features, anchors, torch.cat(logits), torch.cat(offsets), torch.cat(offsets_joint), joint
    )


def _of_features(bound: float, place: int) -> float:
    if math.isnan(bound):
        raise UnknownLipschitz(f"The bound of the features that heads.{place} reads is no number.")
    return max(bound * SLACK, LEAST)


def head_convolutions(
    detector: SSD, propagation: Propagation
) -> tuple[list[HeadConvolution], list[HeadConvolution]]:
    """Return the classification and the localisation of each level.

    Raises:
        UnknownLipschitz: a head is no convolution with optional BatchNorm.
    """
    classifications, localisations = [], []
    for index, (level, logits, offsets) in enumerate(propagation.outputs):
        head, name = detector.heads[index], f"heads.{index}"
        assert isinstance(head, Head)
        size = as_pair(propagation.shapes[level][-2:])
        layers = _layers_between(propagation, level, logits)
        classifications.append(
            head_convolution(layers, f"{name}.classification", head.logits, size)
        )
        layers = _layers_between(propagation, level, offsets)
        localisations.append(head_convolution(layers, f"{name}.localisation", 4, size))
    return classifications, localisations


def _layers_between(propagation: Propagation, level: fx.Node, maps: fx.Node) -> list[nn.Module]:
    """Return the layers that map features to head maps one after the other, or nothing."""
    layers: list[nn.Module] = []
    while maps is not level and maps.op == "call_module":
        layers.insert(0, propagation.network.get_submodule(str(maps.target)))
        [maps] = maps.all_input_nodes
    return layers if maps is level else []


def _per_box(maps: Tensor, values: int) -> Tensor:
    """Reorder (1, boxes · values, h, w) to (1, h · w · boxes, values), as `RawOutput` has them."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, values)
