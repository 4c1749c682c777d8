"""Export a detector to ONNX: build the model, check it against torch, only then write it.

Notable choices:
- Nodes lose the exporter's notes on them: these name files of the machine it ran on.
- Opset and form are those that PyTorch's exporter chooses; nothing in the model is of our own.
- Non-maximum suppression inside a model is that of `lipdet.boxes.select`. Its outputs have a fixed
  shape: the k best of each image, best first; what is missing has the label -1, the score 0 and a
  box of zeros. A small device can reserve their memory beforehand.
- 8-bit integers are by static quantisation of ONNX Runtime: signed, weights with one scale per
  channel, ranges of activations those seen on calibration pictures. Decoding and suppression stay
  in float32, where a box is not rounded to a 256th of the image.
- No certificate carries over to integers by itself: rounding is a step function, and no constant
  bounds how far the outputs of a quantised network move. docs/export.md says what still holds.
"""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, checker, compose, parser
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from torch import Tensor

from lipdet.boxes import Selection
from lipdet.boxes.scores import logit
from lipdet.checkpoint import LoadedNetwork, LoadedSegmenter
from lipdet.detector import SSD
from lipdet.errors import InputError
from lipdet.export.metadata import KEY, describe
from lipdet.export.runtime import OnnxNetwork, OnnxSegmenter
from lipdet.export.torch_file import RAW, SCORED, network_of, output_names, traced
from lipdet.export.verify import compare, same_detections, verify
from lipdet.files import write_complete
from lipdet.segmenter import Segmenter

CALIBRATION_BATCH = 32
DETECTIONS = ("boxes", "labels", "scores")

# `decoded` is (batch, A, 4), `log_odds` (batch, classes, A). NonMaxSuppression returns rows
# (image, class, box); written into a map of -inf, they can be ranked per image over all classes,
# by log-odds; scores are their sigmoid, for display.
_GRAPH = """
<ir_version: {ir_version}, opset_import: ["" : {opset}]>
detections (float[batch, {anchors}, 4] decoded, float[batch, {classes}, {anchors}] log_odds)
    => (float[batch, {k}, 4] boxes, int64[batch, {k}] labels, float[batch, {k}] scores)
<
    int64 most = {{{k}}}, float iou = {{{iou}}}, float floor = {{{floor}}},
    int64[1] k = {{{k}}}, int64 anchors = {{{anchors}}}, int64[1] last = {{-1}},
    int64[2] per_image = {{-1, {pairs}}}, int64[3] four = {{1, 1, 4}},
    int64 none = {{-1}}, float zero = {{0}}
>
{{
    kept = NonMaxSuppression (decoded, log_odds, most, iou, floor)
    shape = Shape (log_odds)
    nothing = ConstantOfShape <value = float[1] {{-inf}}> (shape)
    kept_odds = GatherND (log_odds, kept)
    ranked = ScatterND (nothing, kept, kept_odds)
    flat = Reshape (ranked, per_image)
    best, places = TopK <axis = 1> (flat, k)
    missing = IsInf (best)
    classes = Div (places, anchors)
    labels = Where (missing, none, classes)
    rows = Mod (places, anchors)
    row = Unsqueeze (rows, last)
    corners = Expand (row, four)
    found = GatherElements <axis = 1> (decoded, corners)
    absent = Unsqueeze (missing, last)
    boxes = Where (absent, zero, found)
    scores = Sigmoid (best)
}}
"""


def export_onnx(
    loaded: LoadedNetwork,
    out: Path,
    images: Tensor,
    detections: bool = False,
    calibration: Tensor | None = None,
) -> dict[str, Any]:
    """Write a network as an ONNX model that says what it is and how well it was checked.

    Args:
        loaded: the detector or segmenter.
        out: the file; it appears when the checks have passed.
        images: (B, 3, H, W) in [0, 1], on which the model must equal torch.
        detections: whether decoding and non-maximum suppression become part of a detector's model.
        calibration: (N, 3, H, W) in [0, 1]; with it the float32 model, once checked, is turned
            into 8-bit integers, whose differences from torch on `images` are measured.

    Returns:
        The metadata in the file.

    Raises:
        InputError: the model differs from the network, or detections are asked of a segmenter.
    """
    original = network_of(loaded)
    if isinstance(original, Segmenter) and detections:
        raise InputError("A segmenter finds no boxes: leave out --detections.")
    selection = original.display if isinstance(original, SSD) and detections else None
    metadata = describe(loaded, images, selection)
    model = onnx_model(original, selection)
    set_metadata(model, metadata)
    opened = OnnxSegmenter if isinstance(loaded, LoadedSegmenter) else OnnxNetwork
    network = opened(model.SerializeToString())
    verify(loaded, network, metadata, images)
    metadata["verified"] |= _own_detections(network, images, selection)
    if calibration is not None:
        model = quantised(model, calibration)
        set_metadata(model, metadata)
        network = opened(model.SerializeToString())
        metadata["precision"] = "int8"
        metadata["int8"] = {
            "calibrated_on": len(calibration),
            **compare(original, network, images),
            **_own_detections(network, images, selection),
        }
        metadata["verified"]["covers"] = "the float32 network; see `int8` for this one"
        metadata["certificate"]["covers"] = "the float32 network; see `int8` for the difference"
    set_metadata(model, metadata)
    write_complete(out, model.SerializeToString())
    return metadata


