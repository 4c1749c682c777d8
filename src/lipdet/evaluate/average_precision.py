"""Average precision as COCO defines it, computed by faster-coco-eval.

Notable choices:
- One image is one entry: batches are never pooled into one matching problem.
- Images without objects count: whatever is detected there is a false positive.
- A class without any object has no AP (None) and is left out of the mean, as in COCO.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from faster_coco_eval import COCO
from faster_coco_eval import COCOeval_faster as CocoEvaluation
from numpy.typing import NDArray

from lipdet.images.coco import coco_dict
from lipdet.results import AveragePrecision, ClassAP
from lipdet.types import Detections, Target


def average_precision(
    targets: Sequence[Target],
    detections: Sequence[Detections],
    class_names: Sequence[str],
) -> AveragePrecision:
    """Compute COCO AP (101 recall points, at most 100 detections of a class per image).

    Args:
        targets: what is there, per image.
        detections: what was found, per image, in the same order.
        class_names: names of the classes in the order of their labels.

    Returns:
        Fractions. Without any object at all, both means are 0.
    """
    evaluation = coco_evaluation(targets, detections, class_names)
    evaluation.evaluate()
    evaluation.accumulate()
    # (IoU thresholds, recalls, classes); -1 marks a class without objects.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = {name: _class_ap(precision[:, :, index]) for index, name in enumerate(class_names)}
    assert len(per_class) == len(class_names), "two classes share a name"
    known = [entry for entry in per_class.values() if entry["ap50"] is not None]
    return AveragePrecision(
        ap50=float(np.mean([entry["ap50"] for entry in known])) if known else 0.0,
        ap=float(np.mean([entry["ap"] for entry in known])) if known else 0.0,
        per_class=per_class,
    )


def coco_evaluation(
    targets: Sequence[Target],
    detections: Sequence[Detections],
    class_names: Sequence[str],
    **options: bool,
) -> CocoEvaluation:
    """Set up the evaluation of which AP is made; `options` are those of faster-coco-eval."""
    # COCO stores the size of a picture; the metric does not use it.
    sizes = [(str(index), 1, 1) for index in range(len(targets))]
    truth = COCO(coco_dict(sizes, targets, class_names))
    results = [row for index, found in enumerate(detections) for row in _rows(index + 1, found)]
    return CocoEvaluation(truth, truth.loadRes(results), iouType="bbox", **options)


def _rows(image_id: int, found: Detections) -> list[dict[str, object]]:
    """Return detections in COCO's result format (xywh, categories from 1)."""
    corners = found["boxes"].double()
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)
    return [
        {"image_id": image_id, "category_id": label + 1, "bbox": box, "score": score}
        for box, label, score in zip(
            boxes.tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True
        )
    ]


def _class_ap(precision: NDArray[np.float64]) -> ClassAP:
    if (precision < 0).all():
        return ClassAP(ap50=None, ap=None)
    return ClassAP(ap50=float(precision[0].mean()), ap=float(precision.mean()))
