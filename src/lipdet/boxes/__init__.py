"""From raw outputs to detections: box coding, scores, per-class NMS, top-k."""

from lipdet.boxes.coding import BoxCoding
from lipdet.boxes.scores import Scores, SigmoidScores, SoftmaxScores
from lipdet.boxes.select import (
    AP_SELECTION,
    DISPLAY_SELECTION,
    NMS_IOU,
    Decoder,
    Selection,
    select_detections,
)

__all__ = [
    "AP_SELECTION",
    "DISPLAY_SELECTION",
    "NMS_IOU",
    "BoxCoding",
    "Decoder",
    "Scores",
    "Selection",
    "SigmoidScores",
    "SoftmaxScores",
    "select_detections",
]
