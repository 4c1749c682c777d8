"""Prove that a network computes what is bounded in its place, at every input of one shape.

Notable choices:
- Both run on a tensor without values and are recorded. What would look at a value fails, so what is
  recorded is what happens at every input.
- Such a tensor is of a class of its own. Runs on plain ones show code that asks for the class.
- Nothing may depend on whether gradients are wanted, on the number of images, nor on earlier runs:
  both must agree in every mode, with one to three images, and the module must be as it was.
- What no recording sees (other threads, images that mix) is looked for by numbers, which prove
  nothing: other values, batches and modes must give what the graph gives for each image alone.
- A module of torch's and this package's classes alone, as they are defined, depends on no mode and
  keeps nothing; the tests run the whole proof on each of them. One mode is looked at then. Images
  may still mix (a softmax over the batch), so numbers are compared as for any module.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
import random
import sys
import types
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.modules import module as torch_module
from torch.utils._pytree import tree_leaves

from lipdet.errors import UnknownLipschitz
from lipdet.layers.base import ConstructedWeight
from lipdet.lipschitz.recording import Expressions, Recording, digest, record
from lipdet.lipschitz.rules import find_rule

Network = Callable[[Tensor], Any]
Mode = Callable[[], AbstractContextManager[Any]]
# Packages whose functions and classes keep nothing between runs.
_TRUSTED = {"torch", "torchvision", "lipdet", "numpy", "builtins"}


class Meaning(fx.Interpreter):
    """Runs a graph as its rules understand it: modules by their rules, nothing in place."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.extra_traceback = False

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run what the rule of a module says, or one without a rule as it is."""
        module = self.fetch_attr(target)
        rule = find_rule(module)
        return rule.computes(module, *args, **kwargs) if rule else module(*args, **kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run a function, without working in place where it could."""
        if (
            isinstance(target, types.FunctionType)
            and "inplace" in inspect.signature(target).parameters
        ):
            call = inspect.signature(target).bind(*args, **kwargs)
            call.arguments["inplace"] = False
            args, kwargs = call.args, call.kwargs
        return super().call_function(target, args, kwargs)


@torch.no_grad()
def prove_same(module: nn.Module, meaning: Network, x: Tensor, what: str) -> None:
    """Prove that a module computes a function, at every input of x's shape.

    Args:
        module: as it is used; it runs in a copy.
        meaning: the function.
        x: an input.
        what: begins the message, with what does not compute as the module.

    Raises:
        UnknownLipschitz: they differ, or what the module computes depends on more than its input.
    """
    try:
        in_copy = copy.deepcopy(module)
        if _parts(in_copy) != _parts(module):
            raise UnknownLipschitz("its copy is not what it is")
        if _is_as_defined(module):
            _compare(in_copy, meaning, x, AS_DEFINED)
            _check_values(in_copy, meaning, x, AS_DEFINED[1])
            return
        before = _state(in_copy)
        _compare(in_copy, meaning, x, BATCHES)
        _check_values(in_copy, meaning, x, MODES)
        if _state(in_copy) != before:
            raise UnknownLipschitz("its attributes or random numbers change as it runs")
    except UnknownLipschitz as error:
        raise UnknownLipschitz(f"{what}: {str(error).rstrip('.')}.") from None
    except Exception as error:
        raise UnknownLipschitz(f"{what}, or depends on values: {error}") from error


def _is_as_defined(network: nn.Module) -> bool:
    """Whether a network consists of nothing but modules as torch and this package define them."""
    hooks_of_all = torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
    return not hooks_of_all and all(
        _is_own_class(type(module))
        and not any(vars(module)[hooks] for hooks in vars(module) if hooks.endswith("_hooks"))
        and not any(map(callable, _attributes(module)))
        and all(type(one) in (Tensor, nn.Parameter) for one in _tensors_of(module))
        for module in network.modules()
    )


def _is_own_class(kind: type) -> bool:
    """Whether a class and its forward method are as torch's modules or this package define them."""
    home = sys.modules.get(kind.__module__)
    modules = (kind.__module__, str(kind.forward.__module__))  # type: ignore[attr-defined]
    known = all(name.startswith(("torch.nn.modules.", "lipdet.")) for name in modules)
    return known and getattr(home, kind.__qualname__, None) is kind


def _attributes(module: nn.Module) -> list[Any]:
    """Return what a module has besides its parameters, buffers, parts and hooks."""
    usual = vars(nn.Module())
    return [value for name, value in vars(module).items() if name not in usual]


def _tensors_of(module: nn.Module) -> list[Tensor]:
    tensors = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in tensors if tensor is not None]


def _compare(
    module: nn.Module, meaning: Network, x: Tensor, batches: dict[int, Sequence[Mode]]
) -> None:
    expressions = Expressions()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    for images, modes in batches.items():
        without_values = fake.from_tensor(torch.cat([x] * images))
        starts = [without_values, *([x] * 2 if images == 1 else [])]
        wanted = None
        for start, mode in itertools.product(starts, modes):
            with mode():
                if mode is _with_gradients:
                    start = start.detach().requires_grad_()
                try:
                    found = record(module, start.clone(), expressions)
                except UnknownLipschitz:
                    raise
                except Exception:
                    if images > 1:
                        return  # It takes fewer images.
                    raise
                # Gradients may add operations, on both sides alike.
                if wanted is None or found.outputs != wanted.outputs:
                    wanted = record(meaning, start.clone(), expressions)
                    _check_equal(found, wanted)


