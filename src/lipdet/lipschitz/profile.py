"""Lipschitz profiles: the bound of a network layer by layer, beside what is observed.

Notable choices:
- The bound multiplies worst cases of layers that are never all attained by one image. The observed
  value beside it is a lower bound of the same constant, so the truth lies between the two.
- Activations are rows too: only with them do the constants of a path multiply to its total.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from lipdet.lipschitz.propagation import Propagation, describe
from lipdet.progress import track

_ITERATIONS = 6


@dataclass(frozen=True)
class LayerRow:
    """One layer of a network.

    Attributes:
        name: path in the network; of a BatchNorm fused with its convolution, the convolution's.
        kind: class or function.
        constant: certified upper bound of the layer alone; None where several maps meet.
        cumulative: certified upper bound from the image to the end of this layer.
        observed: lower bound of that constant: the largest singular value of the Jacobian over the
            given images, as found by power iteration; None without images.
        heads: the indices of the heads to which a path leads through this layer; none where the
            network is no detector.
    """

    name: str
    kind: str
    constant: float | None
    cumulative: float
    observed: float | None
    heads: tuple[int, ...]


def layer_profile(
    propagation: Propagation,
    images: Tensor | None = None,
    paths: Sequence[Sequence[fx.Node]] = (),
) -> list[LayerRow]:
    """List the layers of a network in the order of computation, with their constants.

    Args:
        propagation: of the network.
        images: (B, *input_shape), B ≥ 1, for the observed values; of a detector, in [0, 1].
        paths: for each head, its outputs; the rows with h in `heads` are the way to head h.
    """
    ways = [_ancestors(outputs) for outputs in paths]
    directions = None if images is None else _random_directions(images)
    rows = []
    for node in track(_layers(propagation), "Bounding and observing layers"):
        observed = None
        if images is not None and directions is not None:
            observed, directions = _observe(_up_to(propagation.network, node), images, directions)
        first = propagation.fused.get(node, node)
        name, kind = describe(first, propagation.network)
        if first is not node:
            kind = f"{kind} + {describe(node, propagation.network)[1]}"
        heads = tuple(index for index, way in enumerate(ways) if node in way)
        constant = propagation.gain(node)
        rows.append(LayerRow(name, kind, constant, propagation.bounds[node], observed, heads))
    return rows


def _layers(propagation: Propagation) -> list[fx.Node]:
    """Return modules, and functions that are not free, without convolutions fused with the next."""
    fused = set(propagation.fused.values())
    return [
        node
        for node in propagation.bounds
        if node not in fused
        and (
            node.op == "call_module" or (node.op != "placeholder" and propagation.gain(node) != 1.0)
        )
    ]


def _ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _up_to(network: fx.GraphModule, last: fx.Node) -> fx.GraphModule:
    """Return the part of a network that computes one node."""
    graph = fx.Graph()
    needed = _ancestors([last])
    copies: dict[fx.Node, fx.Node] = {}
    for node in network.graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[last])
    return fx.GraphModule(network, graph)


@torch.enable_grad()
def _observe(
    network: Callable[[Tensor], Tensor], images: Tensor, directions: Tensor
) -> tuple[float, Tensor]:
    """Estimate the largest singular value of the Jacobian J at each image from below.

    Every step yields ‖Jᵀu‖ for a unit u, which never exceeds the norm. Jv is the derivative of
    ⟨Jᵀu, v⟩ by u, so that reverse mode does for both.

    Args:
        network: the map from images to one layer's output.
        images: where the Jacobian is taken.
        directions: unit starts, shaped as the images: those of the layer before are good ones.

    Returns:
        The largest value over the images, and the directions that were found.
    """
    x = images.detach().requires_grad_()
    y = network(x.clone())
    u = torch.zeros_like(y, requires_grad=True)
    (any_pulled,) = torch.autograd.grad(y, x, u, create_graph=True)
    largest = 0.0
    for _ in range(_ITERATIONS):
        (pushed,) = torch.autograd.grad(any_pulled, u, directions, retain_graph=True)
        (pulled,) = torch.autograd.grad(y, x, _unit(pushed), retain_graph=True)
        norms = pulled.flatten(1).norm(dim=1)
        largest = max(largest, float(norms.max()))
        # A direction that is lost in a flat region stays for the other paths.
        directions = torch.where(_per_image(norms > 0, x), _unit(pulled), directions)
    return largest, directions


def _unit(x: Tensor) -> Tensor:
    """Divide each image's tensor by its norm."""
    return torch.div(x, _per_image(x.flatten(1).norm(dim=1).clamp_min(1e-30), x))


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    """Shape one value (B,) per image to be broadcast with x (B, ...)."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


def _random_directions(images: Tensor) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return _unit(noise.to(images))
