"""The worst of several attacks on a data set: of each picture the result that costs AP50 most.

AP belongs to a data set and has no part that belongs to one picture (theory §8). But beside what is
chosen for the other pictures, a detection moves it by about as much as its rank says, and so the
results of a picture can be compared. What is chosen changes ranks; so some pictures choose at a
time, and all of them more than once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lipdet.evaluate.ranking import Ranked, ranked
from lipdet.images.pack import Pack
from lipdet.types import Detections

Floats = NDArray[np.float64]

# Pictures choose in this many turns, this often. If all choose at once, they go to and fro.
TURNS, ROUNDS = 8, 3


def composites(candidates: Sequence[Sequence[Detections]], pack: Pack) -> list[list[Detections]]:
    """Choose one of several results for each picture; return the choice after each round.

    Args:
        candidates: for each attack, what is detected in each picture.
        pack: the pictures.
    """
    shape, objects = (len(pack), len(candidates)), np.bincount(pack.labels)
    targets = [target for target in map(pack.target, range(len(pack))) for _ in candidates]
    found = ranked(targets, [one for results in zip(*candidates, strict=True) for one in results])
    picture, candidate = divmod(found.image, len(candidates))
    choice = np.zeros(len(pack), dtype=np.int64)
    chosen = []
    for _ in range(ROUNDS):
        for turn in range(TURNS):
            worths = _worth(found, candidate == choice[picture], objects)
            worth = np.bincount(found.image, worths, math.prod(shape))
            choice[turn::TURNS] = worth.reshape(shape)[turn::TURNS].argmin(axis=1)
        chosen.append([candidates[which][index] for index, which in enumerate(choice.tolist())])
    return chosen


def _worth(found: Ranked, shown: NDArray[np.bool_], objects: NDArray[np.int64]) -> Floats:
    """Return by how much each detection (N,) raises the area under its class's curve, about.

    A right one at a rank has the precision there, and raises that of the right ones behind it; a
    false one lowers theirs. All is in units of AP, up to the number of classes.
    """
    worth = np.zeros(len(found.label))
    for label in np.flatnonzero(objects):
        own = found.label == label
        used = np.flatnonzero(own & shown)
        right = found.right[used]
        rank = np.arange(1, len(used) + 1)
        before = np.append(0, right.cumsum())
        precision = before[1:] / rank
        # Of the right ones from a rank on, what one more before them adds and takes.
        gained = _from_here(right * (1 - precision) / (rank + 1))
        lost = _from_here(right * precision / (rank + 1))
        place = np.searchsorted(-found.score[used], -found.score[own])
        added = (before[place] + 1) / (place + 1) + gained[place]
        worth[own] = np.where(found.right[own], added, -lost[place]) / objects[label]
    return worth


def _from_here(values: Floats) -> Floats:
    """Return the sums of the values from each place on, and 0 behind the last."""
    return np.append(values[::-1].cumsum()[::-1], 0.0)
