"""Know which entries of which earlier tensor a tensor holds, and how far several move together.

Notable choices:
- A tensor that only holds entries of another moves by at most √n times as far as that, n the most
  times that any one entry is held (theory §2.2). This is counted, not argued: what moves entries is
  run on their numbers.
- So parts of one tensor that share no entry move together at most as far as the whole, and the
  larger and the smaller of each pair are the two halves of one tensor of sorted pairs.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from lipdet.errors import UnknownLipschitz
from lipdet.lipschitz.gains import times
from lipdet.lipschitz.recording import digest


@dataclass(frozen=True)
class Entries:
    """The entries of a tensor, or of a list of tensors, that follows from the input.

    Attributes:
        source: names the tensor that they are entries of; one name is of one tensor only.
        bound: of the map from the network's input to all of that tensor.
        places: for each tensor, of its own shape in float64, the numbers of its entries in the
            source; None for positions, which jump.
    """

    source: Hashable
    bound: float
    places: Any

    @property
    def name(self) -> Hashable:
        """Equal for equal tensors."""
        return self.source, tuple(map(digest, tree_leaves(self.places)))


def all_of(source: Hashable, bound: float, value: Any) -> Entries:
    """Return the entries of what is its own source: a tensor, or a list of them."""
    started = 0

    def number(tensor: Tensor) -> Tensor:
        nonlocal started
        first, started = started, started + tensor.numel()
        numbers = torch.arange(first, started, dtype=torch.float64, device=tensor.device)
        return numbers.view(tensor.shape)

    return Entries(source, bound, tree_map_only(Tensor, number, value))


def joint_bound(parts: Iterable[Entries]) -> float:
    """Bound the map from the network's input to all entries of some tensors together."""
    by_source: dict[Hashable, list[Entries]] = {}
    for part in parts:
        by_source.setdefault(part.source, []).append(part)
    held = ((own[0].bound, _most_held(own)) for own in by_source.values())
    return math.hypot(*(times(bound, math.sqrt(most)) for bound, most in held))


def holds_each_once(whole: Entries) -> bool:
    """Return whether no entry of the source is held twice."""
    return _most_held([whole]) <= 1


def _most_held(parts: list[Entries]) -> int:
    leaves = [numbers for part in parts for numbers in tree_leaves(part.places)]
    held = [numbers.flatten().long() for numbers in leaves if isinstance(numbers, Tensor)]
    return max(torch.cat(held).bincount().tolist(), default=0) if held else 0


def moved(whole: Entries, places: Any, value: Any) -> Entries:
    """Return some of the entries of a tensor, which make up a value.

    Raises:
        UnknownLipschitz: the value is no tensor, or list of tensors, of the shapes of its places.
    """
    leaves, held = tree_leaves(value), tree_leaves(places)
    if len(leaves) != len(held) or any(
        numbers is not None and numbers.shape != leaf.shape
        for leaf, numbers in zip(leaves, held, strict=True)
    ):
        raise UnknownLipschitz("its rule does not cover these arguments")
    return Entries(whole.source, whole.bound, places)
