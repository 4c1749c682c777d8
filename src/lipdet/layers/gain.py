"""Gains: the share of a signal and of a gradient that each layer of a network passes on.

A network of 1-Lipschitz layers fails silently when these gains vanish: nothing diverges, the loss
just stops. The cause is visible at initialisation, layer by layer.

Notable choices:
- Backward gains are of Jacobians: 1 for an orthogonal layer with MaxMin.
- Forward gains compare different images, since that is what outputs must tell apart. They are below
  1 for MaxMin too: sorting is norm preserving at each point but brings distant points together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class LayerGain:
    """Gains of one call of one leaf layer.

    Attributes:
        name: the layer's name in the model, or "" where the model is the layer.
        kind: the name of the layer's class.
        forward: ||change of the output|| / ||change of the input||, over pairs of images.
        backward: ||gradient at the input|| / ||gradient at the output||.
        forward_total: ||change of the output|| / ||change of the images||.
        backward_total: ||gradient at the input|| / ||gradient at the model's output||.
    """

    name: str
    kind: str
    forward: float
    backward: float
    forward_total: float
    backward_total: float


@dataclass(frozen=True)
class GainProfile:
    """The gains of all leaf layers in the order of the calls, and those of the whole model."""

    layers: tuple[LayerGain, ...]
    forward: float
    backward: float

    def __str__(self) -> str:
        """Return the profile as a table for a terminal."""
        width = max([5, *(len(layer.name) for layer in self.layers)])
        kind = max([5, *(len(layer.kind) for layer in self.layers)])
        lines = [f"{'layer':{width}}  {'kind':{kind}}   forward  backward  (total)   (total)"]
        lines += [
            f"{row.name:{width}}  {row.kind:{kind}}  {row.forward:8.2g}  {row.backward:8.2g}"
            f"  {row.forward_total:7.2g}  {row.backward_total:8.2g}"
            for row in self.layers
        ]
        return "\n".join([*lines, f"whole model: {self.forward:.2g}, {self.backward:.2g}"])


@dataclass(frozen=True)
class _Call:
    name: str
    layer: nn.Module
    x: Tensor
    y: Tensor


def gain_profile(model: nn.Module, x: Tensor) -> GainProfile:
    """Measure the forward and backward gain of every leaf layer of any network, in eval mode.

    Forward, each image is compared with the next one of the batch: offsets such as biases cancel.
    Backward, a Gaussian gradient at the outputs is pulled back. A layer's own backward gain is
    measured on the gradient that arrives at its output, without what other branches add.

    Args:
        model: any module whose output is a tensor or a (nested) tuple, list or dict of tensors.
        x: at least two different images (B, C, H, W), on the model's device.

    Returns:
        The profile; `print` shows it as a table. Gains are root mean squares over the batch, nan
        where nothing arrives. Layers called twice have two rows.

    Raises:
        ValueError: x holds fewer than two images.
    """
    if x.shape[0] < 2:
        raise ValueError("gain_profile compares images: x must hold at least two of them.")
    x = x.detach().clone().requires_grad_()
    with _eval_mode(model), torch.enable_grad():
        calls, outputs = _record(model, x)
        cotangents = [torch.randn_like(y) for y in outputs]
        wanted = [x, *(call.y for call in calls)]
        gradients = torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True)
        arriving = _norm(*cotangents)
        image_change = _norm(_differences(x))
        rows = [
            _row(call, gradient, image_change, arriving)
            for call, gradient in zip(calls, gradients[1:], strict=True)
        ]
    forward = _ratio(_norm(*map(_differences, outputs)), image_change)
    return GainProfile(tuple(rows), forward, _ratio(_norm(gradients[0]), arriving))


def _row(call: _Call, gradient: Tensor | None, image_change: float, arriving: float) -> LayerGain:
    """Replay one call alone to pull the gradient at its output back to its input."""
    output_change, pulled = _norm(_differences(call.y)), None
    if gradient is not None:
        x = call.x.clone().requires_grad_()
        # The copy keeps a layer that works in place from overwriting a leaf.
        (pulled,) = torch.autograd.grad(call.layer(x.clone()), x, gradient, allow_unused=True)
    return LayerGain(
        name=call.name,
        kind=type(call.layer).__name__,
        forward=_ratio(output_change, _norm(_differences(call.x))),
        backward=_ratio(_norm(pulled), _norm(gradient)),
        forward_total=_ratio(output_change, image_change),
        backward_total=_ratio(_norm(pulled), arriving),
    )


def _record(model: nn.Module, x: Tensor) -> tuple[list[_Call], list[Tensor]]:
    """Run the model and keep the input and output of each call of a leaf layer."""
    calls: list[_Call] = []
    inputs: dict[nn.Module, Tensor] = {}
    names = {module: name for name, module in model.named_modules()}

    def before(layer: nn.Module, arguments: tuple[object, ...]) -> None:
        # A layer that works in place would change what is kept.
        if (
            len(arguments) == 1
            and isinstance(arguments[0], Tensor)
            and arguments[0].is_floating_point()
        ):
            inputs[layer] = arguments[0].detach().clone()

    def after(layer: nn.Module, arguments: tuple[object, ...], y: object) -> object:
        start = inputs.pop(layer, None)
        if start is None or not isinstance(y, Tensor) or not y.requires_grad:
            return y
        calls.append(_Call(names[layer], layer, start, y))
        return y.clone()

    handles = []
    for module in names:
        if not list(module.children()):
            handles += [module.register_forward_pre_hook(before)]
            handles += [module.register_forward_hook(after)]
    try:
        found = tree_leaves(model(x.clone()))
    finally:
        for handle in handles:
            handle.remove()
    return calls, [y for y in found if isinstance(y, Tensor) and y.requires_grad]


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _differences(x: Tensor) -> Tensor:
    return (x - x.roll(1, dims=0)).detach()


def _norm(*tensors: Tensor | None) -> float:
    squares = [float(t.detach().double().square().sum()) for t in tensors if t is not None]
    return math.sqrt(sum(squares))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else float("nan")
