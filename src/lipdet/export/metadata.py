"""What an exported file says about itself, as one json text: enough to use it without its source.

Notable choices:
- Default boxes are stored as numbers, not as the recipe that made them: a reader needs no lipdet.
- The certificate's part is a summary per map, the largest constant of any output of that map; what
  certifies single detections is computed from the weights file.
"""

from __future__ import annotations

import base64
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from lipdet.boxes import BoxCoding, Decoder, Scores, Selection, SigmoidScores, SoftmaxScores
from lipdet.certificate.constants.outputs import output_bounds
from lipdet.checkpoint import LoadedDetector
from lipdet.config import as_plain
from lipdet.detector import SSD
from lipdet.errors import UnknownLipschitz
from lipdet.types import Canvas
from lipdet.versions import versions

KEY = "lipdet"
DTYPE = "<f4"


def describe(loaded: LoadedDetector, selection: Selection | None) -> dict[str, Any]:
    """Tell what is known before the file is checked; docs/export.md explains each entry.

    Args:
        loaded: the detector that is exported.
        selection: of the detections inside the model, if it has any.
    """
    detector = loaded.detector
    return {
        "weights": loaded.name,
        "detector": as_plain(detector.config),
        "figures": loaded.info.get("figures", {}),
        "input": {
            "name": "images",
            "shape": ["batch", 3, *detector.config.canvas],
            "channels": "RGB",
            "range": [0, 1],
        },
        "precision": "float32",
        "decoder": _decoder_as_dict(detector.decoder),
        "selection": asdict(selection) if selection else None,
        "certificate": _certificate(detector),
        "versions": versions(),
    }


def read_decoder(metadata: dict[str, Any]) -> Decoder:
    """Return the decoder that `describe` wrote.

    Raises:
        KeyError, TypeError, ValueError: it is not in the form that `describe` writes.
    """
    stored = metadata["decoder"]
    numbers = np.frombuffer(base64.b64decode(stored["default_boxes"]), DTYPE).reshape(-1, 4)
    temperature = stored["temperature"]
    scores: Scores = SoftmaxScores()
    if temperature is not None:
        margin = stored["class_margin"]
        scores = SigmoidScores(float(temperature), math.inf if margin is None else float(margin))
    return Decoder(
        torch.from_numpy(numbers.astype(np.float32)),
        BoxCoding(float(stored["center_variance"]), float(stored["size_variance"])),
        scores,
        Canvas(*stored["canvas"]),
        float(stored["nms_iou"]),
    )


def _decoder_as_dict(decoder: Decoder) -> dict[str, Any]:
    numbers = decoder.default_boxes.cpu().numpy().astype(DTYPE)
    scores = decoder.scores
    margin = scores.class_margin if isinstance(scores, SigmoidScores) else math.inf
    return {
        "canvas": list(decoder.canvas),
        "anchors": len(numbers),
        "default_boxes": base64.b64encode(numbers.tobytes()).decode(),
        "default_boxes_form": "cx, cy, w, h in pixels; float32, little-endian, base64",
        "center_variance": decoder.coding.center_variance,
        "size_variance": decoder.coding.size_variance,
        "scores": "sigmoid" if isinstance(scores, SigmoidScores) else "softmax",
        "temperature": scores.temperature if isinstance(scores, SigmoidScores) else None,
        "class_margin": None if math.isinf(margin) else margin,
        "nms_iou": decoder.nms_iou,
    }


def _certificate(detector: SSD) -> dict[str, Any]:
    """Return the constants of the float32 network, or why there are none."""
    units = {"norm": "L2", "epsilon": "over all input values, in [0, 1] pixel units at input size"}
    try:
        bounds = output_bounds(detector)
    except UnknownLipschitz as error:
        return {**units, "unknown": str(error)}
    return {
        **units,
        "joint": bounds.joint,
        "maps": [
            {
                "anchors": [rows.start, rows.stop],
                "features": features,
                "largest_logit": float(bounds.logits[rows].max()),
                "largest_offset": float(bounds.offsets[rows].max()),
            }
            for features, rows in zip(bounds.features, bounds.anchors, strict=True)
        ],
    }
