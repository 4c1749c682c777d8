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
    """
    return _fold(copy.deepcopy(module), {})


def _fold(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    if module not in done:
        done[module] = module.folded() if isinstance(module, ConstructedWeight) else module
        for name, child in done[module]._modules.items():
            if child is not None:
                done[module]._modules[name] = _fold(child, done)
    return done[module]
