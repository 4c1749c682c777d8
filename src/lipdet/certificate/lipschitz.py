"""Certified upper bound on the Lipschitz constant of a whole network."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import fx, nn
from torch.fx.node import map_arg

from lipdet.certificate.operator_norm import SLACK
from lipdet.certificate.outputs import bounds_of_outputs, propagate_detector
from lipdet.certificate.propagation import propagate
from lipdet.detector.ssd import SSD


def lipschitz_bound(module: nn.Module, input_shape: Sequence[int]) -> float:
    """Bound the Lipschitz constant of a network in the L2 norm, from its input to all its outputs.

    Chains multiply, sums add, concatenations of maps of the same input take √Σ L² (THEORY §2). The
    bound holds for the function of real arithmetic with the weights as stored, in the mode the
    module is in.

    Args:
        module: any composition of the modules and functions that have a rule, with one input.
        input_shape: shape of one input without the batch axis, such as (3, 74, 74).

    Returns:
        The bound, with a factor of 1 + 1e-9 for the rounding of the composition itself.

    Raises:
        UnknownLipschitz: something has no rule; its name and the reason are in the message.
        InputError: the module cannot process this shape.
    """
    if isinstance(module, SSD):
        return bounds_of_outputs(module, propagate_detector(module, input_shape)).joint
    propagation = propagate(module, input_shape)
    parts: list[float] = []

    def collect(node: fx.Node) -> fx.Node:
        if node not in propagation.fixed:
            parts.append(propagation.bounds[node])
        return node

    map_arg(propagation.outputs, collect)
    return math.hypot(*parts) * SLACK
