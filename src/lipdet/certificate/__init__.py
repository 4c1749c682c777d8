"""Certificates: how far outputs can move, and which detections cannot be lost."""

from lipdet.certificate.outputs import OutputBounds, lipschitz_bound, output_bounds
from lipdet.errors import UnknownLipschitz

__all__ = ["OutputBounds", "UnknownLipschitz", "lipschitz_bound", "output_bounds"]
