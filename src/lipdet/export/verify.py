"""Check that an exported network computes, and certifies, what its original does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lipdet.boxes import (
    AP_SELECTION,
    Decoder,
    Selection,
    select_detections,
)
from lipdet.certificate.conditions.certify import certified_up_to
from lipdet.certificate.conditions.ground_truth import ground_truth_of
from lipdet.certificate.pixels import margins_of
from lipdet.certificate.verifier import Verifier, verifier_of
from lipdet.checkpoint import LoadedNetwork, LoadedSegmenter
from lipdet.detector import SSD
from lipdet.errors import InputError, UnknownLipschitz
from lipdet.export.metadata import read_bounds
from lipdet.segmenter import Segmenter
from lipdet.types import RawOutput, Target

# Of the largest output on the same pictures, or of 1 where all are smaller: float32 sums in
# another order differ by a few times 1e-7 of their largest terms.
TOLERANCE = 1e-5
IOU = 0.5
# An L2 radius at which a detector made for certificates keeps many of its detections.
EPSILON = 0.1

# Pixels in all of the pictures whose certificates are compared, which takes longer than their
# outputs: 20 crops of digits. And how many pictures at least.
CERTIFIED_PIXELS, LEAST_CERTIFIED = 110_000, 2

# Images to raw output; of a segmenter, to logits.
Network = Callable[[Tensor], RawOutput | Tensor]


def verify(
    loaded: LoadedNetwork, exported: Network, metadata: dict[str, Any], images: Tensor
) -> None:
    """Compare an exported network with its original, and add to its metadata what was found.

    What a segmenter's logits differ by is added to what certificates allow for rounding.

    Args:
        loaded: the original.
        exported: run on batches of several sizes.
        metadata: as `describe` makes it.
        images: (B, 3, H, W) in [0, 1].

    Raises:
        InputError: they differ by more than `TOLERANCE`.
    """
    metadata["verified"] = found = compare(loaded.module, exported, images)
    check(found)
    pixels = images.shape[2] * images.shape[3]
    few = images[: max(LEAST_CERTIFIED, CERTIFIED_PIXELS // pixels)]
    if not isinstance(loaded, LoadedSegmenter):
        found["certificates"] = compare_certificates(loaded.detector, exported, few)
        return
    if "rounding" in metadata["certificate"]:
        metadata["certificate"]["rounding"] += found["logits"]["largest_difference"]
    found["certificates"] = compare_radii(loaded.segmenter, exported, metadata, few)


@torch.no_grad()
def compare(original: Network, exported: Network, images: Tensor) -> dict[str, Any]:
    """Compare the raw outputs of two networks on the same pictures.

    Args:
        original: in eval mode.
        exported: run on batches of several sizes.
        images: (B, 3, H, W) in [0, 1].

    Returns:
        The number of pictures; per output the largest difference and the largest value.
    """
    # Of one, of several and of many: a size that was taken for a constant would be found.
    batches = [
        part for part in (*images[:8].tensor_split([1]), *torch.split(images[8:], 32)) if len(part)
    ]
    outputs = [
        [torch.cat(parts) for parts in zip(*map(_parts, map(network, batches)), strict=True)]
        for network in (original, exported)
    ]
    found: dict[str, Any] = {"pictures": len(images)}
    # Of a segmenter there are logits alone.
    for name, ours, theirs in zip(RawOutput._fields, *outputs, strict=False):
        found[name] = {
            "largest_difference": float((ours - theirs).abs().max()),
            "largest_value": float(ours.abs().max()),
        }
    return found


def _parts(raw: RawOutput | Tensor) -> tuple[Tensor, ...]:
    return (raw,) if isinstance(raw, Tensor) else raw


def check(comparison: dict[str, Any]) -> None:
    """Refuse an export whose outputs differ by more than `TOLERANCE`.

    Raises:
        InputError: they do.
    """
    for name in filter(comparison.__contains__, RawOutput._fields):
        difference, largest = comparison[name].values()
        if not difference <= TOLERANCE * max(1.0, largest):
            raise InputError(
                f"The exported network is not the original: its {name} differ by up to "
                f"{difference:.2g} where the largest is {largest:.2g}; nothing was written."
            )


def same_detections(
    outputs: Sequence[Tensor], decoder: Decoder, selection: Selection
) -> dict[str, int]:
    """Count the pictures on which a model's own detections are those that lipdet selects.

    Args:
        outputs: logits, offsets, boxes (B, k, 4), labels (B, k) and scores (B, k) of one run.
        decoder: of the detector.
        selection: the one that the model was given.

    Returns:
        That number, and of how many detections in all.
    """
    logits, offsets, *found = outputs
    expected = select_detections(RawOutput(logits, offsets), decoder, selection)
    same = sum(
        bool(
            torch.equal(labels[labels >= 0], one["labels"])
            and torch.allclose(boxes[labels >= 0], one["boxes"], atol=1e-3)
            and torch.allclose(scores[labels >= 0].double(), one["scores"], atol=1e-5)
        )
        for boxes, labels, scores, one in zip(*found, expected, strict=True)
    )
    return {"same_detections": same, "detections": sum(len(one["labels"]) for one in expected)}


@torch.no_grad()
def compare_certificates(
    detector: SSD, exported: Network, images: Tensor, epsilon: float = EPSILON
) -> dict[str, Any] | None:
    """Certify the detector's own detections, from its outputs and from the exported network's.

    Args:
        detector: in eval mode, on the CPU.
        exported: the network to check.
        images: (B, 3, H, W) in [0, 1].
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
    found = select_detections(raw, detector.decoder, detector.display)
    targets = [Target(boxes=one["boxes"], labels=one["labels"]) for one in found]
    ours = certified_objects(verifier, raw, targets, epsilon)
    found_there = exported(images)
    assert isinstance(found_there, RawOutput)
    theirs = certified_objects(verifier, found_there, targets, epsilon)
    return {
        "epsilon": epsilon,
        "detections": len(ours),
        "certified": int(ours.sum()),
        "agree": int((ours == theirs).sum()),
    }


@torch.no_grad()
def compare_radii(
    segmenter: Segmenter, exported: Network, metadata: dict[str, Any], images: Tensor
) -> dict[str, Any] | None:
    """Certify pixels from the segmenter's logits and from the exported network's.

    Args:
        segmenter: in eval mode, on the CPU.
        exported: the network to check.
        metadata: with the constants that certify both.
        images: (B, 3, H, W) in [0, 1].

    Returns:
        As `compare_certificates`, of pixels; None where the segmenter has no constants.
    """
    bounds = read_bounds(metadata)
    if bounds is None:
        return None
    ours, theirs = (
        torch.stack(
            [
                torch.from_numpy(margins_of(logits, segmenter, bounds).radius > EPSILON)
                for logits in _parts(network(images))[0]
            ]
        )
        for network in (segmenter, exported)
    )
    return {
        "epsilon": EPSILON,
        "pixels": ours.numel(),
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
