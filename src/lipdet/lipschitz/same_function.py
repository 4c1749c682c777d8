"""Prove that a network computes what is bounded in its place, at every input of one shape.

Notable choices:
- Both run on a tensor without values and are recorded. What would look at a value fails, so what is
  recorded is what happens at every input.
- Such a tensor is of a class of its own. Runs on plain ones show code that asks for the class.
- Nothing may depend on whether gradients are wanted, on the number of images, nor on earlier runs:
  both must agree in every mode, with one to three images, and the module must be as it was.
- What no recording sees (other threads, images that mix) is looked for by numbers, which prove
  nothing: other values, batches and modes must give what the graph gives for each image alone, up
  to a thousandth of the largest. Of an output, images may take turns along any one axis.
- A module of torch's and this package's classes alone, as they are defined, depends on no mode and
  no value, and keeps nothing; the tests run the whole proof on each of them. It is recorded in one
  mode, at a plain tensor: those without values cost seconds of imports. Images may still mix (a
  softmax over the batch), so numbers are compared as for any module.
- The graph is run by torch's functions and this package's layers, so nothing is proven while one of
  these is replaced. Replaced methods of their classes only make the proof a whole one.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import random
import types
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from lipdet.errors import UnknownLipschitz
from lipdet.layers.base import drop_caches
from lipdet.lipschitz.recording import Expressions, Recording, digest, record
from lipdet.lipschitz.rules import find_rule
from lipdet.lipschitz.state import is_own_class, kept_by, refuse_interference

Network = Callable[[Tensor], Any]
Mode = Callable[[], AbstractContextManager[Any]]


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
        module: as it is used; it runs in a copy, and itself only once nothing changes as that runs.
        meaning: the function.
        x: an input.
        what: begins the message, with what does not compute as the module.

    Raises:
        UnknownLipschitz: they differ, what the module computes depends on more than its input, or
            it is changed from outside (`lipdet.lipschitz.state.interference`).
    """
    drop_caches(module)
    refuse_interference()
    try:
        in_copy = copy.deepcopy(module)
        if _parts(in_copy) != _parts(module):
            raise UnknownLipschitz("its copy is not what it is")
        if is_as_defined(module):
            _compare(in_copy, meaning, [x], AS_DEFINED)
            _check_values(in_copy, meaning, x, AS_DEFINED)
            return
        before = _state(in_copy)
        without_values = FakeTensorMode(allow_non_fake_inputs=True).from_tensor
        _compare(in_copy, meaning, [without_values(x), x, x], MODES)
        for images, modes in BATCHES.items():
            _compare(in_copy, meaning, [without_values(torch.cat([x] * images))], modes, images)
        _check_values(in_copy, meaning, x, MODES)
        if _state(in_copy) != before:
            raise UnknownLipschitz("its attributes or random numbers change as it runs")
        # What makes the copy compute something else, such as a registry of modules, shows here.
        _check_values(module, meaning, x, AS_DEFINED)
    except UnknownLipschitz as error:
        raise UnknownLipschitz(f"{what}: {str(error).rstrip('.')}.") from None
    except Exception as error:
        raise UnknownLipschitz(f"{what}, or depends on values: {error}") from error


def is_as_defined(network: nn.Module) -> bool:
    """Return whether a network consists of modules as torch and this package define them alone."""
    modules = list(network.modules())
    return all(map(is_own_class, set(map(type, modules)))) and all(map(_has_usual_parts, modules))


def _has_usual_parts(module: nn.Module) -> bool:
    """Return whether nothing of a module's own takes part in what it computes but as it should."""
    usual = vars(nn.Module())
    own = vars(module)
    return (
        all(type(own.get(name)) is type(value) for name, value in usual.items())
        and not any(own[hooks] for hooks in own if hooks.endswith("_hooks"))
        and not any(callable(own[name]) for name in own if name not in usual)
        and all(
            one is None or type(one) in (Tensor, nn.Parameter)
            for one in (*module._parameters.values(), *module._buffers.values())
        )
    )


def _compare(
    module: nn.Module,
    meaning: Network,
    starts: Sequence[Tensor],
    modes: Sequence[Mode],
    images: int = 1,
) -> None:
    """Record a module and its meaning at inputs, each of so many images, and compare them."""
    expressions, wanted = Expressions(), None
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
                for leaf, wanted in zip(found, expected[index], strict=True):
                    if isinstance(leaf, Tensor) and not _close(leaf, place, len(chosen), wanted):
                        raise UnknownLipschitz(
                            "its values depend on other images, on modes, or on what cannot be "
                            "recorded"
                        )


def _close(leaf: Tensor, place: int, images: int, wanted: Tensor) -> bool:
    """Return whether one image's output in a batch is that of the image alone, up to rounding.

    Along one axis, images lie behind each other. An output that is as large for all images as for
    one must be the same for each.
    """
    if not wanted.isfinite().all():
        return True  # Beyond float32, the order of sums decides what comes out.
    one = leaf.detach()
    for axis, size in enumerate(wanted.shape):
        joined = *wanted.shape[:axis], images * size, *wanted.shape[axis + 1 :]
        if size and one.shape == joined:
            one = one.narrow(axis, place * size, size)
            break
    largest = float(wanted.detach().abs().max()) if wanted.numel() else 0.0
    return one.shape == wanted.shape and torch.allclose(
        one, wanted, 1e-3, 1e-3 * largest + 1e-6, equal_nan=True
    )


@contextmanager
def _with_gradients() -> Iterator[None]:
    """Run with gradients of the input wanted."""
    with torch.enable_grad():
        yield


# A frozen network is called with gradients enabled that nobody asks for.
MODES: tuple[Mode, ...] = (
    torch.no_grad,
    torch.enable_grad,
    _with_gradients,
    torch.inference_mode,
)
# How several images run without values, by their number; numbers are compared in every mode.
BATCHES: dict[int, Sequence[Mode]] = {
    2: (torch.no_grad, torch.enable_grad, torch.inference_mode),
    3: MODES[1:2],
}
AS_DEFINED: tuple[Mode, ...] = (torch.no_grad,)
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
