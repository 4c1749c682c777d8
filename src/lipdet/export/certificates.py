"""Whether an exported network's outputs certify what the detector's own outputs certify."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lipdet.boxes import AP_SELECTION, DISPLAY_SELECTION, select_detections
from lipdet.certificate.conditions.certify import certified_up_to
from lipdet.certificate.conditions.ground_truth import ground_truth_of
from lipdet.certificate.verifier import Verifier, verifier_of
from lipdet.detector import SSD
from lipdet.errors import UnknownLipschitz
from lipdet.export.verify import Network
from lipdet.types import RawOutput, Target

IOU = 0.5
# An L2 radius at which a detector made for certificates keeps many of its detections.
EPSILON = 0.1


@torch.no_grad()
def compare_certificates(
    detector: SSD, exported: Network, images: Tensor, epsilon: float = EPSILON
) -> dict[str, Any] | None:
    """Certify the detector's own detections, from its outputs and from the exported network's.

    Args:
        detector: in eval mode, on the CPU.
        exported: the network to check.
        images: (B, 3, S, S) in [0, 1].
        epsilon: L2 radius in [0, 1] pixel units.

    Returns:
        ε, the number of detections, how many of them are certified, and on how many both agree;
        None where the detector has no Lipschitz bound, or one so large that every logit could
        move by more than its whole range, so that nothing can be certified.
    """
    try:
        verifier = verifier_of(detector, AP_SELECTION, images)
    except UnknownLipschitz:
        return None
    raw: RawOutput = detector(images)
    if float(verifier.bounds.logits.min()) * epsilon > float(raw.logits.max() - raw.logits.min()):
        return None
    found = select_detections(raw, detector.decoder, DISPLAY_SELECTION)
    targets = [Target(boxes=one["boxes"], labels=one["labels"]) for one in found]
    ours = certified_objects(verifier, raw, targets, epsilon)
    theirs = certified_objects(verifier, exported(images), targets, epsilon)
    return {
        "epsilon": epsilon,
        "detections": len(ours),
        "certified": int(ours.sum()),
        "agree": int((ours == theirs).sum()),
    }


def certified_objects(
    verifier: Verifier, raw: RawOutput, targets: list[Target], epsilon: float
) -> Tensor:
    """Return which objects are certified, (G,) bool."""
    truths = ground_truth_of(targets)
    radius = torch.full((len(targets),), epsilon, dtype=torch.float64)
    candidates = verifier.candidates(raw, radius)
    found = verifier.certifiers(candidates, truths, radius, IOU)
    return certified_up_to(found, len(truths.image), [IOU])[:, 0] > -math.inf
