"""Find the largest ε up to which detections remain, and where, many at once (theory §11).

Notable choices:
- What is returned was itself checked, so it is a certificate whatever the check does in between.
- Each object brings its own ε: its image is certified as if alone, at that ε.
- What NMS can keep, the second form of condition 4, is bounded only where it decides: that costs
  more than all else.
- What is shown of a picture has one reading for each place: of two boxes, one of which covers more
  than a share of the other, the one with the higher score. A certificate has to survive that, too,
  where it is asked for (`most_covered`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.boxes.scores import SigmoidScores, logit
from lipdet.certificate.conditions.candidates import Candidates
from lipdet.certificate.conditions.certify import Certifiers, certified_up_to
from lipdet.certificate.conditions.five_conditions import can_outscore, matches_up_to
from lipdet.certificate.conditions.ground_truth import NO_MATCH, GroundTruth, independent_objects
from lipdet.certificate.geometry.box_range import BoxRange, corner_range
from lipdet.certificate.ragged import flatnonzero
from lipdet.certificate.verifier import Verifier
from lipdet.types import Canvas, Detections, RawOutput

TOLERANCE = 1e-3
# Slack of a share, which is computed in float32 from boxes whose decode is rounded.
SHARE_SLACK = 1e-3
# A detection remains if a box of this IoU with it does, unless another is asked for.
REMAINING_IOU = 0.5
# Beyond any perturbation of interest: a picture of 74×74 pixels has 16,428 values in [0, 1].
LARGEST_RADIUS = 64.0
# Objects that are certified at once, each with the outputs of its image.
OBJECTS_AT_ONCE = 64

Region = tuple[float, float, float, float]


def largest_radius(
    holds: Callable[[Tensor, Tensor], Tensor], count: int, tolerance: float = TOLERANCE
) -> Tensor:
    """Find the largest ε, to within `tolerance` from below, at which each of `count` things holds.

    Tried are 1/8 and its doubles up to LARGEST_RADIUS, and then middles.

    Args:
        holds: from indices (n,) of things and one ε for each (n,) to whether they hold (n,).
        count: number of things.
        tolerance: of the result, in the unit of ε.

    Returns:
        (count,) float64; 0 where nothing holds at ε = 0, and where it holds there alone.
    """
    low = torch.zeros(count, dtype=torch.float64)
    high = torch.full_like(low, torch.inf)
    high[~holds(torch.arange(count), low)] = 0.0
    while len(open_ := flatnonzero((high - low > tolerance) & (low < LARGEST_RADIUS))):
        bounded = high[open_].isfinite()
        doubled = (2 * low[open_]).clamp(0.125, LARGEST_RADIUS)
        middle = torch.where(bounded, (low[open_] + high[open_]) / 2, doubled)
        held = holds(open_, middle)
        low[open_[held]] = middle[held]
        high[open_[~held]] = middle[~held]
    return low


def certified_radii(
    verifier: Verifier,
    raw: RawOutput,
    truths: GroundTruth,
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
            `shown_alone`; needs a verifier without `overtaking`.

    Returns:
        (G,) float64; 0 where there is no certificate.
    """

    def holds(objects: Tensor, epsilon: Tensor) -> Tensor:
        parts = (torch.split(values, OBJECTS_AT_ONCE) for values in (objects, epsilon))
        return torch.cat(
            [
                _certified_at(verifier, raw, truths.at(index), at, iou, log_odds, most_covered)
                for index, at in zip(*parts, strict=True)
            ]
        )

    if not len(truths.image):
        return torch.zeros(0, dtype=torch.float64)
    return largest_radius(holds, len(truths.image), tolerance)


