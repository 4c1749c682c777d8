"""The largest ε at which something is certified, by bisection over many things at once.

Notable choices:
- What is returned was itself checked, so it is a certificate whatever the check does in between.
  A certificate at ε is one at every smaller ε: it speaks of all perturbations up to it.
- Each object brings its own ε: its image is certified as if alone, at that ε.
- What NMS can keep, the second form of condition 4, is bounded only where it decides: that costs
  more than all else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.boxes.scores import logit
from lipdet.certificate.box_range import corner_range
from lipdet.certificate.certify import Certifiers, certified_up_to
from lipdet.certificate.conditions import stays_on
from lipdet.certificate.segments import true_at
from lipdet.certificate.staying import NEVER
from lipdet.certificate.truths import Truths, free_truths
from lipdet.certificate.unrivalled import unrivalled
from lipdet.certificate.verifier import Verifier
from lipdet.types import Detections, RawOutput

TOLERANCE = 1e-3
# A detection remains if a box of this IoU with it does, unless another is asked for.
REMAINING_IOU = 0.5
# Beyond any perturbation of interest: a picture of 74×74 pixels has 16,428 values in [0, 1].
LARGEST_RADIUS = 64.0
# Objects that are certified at once, each with the outputs of its image.
OBJECTS_AT_ONCE = 64

Region = tuple[float, float, float, float]


def largest_radius(
    holds: Callable[[Tensor, Tensor], Tensor],
    count: int,
    tolerance: float = TOLERANCE,
    largest: float = LARGEST_RADIUS,
) -> Tensor:
    """The largest ε, to within `tolerance` from below, at which each of `count` things holds.

    Args:
        holds: from indices (n,) of things and one ε for each (n,) to whether they hold (n,).
        count: number of things.
        tolerance: of the result, in the unit of ε.
        largest: where the search ends; powers of two times 1/8 are tried on the way to it.

    Returns:
        (count,) float64; 0 where nothing holds at ε = 0, and where it holds there alone.
    """
    low = torch.zeros(count, dtype=torch.float64)
    high = torch.full_like(low, torch.inf)
    high[~holds(torch.arange(count), low)] = 0.0
    while len(open_ := true_at((high - low > tolerance) & (low < largest))):
        bounded = high[open_].isfinite()
        middle = torch.where(
            bounded, (low[open_] + high[open_]) / 2, (2 * low[open_]).clamp(0.125, largest)
        )
        held = holds(open_, middle)
        low[open_[held]] = middle[held]
        high[open_[~held]] = middle[~held]
    return low


def certified_radii(
    verifier: Verifier,
    raw: RawOutput,
    truths: Truths,
    iou: float,
    log_odds: float,
    tolerance: float = TOLERANCE,
    most_covered: float | None = None,
) -> Tensor:
    """Return the largest ε at which each object is certified, with all tightenings of the verifier.

    Args:
        verifier: of the detector.
        raw: its outputs for the images of `truths`.
        truths: objects, or boxes that shall remain.
        iou: threshold of a match.
        log_odds: score that the detection shall keep, not below the floor.
        tolerance: how far below the largest the result may lie.
        most_covered: if given, the detection shall also be the one that is shown at its place, see
            `unrivalled`; needs a verifier without `overtaking`.

    Returns:
        (G,) float64; 0 where there is no certificate.
    """

    def holds(objects: Tensor, epsilon: Tensor) -> Tensor:
        parts = (torch.split(values, OBJECTS_AT_ONCE) for values in (objects, epsilon))
        return torch.cat(
            [
                _each_holds(verifier, raw, truths.at(index), at, iou, log_odds, most_covered)
                for index, at in zip(*parts, strict=True)
            ]
        )

    if not len(truths.image):
        return torch.zeros(0, dtype=torch.float64)
    return largest_radius(holds, len(truths.image), tolerance)


def _each_holds(
    verifier: Verifier,
    raw: RawOutput,
    truths: Truths,
    epsilon: Tensor,
    iou: float,
    log_odds: float,
    most_covered: float | None,
    count_kept: bool = False,
) -> Tensor:
    """Return whether each object is certified at its own ε (G,).

    Args:
        verifier: of the detector.
        raw: its outputs for the images of `truths`.
        truths: objects.
        epsilon: (G,).
        iou: threshold of a match.
        log_odds: that the detection shall keep.
        most_covered: see `certified_radii`.
        count_kept: bound what NMS can keep for all of them, not only where that decides.
    """
    alone = truths._replace(image=torch.arange(len(epsilon)))
    copies = RawOutput(raw.logits[truths.image], raw.offsets[truths.image])
    candidates = verifier.candidates(copies, epsilon)
    entries = verifier.entries(candidates, epsilon) if count_kept else None
    found = verifier.certifiers(candidates, alone, epsilon, iou, entries)
    if most_covered is not None:
        # Of all that condition 3 leaves, only what is shown counts, truncated or not.
        whole = found._replace(fits=torch.ones_like(found.fits))
        shown = unrivalled(verifier, candidates, whole, epsilon, iou, most_covered)
        found = found._replace(kept=found.kept.masked_fill(~shown, NEVER))

    def hold(found: Certifiers) -> Tensor:
        return certified_up_to(found, len(epsilon), [iou])[:, 0] >= log_odds

    held = hold(found)
    if count_kept or not verifier.tightenings.counted_cliques:
        return held
    untruncated = hold(found._replace(fits=torch.ones_like(found.fits)))
    open_ = true_at(untruncated & ~held)
    if len(open_):
        held[open_] = _each_holds(
            verifier, raw, truths.at(open_), epsilon[open_], iou, log_odds, most_covered, True
        )
    return held


class Remaining(NamedTuple):
    """What stays of the detections of one image.

    Attributes:
        radius: (N,) the largest ε at which each remains.
        region: (N, 4) xyxy pixels, inside which the box that remains lies at that ε.
    """

    radius: Tensor
    region: Tensor


def remaining_detections(
    verifier: Verifier,
    raw: RawOutput,
    found: Sequence[Detections],
    iou: float,
    tolerance: float = TOLERANCE,
    most_covered: float | None = None,
) -> list[Remaining]:
    """Return how much perturbation each detection of a batch survives, without any ground truth.

    Promised: whatever the perturbation of at most ε, some detection of the same class, with a score
    above the floor, has an IoU of at least `iou` with this box and lies within its region. Given
    `most_covered`, one such detection is also shown, where classes compete; see `unrivalled`.

    *Proof.* Conditions 1 to 4 with the box itself as the object g. By 1 the certifier a stays a
    candidate. It is kept, or suppressed by a kept b that by 3 has IoU_min(B_b, g) ≥ θ; by 2 a has
    that too. By 4 no truncation reaches the one that is kept. Condition 5 only prevents that the
    *matcher* gives it to another object, and nothing is matched here; for the same reason two
    detections may be promised one and the same successor, and maxDets plays no part.

    Args:
        verifier: of the detector, with the selection that `found` was made with.
        raw: outputs of B images.
        found: the detections of each.
        iou: threshold of "still this box".
        tolerance: how far below the largest ε the radius may lie.
        most_covered: the share from which on two boxes compete to be shown; None if none do.

    Returns:
        One for each image; the radius is 0 where nothing is promised.
    """
    counts = [len(one["labels"]) for one in found]
    truths = _to_remain(found)
    floor = logit(verifier.selection.score_floor)
    verifier = without_overtaking(verifier)
    radii = certified_radii(verifier, raw, truths, iou, floor, tolerance, most_covered)
    regions = remaining_regions(verifier, raw, truths, radii, iou)
    parts = zip(torch.split(radii, counts), torch.split(regions, counts), strict=True)
    return [Remaining(radius, region) for radius, region in parts]


def regions_at(
    verifier: Verifier,
    raw: RawOutput,
    found: Detections,
    radii: Tensor,
    epsilon: float,
    iou: float,
) -> list[Region | None]:
    """Return where the box that remains of each detection of one image lies at ε.

    Args:
        verifier: of the detector.
        raw: its outputs for the image, B = 1.
        found: detections.
        radii: (N,) of each, from `remaining_detections`.
        epsilon: L2 radius.
        iou: threshold of "still this box".

    Returns:
        left, top, right and bottom in pixels of the network's input; None for what does not surely
        remain at ε.
    """
    sure = true_at(radii >= epsilon)
    regions: list[Region | None] = [None] * len(radii)
    if epsilon > 0 and len(sure):
        at = torch.full((len(sure),), epsilon, dtype=torch.float64)
        truths = _to_remain([found]).at(sure)
        hulls = remaining_regions(without_overtaking(verifier), raw, truths, at, iou)
        for index, (left, top, right, bottom) in zip(sure.tolist(), hulls.tolist(), strict=True):
            regions[index] = (left, top, right, bottom)
    return regions


def _to_remain(found: Sequence[Detections]) -> Truths:
    """Make the detections of a batch the objects that shall remain."""
    counts = torch.tensor([len(one["labels"]) for one in found])
    return free_truths(
        torch.repeat_interleave(counts),
        torch.cat([one["labels"].cpu() for one in found]),
        torch.cat([one["boxes"].cpu() for one in found]),
    )


def without_overtaking(verifier: Verifier) -> Verifier:
    """Return the verifier for promises of where a box lies.

    Overtaking lets a rival stand in that matches only once it has passed the certifier, and where
    it may lie then is not in the hull of what surely matches.
    """
    return replace(verifier, tightenings=replace(verifier.tightenings, overtaking=False))


def remaining_regions(
    verifier: Verifier, raw: RawOutput, truths: Truths, radii: Tensor, iou: float
) -> Tensor:
    """Return the hull of all that may stand in for each box: candidates that surely match it.

    The certifier and all that can suppress it are among them: condition 3 without `overtaking`.

    Args:
        verifier: of the detector.
        raw: its outputs for the images of `truths`.
        truths: boxes that remain.
        radii: (G,) ε of each, at most the one up to which it remains `without_overtaking`.
        iou: threshold of "still this box".

    Returns:
        (G, 4) float64 xyxy pixels.
    """
    size = verifier.decoder.image_size
    hulls = []
    for image, label, box, radius in zip(
        truths.image.tolist(), truths.label.tolist(), truths.box, radii, strict=True
    ):
        alone = RawOutput(raw.logits[image, None], raw.offsets[image, None])
        candidates = verifier.candidates(alone, radius[None])
        mine = true_at(candidates.group == label)
        boxes, balls = candidates.boxes.at(mine), candidates.balls.at(mine)
        stay = stays_on(boxes, box.expand(len(mine), 4), balls) >= iou
        matched = true_at(stay)
        low, high = corner_range(boxes.at(matched), size)
        near = torch.cat([low[:, :2], box[None, :2]]).amin(dim=0)
        far = torch.cat([high[:, 2:], box[None, 2:]]).amax(dim=0)
        hulls.append(torch.cat([near, far]))
    return torch.stack(hulls) if hulls else torch.zeros(0, 4, dtype=torch.float64)
