"""Ragged lists: rows of different lengths, one behind the other in one flat tensor.

Rows are short (an image's candidates of a class), and there are hundreds of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def take(values: Tensor, index: Tensor) -> Tensor:
    """Return `values[index]` for indices (P,), several times as fast for long lists."""
    return values.index_select(0, index)


def pick(table: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the entries of a table (N, K) in rows and columns (P,)."""
    return take(table.flatten(), rows * table.shape[1] + columns)


def flatnonzero(mask: Tensor) -> Tensor:
    """Return indices at which (P,) bool is true, several times as fast as `torch.nonzero`."""
    return torch.from_numpy(np.flatnonzero(mask.cpu().numpy())).to(mask.device)


def ranges_of(sorted_keys: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each of `keys` (P,) starts in an ascending list, and how often it is there."""
    starts = torch.searchsorted(sorted_keys, keys)
    return starts, torch.searchsorted(sorted_keys, keys, right=True) - starts


def count_reaching(falling: Tensor, starts: Tensor, counts: Tensor, levels: Tensor) -> Tensor:
    """Return how many values of a range are at least a level; they are its first ones.

    Args:
        falling: (N,) values that fall within each range.
        starts: (P,) first index of each range.
        counts: (P,) its length.
        levels: (P,) one for each range.

    Returns:
        (P,) int64.
    """
    low, high = starts.clone(), starts + counts
    longest = int(counts.max()) if len(counts) else 0
    for _ in range(longest.bit_length()):
        middle = (low + high) // 2
        is_open = low < high
        # Where the range is closed already, `middle` may lie behind the last value.
        passed = take(falling, middle.clamp(max=len(falling) - 1)) >= levels
        low = torch.where(is_open & passed, middle + 1, low)
        high = torch.where(is_open & ~passed, middle, high)
    return low - starts


def split_by_total(counts: Tensor, most: int) -> Iterator[Tensor]:
    """Split rows that expand to `counts` (P,) entries each into runs of about `most` entries.

    Yields:
        Indices of rows.
    """
    run = (counts.cumsum(0) // most).numpy()
    for rows in np.split(np.arange(len(run)), np.flatnonzero(np.diff(run)) + 1):
        yield torch.from_numpy(rows)


def expand_ranges(starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return all indices of several ranges at once.

    Args:
        starts: (P,) first index of each range.
        counts: (P,) its length.

    Returns:
        Which range (M,) and which index (M,), range by range.
    """
    owner = torch.repeat_interleave(counts)
    first = starts - (counts.cumsum(0) - counts)
    return owner, take(first, owner) + torch.arange(len(owner))
