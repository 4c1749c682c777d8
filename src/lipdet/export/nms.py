"""Non-maximum suppression inside an ONNX model, as `lipdet.boxes.select` does it.

Notable choices:
- The outputs have a fixed shape: the k best of each image, best first; what is missing has the
  label -1, the score 0 and a box of zeros. A small device can reserve their memory beforehand.
- Ranking is on log-odds; scores are their sigmoid, for display.
"""

from __future__ import annotations

from onnx import ModelProto, compose, parser

from lipdet.boxes import Selection
from lipdet.boxes.scores import logit
from lipdet.export.network import RAW, SCORED

DETECTIONS = ("boxes", "labels", "scores")

# `decoded` is (batch, A, 4), `log_odds` (batch, classes, A). NonMaxSuppression returns rows
# (image, class, box); written into a map of -inf, they can be ranked per image over all classes.
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
