"""Certified Lipschitz constants of every output of a detector."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from lipdet.certificate.gains import as_pair
from lipdet.certificate.module_rules import batch_norm_factors, find_rule
from lipdet.certificate.operator_norm import SLACK, UnknownLipschitz
from lipdet.certificate.propagation import Propagation, agree, example, propagate
from lipdet.detector.ssd import SSD, Head
from lipdet.errors import InputError
from lipdet.layers import fold
from lipdet.layers.fold import has_forward_hooks


@dataclass(frozen=True)
class OutputBounds:
    """Upper bounds of Lipschitz constants with respect to the image in [0, 1], in the L2 norm.

    Attributes:
        features: per level, of the map to the feature map that its head reads.
        anchors: per level, the rows of its default boxes.
        logits: (A, K) float64, of each class logit of each default box.
        offsets: (A, 4) float64, of each box offset of each default box.
        joint: of the map to all outputs together.
    """

    features: tuple[float, ...]
    anchors: tuple[slice, ...]
    logits: Tensor
    offsets: Tensor
    joint: float


class FeaturesAndHeads(nn.Module):
    """The parts of a detector that can be traced: per level the features and both head maps."""

    def __init__(self, detector: SSD) -> None:
        super().__init__()
        self.normalize = detector.normalize
        self.backbone = detector.backbone
        self.heads = detector.heads

    def forward(self, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Images (B, 3, H, W) to (features, class logits, box offsets) of each level."""
        features = self.backbone(self.normalize(images))
        heads = [head for head in self.heads if isinstance(head, Head)]
        return [
            (level, head.classification(level), head.localisation(level))
            for head, level in zip(heads, features, strict=True)
        ]


def output_bounds(detector: SSD) -> OutputBounds:
    """Bound every scalar output of a detector on its own, and all of them together.

    A logit or offset is a linear functional of one patch of features, so its constant is at most
    (bound of the features) × ‖filter‖_F (THEORY §1), with BatchNorm folded into the filter and only
    those taps counted that fall inside the feature map at its position.

    Raises:
        UnknownLipschitz: a layer has no rule, or a head is no convolution with optional BatchNorm.
    """
    return bounds_of_outputs(detector, propagate_detector(detector))


def propagate_detector(detector: SSD, input_shape: Sequence[int] | None = None) -> Propagation:
    """Bound every intermediate of a detector, for its own image size.

    Args:
        detector: in eval mode.
        input_shape: the shape that the caller expects, (3, H, W).

    Raises:
        InputError: the caller expects another image size.
        UnknownLipschitz: a layer has no rule, or the detector or a head computes something else
            than `SSD` and `Head` do.
    """
    size = detector.config.image_size
    if input_shape is not None and tuple(input_shape) != (3, size, size):
        raise InputError(
            f"The detector does not accept inputs {tuple(input_shape)}: it takes {(3, size, size)}."
        )
    _check_plain(detector, SSD, "the detector")
    for index, head in enumerate(detector.heads):
        _check_plain(head, Head, f"heads.{index}")
    parts = FeaturesAndHeads(detector)
    propagation = propagate(parts, (3, size, size))
    _check_parts(detector, parts)
    return propagation


def _check_plain(module: nn.Module, kind: type[nn.Module], name: str) -> None:
    """Refuse a part whose forward method is not that of its kind."""
    same = type(module).forward is kind.forward and "forward" not in vars(module)
    if not same or has_forward_hooks(module):
        raise UnknownLipschitz(
            f'No Lipschitz bounds for "{name}": it has forward hooks, or another forward method '
            f"than {kind.__name__}."
        )


