"""Lipschitz bounds of any torch module: constants, their propagation, and what makes them large."""

from lipdet.lipschitz.audit import audit
from lipdet.lipschitz.profile import layer_profile
from lipdet.lipschitz.propagation import propagate

__all__ = ["audit", "layer_profile", "propagate"]
