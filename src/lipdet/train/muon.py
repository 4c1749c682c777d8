"""Muon: steps in which all directions of a matrix count alike (Jordan et al. 2024).

Of the gradient of a matrix a few directions are large and most are small, and Adam, which looks at
single entries, moves little along the latter. A matrix of 1-Lipschitz layers has nothing else to
learn by: no scale can make up for it. docs/certified-detector.md has what that gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
# Root mean square of a step's entries, in learning rates: about that of Adam's steps, so that one
# learning rate does for both (Liu et al. 2025, §2.2).
STEP_SIZE = 0.2
# Of the odd polynomial a·s + b·s³ + c·s⁵ that takes singular values in (0, 1] to about 1 within
# ROUNDS; steepest at 0, and not exact (Jordan et al. 2024).
POLYNOMIAL = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


class Muon(torch.optim.AdamW):
    """Muon for parameters of two and more dimensions, AdamW for all others.

    Kernels (out, in, height, width) count as matrices of `out` rows; of other parameters the last
    two dimensions are those of matrices. torch's own Muon, the oracle of the tests, takes neither
    kernels nor stacks of matrices.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; the gradients of matrices are used up by it."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim > 1 and parameter.grad is not None:
                    self._step_of_matrices(parameter, group["lr"], group["weight_decay"])
                    parameter.grad = None
        return super().step(closure)

    def _step_of_matrices(self, parameter: Tensor, rate: float, decay: float) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            # AdamW looks for a step in every state that it loads.
            state.update(step=torch.zeros(()), momentum=torch.zeros_like(parameter))
        momentum = state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
        ahead = parameter.grad.lerp(momentum, MOMENTUM)
        matrices = ahead.flatten(1) if ahead.ndim == 4 else ahead
        step = orthogonalised(matrices) * (STEP_SIZE * max(matrices.shape[-2:]) ** 0.5)
        parameter.mul_(1 - rate * decay).sub_(step.reshape(parameter.shape), alpha=rate)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices (..., m, n) near 1, between 0.7 and 1.2.

    Those below about 1e-3 of the norm stay smaller.
    """
    linear, cubic, quintic = POLYNOMIAL
    x: Tensor = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = linear * x + (cubic * gram + quintic * gram @ gram) @ x
    return x.mT if tall else x