def _check_values(module: nn.Module, meaning: Network, x: Tensor, modes: Sequence[Mode]) -> None:
    """Compare numbers of some images in batches with those of the graph for each alone."""
    images = [x, LARGE * (x - 0.5), torch.zeros_like(x)]
    expected = [tree_leaves(meaning(image.clone())) for image in images]
    for mode, chosen in itertools.product(modes, ([0], [1], [2], [0, 1], [2, 1, 0])):
        batch = torch.cat([images[index] for index in chosen])
        formats = [torch.contiguous_format]
        if batch.ndim == 4 and len(chosen) == 1:
            formats.append(torch.channels_last)
        for memory in formats:
            with mode():
                try:
                    found = tree_leaves(module(batch.contiguous(memory_format=memory).clone()))
                except Exception:
                    if len(chosen) > 1:
                        continue  # It takes fewer images.
                    raise
            for place, index in enumerate(chosen):
                if not _close(found, place, len(chosen), expected[index]):
                    raise UnknownLipschitz(
                        "its values depend on other images, on modes, or on what cannot be recorded"
                    )


def _close(found: list[Any], place: int, images: int, expected: list[Any]) -> bool:
    """Whether outputs for one image of a batch are those for the image alone, up to rounding."""
    for leaf, wanted in zip(found, expected, strict=True):
        if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == images:
            if not wanted.isfinite().all():
                continue  # Beyond float32, the order of sums decides what comes out.
            size = float(wanted.detach().abs().max()) if wanted.numel() else 0.0
            one = leaf.detach()[place : place + 1]
            if not torch.allclose(one, wanted, 1e-3, 1e-3 * size + 1e-6, equal_nan=True):
                return False
    return True


@contextmanager
def _with_gradients() -> Iterator[None]:
    """Gradients of the input are wanted."""
    with torch.enable_grad():
        yield


# A frozen network is called with gradients enabled that nobody asks for.
MODES: tuple[Mode, ...] = (
    torch.no_grad,
    torch.enable_grad,
    _with_gradients,
    torch.inference_mode,
)
# How many images run without values, and how; numbers are compared in every mode.
BATCHES: dict[int, Sequence[Mode]] = {
    1: MODES,
    2: (torch.no_grad, torch.enable_grad, torch.inference_mode),
    3: MODES[1:2],
}
AS_DEFINED: dict[int, Sequence[Mode]] = {1: (torch.no_grad,)}
LARGE = 100.0


def _check_equal(found: Recording, wanted: Recording) -> None:
    if found.outputs != wanted.outputs:
        others = (
            name for number, name in found.operations.items() if number not in wanted.operations
        )
        reason = f"the first operation that differs is {next(others, 'none, but its outputs do')}"
        writes = sorted({name for name in found.operations.values() if "_." in name})
        raise UnknownLipschitz(f"{reason} (in place: {', '.join(writes)})" if writes else reason)


def _parts(module: nn.Module) -> Hashable:
    """Return of what a module consists, which a copy that is made in its own way may lack."""
    return tuple(
        (
            name,
            type(part),
            part.training,
            tuple(sorted(vars(part))),
            len(part._forward_hooks),
            len(part._forward_pre_hooks),
        )
        for name, part in module.named_modules()
    ) + tuple(map(digest, module.state_dict().values()))


def _state(module: nn.Module) -> Hashable:
    """Return all that a module keeps, and the random numbers that Python code may draw."""
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    return kept_by((drawn, module))


def kept_by(value: Any) -> Hashable:
    """Return something that differs whenever a module, or a part of it, has changed."""
    return _kept(value, {})


def _kept(value: Any, done: dict[int, Any]) -> Hashable:
    """Return something that changes whenever a value, or a part of it, does."""
    if isinstance(value, FakeTensor):
        return id(value)
    if isinstance(value, Tensor):
        return digest(value) if value.layout == torch.strided else repr(value)
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return type(value).__name__, repr(value)
    if id(value) in done:
        return None
    done[id(value)] = value
    parts: Any = None
    if isinstance(value, dict):
        parts = [part for pair in value.items() for part in pair]
    elif isinstance(value, list | tuple):
        parts = value
    elif isinstance(value, types.FunctionType):
        parts = _of_function(value)
    elif isinstance(value, types.MethodType):
        parts = [value.__self__, value.__func__]
    elif isinstance(value, nn.Module):
        # Weights that are built once and kept are dropped when what they are built from changes.
        cached = {"_kept"} if isinstance(value, ConstructedWeight) else set()
        own = [part for name, part in vars(value).items() if name not in cached]
        parts = [*own, *_of_class(type(value))]
    elif not isinstance(value, type | types.ModuleType):
        try:
            return type(value).__name__, pickle.dumps(value)
        except Exception:
            slots = (
                name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())
            )
            own = [getattr(value, name, None) for name in slots]
            parts = [*own, *getattr(value, "__dict__", {}).values(), *_of_class(type(value))]
    found = repr(value) if parts is None else tuple(_kept(part, done) for part in parts)
    return type(value).__name__, found


def _of_class(kind: type) -> list[Any]:
    """Return what classes of the user's keep, their functions included."""
    own = [one for one in kind.__mro__ if one.__module__.split(".")[0] not in _TRUSTED]
    return [
        getattr(part, "__func__", part)
        for one in own
        for name, part in vars(one).items()
        if not name.startswith("__") or isinstance(part, types.FunctionType)
    ]


def _of_function(function: types.FunctionType) -> list[Any]:
    """Return what a function keeps, and the data and functions of the user's that it names."""
    if str(function.__module__).split(".")[0] in _TRUSTED:
        return []
    names = inspect.getclosurevars(function)
    named = [
        part
        for part in names.globals.values()
        if not isinstance(part, type | types.ModuleType | types.BuiltinFunctionType)
    ]
    kept = [function.__defaults__, function.__kwdefaults__, vars(function)]
    return [*names.nonlocals.values(), *named, *kept]
