"""Find the candidates that a perturbation can lift above the score floor, and how far each moves.

Notable choices:
- Everything after this file works on a flat list of candidates, pairs (default box, class) of all
  images of a batch. What cannot exceed the floor is never looked at again.
- The list is ordered by image and class ("group") and within a group by falling highest score, so
  that "all that can outscore s" is the beginning of a group and found by binary search.
- Default boxes that cannot exceed the floor are left out in float32, with a slack for that; all
  that follows is float64. What the detector computes in float32 is covered by a slack.
- The box of a default box is the same for all classes, and is kept once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from lipdet.boxes.scores import Scores, SigmoidScores, logit
from lipdet.boxes.select import Decoder
from lipdet.certificate.conditions.scores_and_votes import (
    ClassVotes,
    largest_factor,
    log_odds_interval,
)
from lipdet.certificate.constants.outputs import OutputBounds
from lipdet.certificate.geometry.box_range import BoxRange, box_range
from lipdet.certificate.geometry.offset_ball import OffsetBalls
from lipdet.certificate.ragged import count_reaching, flatnonzero, ranges_of, take
from lipdet.errors import InputError
from lipdet.types import Canvas, RawOutput

# Log-odds are computed and compared in float32. One is off by at most K + 8 roundings of 2⁻²⁴ plus
# two of the largest logit of its anchor.
_ROUNDING = 2.0**-22
# Slack of the first look, which rounds outputs and constants to float32 besides. What it loses
# of numbers that are too small for float32 is below 1e-45 times 3e38, which the slack covers, too.
_FIRST_LOOK_ROUNDING = 4 * 2.0**-22
# Log-odds above the largest float32, 3e38, are all the same to the detector.
_LARGEST = 1e37


_Boxes = TypeVar("_Boxes", BoxRange, OffsetBalls)


@dataclass(frozen=True)
class SharedBoxes(Generic[_Boxes]):
    """Boxes of N candidates, where those of one default box share one.

    Attributes:
        place: (N,) index of each one's box.
        boxes: U of them.
    """

    place: Tensor
    boxes: _Boxes

    def at(self, index: Tensor) -> _Boxes:
        """Return the boxes of candidates at indices (P,)."""
        return self.boxes.at(take(self.place, index))


class Candidates(NamedTuple):
    """All pairs (default box, class) of a batch that can exceed the floor, N in number.

    Attributes:
        classes: number of classes C.
        nms_iou: above which a kept box suppresses others of its class (η).
        canvas: the image, to which boxes are clipped.
        group: (N,) image · C + class, ascending.
        anchor: (N,) index of the default box.
        low: (N,) lowest log-odds, float64, −∞ where the default box may not vote for the class.
        log_odds: (N,) those without perturbation.
        high: (N,) highest, falling within a group.
        slack: (N,) what rounding alone can change of a log-odds.
        boxes: where each one's box can lie, before clipping.
        balls: the offsets of the same boxes.
    """

    classes: int
    nms_iou: float
    canvas: Canvas
    group: Tensor
    anchor: Tensor
    low: Tensor
    log_odds: Tensor
    high: Tensor
    slack: Tensor
    boxes: SharedBoxes[BoxRange]
    balls: SharedBoxes[OffsetBalls]

    @property
    def clean_boxes(self) -> Tensor:
        """The boxes without perturbation, (U, 4) xyxy, unclipped, indexed by `boxes.place`."""
        balls = self.balls.boxes
        return balls.coding.decode(balls.offsets, balls.default_boxes)

    def only(self, index: Tensor) -> Candidates:
        """Return the candidates at ascending indices (P,)."""
        place = take(self.boxes.place, index)
        return self._replace(
            group=take(self.group, index),
            anchor=take(self.anchor, index),
            low=take(self.low, index),
            log_odds=take(self.log_odds, index),
            high=take(self.high, index),
            slack=take(self.slack, index),
            boxes=SharedBoxes(place, self.boxes.boxes),
            balls=SharedBoxes(place, self.balls.boxes),
        )

    def members(self, group: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first candidate of each group (P,), and how many it has."""
        return ranges_of(self.group, group)

    def reaching(self, group: Tensor, log_odds: Tensor) -> Tensor:
        """Return how many candidates of `group` (P,) have `high` ≥ `log_odds` (P,).

        They are the first ones of the group.
        """
        return count_reaching(self.high, *self.members(group), log_odds)

    def reaching_in_image(self, image: Tensor, log_odds: Tensor) -> Tensor:
        """Return how many candidates of all classes of `image` (P,) have `high` ≥ `log_odds`."""
        groups = (image * self.classes)[:, None] + torch.arange(self.classes)
        found = self.reaching(groups.flatten(), log_odds.repeat_interleave(self.classes))
        return found.reshape(-1, self.classes).sum(dim=1)


