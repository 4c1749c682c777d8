"""From raw outputs to detections: box coding, scores, per-class NMS, top-k."""

from lipdet.boxes.coding import BoxCoding
from lipdet.boxes.select import AP_SELECTION, DISPLAY_SELECTION, Selection, select_detections

__all__ = ["AP_SELECTION", "DISPLAY_SELECTION", "BoxCoding", "Selection", "select_detections"]
