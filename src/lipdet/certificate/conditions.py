"""The five conditions under which a detection cannot be lost, one function each (theory §5).

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

from lipdet.certificate.box_range import BoxRange
from lipdet.certificate.candidates import Balls
from lipdet.certificate.iou_bounds import max_iou_fixed, max_iou_pair, min_iou_fixed
from lipdet.certificate.offset_ball import min_iou_in_ball

MATCH_SLACK = 1e-4
SUPPRESS_SLACK = 1e-3


def clears_floor(low: Tensor, floor: float) -> Tensor:
    """Condition 1: the lowest score lies strictly above the floor, as the detector asks."""
    return low > floor


def stays_on(boxes: BoxRange, truth: Tensor, balls: Balls | None = None) -> Tensor:
    """Condition 2: the IoU threshold up to which a box matches its object wherever it moves.

    The minimum of the *unclipped* box, which clipping can only raise for an object inside the
    image. Where the joint constant of the four offsets is known, both the intervals and the ball
    hold, and the larger bound counts (theory §6.3).

    Args:
        boxes: (P, 4).
        truth: (P, 4) xyxy.
        balls: of the same boxes.
    """
    lowest = min_iou_fixed(boxes, truth) - MATCH_SLACK
    return lowest if balls is None else torch.maximum(lowest, stays_in(balls, truth))


def stays_in(balls: Balls, truth: Tensor) -> Tensor:
    """Condition 2 by the ball of offsets alone; see `stays_on`."""
    lowest = min_iou_in_ball(balls.offsets, balls.radius, balls.default_boxes, balls.coding, truth)
    return lowest - MATCH_SLACK


def outscores(
    high: Tensor, low: Tensor, difference: Tensor | None = None, reach: Tensor | None = None
) -> Tensor:
    """Condition 3, first half: whether a rival can rank before a certifier, ties included.

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


def suppresses(certifier: BoxRange, rival: BoxRange, nms_iou: float, size: int) -> Tensor:
    """Condition 3, second half: whether two boxes, as clipped, can overlap by more than η.

    Those that can, and can outscore, must satisfy condition 2 themselves.
    """
    return ~(max_iou_pair(certifier, rival, size) <= nms_iou - SUPPRESS_SLACK)


def fits(before: Tensor, before_in_class: Tensor, top_k: int, per_class: int) -> Tensor:
    """Condition 4: no truncation, as fewer others than are put out can rank before.

    Args:
        before: (P,) how many other candidates of all classes can reach the certifier's lowest.
        before_in_class: (P,) how many of its class.
        top_k: detections per image.
        per_class: detections of one class per image that are counted.
    """
    return (before < top_k) & (before_in_class < per_class)


def kept_fit(kept: Tensor, kept_in_class: Tensor, top_k: int, per_class: int) -> Tensor:
    """Condition 4 by what NMS can keep; either form suffices.

    Whatever vouches in the end, d, is kept and scores at least the certifier's lowest, so it is
    among the kept boxes that these bounds count, and so is all that ranks before it.

    Args:
        kept: (P,) bound on the kept boxes of all classes at the certifier's lowest score or more.
        kept_in_class: (P,) of those of its class.
        top_k: see `fits`.
        per_class: see `fits`.
    """
    return (kept <= top_k) & (kept_in_class <= per_class)


def strays_to(boxes: BoxRange, rival: Tensor, own: Tensor, size: int, relaxed: bool) -> Tensor:
    """Condition 5: the IoU threshold above which a box can match no other object than its own.

    Relaxed (theory §6.5): a box that always overlaps its own object by more than it can overlap
    the other takes its own while that is free, since the matcher takes the free object of highest
    IoU. If it is not free, it is detected already.

    Args:
        boxes: (P, 4) the certifier or one of its suppressors.
        rival: (P, 4) xyxy of another object of the class.
        own: (P,) threshold of condition 2 for the box and its own object.
        size: of the image.
        relaxed: whether the relaxation is used.

    Returns:
        (P,) thresholds; −1 where there is no danger at any.
    """
    reached = max_iou_fixed(boxes, rival, size) + MATCH_SLACK
    return torch.where(reached < own, -1.0, reached) if relaxed else reached
