"""One way from a picture to what is read in it: regions, outputs, detections, radii, reach."""

from lipdet.reading.detections import Detection, named
from lipdet.reading.read import Reading, certified_reading, read, read_all, regions_of
from lipdet.reading.views import (
    Count,
    Tally,
    View,
    certified,
    known_verifier,
    look,
    shown_above,
    tallied,
)

__all__ = [
    "Count",
    "Detection",
    "Reading",
    "Tally",
    "View",
    "certified",
    "certified_reading",
    "known_verifier",
    "look",
    "named",
    "read",
    "read_all",
    "regions_of",
    "shown_above",
    "tallied",
]
