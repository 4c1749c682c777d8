"""How many objects are shown, and which labels are read, under every perturbation (theory §11.5).

What is shown of an image is what NMS keeps, cut off at top-k, and of each place only the best box.
Its labels from left to right are what is read. Under every perturbation one of the *successors* of
a certifier is shown, and what surely cannot be shown beside any of them is not shown. Certifiers
without a successor in common stand for distinct detections.

Notable choices:
- Nothing is matched here: a detection may go anywhere, as long as it is none of the others.
- What is known not to be kept, or not to be shown, is nobody's rival. Without that, boxes that
  suppress each other in a chain leave hardly anything to promise.
- Pairs of boxes are compared for all images at once; the rest is a few operations on bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipdet.boxes.scores import logit
from lipdet.boxes.select import MOST_COVERED
from lipdet.certificate.conditions.candidates import Candidates
from lipdet.certificate.conditions.clique_cover import OVERLAP_SLACK
from lipdet.certificate.conditions.five_conditions import can_suppress, clears_floor
from lipdet.certificate.conditions.suppressors import suppressors
from lipdet.certificate.geometry.box_range import corner_range
from lipdet.certificate.geometry.iou_bounds import (
    least_area,
    min_covered_of_pairs,
    min_iou_of_pairs,
)
from lipdet.certificate.radius import (
    SHARE_SLACK,
    TOLERANCE,
    classes_can_outscore,
    largest_covered_of_pairs,
    largest_radius,
)
from lipdet.certificate.ragged import expand_ranges, flatnonzero, ranges_of, take
from lipdet.certificate.verifier import Verifier
from lipdet.types import RawOutput

# In square pixels. What is shown is decided by shares of areas that are taken as 1e-9 at least.
LEAST_AREA = 1e-6

Mask = NDArray[np.bool_]
Index = NDArray[np.int64]


class Counts(NamedTuple):
    """What is certified of B images: how many of each class are shown, and what is read.

    Attributes:
        least: (B, C) int64, how many of each class are shown at least.
        most: (B, C) int64, how many at most.
        steady: (B,) bool, whether the labels from left to right cannot change.
    """

    least: Tensor
    most: Tensor
    steady: Tensor


def certified_counts(verifier: Verifier, raw: RawOutput, epsilon: Tensor) -> Counts:
    """Bound what is shown of images under every perturbation of at most ε (theory §11.5).

    Args:
        verifier: of the detector, for the selection that is shown.
        raw: its outputs for B images.
        epsilon: (B,) L2 radius of each.
    """
    candidates = verifier.candidates(raw, epsilon)
    shape = len(epsilon), candidates.classes
    shown = surely_shown(verifier, candidates, epsilon)
    least = torch.stack([torch.bincount(one.label, minlength=shape[1]) for one in shown])
    alone = torch.stack([torch.bincount(one.label[one.alone], minlength=shape[1]) for one in shown])
    rest = candidates.only(torch.cat([one.rest for one in shown]))
    cover = verifier.clique_cover(rest, epsilon)
    groups = torch.arange(least.numel())
    floor = torch.full(groups.shape, logit(verifier.selection.score_floor), dtype=torch.float64)
    most = alone + cover.reaching(groups, floor).reshape(shape)
    # Of all that is put out, the other classes have at least their own.
    others = least.sum(dim=1, keepdim=True) - least
    most = torch.minimum(most, verifier.selection.top_k - others)
    exact = (least == most).all(dim=1)
    return Counts(least, most, exact & torch.tensor([in_one_order(one) for one in shown]))


def reading_radii(verifier: Verifier, raw: RawOutput, tolerance: float = TOLERANCE) -> Tensor:
    """Return the largest ε up to which the labels read in each image cannot change.

    Args:
        verifier: of the detector, for the selection that is shown.
        raw: its outputs for B images.
        tolerance: how far below the largest the result may lie.

    Returns:
        (B,) float64; 0 where nothing is promised.
    """

    def holds(images: Tensor, epsilon: Tensor) -> Tensor:
        copies = RawOutput(raw.logits[images], raw.offsets[images])
        return certified_counts(verifier, copies, epsilon).steady

    return largest_radius(holds, len(raw.logits), tolerance)


class Shown(NamedTuple):
    """What is shown of one image under every perturbation: K distinct detections, and what may be.

    Attributes:
        label: (K,) int64 class of each.
        alone: (K,) bool, whether of its successors one only is ever shown.
        left: (K, 2) float64, between which two pixels its left edge lies.
        rest: (R,) the candidates that may be shown, but for the successors of those that are alone.
    """

    label: Tensor
    alone: Tensor
    left: Tensor
    rest: Tensor


def in_one_order(shown: Shown) -> bool:
    """Return whether the left edges of different labels always have the same order."""
    first, last = shown.left.T
    apart = (last[:, None] < first) | (last < first[:, None])
    return bool((apart | (shown.label[:, None] == shown.label)).all())


def surely_shown(verifier: Verifier, candidates: Candidates, epsilon: Tensor) -> list[Shown]:
    """Find what is shown of each image under every perturbation.

    Args:
        verifier: of the detector, for the selection that is shown.
        candidates: of B images.
        epsilon: (B,) of each.
    """
    kept, gone = kept_for_certain(verifier, candidates, epsilon)
    rows = flatnonzero(~gone)
    candidates = candidates.only(rows)
    images = _put_out(_without(kept, gone), candidates, len(epsilon), verifier.selection.top_k)
    pairs = [torch.cartesian_prod(one.members, one.rows) for one in images]
    can, must = _compete(candidates, *torch.cat(pairs).T)
    label = candidates.group % candidates.classes
    edges = [end[:, 0] for end in corner_range(candidates.boxes.boxes, candidates.canvas)]
    left = torch.stack([take(edge, candidates.boxes.place) for edge in edges], dim=1)
    found, start = [], 0
    for one, radius in zip(images, epsilon.tolist(), strict=True):
        shape = len(one.members), len(one.rows)
        part = slice(start, start := start + shape[0] * shape[1])
        ahead = classes_can_outscore(verifier, candidates, one.rows, one.own, radius).T
        chosen, rest = _distinct(
            one, ahead.numpy(), can[part].reshape(shape), must[part].reshape(shape)
        )
        hulls = [left[one.rows[each.successors]] for each in chosen]
        ends = [[float(hull[:, 0].min()), float(hull[:, 1].max())] for hull in hulls]
        found.append(
            Shown(
                take(label, one.own[[each.place for each in chosen]]),
                torch.tensor([each.alone for each in chosen], dtype=torch.bool),
                torch.tensor(ends, dtype=torch.float64).reshape(-1, 2),
                rows[one.rows[rest]],
            )
        )
    return found


class Kept(NamedTuple):
    """P certifiers, and for each its Q successors, of which NMS keeps one.

    Attributes:
        own: (P,) candidates.
        row: (Q,) indices into `own`.
        successor: (Q,) candidates; a certifier is one of its own.
    """

    own: Tensor
    row: Tensor
    successor: Tensor


def kept_for_certain(
    verifier: Verifier, candidates: Candidates, epsilon: Tensor
) -> tuple[Kept, Tensor]:
    """Find certifiers, and what NMS never keeps since it keeps one of their successors.

    In each group the highest candidate about which nothing is known is the next certifier: it has
    the fewest rivals.

    Args:
        verifier: of the detector.
        candidates: N of B images.
        epsilon: (B,) of each.

    Returns:
        Certifiers; and what is never kept, (N,) bool. Of certifiers and successors some may be.
    """
    motion = verifier.joint_motion(candidates, epsilon)
    waiting = clears_floor(candidates.low, logit(verifier.selection.score_floor))
    falling = candidates.low.argsort(descending=True, stable=True)
    falling = take(falling, take(candidates.group, falling).argsort(stable=True))
    gone = torch.zeros_like(waiting)
    nothing = torch.zeros(0, dtype=torch.int64)
    found = [Kept(nothing, nothing, nothing)]
    certifiers = 0
    while waiting.any():
        open_ = take(falling, flatnonzero(take(waiting, falling)))
        group = take(candidates.group, open_)
        own = open_[torch.searchsorted(group, torch.unique_consecutive(group))]
        waiting[own] = False
        row, rival = suppressors(candidates, own, motion, lambda _, rival: ~take(gone, rival))
        gone[_never_beside(candidates, own, row, rival, gone)] = True
        waiting &= ~gone
        # What the certifier can suppress is no other detection for certain.
        certifier, other = _in_group(candidates, own, waiting)
        boxes = candidates.boxes.at(take(own, certifier)), candidates.boxes.at(other)
        waiting[other[can_suppress(*boxes, candidates.nms_iou, candidates.canvas)]] = False
        row = torch.cat([torch.arange(len(own)), row]) + certifiers
        found.append(Kept(own, row, torch.cat([own, rival])))
        certifiers += len(own)
    return Kept(*map(torch.cat, zip(*found, strict=True))), gone


def _never_beside(
    candidates: Candidates, own: Tensor, row: Tensor, rival: Tensor, gone: Tensor
) -> Tensor:
    """Return what NMS never keeps beside a certifier, nor beside any rival of it.

    Args:
        candidates: all.
        own: (P,) certifiers, each of another group.
        row: (Q,) indices into `own`, ascending.
        rival: (Q,) what can suppress them.
        gone: (N,) what is known not to be kept.
    """
    known = gone.index_fill(0, torch.cat([own, rival]), True)
    certifier, other = _in_group(candidates, own, ~known)
    sure = flatnonzero(_never_both(candidates, take(own, certifier), other))
    certifier, other = take(certifier, sure), take(other, sure)
    pair, place = expand_ranges(*ranges_of(row, certifier))
    sure = _never_both(candidates, take(rival, place), take(other, pair))
    spared = torch.zeros(len(other), dtype=torch.bool).index_fill(0, pair[~sure], True)
    return other[~spared]


def _in_group(candidates: Candidates, own: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return pairs of an index into `own` (P,) and a candidate of its group in `mask` (N,)."""
    certifier, other = expand_ranges(*candidates.members(take(candidates.group, own)))
    inside = flatnonzero(take(mask, other))
    return take(certifier, inside), take(other, inside)


