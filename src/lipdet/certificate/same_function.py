"""Prove that a network computes what is bounded in its place, at every input of one shape.

Notable choices:
- Both run on a tensor without values and are recorded. What would look at a value fails, so what is
  recorded is what happens at every input.
- Such a tensor is of a class of its own. A run on a plain one shows code that asks for the class.
- Nothing may depend on whether gradients are wanted, on other images in the batch, nor on earlier
  runs: without gradients, with them, and in inference mode with two images both must agree, and
  the module must be as it was.
"""

from __future__ import annotations

import copy
import inspect
import random
import types
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from lipdet.certificate.operator_norm import UnknownLipschitz
from lipdet.certificate.recording import Expressions, Recording, digest, record
from lipdet.certificate.references import find_reference
from lipdet.layers.base import ConstructedWeight

Network = Callable[[Tensor], Any]


class Meaning(fx.Interpreter):
    """Runs a graph as its rules understand it: modules by their references, nothing in place."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.extra_traceback = False

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run the reference of a module, or one without a rule as it is."""
        module = self.fetch_attr(target)
        reference = find_reference(module)
        return reference(module, *args, **kwargs) if reference else module(*args, **kwargs)

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
        module: it runs in a copy.
        meaning: the function.
        x: an input.
        what: begins the message, with what does not compute as the module.

    Raises:
        UnknownLipschitz: they differ, or what the module computes depends on more than its input.
    """
    module = copy.deepcopy(module)
    try:
        _compare(module, meaning, x)
    except UnknownLipschitz as error:
        raise UnknownLipschitz(f"{what}: {str(error).rstrip('.')}.") from None
    except Exception as error:
        raise UnknownLipschitz(f"{what}, or depends on values: {error}") from error


def _compare(module: nn.Module, meaning: Network, x: Tensor) -> None:
    expressions = Expressions()
    plain = record(module, x.clone(), expressions)
    before = _state(module)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    found = record(module, fake.from_tensor(x).clone(), expressions)
    wanted = record(meaning, fake.from_tensor(x).clone(), expressions)
    _check_equal(found, wanted)
    _check_equal(plain, wanted)
    with torch.enable_grad():
        start = fake.from_tensor(x).requires_grad_()
        found = record(module, start.clone(), expressions)
        if found.outputs != wanted.outputs:  # Gradients may add operations, on both sides alike.
            _check_equal(found, record(meaning, start.clone(), expressions))
    with torch.inference_mode():
        pair = torch.cat([fake.from_tensor(x)] * 2)
        try:
            found = record(module, pair.clone(), expressions)
        except UnknownLipschitz:
            raise
        except Exception:  # It takes one image only.
            pair = fake.from_tensor(x)
            found = record(module, pair.clone(), expressions)
        _check_equal(found, record(meaning, pair.clone(), expressions))
    if _state(module) != before:
        raise UnknownLipschitz("its attributes or random numbers change as it runs")


def _check_equal(found: Recording, wanted: Recording) -> None:
    if found.outputs != wanted.outputs:
        others = (
            name for number, name in found.operations.items() if number not in wanted.operations
        )
        reason = f"the first operation that differs is {next(others, 'none, but its outputs do')}"
        writes = sorted({name for name in found.operations.values() if "_." in name})
        raise UnknownLipschitz(f"{reason} (in place: {', '.join(writes)})" if writes else reason)


def _state(module: nn.Module) -> Hashable:
    """Return all that a module keeps, and the random numbers that Python code may draw."""
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    return _kept((drawn, module), {})


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
        parts = list(inspect.getclosurevars(value).nonlocals.values())
    elif isinstance(value, types.MethodType):
        parts = [value.__self__]
    elif not isinstance(value, type | types.ModuleType) and hasattr(value, "__dict__"):
        # Weights that are built once and kept are dropped when what they are built from changes.
        cached = {"_kept"} if isinstance(value, ConstructedWeight) else set()
        parts = [part for name, part in vars(value).items() if name not in cached]
    found = repr(value) if parts is None else tuple(_kept(part, done) for part in parts)
    return type(value).__name__, found
