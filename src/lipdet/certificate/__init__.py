"""Certificates: how far outputs can move, and which detections cannot be lost.

In the order in which they import each other: `geometry` (where uncertain boxes lie, and how much
they overlap), `constants` (Lipschitz constants of a detector's outputs, and their rounding),
`conditions` (candidates, what NMS can keep of them, and the five conditions), and on top of these
certified AP, the verifier of a detector, radii, and the diagnosis of what is not certified.
"""

from lipdet.certificate.constants.outputs import OutputBounds, lipschitz_bound, output_bounds
from lipdet.errors import UnknownLipschitz

__all__ = ["OutputBounds", "UnknownLipschitz", "lipschitz_bound", "output_bounds"]
