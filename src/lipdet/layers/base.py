"""Constructed weights: how they start, when one is built and when a built one is reused.

Notable choices:
- Weights are constructed in float64 and rounded once to the parameters' dtype. The constraint then
  holds to the rounding of the result, whatever autocast or TF32 setting is in force, and squares of
  1e20 or 1e-20 neither overflow nor vanish. At 128 channels this costs a few milliseconds.
- Nothing here is a buffer, so DistributedDataParallel has nothing to broadcast.
- A kept weight and what it was built from are one object, read once: threads that share a frozen
  model may build a weight twice, and never see half of another's work.
- Starts preserve the norm of signals and gradients: ten stacked 3×3 layers with Gaussian kernels
  pass on less than 1e-4 of a gradient once normalised to be 1-Lipschitz, with the starts here
  nearly all of it (theory §3; `lipdet.layers.gain_profile`).
- Comparing the values of parameters at every use would take time, so versions are compared. Bounds
  and outputs that are certified begin with fresh weights.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn


class _Kept(NamedTuple):
    """A built weight, and the raw parameters with the versions that it was built from."""

    weight: Tensor
    sources: tuple[tuple[nn.Parameter, int], ...]


class ConstructedWeight(nn.Module):
    """A module whose `weight` is a function of its raw parameters.

    In training, and wherever a gradient to a raw parameter may be asked for, the weight is built
    anew at every access. In eval mode, with gradients disabled or all parameters frozen, it is
    built once and kept until `train()`, `eval()`, `load_state_dict`, a move of device or dtype, an
    assigned attribute, a use that a gradient may be asked for, or an in-place change of a raw
    parameter. Not noticed until then is what torch does not record: writes through
    `parameter.data`, `parameter.detach()`, numpy or `vector_to_parameters`, a step of an optimiser
    with fused=True, and changes inside an attribute. Call `eval()` after these. Bounds and
    certificates build weights anew before they look, so that what they bound is what then runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: _Kept | None = None

    def construct(self) -> Tensor:
        """Return the weight in float64, differentiable in the raw parameters."""
        raise NotImplementedError

    def folded(self) -> nn.Module:
        """Return a module of plain torch layers that computes the same function."""
        raise NotImplementedError

    def dirac_(self) -> None:
        """Start as an identity (up to zero-padded, dropped or merged channels)."""
        raise NotImplementedError

    def orthogonal_(self) -> None:
        """Start as a random orthogonal map."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The constructed weight, in the dtype of the raw parameters: a copy, for reading."""
        return self._ready_weight().clone()

    def _ready_weight(self) -> Tensor:
        """Return the weight that the layer runs with, a kept one where that is possible."""
        if torch.compiler.is_compiling():
            return self._build()
        if not self._may_cache():
            self.drop_cache()  # A step of an optimiser may follow.
            return self._build()
        kept = self._kept
        if kept is None or not self._is_current(kept):
            sources = tuple((p, p._version) for p in self.parameters())
            # A tensor made in inference mode could not be used in a later attack's graph.
            with torch.inference_mode(False), torch.no_grad():
                kept = self._kept = _Kept(self._build(), sources)
        return kept.weight

    def lipschitz_bound(self) -> float:
        """Bound the layer's Lipschitz constant from above: 1, plus the rounding of its weight.

        The float64 weight satisfies the constraint; the difference D to the rounded one adds at
        most sqrt(k1 k2) ||D||_F (theory §2, reshaped kernel).
        """
        return 1.0 + self._rounding() + 1e-9

    def drop_cache(self) -> None:
        """Forget the cached weight."""
        self._kept = None

    def train(self, mode: bool = True) -> Self:
        """Switch the mode, and forget the cached weight."""
        self.drop_cache()
        return super().train(mode)

    def _build(self) -> Tensor:
        reference = next(self.parameters())
        with torch.autocast(reference.device.type, enabled=False):
            return self.construct().to(reference.dtype).contiguous()

    @torch.no_grad()
    def _rounding(self) -> float:
        exact = self.construct()
        error = exact - exact.to(next(self.parameters()).dtype).double()
        return math.sqrt(error.shape[2] * error.shape[3]) * float(error.norm())

    def _may_cache(self) -> bool:
        if self.training:
            return False
        wants_gradient = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        return not wants_gradient and not any(p.is_inference() for p in self.parameters())

    def _is_current(self, kept: _Kept) -> bool:
        now = list(self.parameters())
        return len(now) == len(kept.sources) and all(
            parameter is source and parameter._version == version
            for parameter, (source, version) in zip(now, kept.sources, strict=True)
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, from which the weight may be built."""
        super().__setattr__(name, value)
        if name != "_kept":
            self.drop_cache()

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self.drop_cache()
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.drop_cache()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the cache out of copies and pickles."""
        return {**self.__dict__, "_kept": None}


def drop_caches(module: nn.Module) -> None:
    """Forget the cached weights of all layers of a module."""
    for layer in module.modules():
        if isinstance(layer, ConstructedWeight):
            layer.drop_cache()


def dirac_(model: nn.Module) -> None:
    """Let every 1-Lipschitz convolution of a model start as an identity, in place.

    Residual blocks start orthogonal instead: from an identity kernel x − 2 relu(x) = −|x|, all
    hidden units of the second block would be dead.
    """
    for module in model.modules():
        if isinstance(module, ConstructedWeight):
            module.dirac_()


def orthogonal_(model: nn.Module) -> None:
    """Let every 1-Lipschitz convolution of a model start as a random orthogonal map, in place."""
    for module in model.modules():
        if isinstance(module, ConstructedWeight):
            module.orthogonal_()
