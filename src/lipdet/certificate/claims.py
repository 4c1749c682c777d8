"""Detections that cannot all be false positives: cliques that objects claim; sharpens theory §6.

An object *claims* a clique at τ if every member that can reach τ matches it, and no other object of
its class, wherever the boxes move. NMS keeps at most one member. If it keeps one, the object is
found, by it or by what ranks before it; if none, the clique holds no detection. So of d detections
that the cliques of an image allow, those that objects claim are no false positives: one clique for
each object.

This asks less than a certificate: the score of the clique may fall as low as it likes.

No two objects claim one clique at the same τ. *Proof.* Both claims start at what the clique's
highest member can reach, and each has such a member, m for g and n for h, that surely matches its
own object and no other. A claim ends at the highest member that is not sure of its object. If n
is as sure of g as m is, n overlaps g by at least θ, and h always by less than that or less than θ:
but n is sure of h, which says the opposite. So n is not sure of g, reaches as high as m, and g's
claim is empty. Whether m and n tie or are one candidate changes nothing, and nor does the
relaxation of condition 5: of two objects only one can always be overlapped more.

What is put out is what counts. If the member that is kept is cut off by top-k, or by what COCO
counts of an image, the clique holds no detection, and no false one. At scores at which a group has
more cliques than are counted (`limit`, one more than the detector puts out) a detection may belong
to none that is counted, and claims end (`_uncounted`). Certified objects still count there, as
there are no more detections than cliques are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lipdet.certificate.candidates import Candidates
from lipdet.certificate.certify import strays
from lipdet.certificate.cover import BLOCK, Entries
from lipdet.certificate.segments import take, true_at
from lipdet.certificate.staying import Staying
from lipdet.certificate.tightenings import ALL, Tightenings
from lipdet.certificate.truths import Truths


class Claims(NamedTuple):
    """Each object claims a clique at log-odds τ with last < τ ≤ first; (G, IoU thresholds) each.

    Attributes:
        first: −∞ if it claims none.
        last: what the first member that may not match it can reach; −∞ if all do.
    """

    first: Tensor
    last: Tensor


def claims(
    candidates: Candidates,
    truths: Truths,
    pairs: Staying,
    entries: Entries,
    limit: int,
    size: int,
    ious: Sequence[float],
    tightenings: Tightenings = ALL,
) -> Claims:
    """Let each object claim the clique of its class whose highest member surely matches it.

    Of several, that which reaches highest. Below the score of the `limit`-th entry of its group
    an object claims nothing: there may be more cliques than are counted.

    Args:
        candidates: all.
        truths: objects; those without pairs claim nothing.
        pairs: condition 2 from the lowest of `ious` or less on.
        entries: the cliques.
        limit: as for `entries`.
        size: of the image.
        ious: IoU thresholds of a match, rising.
        tightenings: which sharpenings are used.
    """
    if not tightenings.claims:
        nothing = torch.full((len(truths.image), len(ious)), -torch.inf, dtype=torch.float64)
        return Claims(nothing, nothing)
    group = truths.image * candidates.classes + truths.label
    # Cliques of the first block: they have all of their members there.
    place = pairs.candidate - take(candidates.starts(group), pairs.truth)
    truth, own, match = (x[place < BLOCK] for x in (pairs.truth, pairs.candidate, pairs.iou))
    sure = true_at(match >= ious[0])
    alone = torch.full_like(match, -1.0)
    alone[sure] = strays(
        candidates, truths, truth[sure], torch.arange(len(sure)), own[sure], match[sure], size,
        tightenings.relaxed_match,
    )  # fmt: skip
    clique, high = entries.clique[own], candidates.high[own]
    heads = (clique >= 0) & (high == entries.cliques[clique])
    uncounted = _uncounted(entries, group, limit)
    columns = [
        _claim(truth, clique, high, heads, (match >= iou) & (alone < iou), uncounted)
        for iou in ious
    ]
    return Claims(*(torch.stack(ends, dim=1) for ends in zip(*columns, strict=True)))


def _claim(
    truth: Tensor, clique: Tensor, high: Tensor, heads: Tensor, sure: Tensor, uncounted: Tensor
) -> tuple[Tensor, Tensor]:
    """Claims at one IoU threshold, from pairs (P,) of an object and a candidate; (G,) each."""
    nothing = torch.full((len(uncounted),), -torch.inf, dtype=torch.float64)
    found = true_at(sure & heads)
    first = nothing.scatter_reduce(0, truth[found], high[found], "amax")
    best = found[high[found] == first[truth[found]]]
    claimed = torch.full_like(uncounted, -1, dtype=torch.int64)
    claimed.scatter_reduce_(0, truth[best], clique[best], "amax")
    unsure = true_at((clique == claimed[truth]) & ~sure)
    last = nothing.scatter_reduce(0, truth[unsure], high[unsure], "amax")
    return first, torch.maximum(last, uncounted)


def _uncounted(entries: Entries, group: Tensor, limit: int) -> Tensor:
    """Return the score from which on downward a group has as many cliques as are counted; or −∞."""
    starts = torch.searchsorted(entries.group, group)
    full = torch.searchsorted(entries.group, group, right=True) - starts == limit
    end = (starts + limit - 1).clamp(max=max(len(entries.group) - 1, 0))
    lowest = torch.nn.functional.pad(entries.cliques, (0, 1), value=-torch.inf)
    return torch.where(full, lowest[end], -torch.inf)
