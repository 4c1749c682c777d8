"""lipdet: object detectors whose detections are provably stable."""

__version__ = "0.1.0"
