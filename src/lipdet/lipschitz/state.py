"""Take stock of what a module keeps, its code included, and of what changes the code it calls.

Notable choices:
- Code of torch's and this package's is known by the files that it was compiled from: names, modules
  and qualified names are copied by whatever wraps a function.
- Code of the user's is compared by value, with all that it names.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import operator
import os
import pickle
import sys
import sysconfig
import types
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import torch
import typing_extensions
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack as function_modes
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as dispatch_modes

import lipdet.layers
from lipdet.errors import UnknownLipschitz
from lipdet.layers.base import ConstructedWeight
from lipdet.lipschitz.recording import digest

# Packages whose classes keep nothing between runs.
_TRUSTED = {"torch", "torchvision", "lipdet", "numpy", "builtins"}
_KNOWN = _TRUSTED | sys.stdlib_module_names
_FOLDERS = tuple(os.path.join(package.__path__[0], "") for package in (torch, lipdet))
_STANDARD = os.path.join(sysconfig.get_path("stdlib"), "")
_BUILTIN = types.BuiltinFunctionType | types.MethodWrapperType
_CALLED = ("torch.functional", "torch.nn.functional", "torch.nn.modules.", "lipdet.layers.")


def kept_by(value: Any) -> Hashable:
    """Return something that differs whenever a module, a part of it or its code has changed."""
    found: list[Any] = [interference(), _precision()]
    numbers: dict[int, int] = {}
    alive, waiting = [], [value]
    while waiting:
        one = waiting.pop()
        content, parts = _look(one)
        if parts is not None:
            if id(one) in numbers:
                found.append(numbers[id(one)])
                continue
            numbers[id(one)] = len(numbers)
            alive.append(one)  # So that no other takes its id.
            waiting += parts
        found.append((type(one).__name__, content))
    return tuple(found)


def interference() -> str | None:
    """Say what changes from outside what layers compute; None if nothing does.

    Such as a mode of torch that is active, autocast, or hooks of all modules. `set_default_device`
    is a mode, too, but decides only where tensors are made.
    """
    if name := _replaced():
        return f"{name} is replaced"
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "hooks of all modules are registered"
    modes = function_modes()  # type: ignore[no-untyped-call]
    for mode in (*modes, *dispatch_modes()):
        if type(mode) is not DeviceContext:
            return f"the mode {type(mode).__name__} is active"
    if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
        return "autocast is on"
    return None


def _precision() -> tuple[str, ...]:
    """Return which shortcuts of float32 are allowed, on which rounding depends."""
    homes = "cuda.matmul", "cudnn.conv", "mkldnn.conv", "mkldnn.matmul"
    of = operator.attrgetter(*(f"{home}.fp32_precision" for home in homes))
    return torch.get_float32_matmul_precision(), *of(torch.backends)


def _replaced() -> str | None:
    """Return the name of a function that was replaced under torch's or this package's name.

    These are the functions that layers and rules look up by name as they run. What was replaced
    before this package was imported is seen if it is a function of Python's.
    """
    if _FOREIGN:
        return _FOREIGN[0]
    for home, name, content in _ORIGINAL:
        if _definition(vars(home).get(name)) != content:
            return f"{home.__name__}.{name}"
    for home, shadowing in _SHADOWING.items():
        for name in _shadowing(home):
            if name not in shadowing:
                return f"{home.__name__}.{name}"
    return None


def refuse_interference() -> None:
    """Refuse to say anything while what layers compute is changed from outside.

    Raises:
        UnknownLipschitz: it is; see `interference`.
    """
    if what := interference():
        raise UnknownLipschitz(f"Nothing is known of networks while {what}.")


def is_plain(value: Any) -> bool:
    """Return whether a number or sequence is read alike by Python and by torch below it.

    Classes of the user's may tell Python something else than what they hold.
    """
    if isinstance(value, int | float | str | tuple | list) and _root(type(value)) not in _KNOWN:
        return False
    return not isinstance(value, tuple | list) or all(map(is_plain, value))


def is_own_class(kind: type) -> bool:
    """Return whether all code of a class and its bases is as torch or this package define it."""
    return all(_is_own_code(one) for one in kind.__mro__ if one is not object)


def _is_own_code(kind: type) -> bool:
    home = sys.modules.get(kind.__module__)
    return (
        kind.__module__.startswith(("torch.nn.modules.", "lipdet."))
        and getattr(home, kind.__qualname__, None) is kind
        and all(
            _root(type(part)) in _KNOWN and all(map(_is_own, _functions(part)))
            for part in vars(kind).values()
        )
    )


def _look(value: Any) -> tuple[Any, list[Any] | None]:
    """Return the content of a value and its parts; None for parts if its kind has none."""
    if isinstance(value, FakeTensor):
        return id(value), None
    if isinstance(value, Tensor):
        return (digest(value) if value.layout == torch.strided else repr(value)), None
    if isinstance(value, np.ndarray):
        return value.tobytes(), None
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value), None
    if isinstance(value, types.CodeType):
        return value, None
    if isinstance(value, dict):
        return len(value), [part for pair in value.items() for part in pair]
    if isinstance(value, list | tuple):
        return len(value), list(value)
    if isinstance(value, types.FunctionType):
        if _is_own(value):
            return _definition(value), []
        return (value.__qualname__, value.__code__), _of_function(value)
    if isinstance(value, types.MethodType):
        return "", [value.__self__, value.__func__]
    if isinstance(value, _BUILTIN):
        return value.__qualname__, [value.__self__]
    if isinstance(value, functools.partial):
        return "", [value.func, value.args, value.keywords]
    if isinstance(value, type):
        return repr(value), _of_class(value)
    if isinstance(value, nn.Module):
        # Weights that are built once and kept are dropped when what they are built from changes.
        cached = {"_kept"} if isinstance(value, ConstructedWeight) else set()
        own = [part for name, part in vars(value).items() if name not in cached]
        return "", [*own, *reversed(type(value).__mro__)]
    if isinstance(value, types.ModuleType):
        return repr(value), None
    return _of_object(value)


def _of_object(value: Any) -> tuple[Any, list[Any]]:
    """Return the pickle of an object of any class, and its parts where that may not tell."""
    try:
        content = pickle.dumps(value)
    except Exception:
        content = b""
    if content and _root(type(value)) in _KNOWN:
        return content, []
    slots = (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()))
    kept = [getattr(value, name, None) for name in slots]
    return content, [*kept, *getattr(value, "__dict__", {}).values(), *type(value).__mro__]


def _of_class(kind: type) -> list[Any]:
    """Return the functions of a class, and what else a class of the user's keeps."""
    if _root(kind) in _KNOWN - _TRUSTED:
        return []
    users = _root(kind) not in _TRUSTED
    found: list[Any] = []
    for name, part in vars(kind).items():
        functions = list(_functions(part))
        keeps = users and not functions and not name.startswith("__")
        found += [part] if keeps else functions
    return found


