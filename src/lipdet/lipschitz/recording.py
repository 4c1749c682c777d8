"""Record what a network computes, operation by operation, as expressions of its input.

Notable choices:
- What is recorded are torch's own operations below Python, with the tensors that reach them, so no
  code that replaces, wraps or hooks what runs is missed.
- Equal operations on equal arguments are one expression, and constants are known by their bytes.
  Two runs whose outputs are the same expressions compute the same function, whatever the order of
  their operations and whatever else they compute.
- A change in place is the operation that returns the changed tensor. Whatever else shares that
  memory then holds another value than the operation that made it returned. It becomes an expression
  that nothing else equals, so a change is harmless exactly if nothing that counts reads it there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lipdet.errors import UnknownLipschitz

# Methods that hand a tensor's values to Python, where nothing can be recorded.
_READS = (
    *("item", "tolist", "numpy", "data_ptr", "storage", "untyped_storage", "__array__"),
    *("__bool__", "__int__", "__float__", "__complex__", "__index__", "__contains__", "__dlpack__"),
    *("apply_", "map_", "map2_", "__repr__", "__str__", "__format__"),
)
# Operations whose result is a number of Python's, or of a size that only the values tell.
_BY_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


class Expressions:
    """Gives equal expressions the same number."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def number(self, expression: Hashable) -> int:
        """Return the number of an expression; parts of it are numbers of others."""
        return self._numbers.setdefault(expression, len(self._numbers))

    def unequal(self) -> int:
        """Return a number that no other expression has."""
        return self.number(object())


@dataclass
class Recording:
    """One run of a network.

    Attributes:
        outputs: the expression of each output that is a tensor, and what else comes out.
        operations: the name of the operation behind each expression, in the order of the run.
    """

    outputs: list[Hashable] = field(default_factory=list)
    operations: dict[int, str] = field(default_factory=dict)


def record(network: Callable[[Tensor], Any], x: Tensor, expressions: Expressions) -> Recording:
    """Run a network and record how its outputs follow from its input x.

    Raises:
        UnknownLipschitz: its values decide what it does, it draws random numbers, or it writes to
            something that outlives the run.
        Exception: whatever the network itself raises.
    """
    recorder = _Recorder(expressions)
    recorder.start(x)
    with recorder, _Questions(recorder):
        y = network(x)
    if recorder.failure:  # The network may have caught the error.
        raise UnknownLipschitz(recorder.failure)
    recorder.recording.outputs = [
        recorder.expression(leaf) if isinstance(leaf, Tensor) else repr(leaf)
        for leaf in tree_leaves(y)
    ]
    return recorder.recording


def digest(constant: Tensor) -> Hashable:
    """Return a key that tells a constant from every other: its type, shape and bytes."""
    flat = constant.detach().resolve_conj().resolve_neg().cpu().contiguous().flatten()
    content = hashlib.blake2b(flat.view(torch.uint8).numpy().data).digest()
    return str(constant.dtype), tuple(constant.shape), str(constant.device), content


