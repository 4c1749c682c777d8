"""Certificates: how far outputs can move, and which detections cannot be lost."""

from lipdet.certificate.lipschitz import lipschitz_bound
from lipdet.certificate.operator_norm import UnknownLipschitz
from lipdet.certificate.outputs import OutputBounds, output_bounds

__all__ = ["OutputBounds", "UnknownLipschitz", "lipschitz_bound", "output_bounds"]
