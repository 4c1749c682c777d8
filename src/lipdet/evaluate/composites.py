"""The worst of several attacks on a data set: of each picture the result that costs AP50 most.

AP belongs to a data set and has no part that belongs to one picture (theory §8). But beside what is
chosen for the other pictures, a detection moves it by about as much as its rank says, and so the
results of a picture can be compared. What is chosen changes ranks; so some pictures choose at a
time, and all of them more than once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lipdet.attack.damage import judged, true_positives
from lipdet.images.pack import Pack
from lipdet.types import Detections

Floats = NDArray[np.float64]

# Pictures choose in this many turns, this often. If all choose at once, they go to and fro.
TURNS, ROUNDS = 8, 3


class _Ranked(NamedTuple):
    """Detections (N,) of all results of all pictures; those in ignored areas are left out."""

    picture: NDArray[np.int64]
    candidate: NDArray[np.int64]
    label: NDArray[np.int64]
    score: Floats
    right: NDArray[np.bool_]


def composites(candidates: Sequence[Sequence[Detections]], pack: Pack) -> list[list[Detections]]:
    """Choose one of several results for each picture; return the choice after each round.

    Args:
        candidates: for each attack, what is detected in each picture.
        pack: the pictures.
    """
    found, objects = _ranked(candidates, pack), np.bincount(pack.labels)
    choice, shape = np.zeros(len(pack), dtype=np.int64), (len(pack), len(candidates))
    places = found.picture * len(candidates) + found.candidate
    chosen = []
    for _ in range(ROUNDS):
        for turn in range(TURNS):
            worth = np.bincount(places, _worth(found, choice, objects), math.prod(shape))
            choice[turn::TURNS] = worth.reshape(shape)[turn::TURNS].argmin(axis=1)
        chosen.append([candidates[which][index] for index, which in enumerate(choice.tolist())])
    return chosen


def _ranked(candidates: Sequence[Sequence[Detections]], pack: Pack) -> _Ranked:
    columns: list[list[NDArray[np.generic]]] = [[] for _ in _Ranked._fields]
    for picture in range(len(pack)):
        target = pack.target(picture)
        for candidate, results in enumerate(candidates):
            one = results[picture]
            right = true_positives(one, target)
            counts = right | judged(one, target)
            number = torch.full((int(counts.sum()),), 1)
            for column, values in zip(
                columns,
                (
                    picture * number,
                    candidate * number,
                    one["labels"][counts],
                    one["scores"][counts].double(),
                    right[counts],
                ),
                strict=True,
            ):
                column.append(values.numpy())
    return _Ranked(*(np.concatenate(column) for column in columns))


def _worth(found: _Ranked, choice: NDArray[np.int64], objects: NDArray[np.int64]) -> Floats:
    """Return by how much each detection (N,) raises the area under its class's curve, about.

    A right one at a rank has the precision there, and raises that of the right ones behind it; a
    false one lowers theirs. All is in units of AP, up to the number of classes.
    """
    worth = np.zeros(len(found.label))
    shown = found.candidate == choice[found.picture]
    for label in np.flatnonzero(objects):
        own = found.label == label
        used = np.flatnonzero(own & shown)
        used = used[np.argsort(-found.score[used], kind="stable")]
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