@dataclass
class _Seen:
    """A tensor that follows from the input, as it was when an operation returned it."""

    tensor: Tensor
    expression: int
    place: Hashable
    writes: int


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of torch, and runs it."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Torch would import its compiler, for seconds, only to keep it away from this class.
        return False

    def __init__(self, expressions: Expressions) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = Recording()
        self.failure = ""
        self._expressions = expressions
        self._seen: dict[int, _Seen] = {}
        # Expressions of what was written to each memory that follows from the input.
        self._writes: dict[int, list[int]] = {}
        # Memory of constants that were made in this run, kept alive so that no other takes its id.
        self._made: dict[int, Tensor] = {}
        self._digests: dict[int, tuple[Tensor, int]] = {}

    def start(self, x: Tensor) -> None:
        """Take x as the input."""
        self._register(x, self._expressions.number(("input",)))

    def fail(self, reason: str) -> UnknownLipschitz:
        """Note why there is no recording, in case the network catches the error."""
        self.failure = self.failure or reason
        return UnknownLipschitz(reason)

    def follows(self, value: object) -> bool:
        """Return whether a value follows from the input, or shares memory with what does."""
        if not isinstance(value, Tensor):
            return False
        known = id(value) in self._seen or isinstance(value, FakeTensor)
        return known or _memory(value) in self._writes

    def expression(self, tensor: Tensor) -> int:
        """Return the expression of a tensor as it is now."""
        seen = self._seen.get(id(tensor))
        if seen is None:
            return self._constant(tensor)
        if seen.place != _place(tensor):  # Something else was assigned to its `data`.
            return self._expressions.unequal()
        writes = self._writes[_memory(tensor)]
        if seen.writes != len(writes):
            number = self._expressions.number(("overwritten", seen.expression, tuple(writes)))
            name = self.recording.operations[writes[-1]]
            self.recording.operations[number] = f"a read of what {name} changed"
            return number
        return seen.expression

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation and record it."""
        kwargs = kwargs or {}
        random = torch.Tag.nondeterministic_seeded in func.tags
        if random and func.has_kernel_for_dispatch_key(_COMPOSITE):
            with self:  # In inference mode, dropout comes whole, though it draws nothing.
                return func.decompose(*args, **kwargs)
        tensors = _tensors((args, kwargs))
        if random:
            raise self.fail(f"{func} is random")
        if any(map(self.follows, tensors)):
            return (
                func(*args, **kwargs) if func.namespace == "prim" else self._run(func, args, kwargs)
            )
        for target in _written(func, args, kwargs):
            if _memory(target) not in self._made:
                raise self.fail(f"{func} changes a tensor that outlives the run")
        result = func(*args, **kwargs)
        given = set(map(_memory, tensors))
        for tensor in _tensors(result):
            if _memory(tensor) not in given:
                self._made[_memory(tensor)] = tensor
        return result

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not _BY_VALUES.isdisjoint(func.tags):
            raise self.fail(f"{func} reads values of a tensor")
        written = _written(func, args, kwargs)
        packet, _, overload = str(func).rpartition(".")
        if written:
            in_place = packet.endswith("_") and written[0] is args[0] and len(written) == 1
            if not in_place or id(written[0]) not in self._seen:
                raise self.fail(f"{func} writes to a tensor in a way that cannot be followed")
            packet = packet.removesuffix("_")
        key = (f"{packet}.{overload}", self._key(args), self._key(kwargs))
        call = self._expressions.number(key)
        self.recording.operations[call] = str(func)
        args, kwargs = _without_values((args, kwargs))
        result = func(*args, **kwargs)
        for tensor in written:
            self._writes[_memory(tensor)].append(call)
        for index, tensor in enumerate(_tensors(result)):
            self._register(tensor, self._expressions.number((call, index)))
        return result

    def _register(self, tensor: Tensor, expression: int) -> None:
        writes = self._writes.setdefault(_memory(tensor), [])
        self._seen[id(tensor)] = _Seen(tensor, expression, _place(tensor), len(writes))

    def _constant(self, tensor: Tensor) -> int:
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
        if not plain or tensor.is_quantized or self.follows(tensor):
            return self._expressions.unequal()
        if _memory(tensor) in self._made:  # It may still be written to.
            return self._expressions.number(digest(tensor))
        if id(tensor) not in self._digests:
            self._digests[id(tensor)] = tensor, self._expressions.number(digest(tensor))
        return self._digests[id(tensor)][1]

    def _key(self, value: Any) -> Hashable:
        if isinstance(value, Tensor):
            return self.expression(value)
        if isinstance(value, list | tuple):
            return tuple(map(self._key, value))
        if isinstance(value, dict):
            return tuple((name, self._key(value[name])) for name in sorted(value))
        return repr(value)


class _Questions(TorchFunctionMode):
    """Sees what Python asks of a tensor, since operations do not show every question."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a function, unless it reads values that follow from the input."""
        name = getattr(func, "__name__", str(func))
        if name in _READS and any(map(self._recorder.follows, args)):
            raise self._recorder.fail(f"{name} reads values of a tensor")
        try:
            return func(*args, **(kwargs or {}))
        except Exception as error:
            self._recorder.fail(f"{name} failed: {error}")
            raise


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that an operation writes to."""
    if not func._schema.is_mutable or func is torch.ops.aten.detach_.default:  # No numbers.
        return []
    found: list[Tensor] = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            found += _tensors(value)
    return found


def _without_values(arguments: Any) -> Any:
    """Take the values from constants that meet a tensor without values, if there is one."""
    fakes = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, FakeTensor)]
    if not fakes:
        return arguments

    def without(tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        return fakes[0].fake_mode.from_tensor(tensor if tensor.is_leaf else tensor.detach())

    return tree_map_only(Tensor, without, arguments)


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors among the arguments or results of an operation."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _place(tensor: Tensor) -> Hashable:
    """Return which numbers of which memory a tensor holds."""
    shape = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
    return _memory(tensor), tensor.dtype, *shape