def _own_detections(
    network: OnnxNetwork | OnnxSegmenter, images: Tensor, selection: Selection | None
) -> dict[str, int]:
    """Compare a model's detections with lipdet's of its raw outputs; empty if it has none."""
    if selection is None or isinstance(network, OnnxSegmenter):
        return {}
    return same_detections(network.run(images, RAW + DETECTIONS), network.decoder, selection)


def onnx_model(network: SSD | Segmenter, selection: Selection | None) -> ModelProto:
    """Return a network as an ONNX model without metadata.

    Args:
        network: left as it is.
        selection: of a detector's detections among the outputs; none without it.
    """
    scored = selection is not None
    # It warns of operations of torchvision's that are missing without it; none is used here.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    program = torch.onnx.export(
        traced(network, scored),
        input_names=["images"],
        output_names=output_names(network, scored),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model: ModelProto = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    if selection is not None:
        assert isinstance(network, SSD)
        model = add_detections(model, selection, network.nms_iou)
    checker.check_model(model, full_check=True)
    return model


def set_metadata(model: ModelProto, metadata: dict[str, Any]) -> None:
    """Make `metadata` all that a model says about itself."""
    del model.metadata_props[:]
    model.metadata_props.add(key=KEY, value=json.dumps(metadata))
    model.producer_name = KEY


def add_detections(model: ModelProto, selection: Selection, nms_iou: float) -> ModelProto:
    """Replace the outputs `SCORED` of a model by `DETECTIONS`.

    Args:
        model: with the outputs `RAW` and `SCORED`.
        selection: score floor and top-k.
        nms_iou: of the detector.
    """
    shape = model.graph.output[len(RAW)].type.tensor_type.shape
    classes = model.graph.output[len(RAW) + 1].type.tensor_type.shape.dim[1].dim_value
    anchors = shape.dim[1].dim_value
    text = _GRAPH.format(
        ir_version=model.ir_version,
        opset=model.opset_import[0].version,
        anchors=anchors,
        classes=classes,
        pairs=anchors * classes,
        k=min(selection.top_k, anchors * classes),
        iou=nms_iou,
        floor=logit(selection.score_floor),
    )
    suppression = parser.parse_model(text)
    for index, node in enumerate(suppression.graph.node):
        node.name = f"detections_{index}"
    merged = compose.merge_models(
        model,
        suppression,
        io_map=[(name, name) for name in SCORED],
        outputs=[*RAW, *DETECTIONS],
    )
    # One and the same, once from each part.
    del merged.opset_import[1:]
    return merged


class Pictures(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Batches of pictures in the form that ONNX Runtime asks for."""

    def __init__(self, images: Tensor) -> None:
        starts = range(0, len(images), CALIBRATION_BATCH)
        self._batches = (
            {"images": images[start : start + CALIBRATION_BATCH].numpy()} for start in starts
        )

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch, or None after the last."""
        return next(self._batches, None)


def quantised(model: ModelProto, images: Tensor) -> ModelProto:
    """Turn the network of a model into 8-bit integers.

    Args:
        model: as `onnx_model` makes it.
        images: (B, 3, H, W) in [0, 1], representative of what the model will see.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        # The exporter has inferred the shapes and folded what can be folded already.
        add_pre_process_metadata(model)
        onnx.save(model, source)
        # The calibration also looks at log-odds of -inf, which stay in float32.
        with np.errstate(invalid="ignore"):
            quantize_static(
                source,
                target,
                Pictures(images),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                nodes_to_exclude=_after_raw(model),
            )
        return onnx.load(target)


def _after_raw(model: ModelProto) -> list[str]:
    """Return the names of the nodes that work on the raw outputs."""
    late = set(RAW)
    names = []
    for node in model.graph.node:
        if late & set(node.input):
            late |= set(node.output)
            names.append(node.name)
    return names
