"""Export a detector to ONNX: build the model, check it against torch, only then write it.

Notable choices:
- Nodes lose the exporter's notes on them: these name files of the machine it ran on.
- Opset and form are those that PyTorch's exporter chooses; nothing in the model is of our own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto, checker
from torch import Tensor

from lipdet.boxes import DISPLAY_SELECTION, Selection
from lipdet.checkpoint import LoadedDetector
from lipdet.detector import SSD
from lipdet.export.certificates import compare_certificates
from lipdet.export.files import write_complete
from lipdet.export.int8 import quantised
from lipdet.export.metadata import KEY, describe
from lipdet.export.network import RAW, output_names, traced
from lipdet.export.nms import DETECTIONS, add_detections
from lipdet.export.runtime import OnnxNetwork
from lipdet.export.verify import check, compare, same_detections
from lipdet.types import RawOutput

# Pictures whose certificates are compared, which takes longer than their outputs.
CERTIFIED = 20


def export_onnx(
    loaded: LoadedDetector,
    out: Path,
    images: Tensor,
    detections: bool = False,
    calibration: Tensor | None = None,
) -> dict[str, Any]:
    """Write a detector as an ONNX model that says what it is and how well it was checked.

    Args:
        loaded: the detector.
        out: the file; it appears when the checks have passed.
        images: (B, 3, S, S) in [0, 1], on which the model must equal torch.
        detections: whether decoding and non-maximum suppression become part of the model.
        calibration: (N, 3, S, S) in [0, 1]; with it the float32 model, once checked, is turned
            into 8-bit integers, whose differences from torch on `images` are measured.

    Returns:
        The metadata in the file.

    Raises:
        InputError: the model differs from the detector.
    """
    selection = DISPLAY_SELECTION if detections else None
    metadata = describe(loaded, selection)
    model = onnx_model(loaded.detector, selection)
    set_metadata(model, metadata)
    network = OnnxNetwork(model.SerializeToString())
    metadata["verified"] = compare(loaded.detector, network, images)
    check(metadata["verified"])
    certified = compare_certificates(loaded.detector, network, images[:CERTIFIED])
    metadata["verified"]["certificates"] = certified
    if selection is not None:
        metadata["verified"]["same_detections"] = _same_detections(network, images, selection)
    if calibration is not None:
        model = quantised(model, calibration)
        set_metadata(model, metadata)
        network = OnnxNetwork(model.SerializeToString())
        metadata["precision"] = "int8"
        metadata["int8"] = {
            "calibrated_on": len(calibration),
            **compare(loaded.detector, network, images),
        }
        metadata["certificate"]["covers"] = "the float32 network; see `int8` for the difference"
    set_metadata(model, metadata)
    write_complete(out, model.SerializeToString())
    return metadata


def onnx_model(detector: SSD, selection: Selection | None) -> ModelProto:
    """Return a detector as an ONNX model without metadata.

    Args:
        detector: left as it is.
        selection: of the detections among the outputs; none without it.
    """
    scored = selection is not None
    program = torch.onnx.export(
        traced(detector, scored),
        input_names=["images"],
        output_names=output_names(scored),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model: ModelProto = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    if selection is not None:
        model = add_detections(model, selection, detector.nms_iou)
    checker.check_model(model, full_check=True)
    return model


def set_metadata(model: ModelProto, metadata: dict[str, Any]) -> None:
    """Make `metadata` all that a model says about itself."""
    del model.metadata_props[:]
    model.metadata_props.add(key=KEY, value=json.dumps(metadata))
    model.producer_name = KEY


def _same_detections(network: OnnxNetwork, images: Tensor, selection: Selection) -> int:
    logits, offsets, *found = network.run(images, RAW + DETECTIONS)
    raw = RawOutput(logits, offsets)
    return same_detections((found[0], found[1], found[2]), raw, network.decoder, selection)