def _of_function(function: types.FunctionType) -> list[Any]:
    """Return what a function of the user's keeps, and what it names."""
    names = inspect.getclosurevars(function)
    kept = [function.__defaults__, function.__kwdefaults__, vars(function)]
    return [*names.nonlocals.values(), *names.globals.values(), *kept]


def _functions(value: Any) -> Iterator[types.FunctionType]:
    """Yield the functions of a method, a class method, a static method or a property."""
    if isinstance(value, types.FunctionType):
        yield value
    elif isinstance(value, staticmethod | classmethod | types.MethodType):
        yield from _functions(value.__func__)
    elif isinstance(value, property):
        for part in (value.fget, value.fset, value.fdel):
            yield from _functions(part)


def _is_own(value: Any) -> bool:
    """Return whether code, and what it wraps, comes from torch or this package.

    What is no function has no code.
    """
    waiting, seen = list(_functions(value)), set()
    while waiting:
        function = waiting.pop()
        if function in seen:
            continue
        seen.add(function)
        if not _is_own_file(function.__code__.co_filename):
            return False
        for part in _enclosed(function):
            if callable(part) and _root(type(part)) not in _KNOWN:
                return False
            waiting += _functions(part)
    return True


def _is_own_file(name: str) -> bool:
    """Return whether a file is torch's or this package's, or one of decorators that these use."""
    standard = name.startswith(_STANDARD) and "-packages" not in name
    return name.startswith(_FOLDERS) or standard or name == typing_extensions.__file__


def _enclosed(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # It is empty.
            continue


def _definition(value: Any) -> tuple[Any, ...]:
    """Return a value itself, and of a function all that may change inside it."""
    if isinstance(value, types.FunctionType):
        return value, value.__code__, value.__defaults__, value.__kwdefaults__
    return (value,)


def _called() -> Iterator[tuple[_Home, str, tuple[Any, ...]]]:
    """Yield the functions that layers and rules look up by name as they run, with their homes."""
    for home in _HOMES:
        for name, part in vars(home).items():
            called = isinstance(part, types.FunctionType | _BUILTIN | types.ModuleType)
            if home is torch and not isinstance(part, _BUILTIN):  # Others only look at tensors.
                called = getattr(part, "__module__", "") == "torch.functional"
            if called or (home is Tensor and name in _shadowing(home)):
                yield home, name, _definition(part)


def _shadowing(home: _Home) -> set[str]:
    """Return the names that hide what would be found without them."""
    return vars(home).keys() & (_OF_TENSORS if home is Tensor else _OF_PYTHON)


def _root(kind: type) -> str:
    return kind.__module__.split(".")[0]


_Home = types.ModuleType | type
_OF_TENSORS, _OF_PYTHON = set(dir(torch._C.TensorBase)), set(vars(builtins))
_HOMES: list[_Home] = [
    *(torch, Tensor),
    *(home for name, home in list(sys.modules.items()) if name.startswith(_CALLED)),
]
_ORIGINAL = list(_called())
_SHADOWING = {home: _shadowing(home) for home in _HOMES if home is not torch}
_FOREIGN = [
    f"{home.__name__}.{name}" for home, name, content in _ORIGINAL if not _is_own(content[0])
]
