"""Batch normalisation over the parts of a batch that several processes hold.

torch's SyncBatchNorm needs a GPU. With statistics of each part for itself, or averaged buffers, the
network would be another one than that of one process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lipdet import distributed


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with the statistics of the whole batch, in parts of equal size."""

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        if not self.training:
            return super().forward(maps)
        values = maps.to(torch.promote_types(maps.dtype, torch.float32))
        with torch.no_grad():
            mean = _mean_of_all(values.mean((0, 2, 3)))
            variance = _mean_of_all((values - mean[:, None, None]).square().mean((0, 2, 3)))
        self._remember(mean, variance, maps.numel() // maps.shape[1] * distributed.size())
        spread = (variance + self.eps).sqrt()
        found: Tensor = _Normalise.apply(values, self.weight, self.bias, mean, spread)
        return found.to(maps.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


def share_batch_statistics(module: nn.Module) -> None:
    """Let every batch normalisation inside a module see the batches of all processes."""
    if distributed.size() == 1:
        return
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            shared = SharedBatchNorm2d(child.num_features, child.eps, child.momentum)
            shared.to(child.weight).load_state_dict(child.state_dict())
            setattr(module, name, shared)
        else:
            share_batch_statistics(child)


class _Normalise(torch.autograd.Function):
    """Batch normalisation by the mean and spread (C,) of the whole batch, which depend on `maps`.

    The gradient is that of Ioffe and Szegedy (2015, §3), with sums over all processes. Those of
    weight and bias are this process's share, as the gradients of all other parameters are.
    """

    @staticmethod
    def forward(
        context: Any, maps: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, spread: Tensor
    ) -> Tensor:
        context.save_for_backward(maps, weight, mean, spread)
        scale = weight / spread
        return _scaled(maps, scale, bias - mean * scale)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        maps, weight, mean, spread = context.saved_tensors
        to_bias = gradient.sum((0, 2, 3))
        to_weight = ((gradient * maps).sum((0, 2, 3)) - mean * to_bias) / spread
        means = torch.stack([to_bias, to_weight]) / (maps.numel() // maps.shape[1])
        of_bias, of_weight = _mean_of_all(means)
        scale = weight / spread
        slope = -scale * of_weight / spread
        to_maps = _scaled(gradient, scale, -scale * of_bias - slope * mean)
        to_maps.addcmul_(maps, slope[:, None, None])
        return to_maps, to_weight, to_bias, None, None


def _scaled(maps: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift[:, None, None], maps, scale[:, None, None])


def _mean_of_all(values: Tensor) -> Tensor:
    total = values.clone()
    distributed.add_up([total])
    return total / distributed.size()