@torch.no_grad()
def _check_parts(detector: SSD, parts: FeaturesAndHeads) -> None:
    """Compare the parts with the whole at one image."""
    size = detector.config.image_size
    image = example(detector, (3, size, size))
    # In copies, since a module that is not in eval mode may change as it runs.
    raw = copy.deepcopy(detector)(image.clone())
    levels = copy.deepcopy(parts)(image.clone())
    heads = [head for head in detector.heads if isinstance(head, Head)]
    pairs = list(zip(heads, levels, strict=True))
    logits = torch.cat([_per_box(maps, head.logits) for head, (_, maps, _) in pairs])
    offsets = torch.cat([_per_box(maps, 4) for _, (_, _, maps) in pairs])
    if not agree([raw.logits[0], raw.offsets[0]], [logits, offsets]):
        raise UnknownLipschitz("The detector computes something else than its parts show.")


def bounds_of_outputs(detector: SSD, propagation: Propagation) -> OutputBounds:
    """Derive the constants of the outputs from the bounds of all intermediates."""
    bounds = propagation.bounds
    levels: list[tuple[fx.Node, fx.Node, fx.Node]] = propagation.outputs
    features = tuple(bounds[level] * SLACK for level, _, _ in levels)
    sizes = [as_pair(propagation.shapes[level][-2:]) for level, _, _ in levels]
    logits, offsets = [], []
    for index, (size, bound) in enumerate(zip(sizes, features, strict=True)):
        head, name = fold(detector.heads[index]), f"heads.{index}"
        assert isinstance(head, Head)
        norms = _output_norms(head.classification, f"{name}.classification", size)
        logits.append(bound * _per_box(norms, head.logits))
        norms = _output_norms(head.localisation, f"{name}.localisation", size)
        offsets.append(bound * _per_box(norms, 4))
    joint = math.hypot(*(bounds[maps] for level in levels for maps in level[1:])) * SLACK
    ends = list(itertools.accumulate(map(len, logits), initial=0))
    anchors = tuple(slice(*pair) for pair in itertools.pairwise(ends))
    return OutputBounds(features, anchors, torch.cat(logits), torch.cat(offsets), joint)


def _output_norms(head: nn.Module, name: str, size: tuple[int, int]) -> Tensor:
    """Return ‖taps inside the map‖_F (1, c_out, h, w) of a head's filters at each position."""
    conv, factors = _as_convolution(head, name)
    squares = (conv.weight.detach().double() * factors[:, None, None, None]).square()
    taps = squares.sum(dim=1, keepdim=True)
    inside = taps.new_ones(1, 1, *size)
    sums = functional.conv2d(inside, taps, None, conv.stride, conv.padding, conv.dilation)
    return sums.sqrt() * SLACK


def _as_convolution(head: nn.Module, name: str) -> tuple[nn.Conv2d, Tensor]:
    """Return a head's convolution and what its BatchNorm multiplies the outputs by."""
    layers = list(head) if isinstance(head, nn.Sequential) else [head]
    conv = layers[0]
    norms = [layer for layer in layers[1:] if isinstance(layer, nn.BatchNorm2d)]
    plain = all(find_rule(layer) is not None for layer in layers)
    if isinstance(head, nn.Sequential):
        _check_plain(head, nn.Sequential, name)
    if (
        not isinstance(conv, nn.Conv2d)
        or not plain
        or len(layers) > 2
        or len(norms) != len(layers) - 1
    ):
        raise UnknownLipschitz(
            f'No Lipschitz bounds for the outputs of "{name}": it must be a convolution, with a '
            "BatchNorm2d behind it or without."
        )
    if conv.padding_mode != "zeros" or conv.groups != 1:
        raise UnknownLipschitz(
            f'No Lipschitz bounds for the outputs of "{name}": its convolution must have zero '
            "padding, since a patch must hold each feature at most once, and one group."
        )
    ones = torch.ones(conv.out_channels, dtype=torch.float64, device=conv.weight.device)
    return conv, ones * batch_norm_factors(norms[0]) if norms else ones


def _per_box(maps: Tensor, values: int) -> Tensor:
    """Reorder (1, boxes · values, h, w) to (h · w · boxes, values), as `RawOutput` has them."""
    return maps[0].permute(1, 2, 0).reshape(-1, values)
