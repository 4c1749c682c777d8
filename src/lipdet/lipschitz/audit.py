"""Audit a Lipschitz bound: the layers and settings that make it large, each with its factor.

Notable choices:
- The bound of a layer is its own factor times the largest bound of what it reads. Followed back
  from the output with the largest bound, the factors of that one path multiply to the bound, so
  every finding says by how much the bound falls if its layer is replaced by one of norm 1.
- A convolution and its BatchNorm are bounded as one kernel, which is tighter than one after the
  other; the BatchNorm's factor is what it adds to the convolution alone.
- Operations without any bound are listed first. What comes behind them is still looked at, as if
  they had constant 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from lipdet.lipschitz import gains
from lipdet.lipschitz.gains import as_pair, conv_gain
from lipdet.lipschitz.propagation import Propagation, describe
from lipdet.lipschitz.rules import MODULES

# Factors of layers that are 1 by construction carry some rounding.
_ONE = 1 + 1e-4
_REPEATING = ("reflect", "replicate")
_PIXELS_INSTEAD = "none: give the network pixels in [0, 1], and let its first bias do the shift"
_POINTWISE_INSTEAD = "OrthogonalConv1x1: norm 1 by construction"
_NO_BOUND_INSTEAD = "MaxMin, Abs or ReLU for activations, AvgPool2d or ScaledAvgPool2d for means"


@dataclass(frozen=True)
class Finding:
    """A layer, or a setting of one, that enlarges the bound.

    Attributes:
        name: path of the layer in the network; empty for a function of the network itself.
        kind: its class, or the function.
        cause: the setting, in words.
        factor: by which it multiplies the bound; None where there is no bound.
        instead: what to use in its place.
    """

    name: str
    kind: str
    cause: str
    factor: float | None
    instead: str


@dataclass(frozen=True)
class Audit:
    """The findings of one network.

    Attributes:
        bound: of the output with the largest bound, from the input; None where an operation has
            none.
        shrinking: product of all factors on its path that are no findings, about 1 or less. Times
            the factors of the findings it is the bound.
        findings: operations without a bound, then by falling factor.
    """

    bound: float | None
    shrinking: float
    findings: tuple[Finding, ...]


@torch.no_grad()
def audit(propagation: Propagation) -> Audit:
    """Find what makes the Lipschitz bound of a network large.

    Args:
        propagation: of the network, past its obstacles.
    """
    obstacles = [
        Finding(
            *describe(node, propagation.network),
            str(error).rstrip("."),
            None,
            error.instead or _NO_BOUND_INSTEAD,
        )
        for node, error in propagation.obstacles.items()
    ]
    found: list[Finding] = []
    shrinking = 1.0
    path = worst_path(propagation)
    for node in path:
        for finding in _findings(propagation, node):
            assert finding.factor is not None
            if finding.factor > _ONE:
                found.append(finding)
            else:
                shrinking *= finding.factor
    found.sort(key=lambda one: -(one.factor or 0.0))
    bound = None if obstacles else propagation.bounds.get(_output(propagation), 0.0)
    return Audit(bound, shrinking, (*obstacles, *found))


def worst_path(propagation: Propagation) -> list[fx.Node]:
    """List the nodes from the input to the output with the largest bound, without the input."""
    node = _output(propagation)
    path = []
    while sources := propagation.sources(node):
        path.append(node)
        node = max(sources, key=propagation.bounds.__getitem__)
    return path[::-1]


def _output(propagation: Propagation) -> fx.Node:
    """Return the output with the largest bound; one that is constant has none."""
    outputs = propagation.network.graph.output_node().all_input_nodes
    return max(outputs, key=lambda one: propagation.bounds.get(one, 0.0))


def _findings(propagation: Propagation, node: fx.Node) -> Iterator[Finding]:
    """Yield the factors of one node; they multiply to its bound over the largest it reads."""
    if node in propagation.fused.values() or node in propagation.obstacles:
        return  # A convolution is told together with its BatchNorm.
    first = propagation.fused.get(node, node)
    sources = propagation.sources(first)
    largest = max(propagation.bounds[source] for source in sources)
    factor = propagation.bounds[node] / largest if largest else 1.0
    name, kind = describe(first, propagation.network)
    module, rule = propagation.module(first), propagation.rule(first)
    assert rule is not None
    if isinstance(module, nn.Conv2d):
        x, y = (torch.zeros(propagation.shapes[one]) for one in (sources[0], first))
        yield from _convolution(name, kind, module, x, y)
        if node is not first:
            yield _batch_norm(propagation, node, factor / conv_gain(module, x, y))
    elif _on_pixels(propagation, node):
        cause = f"pixels are scaled by up to {factor:.3g} (normalisation by mean and deviation)"
        yield Finding(name, kind, cause, factor, _PIXELS_INSTEAD)
    else:
        cause = rule.cause if isinstance(rule.cause, str) else rule.cause(module)
        several = f"{len(sources)} " if len(sources) > 1 else ""
        yield Finding(name, kind, several + cause, factor, rule.instead)


def _batch_norm(propagation: Propagation, node: fx.Node, factor: float) -> Finding:
    rule, norm = propagation.rule(node), propagation.module(node)
    assert rule is not None
    assert callable(rule.cause)
    return Finding(*describe(node, propagation.network), rule.cause(norm), factor, rule.instead)


def _convolution(name: str, kind: str, conv: nn.Conv2d, x: Tensor, y: Tensor) -> Iterator[Finding]:
    total = conv_gain(conv, x, y)
    padding = 1.0
    if conv.padding_mode in _REPEATING:
        padding = gains.pad(x, conv._reversed_padding_repeated_twice, conv.padding_mode)
        cause = f'padding_mode="{conv.padding_mode}" repeats pixels'
        yield Finding(name, kind, cause, padding, 'padding_mode="zeros" or "circular"')
    size = "×".join(str(side) for side in as_pair(conv.kernel_size))
    stride = "" if as_pair(conv.stride) == (1, 1) else f" at stride {as_pair(conv.stride)[0]}"
    instead = _POINTWISE_INSTEAD if size == "1×1" else MODULES[nn.Conv2d].instead
    yield Finding(name, kind, f"norm of its {size} kernel{stride}", total / padding, instead)


def _on_pixels(propagation: Propagation, node: fx.Node) -> bool:
    """Return whether an operation scales pixels before any layer has seen them."""
    scales = {"mul", "truediv", "div"}
    if node.op == "call_module" or describe(node, propagation.network)[1] not in scales:
        return False
    while sources := propagation.sources(node):
        if node.op == "call_module" or len(sources) > 1:
            return False
        [node] = sources
    return True
