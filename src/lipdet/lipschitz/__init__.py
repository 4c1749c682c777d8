"""Lipschitz bounds of any torch module: constants, their propagation, and what makes them large."""

from lipdet.lipschitz.audit import Audit, Finding, audit
from lipdet.lipschitz.profile import LayerRow, layer_profile
from lipdet.lipschitz.propagation import Propagation, propagate

__all__ = [
    "Audit",
    "Finding",
    "LayerRow",
    "Propagation",
    "audit",
    "layer_profile",
    "propagate",
]