def _never_both(candidates: Candidates, a: Tensor, b: Tensor) -> Tensor:
    """Return of which pairs of candidates (P,) of one group NMS never keeps both."""
    one, other = take(candidates.boxes.place, a), take(candidates.boxes.place, b)
    lowest = min_iou_of_pairs(candidates.boxes.boxes, one, other, candidates.canvas)
    return lowest > candidates.nms_iou + OVERLAP_SLACK


class PutOut(NamedTuple):
    """Of one image n candidates that NMS may keep, and P certifiers that top-k does not cut off.

    Attributes:
        rows: (n,) which of all candidates.
        own: (P,) which of all, the highest first.
        kept: (P, n), of which NMS keeps one for each certifier.
    """

    rows: Tensor
    own: Tensor
    kept: Mask

    @property
    def members(self) -> Tensor:
        """The successors of all certifiers, (m,) of all candidates."""
        return self.rows[np.flatnonzero(self.kept.any(axis=0))]


def _without(kept: Kept, gone: Tensor) -> Kept:
    """Leave out candidates that are `gone` (N,), and number the others anew."""
    number = (~gone).cumsum(0) - 1
    left = ~take(gone, kept.own)
    pairs = flatnonzero(take(left, kept.row) & ~take(gone, kept.successor))
    return Kept(
        number[kept.own[left]],
        take(left.cumsum(0) - 1, take(kept.row, pairs)),
        take(number, take(kept.successor, pairs)),
    )


