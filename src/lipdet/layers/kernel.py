"""Convolutions whose raw parameter is a kernel of the usual shape that is then normalised."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lipdet.layers.conv import LipschitzConv2d
from lipdet.layers.init import centred_orthogonal_, tiled_dirac_


class KernelConv2d(LipschitzConv2d):
    """A convolution with a raw kernel `raw` (out_channels, in_channels, k1, k2)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.raw = nn.Parameter(torch.empty(self.out_channels, self.in_channels, *self.kernel_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as an identity: it has gain 1 in every one of these layers that can have it."""
        self.dirac_()

    def dirac_(self) -> None:
        """Start as an identity, with copied or merged channels where the numbers differ."""
        tiled_dirac_(self.raw)

    def orthogonal_(self) -> None:
        """Start as a random semi-orthogonal matrix at the central tap."""
        centred_orthogonal_(self.raw)
