"""Uncertain boxes of many kinds, and a search for their lowest and highest IoU.

The search knows nothing of vertices or corners: it draws centres and sides, decodes, clips and
measures the IoU, globally first and then around the best it has found.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lipdet.certificate.geometry.box_range import BoxRange
from lipdet.types import Canvas

CANVAS = Canvas(50, 74)
KINDS = ("anywhere", "border", "degenerate", "containing", "disjoint", "certain", "enormous")
_ROUNDS = 25

Objective = Callable[[Tensor, Tensor], Tensor]


def random_ranges(
    kind: str, cases: int, generator: torch.Generator, near: BoxRange | None = None
) -> BoxRange:
    """Ranges (cases, 4) of a kind; those that speak of another box are placed relative to `near`.

    `certain`: one point. `degenerate`: sides may be 0. `enormous`: sides beyond the image.
    """

    def uniform(low: float, high: float, columns: int = 4) -> Tensor:
        values = torch.rand(cases, columns, generator=generator, dtype=torch.float64)
        return low + (high - low) * values

    middles = torch.cat([uniform(5, 69, 2), uniform(3, 40, 2)], dim=1)
    if kind == "border":
        middles[:, :2] = torch.where(uniform(0, 1, 2) < 0.5, uniform(-5, 12, 2), uniform(62, 79, 2))
        middles[:, 1] *= CANVAS.height / CANVAS.width
    elif kind == "enormous":
        middles[:, 2:] = uniform(60, 300, 2)
    elif near is not None and kind == "containing":
        around = (near.low + near.high) / 2
        factor = torch.where(uniform(0, 1, 1) < 0.5, uniform(1.5, 3, 1), uniform(0.3, 0.7, 1))
        middles = torch.cat([around[:, :2] + uniform(-2, 2, 2), around[:, 2:] * factor], dim=1)
    elif near is not None and kind == "disjoint":
        middles[:, 0] = (near.high[:, 0] + near.high[:, 2] / 2 + middles[:, 2] / 2 + 10) % 90
    elif near is not None and kind != "degenerate":
        middles = (near.low + near.high) / 2 + uniform(-8, 8)
    reach = uniform(0, 1) * uniform(0, 1, 1) ** 2 * 15
    if kind == "degenerate":
        reach[:, 2:] = middles[:, 2:] * (1 + uniform(0, 0.1, 2))
    elif kind == "certain":
        reach = reach * 0
    low, high = middles - reach, middles + reach
    return BoxRange(
        torch.cat([low[:, :2], low[:, 2:].clamp_min(0)], dim=1),
        torch.maximum(high, high.new_tensor([-200.0, -200, 0.01, 0.01])),
    )


def search(
    objective: Objective, ranges: list[BoxRange], samples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The lowest and highest IoU found for each case.

    Args:
        objective: (samples, cases, 4) boxes cx, cy, w, h of each range to IoU (samples, cases).
        ranges: one or two, (cases, 4).
        samples: per case, over all rounds and both ends.
        generator: of the draws.
    """
    # Half of them globally; from none to all of the coordinates lie at an end of their interval.
    low = torch.cat([r.low for r in ranges], dim=1)
    span = torch.cat([r.high for r in ranges], dim=1) - low

    def measure(places: Tensor) -> Tensor:
        boxes = torch.split(low + places * span, 4, dim=-1)
        # A range that is one point is a known box.
        return objective(*boxes)

    def uniform(count: int) -> Tensor:
        return torch.rand(count, *low.shape, generator=generator, dtype=torch.float64)

    places = uniform(samples // 2)
    at_ends = torch.linspace(0, 1.5, samples // 2, dtype=torch.float64)[:, None, None]
    places = torch.where(uniform(samples // 2) < at_ends, places.round(), places)
    found = measure(places)
    ends = []
    for sign in (1.0, -1.0):
        best, where = (sign * found).min(dim=0)
        spot = places[where, torch.arange(len(low))]
        for step in range(_ROUNDS):
            count = samples // (4 * _ROUNDS)
            move = (2 * uniform(count) - 1) * 0.7 ** (step * 0.8)
            # Most coordinates stay, so that a good one is not lost for another.
            move = torch.where(uniform(count) < 0.3, move, 0)
            tried = (spot + move).clamp(0, 1)
            values, where = (sign * measure(tried)).min(dim=0)
            better = values < best
            best = torch.where(better, values, best)
            spot = torch.where(better[:, None], tried[where, torch.arange(len(low))], spot)
        ends.append(sign * best)
    return ends[0], ends[1]