def _put_out(kept: Kept, candidates: Candidates, images: int, top_k: int) -> list[PutOut]:
    """Leave out certifiers that top-k may cut off, and return the others image by image.

    Args:
        kept: certifiers.
        candidates: all that NMS may keep, so that no more are put out than these.
        images: how many there are.
        top_k: detections of an image.
    """
    image = candidates.group // candidates.classes
    low = take(candidates.low, kept.own)
    reaching = candidates.reaching_in_image(take(image, kept.own), low)
    own = flatnonzero(reaching <= top_k)
    own = take(own, take(low, own).argsort(descending=True, stable=True))
    starts, counts = ranges_of(image, torch.arange(images))
    found = []
    for place, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
        mine = own[take(image, take(kept.own, own)) == place]
        [row, pair] = torch.nonzero(kept.row == mine[:, None], as_tuple=True)
        mask = np.zeros((len(mine), count), np.bool_)
        mask[row, take(kept.successor, pair) - start] = True
        found.append(PutOut(torch.arange(start, start + count), take(kept.own, mine), mask))
    return found


def _compete(candidates: Candidates, a: Tensor, b: Tensor) -> tuple[Mask, Mask]:
    """Return of which pairs of candidates (P,) not both are shown.

    Returns:
        Where one may cover, or be covered by, more than what is shown may, whatever else they do;
        and where they are surely not shown together. A candidate and itself are such a pair, too.
    """
    place, canvas = candidates.boxes.place, candidates.canvas
    pair = candidates.boxes.at(a), candidates.boxes.at(b)
    can = ~(largest_covered_of_pairs(*pair, canvas) <= MOST_COVERED - SHARE_SLACK)
    near = flatnonzero(can)
    one, other = take(place, take(a, near)), take(place, take(b, near))
    share = min_covered_of_pairs(candidates.boxes.boxes, one, other, canvas)
    # All classes of one default box have the same box.
    share[one == other] = 1.0
    areas = (least_area(boxes.at(near), canvas) for boxes in pair)
    sure = (share > MOST_COVERED + SHARE_SLACK) & (torch.minimum(*areas) > LEAST_AREA)
    must = (a == b).index_fill(0, near[sure], True)
    alike = flatnonzero(take(candidates.group, a) == take(candidates.group, b))
    must[alike] |= _never_both(candidates, take(a, alike), take(b, alike))
    return can.numpy(), must.numpy()


