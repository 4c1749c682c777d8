"""One way from a picture to what is read in it: regions, outputs, detections, radii, reach."""

from lipdet.reading.detections import Detection, named
from lipdet.reading.read import Reading, certified_reading, read, regions_of
from lipdet.reading.views import View, certified, known_verifier, look

__all__ = [
    "Detection",
    "Reading",
    "View",
    "certified",
    "certified_reading",
    "known_verifier",
    "look",
    "named",
    "read",
    "regions_of",
]
