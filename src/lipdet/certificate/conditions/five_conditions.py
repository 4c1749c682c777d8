"""The five conditions under which a detection cannot be lost, one function each (theory §5.1).

A *certifier* is a candidate that shall vouch for an object; a *rival* is one that may suppress it.
Each function takes flat lists of P certifiers or pairs and returns a value or mask for each.

Notable choices:
- IoU thresholds are not passed in: each function says up to which threshold, or from which on, its
  condition holds, so that one pass serves all of 0.5, 0.55, …, 0.95.
- Slack is on the side of doubt: what is computed in float32 by NMS, in float64 by the matcher.
- What is not a number is in doubt, too: what is safe is asked for (`x < y`), and what is dangerous
  is all that is not (`~(x < y)`), so that every comparison with NaN refuses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipdet.certificate.geometry.box_range import BoxRange
from lipdet.certificate.geometry.iou_bounds import max_iou_fixed, max_iou_pair, min_iou_fixed
from lipdet.certificate.geometry.offset_ball import OffsetBalls, min_iou_in_ball
from lipdet.types import Canvas

MATCH_SLACK = 1e-4
SUPPRESS_SLACK = 1e-3


def clears_floor(low: Tensor, floor: float) -> Tensor:
    """Return whether the lowest score lies strictly above the floor, as the detector asks (1)."""
    return low > floor


def matches_up_to(boxes: BoxRange, truth: Tensor, balls: OffsetBalls | None = None) -> Tensor:
    """Return the IoU threshold up to which a box matches its object wherever it moves (2).

    The minimum of the *unclipped* box, which clipping can only raise for an object inside the
    image. Given the ball of the four offsets, it and the intervals both hold, and the larger bound
    counts (theory §6.3).

    Args:
        boxes: (P, 4).
        truth: (P, 4) xyxy.
        balls: of the same boxes.
    """
    lowest = min_iou_fixed(boxes, truth) - MATCH_SLACK
    return lowest if balls is None else torch.maximum(lowest, ball_matches_up_to(balls, truth))


def ball_matches_up_to(balls: OffsetBalls, truth: Tensor) -> Tensor:
    """Return the IoU threshold of condition 2 by the ball of offsets alone."""
    return min_iou_in_ball(balls, truth) - MATCH_SLACK


def can_outscore(
    high: Tensor, low: Tensor, difference: Tensor | None = None, reach: Tensor | None = None
) -> Tensor:
    """Return whether a rival can rank before a certifier, ties included (3, first half).

    A rival that suppresses a certifier has at least its score *under the same perturbation*. Two
    facts rule that out: the intervals of their scores, and how far their difference can move. What
    is not a number rules out nothing.

    Args:
        high: (P,) the rival's highest log-odds.
        low: (P,) the certifier's lowest.
        difference: (P,) the rival's log-odds minus the certifier's, without perturbation.
        reach: (P,) how far that difference can move.
    """
    can = ~(high < low)
    return can if difference is None or reach is None else can & ~(difference + reach < 0)


def can_suppress(certifier: BoxRange, rival: BoxRange, nms_iou: float, canvas: Canvas) -> Tensor:
    """Return whether two boxes, as clipped, can overlap by more than η (3, second half).

    Those that can, and can outscore, must satisfy condition 2 themselves.
    """
    return ~(max_iou_pair(certifier, rival, canvas) <= nms_iou - SUPPRESS_SLACK)


def few_ahead(ahead: Tensor, ahead_in_class: Tensor, top_k: int, per_class: int) -> Tensor:
    """Return whether fewer others than are put out can rank before a certifier (4).

    Args:
        ahead: (P,) how many other candidates of all classes can reach the certifier's lowest.
        ahead_in_class: (P,) how many of its class.
        top_k: detections per image.
        per_class: detections of one class per image that are counted.
    """
    return (ahead < top_k) & (ahead_in_class < per_class)


def few_kept(kept: Tensor, kept_in_class: Tensor, top_k: int, per_class: int) -> Tensor:
    """Return whether NMS keeps no more than is put out (4, second form); either form suffices.

    Args:
        kept: (P,) bound on the kept boxes of all classes at the certifier's lowest score or more.
        kept_in_class: (P,) of those of its class.
        top_k: see `few_ahead`.
        per_class: see `few_ahead`.
    """
    return (kept <= top_k) & (kept_in_class <= per_class)


def other_match_up_to(
    boxes: BoxRange, other: Tensor, own: Tensor, canvas: Canvas, relaxed: bool
) -> Tensor:
    """Return the IoU threshold above which a box can match no other object than its own (5).

    Args:
        boxes: (P, 4) the certifier or one of its suppressors.
        other: (P, 4) xyxy of another object of the class.
        own: (P,) threshold of condition 2 for the box and its own object.
        canvas: of the image.
        relaxed: whether a box that always overlaps its own object by more is let pass (theory
            §6.5).

    Returns:
        (P,) thresholds; −1 where there is no danger at any.
    """
    reached = max_iou_fixed(boxes, other, canvas) + MATCH_SLACK
    return torch.where(reached < own, -1.0, reached) if relaxed else reached
