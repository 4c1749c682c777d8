"""A device without a GPU: tensors of device `meta` that hold numbers, and refuse those of the CPU.

As on a GPU, an operation takes tensors of one device (single numbers and indices aside), and only
`.to` and `.cpu()` lead from one to the other. Numbers are those of the CPU, digit by digit.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lipdet.lipschitz import state

ELSEWHERE = torch.device("meta")
_aten = torch.ops.aten
_COPIES = (_aten._to_copy.default, _aten.copy_.default)
_INDEXED = (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default)


class Placed(Tensor):
    """A tensor elsewhere; `inner` has its numbers."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Placed:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            inner.stride(),
            inner.storage_offset(),
            dtype=inner.dtype,
            device=ELSEWHERE,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        """Make it here and move it: torch's own is not seen by a mode."""
        return torch.tensor(data, **{"dtype": self.dtype, **options}).to(ELSEWHERE)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """While it lasts, what is made or moved to `ELSEWHERE` is `Placed`; it counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.run: dict[str, int] = {}
        self.patches = (
            # It knows a list of devices; nothing is cast automatically here.
            mock.patch.object(torch, "autocast", return_value=nullcontext()),
            # What stands for a device is no mode that certificates have to fear.
            mock.patch.object(state, "dispatch_modes", return_value=[]),
        )

    def __enter__(self) -> Elsewhere:
        for patch in self.patches:
            patch.start()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for patch in self.patches:
            patch.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if Placed in types:
            name = func.overloadpacket.__name__
            self.run[name] = self.run.get(name, 0) + 1
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    placed = {id(one.inner): one for one in tensors if isinstance(one, Placed)}
    if placed and func not in _COPIES:
        checked = tensors[:1] if func in _INDEXED else tensors
        strangers = [one for one in checked if not isinstance(one, Placed) and one.dim()]
        assert not strangers, f"{func}: tensors of two devices"
    device = kwargs.get("device")
    there = bool(placed) if device is None else torch.device(device) == ELSEWHERE
    if func is _aten.copy_.default:
        there = isinstance(args[0], Placed)
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map_only(Placed, lambda one: one.inner, (args, kwargs))
    found = func(*args, **kwargs)
    if not there:
        return found

    def wrapped(one: Tensor) -> Placed:
        # What works in place returns what it was given.
        return placed[id(one)] if id(one) in placed else Placed(one)

    return tree_map_only(Tensor, wrapped, found)
