"""Replace layers with constructed weights by plain torch layers, for inference and export."""

from __future__ import annotations

import copy

from torch import nn

from lipdet.layers.base import ConstructedWeight


def fold(module: nn.Module) -> nn.Module:
    """Return a deep copy of a model in which constructed weights are plain parameters.

    1-Lipschitz convolutions become `nn.Conv2d` and residual blocks a module with two of them. The
    outputs are the same bit for bit, except where another memory layout picks another kernel. What
    is shared in the model stays shared; the model itself is left as it is.

    Raises:
        ValueError: a layer with a constructed weight has forward hooks, or a forward method that
            its `folded` was not written for; folding would drop them.
    """
    return _fold(copy.deepcopy(module), "", {})


def is_changed(module: nn.Module) -> bool:
    """Return whether hooks, or a forward of its own, make a module differ from its class."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks) or "forward" in vars(module)


def _fold(module: nn.Module, path: str, done: dict[nn.Module, nn.Module]) -> nn.Module:
    if module not in done:
        done[module] = _folded(module, path) if isinstance(module, ConstructedWeight) else module
        for name, child in done[module]._modules.items():
            if child is not None:
                below = f"{path}.{name}" if path else name
                done[module]._modules[name] = _fold(child, below, done)
    return done[module]


def _folded(layer: ConstructedWeight, path: str) -> nn.Module:
    own_forward = _definer(layer, "forward") is _definer(layer, "folded")
    if not own_forward or is_changed(layer):
        where = f' at "{path}"' if path else ""
        raise ValueError(
            f"{type(layer).__name__}{where} cannot be folded: its forward hooks or its own forward "
            "method would be lost."
        )
    return layer.folded()


def _definer(layer: ConstructedWeight, method: str) -> type | None:
    return next((kind for kind in type(layer).__mro__ if method in vars(kind)), None)