class Chosen(NamedTuple):
    """A certifier of an image, as its index, what is shown for it, and if one of these only."""

    place: int
    successors: Index
    alone: bool


def _distinct(image: PutOut, ahead: Mask, can: Mask, must: Mask) -> tuple[list[Chosen], Index]:
    """Choose certifiers that are shown as distinct detections.

    Args:
        image: n candidates, P certifiers and m members.
        ahead: (P, n) what can rank before each certifier, of any class.
        can: (m, n) which can take a place from each member, or leave it to that.
        must: (m, n) which are never shown beside each member, but for themselves.

    Returns:
        Certifiers; and what may be shown, but for the successors of those that are alone. Indices
        of `image.own` and of `image.rows`.
    """
    [members] = np.nonzero(image.kept.any(axis=0))
    hidden, settled, taken = np.zeros((3, len(image.rows)), np.bool_)
    chosen = []
    for place, (kept, rivals) in enumerate(zip(image.kept, ahead, strict=True)):
        beats = rivals & can[kept[members]].any(axis=0)
        if (beats & ~kept & ~hidden).any():
            continue
        successors = kept & ~hidden
        excluded = must[successors[members]].all(axis=0)
        hidden |= excluded & ~successors
        if not (successors & taken).any():
            taken |= successors
            alone = bool(excluded[successors].all())
            if alone:
                settled |= successors
            chosen.append(Chosen(place, np.flatnonzero(successors), alone))
    return chosen, np.flatnonzero(~hidden & ~settled)
