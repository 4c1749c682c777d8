"""What can rise above the score floor under some perturbation, and how far each can move.

Notable choices:
- Everything after this file works on a flat list of candidates, pairs (anchor, class) of all
  images of a batch. What cannot exceed the floor is never looked at again.
- The list is ordered by image and class ("group") and within a group by falling highest score, so
  that "all that can outscore s" is the beginning of a group and found by binary search.
- float64 throughout; what the detector computes in float32 is covered by a slack.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lipdet.boxes.coding import BoxCoding
from lipdet.boxes.scores import Scores, SigmoidScores, SoftmaxScores, logit
from lipdet.boxes.select import Decoder
from lipdet.certificate.box_range import BoxRange, box_range
from lipdet.certificate.outputs import OutputBounds
from lipdet.errors import InputError
from lipdet.types import RawOutput

# Log-odds are computed and compared in float32. One is off by at most K + 8 roundings of 2⁻²⁴ plus
# two of the largest logit of its anchor.
_ROUNDING = 2.0**-22


class Balls(NamedTuple):
    """Offsets that move in a ball, of N boxes.

    Attributes:
        offsets: (N, 4) without perturbation.
        radius: (N,) of the ball.
        default_boxes: (N, 4).
        coding: how offsets become boxes.
    """

    offsets: Tensor
    radius: Tensor
    default_boxes: Tensor
    coding: BoxCoding

    def at(self, index: Tensor) -> Balls:
        """Some of the boxes."""
        return Balls(
            self.offsets[index], self.radius[index], self.default_boxes[index], self.coding
        )


class Candidates(NamedTuple):
    """All (anchor, class) of a batch that can exceed the floor, N in number.

    Attributes:
        classes: number of classes C.
        group: (N,) image · C + class, ascending.
        anchor: (N,) index of the default box.
        low: (N,) lowest log-odds, float64; `log_odds`: without perturbation; `high`: highest,
            falling within a group.
        log_odds: see `low`.
        high: see `low`.
        slack: (N,) what numerics alone can change of a log-odds.
        boxes: (N, 4) where the box can lie, before clipping.
        balls: the offsets of the same boxes.
        rank: (N,) position in the list of all candidates by falling `high`.
    """

    classes: int
    group: Tensor
    anchor: Tensor
    low: Tensor
    log_odds: Tensor
    high: Tensor
    slack: Tensor
    boxes: BoxRange
    balls: Balls
    rank: Tensor

    def starts(self, group: Tensor) -> Tensor:
        """Index of the first candidate of each group."""
        return torch.searchsorted(self.group, group)

    def members(self, group: Tensor) -> Tensor:
        """How many candidates each group has."""
        return torch.searchsorted(self.group, group, right=True) - self.starts(group)

    def reaching(self, group: Tensor, log_odds: Tensor) -> Tensor:
        """How many candidates of `group` (P,) have `high` ≥ `log_odds` (P,).

        They are the first ones of the group.
        """
        return self._reaching(self.group, group, log_odds)

    def reaching_in_image(self, image: Tensor, log_odds: Tensor) -> Tensor:
        """How many candidates of all classes of `image` (P,) have `high` ≥ `log_odds` (P,)."""
        return self._reaching(self.group // self.classes, image, log_odds)

    def _reaching(self, member_of: Tensor, place: Tensor, log_odds: Tensor) -> Tensor:
        # Candidate i has high ≥ s exactly if its rank is below the number that have it anywhere.
        # So comparisons of floats become one of integers, within each place.
        size = len(self.rank) + 1
        falling = torch.empty_like(self.high).index_put((self.rank,), self.high)
        above = torch.searchsorted(-falling, -log_odds, right=True)
        keys = (member_of * size + self.rank).sort().values
        first = torch.searchsorted(keys, place * size)
        return torch.searchsorted(keys, place * size + above) - first


def find_candidates(
    raw: RawOutput,
    bounds: OutputBounds,
    decoder: Decoder,
    score_floor: float,
    epsilon: float | Tensor,
    rounding: float = 0.0,
) -> Candidates:
    """List what can exceed the floor under perturbations of at most ε (THEORY §5).

    Args:
        raw: outputs of B images without perturbation.
        bounds: constants of the detector that they come from.
        decoder: of that detector.
        score_floor: probability in (0, 1).
        epsilon: L2 radius in pixel units, for all images or (B,) of each.
        rounding: how far any output of a forward pass may lie from real arithmetic. It counts
            twice, since the outputs with and without perturbation are both computed.

    Raises:
        InputError: an output is not finite; nothing can be said about it.
    """
    if not (raw.logits.isfinite().all() and raw.offsets.isfinite().all()):
        raise InputError("The detector's outputs are not all finite, so nothing can be certified.")
    logits = raw.logits.double()
    radius = torch.as_tensor(epsilon, dtype=torch.float64).expand(len(logits))
    moving = radius[:, None, None] * bounds.logits
    # Of the outputs with perturbation, which are rounded too.
    largest = (logits.abs() + moving).amax(dim=-1, keepdim=True)
    slack = 2 * rounding + _ROUNDING * (largest + logits.shape[-1])
    moved = moving + slack
    low, high = log_odds_interval(decoder.scores, logits, moved)
    found = torch.nonzero(high > logit(score_floor)).unbind(dim=1)
    order, rank = _order(found[0] * high.shape[2] + found[2], high[found])
    image, anchor, label = found = tuple(index[order] for index in found)
    return Candidates(
        classes=high.shape[2],
        group=image * high.shape[2] + label,
        anchor=anchor,
        low=low[found],
        log_odds=decoder.scores.log_odds(logits[image, anchor]).gather(1, label[:, None])[:, 0],
        high=high[found],
        slack=_largest_factor(decoder.scores) * slack[image, anchor, 0],
        boxes=box_range(
            raw.offsets[image, anchor],
            radius[image, None] * bounds.offsets[anchor] + 2 * rounding,
            decoder.default_boxes[anchor],
            decoder.coding,
        ),
        balls=Balls(
            raw.offsets[image, anchor].double(),
            # Rounding moves each of the four.
            radius[image] * bounds.offsets_joint[anchor] + 4 * rounding,
            decoder.default_boxes[anchor].double(),
            decoder.coding,
        ),
        rank=rank,
    )


def log_odds_interval(scores: Scores, logits: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and highest log-odds of logits that each move by at most `moved`.

    One-vs-all log-odds rise with their own logit alone. A softmax's is z_c − logsumexp_{j≠c} z_j:
    lowest with z_c at its lowest and all others at their highest. The log-odds at the highest of
    *all* logits differs from that in z_c alone, by 2 · moved.

    Args:
        scores: how logits become log-odds.
        logits: (..., K) float64.
        moved: (..., K) ≥ 0.

    Returns:
        Two tensors (..., classes).
    """
    if isinstance(scores, SigmoidScores):
        return scores.log_odds(logits - moved), scores.log_odds(logits + moved)
    assert isinstance(scores, SoftmaxScores)
    own = 2 * moved[..., 1:]
    return scores.log_odds(logits + moved) - own, scores.log_odds(logits - moved) + own


def _largest_factor(scores: Scores) -> float:
    """How much a log-odds can move if no logit moves by more than 1."""
    return scores.temperature if isinstance(scores, SigmoidScores) else 2.0


def _order(group: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """How to order by group, then falling `high`; and each one's rank by falling `high` alone."""
    falling = high.argsort(descending=True, stable=True)
    order = falling[group[falling].argsort(stable=True)]
    rank = torch.empty_like(falling).index_put((falling,), torch.arange(len(falling)))
    return order, rank[order]


def in_parts(counts: Tensor, most: int) -> Iterator[Tensor]:
    """Split rows that expand to `counts` (P,) entries each into runs of about `most` entries.

    Yields:
        Indices of rows.
    """
    run = (counts.cumsum(0) // most).numpy()
    for rows in np.split(np.arange(len(run)), np.flatnonzero(np.diff(run)) + 1):
        yield torch.from_numpy(rows)


def expand(starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """All indices of several ranges at once.

    Args:
        starts: (P,) first index of each range.
        counts: (P,) its length.

    Returns:
        Which range (M,) and which index (M,), range by range.
    """
    owner = torch.repeat_interleave(counts)
    offset = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    return owner, starts[owner] + offset
