"""Find the candidates that can suppress a certifier and so spoil its certificate: condition 3.

The log-odds of a certifier and its rival each have an interval, but one perturbation moves both,
and the rival's box too:
- their difference moves less than both together (theory §6.2);
- a perturbation that lifts the rival above the certifier has less left to move its box with (§6.6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipdet.certificate.conditions.candidates import Candidates
from lipdet.certificate.conditions.five_conditions import (
    ball_matches_up_to,
    can_outscore,
    can_suppress,
)
from lipdet.certificate.conditions.ground_truth import SureMatches
from lipdet.certificate.constants.joint_outputs import PairwiseLogits
from lipdet.certificate.geometry.iou_bounds import max_iou_fixed
from lipdet.certificate.geometry.offset_ball import OffsetBalls
from lipdet.certificate.ragged import expand_ranges, flatnonzero, split_by_total, take

# Share of a ball's radius and middle, since directions are known only up to 1e-6.
_SLACK = 1e-5
# Pairs of a certifier and a rival that are looked at together, for bounded memory.
RIVALS_AT_ONCE = 400_000


@dataclass(frozen=True)
class JointMotion:
    """Bounds on what a certifier and a rival do under one and the same perturbation.

    Attributes:
        candidates: all.
        constants: of differences.
        epsilon: (B,) of each image.
        temperature: what logits are multiplied by to give log-odds.
    """

    candidates: Candidates
    constants: PairwiseLogits
    epsilon: Tensor
    temperature: float

    def difference_reach(self, own: Tensor, rival: Tensor) -> Tensor:
        """Return how far the difference of the log-odds of two candidates, (P,) each, can move."""
        pairs = self._pairs(own, rival)
        return self.temperature * self._epsilon(own) * self.constants.constants(*pairs)

    def lag(self, own: Tensor, rival: Tensor) -> Tensor:
        """Return by how much a rival's features must lift it to pass the certifier, in logits."""
        behind = self.candidates.log_odds[own] - self.candidates.log_odds[rival]
        behind = behind - self.candidates.slack[own] - self.candidates.slack[rival]
        free = self.constants.yielding(*self._pairs(own, rival))
        fallen = torch.where(free.isinf(), torch.inf, free * self._epsilon(own))
        return (behind / self.temperature - fallen).clamp(min=0)

    def rival_balls(self, own: Tensor, rival: Tensor) -> OffsetBalls:
        """Return where a rival's offsets lie if it has at least the certifier's log-odds, (P,).

        The change of the features lies in the ball around t·û of radius √(r² − t²) (theory §6.6).
        """
        epsilon, lift = self._epsilon(own), self.constants.lifts(*self._pairs(own, rival))
        lag = torch.minimum(self.lag(own, rival), epsilon * lift.constant)
        balls = self.candidates.balls.at(rival)
        spent = torch.where(epsilon > 0, lag / lift.constant / epsilon, 0)
        middle = lag.unsqueeze(1) * lift.push
        # The second part is more than what rounding adds to the radius of any ball.
        slack = _SLACK * (balls.radius + middle.norm(dim=1))
        slack = slack + 2 * self.candidates.slack[rival] / self.temperature
        left = (1 - spent.square()).clamp(min=0).sqrt()
        return balls._replace(offsets=balls.offsets + middle, radius=balls.radius * left + slack)

    def _epsilon(self, own: Tensor) -> Tensor:
        return take(self.epsilon, take(self.candidates.group, own) // self.candidates.classes)

    def _pairs(self, own: Tensor, rival: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return default boxes and the class, as `PairwiseLogits` takes them."""
        anchor = self.candidates.anchor
        label = take(self.candidates.group, own) % self.candidates.classes
        return take(anchor, own), take(anchor, rival), label


def suppressors(
    candidates: Candidates,
    own: Tensor,
    joint_motion: JointMotion | None,
    counts: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Find pairs of a certifier and another candidate of its class that can suppress it.

    Args:
        candidates: all.
        own: (P,) the certifiers among all candidates.
        joint_motion: of pairs of candidates, if known.
        counts: from indices into `own` and of all candidates to whether a pair is of interest,
            (Q,) each; every pair is if not given.

    Returns:
        Indices into `own` and of all candidates, (Q,) each.
    """
    group = take(candidates.group, own)
    starts, _ = candidates.members(group)
    ahead = candidates.reaching(group, take(candidates.low, own))
    parts = []
    for rows in split_by_total(ahead, RIVALS_AT_ONCE):
        row, rival = expand_ranges(starts[rows], ahead[rows])
        row = take(rows, row)
        passed = rival != take(own, row)
        passed = flatnonzero(passed if counts is None else passed & counts(row, rival))
        row, rival = take(row, passed), take(rival, passed)
        mine = take(own, row)
        pair = candidates.boxes.at(mine), candidates.boxes.at(rival)
        passed = flatnonzero(can_suppress(*pair, candidates.nms_iou, candidates.canvas))
        row, rival, mine = (take(x, passed) for x in (row, rival, mine))
        passed = flatnonzero(_rival_can_outscore(candidates, rival, mine, joint_motion))
        parts.append((take(row, passed), take(rival, passed)))
    row, rival = (torch.cat(column) for column in zip(*parts, strict=True))
    return row, rival


def spoiling_suppressors(
    candidates: Candidates,
    matches: SureMatches,
    truth: Tensor,
    own: Tensor,
    iou: Tensor,
    contested: Tensor,
    joint_motion: JointMotion | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find pairs of a certifier and a candidate that can suppress it, and spoil it by that.

    What matches the object at least as surely as the certifier does spoils nothing, unless another
    object may be matched instead.

    Args:
        candidates: all.
        matches: condition 2.
        truth: (P,) the certifiers' objects.
        own: (P,) the certifiers among all candidates.
        iou: (P,) condition 2 of the certifiers.
        contested: (P,) whether there are other objects of the class.
        joint_motion: of pairs of candidates, if known.

    Returns:
        Indices into `own` and of all candidates, and condition 2 of the latter, (Q,) each.
    """

    def spoils(row: Tensor, rival: Tensor) -> Tensor:
        rival_iou = matches.at(take(truth, row), rival)
        return ~(rival_iou >= take(iou, row)) | take(contested, row)

    row, rival = suppressors(candidates, own, joint_motion, spoils)
    return row, rival, matches.at(take(truth, row), rival)


def _rival_can_outscore(
    candidates: Candidates, rival: Tensor, own: Tensor, joint_motion: JointMotion | None
) -> Tensor:
    high, low = take(candidates.high, rival), take(candidates.low, own)
    if joint_motion is None:
        return can_outscore(high, low)
    difference = take(candidates.log_odds, rival) - take(candidates.log_odds, own)
    slack = take(candidates.slack, rival) + take(candidates.slack, own)
    return can_outscore(high, low, difference, joint_motion.difference_reach(own, rival) + slack)


def raise_by_overtaking(
    joint_motion: JointMotion,
    certifier: Tensor,
    own: Tensor,
    rival: Tensor,
    objects: Tensor,
    rival_iou: Tensor,
    lowest_iou: float,
) -> None:
    """Raise `rival_iou` (Q,), in place, as far as passing the certifier lets it (theory §6.6).

    Certifiers with another suppressor about which no more is known are left out. Condition 5 may
    use what is raised: the rival vouches only under these perturbations.

    Args:
        joint_motion: of pairs.
        certifier: (Q,) index into `own`.
        own: (P,) certifiers among all candidates.
        rival: (Q,) among all candidates.
        objects: (P, 4) of the certifiers.
        rival_iou: up to which IoU threshold the rivals match the objects.
        lowest_iou: the lowest threshold of interest.
    """
    open_ = flatnonzero(rival_iou < lowest_iou)
    boxes = joint_motion.candidates.boxes.at(rival[open_])
    hope = max_iou_fixed(boxes, objects[certifier[open_]], None) >= lowest_iou
    hope &= joint_motion.lag(own[certifier[open_]], rival[open_]) > 0
    lost = torch.zeros(len(own), dtype=torch.bool)
    lost[certifier[open_[~hope]]] = True
    open_ = open_[~lost[certifier[open_]]]
    first = certifier[open_]
    balls = joint_motion.rival_balls(own[first], rival[open_])
    rival_iou[open_] = torch.maximum(rival_iou[open_], ball_matches_up_to(balls, objects[first]))