def _certified_at(
    verifier: Verifier,
    raw: RawOutput,
    truths: GroundTruth,
    epsilon: Tensor,
    iou: float,
    log_odds: float,
    most_covered: float | None,
    count_kept: bool = False,
) -> Tensor:
    """Return whether each object is certified at its own ε (G,); see `certified_radii`.

    With `count_kept`, what NMS can keep is bounded for all of them, not only where that decides.
    """
    alone = truths._replace(image=torch.arange(len(epsilon)))
    copies = RawOutput(raw.logits[truths.image], raw.offsets[truths.image])
    candidates = verifier.candidates(copies, epsilon)
    cover = verifier.clique_cover(candidates, epsilon) if count_kept else None
    found = verifier.certifiers(candidates, alone, epsilon, iou, cover)
    if most_covered is not None:
        # Only what is shown counts of all that condition 3 leaves, truncated or not.
        whole = found._replace(untruncated=torch.ones_like(found.untruncated))
        shown = shown_alone(verifier, candidates, whole, epsilon, iou, most_covered)
        found = found._replace(kept_iou=found.kept_iou.masked_fill(~shown, NO_MATCH))

    def hold(found: Certifiers) -> Tensor:
        return certified_up_to(found, len(epsilon), [iou])[:, 0] >= log_odds

    held = hold(found)
    if count_kept or not verifier.tightenings.counted_cliques:
        return held
    untruncated = hold(found._replace(untruncated=torch.ones_like(found.untruncated)))
    open_ = flatnonzero(untruncated & ~held)
    if len(open_):
        held[open_] = _certified_at(
            verifier, raw, truths.at(open_), epsilon[open_], iou, log_odds, most_covered, True
        )
    return held