def find_candidates(
    raw: RawOutput,
    bounds: OutputBounds,
    decoder: Decoder,
    score_floor: float,
    epsilon: float | Tensor,
    rounding: float = 0.0,
    contrasts: Tensor | None = None,
) -> Candidates:
    """List what can exceed the floor under perturbations of at most ε (theory §5).

    Args:
        raw: outputs of B images without perturbation.
        bounds: constants of the detector that they come from.
        decoder: of that detector.
        score_floor: probability in (0, 1).
        epsilon: L2 radius in pixel units, for all images or (B,) of each.
        rounding: how far any output of a forward pass may lie from real arithmetic. It counts
            twice, since the outputs with and without perturbation are both computed.
        contrasts: (A, K, K) constants of differences of two logits of a default box, for scores
            with a margin between classes; none are known without it.

    Raises:
        InputError: an output is not finite, or ε is no radius; nothing can be said about it.
    """
    for output in raw:
        if not (output.amin().isfinite() and output.amax().isfinite()):
            raise InputError(
                "The detector's outputs are not all finite, so nothing can be certified."
            )
    radius = torch.as_tensor(epsilon, dtype=torch.float64).expand(len(raw.logits))
    if not ((radius >= 0) & (radius < math.inf)).all():
        raise InputError("ε must be a finite number that is not negative.")
    image, anchor = _first_look(raw, bounds, decoder.scores, score_floor, radius, rounding)
    logits = raw.logits[image, anchor].double()
    moving = take(radius, image)[:, None] * take(bounds.logits, anchor)
    # Outputs with perturbation are rounded too.
    largest = (logits.abs() + moving).amax(dim=1, keepdim=True)
    slack = 2 * rounding + _ROUNDING * (largest + logits.shape[1])
    factor = largest_factor(decoder.scores)
    slack = torch.where(factor * largest < _LARGEST, slack, math.inf)
    low, high = log_odds_interval(decoder.scores, logits, moving + slack)
    place, label = _in_order(image, high, logit(score_floor))
    classes = high.shape[1]
    pair = place * classes + label
    low, high = take(low.flatten(), pair), take(high.flatten(), pair)
    if isinstance(decoder.scores, SigmoidScores) and decoder.scores.class_margin < math.inf:
        votes = ClassVotes(
            logits, moving + slack, 2 * slack[:, 0], anchor, radius[image], contrasts
        )
        margin = decoder.scores.class_margin
        kept = flatnonzero(votes.may_vote(place, label, margin))
        place, label, pair, low, high = (take(x, kept) for x in (place, label, pair, low, high))
        # The lowest score of all others is of no interest.
        steady = flatnonzero(low > logit(score_floor))
        lost = ~votes.surely_votes(take(place, steady), take(label, steady), margin)
        low[steady[lost]] = -math.inf
    return Candidates(
        classes=classes,
        nms_iou=decoder.nms_iou,
        canvas=decoder.canvas,
        group=take(image, place) * classes + label,
        anchor=take(anchor, place),
        low=low,
        log_odds=take(decoder.scores.log_odds(logits).flatten(), pair),
        high=high,
        slack=take(factor * slack[:, 0], place),
        boxes=SharedBoxes(
            place,
            box_range(
                raw.offsets[image, anchor],
                radius[image, None] * bounds.offsets[anchor] + 2 * rounding,
                decoder.default_boxes[anchor],
                decoder.coding,
            ),
        ),
        balls=SharedBoxes(
            place,
            OffsetBalls(
                raw.offsets[image, anchor].double(),
                # Rounding moves each of the four.
                radius[image] * bounds.offsets_joint[anchor] + 4 * rounding,
                decoder.default_boxes[anchor].double(),
                decoder.coding,
            ),
        ),
    )


def _first_look(
    raw: RawOutput,
    bounds: OutputBounds,
    scores: Scores,
    score_floor: float,
    radius: Tensor,
    rounding: float,
) -> tuple[Tensor, Tensor]:
    """Find image and index of the default boxes of which some class may exceed the floor, (U,)."""
    logits = raw.logits.float()
    moving = radius.float()[:, None, None] * bounds.logits.float()
    largest = torch.add(logits.abs(), moving).amax(dim=-1, keepdim=True)
    slack = 2 * rounding + _FIRST_LOOK_ROUNDING * (largest + logits.shape[-1])
    _, high = log_odds_interval(scores, logits, moving.add_(slack))
    place = flatnonzero(may_exceed(high.amax(dim=-1), logit(score_floor)).flatten())
    anchors = high.shape[1]
    return place // anchors, place % anchors


def may_exceed(high: Tensor, floor: float) -> Tensor:
    """Return whether what is at most `high` may exceed the floor; what is not a number may."""
    return ~(high <= floor)


def _in_order(image: Tensor, high: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Order box and class of all candidates, (N,) each, by image, class and falling `high`.

    Args:
        image: (U,) of each box, ascending.
        high: (U, C) highest log-odds.
        floor: log-odds that candidates exceed.
    """
    falling = -high.T.contiguous().numpy()
    counts = (high > floor).numpy()
    places, labels = [], []
    start = 0
    # Much faster than one sort of all: what an image has fits into the cache.
    for size in torch.unique_consecutive(image, return_counts=True)[1].tolist():
        rows = slice(start, start + size)
        inside = np.arange(size) < counts[rows].sum(axis=0)[:, None]
        places.append(falling[:, rows].argsort(axis=1)[inside] + start)
        labels.append(np.nonzero(inside)[0])
        start += size
    if not places:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    return torch.from_numpy(np.concatenate(places)), torch.from_numpy(np.concatenate(labels))