class Remaining(NamedTuple):
    """The detections of one image that remain: up to which ε, and where.

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
    above the floor, has an IoU of at least `iou` with this box and lies within its region (theory
    §11.1). Given `most_covered`, one such detection is also shown, where classes compete; see
    `shown_alone`. Two detections may be promised one and the same successor.

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
    sure = flatnonzero(radii >= epsilon)
    regions: list[Region | None] = [None] * len(radii)
    if epsilon > 0 and len(sure):
        at = torch.full((len(sure),), epsilon, dtype=torch.float64)
        truths = _to_remain([found]).at(sure)
        hulls = remaining_regions(without_overtaking(verifier), raw, truths, at, iou)
        for index, (left, top, right, bottom) in zip(sure.tolist(), hulls.tolist(), strict=True):
            regions[index] = (left, top, right, bottom)
    return regions


def _to_remain(found: Sequence[Detections]) -> GroundTruth:
    """Make the detections of a batch the objects that shall remain."""
    counts = torch.tensor([len(one["labels"]) for one in found])
    return independent_objects(
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
    verifier: Verifier, raw: RawOutput, truths: GroundTruth, radii: Tensor, iou: float
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
    canvas = verifier.decoder.canvas
    hulls = []
    for image, label, box, radius in zip(
        truths.image.tolist(), truths.label.tolist(), truths.box, radii, strict=True
    ):
        alone = RawOutput(raw.logits[image, None], raw.offsets[image, None])
        candidates = verifier.candidates(alone, radius[None])
        mine = flatnonzero(candidates.group == label)
        boxes, balls = candidates.boxes.at(mine), candidates.balls.at(mine)
        stay = matches_up_to(boxes, box.expand(len(mine), 4), balls) >= iou
        matched = flatnonzero(stay)
        low, high = corner_range(boxes.at(matched), canvas)
        near = torch.cat([low[:, :2], box[None, :2]]).amin(dim=0)
        far = torch.cat([high[:, 2:], box[None, 2:]]).amax(dim=0)
        hulls.append(torch.cat([near, far]))
    return torch.stack(hulls) if hulls else torch.zeros(0, 4, dtype=torch.float64)


def shown_alone(
    verifier: Verifier,
    candidates: Candidates,
    found: Certifiers,
    epsilon: Tensor,
    iou: float,
    most_covered: float,
) -> Tensor:
    """Return whether what a certifier vouches for is surely shown, (P,) bool (theory §11.2).

    A certifier passes if no candidate but those of its class that surely match the object can both
    outscore it and cover one of these, or be covered by one, by more than `most_covered`.

    Args:
        verifier: of the detector, without `overtaking`, by which what does not surely match may
            stand in for a certifier.
        candidates: of images with one object each.
        found: their certifiers.
        epsilon: (B,) of each image.
        iou: threshold of a match.
        most_covered: the share.
    """
    passed = torch.zeros(len(found.truth), dtype=torch.bool)
    matching = found.matches.iou >= iou
    vouches = found.certify(iou)
    for image in torch.unique(found.truth[vouches]).tolist():
        vouching = flatnonzero(vouches & (found.truth == image))
        own = found.candidate[vouching]
        matched = found.matches.candidate[matching & (found.matches.truth == image)]
        others = flatnonzero(candidates.group // candidates.classes == image)
        others = others[candidates.high[others] >= candidates.low[own].min()]
        others = others[~torch.isin(others, matched)]
        shares = largest_covered_share(
            candidates.boxes.at(others), candidates.boxes.at(matched), candidates.canvas
        )
        others = others[~(shares <= most_covered - SHARE_SLACK).all(dim=1)]
        beaten = classes_can_outscore(verifier, candidates, others, own, float(epsilon[image]))
        passed[vouching] = ~beaten.any(dim=0)
    return passed


def largest_covered_share(a: BoxRange, b: BoxRange, canvas: Canvas) -> Tensor:
    """Return the largest share of one box that another can cover, of all pairs (theory §11.2).

    Args:
        a: (N, 4), clipped to the image.
        b: (M, 4), clipped to the image.
        canvas: the image.

    Returns:
        (N, M) float64, the larger of the shares of both.
    """
    one = [end[:, None] for end in corner_range(a, canvas)]
    other = [end[None] for end in corner_range(b, canvas)]
    return _share_of_corners(one, other)


def largest_covered_of_pairs(a: BoxRange, b: BoxRange, canvas: Canvas) -> Tensor:
    """Return the largest share of one box that the other can cover, for pairs (P, 4); (P,)."""
    return _share_of_corners(corner_range(a, canvas), corner_range(b, canvas))


def _share_of_corners(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    return torch.maximum(_covered(one, other), _covered(other, one))


def _covered(box: Sequence[Tensor], cover: Sequence[Tensor]) -> Tensor:
    (low, high), (first, last) = box, (cover[0][..., :2], cover[1][..., 2:])
    start = torch.minimum(torch.maximum(first, low[..., :2]), high[..., :2])
    end = torch.minimum(torch.maximum(last, low[..., 2:]), high[..., 2:])
    shared = (torch.minimum(end, last) - torch.maximum(start, first)).clamp(min=0)
    # A box without area is covered by whatever it touches.
    touches = (low[..., :2] <= last) & (high[..., 2:] >= first)
    side = end - start
    return torch.where(side > 0, shared / side.clamp(min=1e-12), touches.double()).prod(dim=-1)


def classes_can_outscore(
    verifier: Verifier, candidates: Candidates, others: Tensor, own: Tensor, epsilon: float
) -> Tensor:
    """Return whether each of `others` (R,) can rank before each of `own` (P,), (R, P) bool.

    Two classes of one default box are linear in the same features: their difference has a constant.
    """
    high, low = candidates.high[others][:, None], candidates.low[own]
    scores, contrasts = verifier.decoder.scores, verifier.contrasts
    if contrasts is None or not isinstance(scores, SigmoidScores):
        return can_outscore(high, low)
    anchor, classes = candidates.anchor, candidates.classes
    known = contrasts[
        anchor[own], (candidates.group[others] % classes)[:, None], candidates.group[own] % classes
    ]
    slack = candidates.slack[others][:, None] + candidates.slack[own]
    reach = scores.temperature * epsilon * known + slack
    reach = reach.masked_fill(anchor[others][:, None] != anchor[own], torch.inf)
    difference = candidates.log_odds[others][:, None] - candidates.log_odds[own]
    return can_outscore(high, low, difference, reach)
