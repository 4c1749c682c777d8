"""Carry Lipschitz bounds through a traced network: one bound for the map to each intermediate.

Notable choices:
- Layers with constructed weights are folded first: what is bounded is the plain kernel that runs,
  whatever its construction promises.
- The graph runs on a real input of the wanted size, so that rules see shapes and constants.
- That the graph, as its rules understand it, computes what the module computes before folding is
  proven (`same_function`): what folding would change or tracing cannot see is refused.
- A bound of a list of tensors holds for all of them together, and so for each.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from lipdet.errors import InputError, UnknownLipschitz
from lipdet.layers import fold
from lipdet.lipschitz.entries import Entries, all_of, holds_each_once, joint_bound
from lipdet.lipschitz.gains import (
    batch_norm_factors,
    conv_gain,
    times,
    uses_batch_statistics,
)
from lipdet.lipschitz.recording import digest
from lipdet.lipschitz.rules import (
    FUNCTIONS,
    Bounded,
    FunctionRule,
    ModuleRule,
    bound_call,
    describes,
    find_rule,
)
from lipdet.lipschitz.same_function import Meaning, prove_same
from lipdet.lipschitz.state import is_plain
from lipdet.norms import SLACK

_CHUNK = ("chunk", torch.chunk)


@dataclass
class Propagation:
    """Bounds of the maps from the input to every node of a network's graph.

    Attributes:
        network: the folded network as a graph.
        bounds: for each node that depends on the input, the bound of the map to it.
        fixed: all other nodes: constants, and shapes and types, which no perturbation changes.
        shapes: the shape of each tensor among them, with a batch axis of 1.
        fused: for each BatchNorm that follows a convolution, that convolution. The two are bounded
            as one kernel, which is tighter, and have the same bound.
        obstacles: why each node without a rule has no bound, where that was asked for; the bounds
            of all nodes behind them are those that would hold if they had constant 1.
    """

    network: fx.GraphModule
    bounds: dict[fx.Node, float] = field(default_factory=dict)
    fixed: set[fx.Node] = field(default_factory=set)
    shapes: dict[fx.Node, torch.Size] = field(default_factory=dict)
    fused: dict[fx.Node, fx.Node] = field(default_factory=dict)
    obstacles: dict[fx.Node, UnknownLipschitz] = field(default_factory=dict)

    @property
    def outputs(self) -> Any:
        """The return value of the network, with nodes in place of tensors."""
        return self.network.graph.output_node().args[0]

    @property
    def joint(self) -> float:
        """The bound of the map to all outputs together (theory §2)."""
        parts: list[float] = []

        def collect(node: fx.Node) -> fx.Node:
            if node not in self.fixed:
                parts.append(self.bounds[node])
            return node

        map_arg(self.outputs, collect)
        return math.hypot(*parts) * SLACK

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node runs, or None if it runs a function."""
        is_call = node.op == "call_module"
        return self.network.get_submodule(str(node.target)) if is_call else None

    def rule(self, node: fx.Node) -> ModuleRule | FunctionRule | None:
        """Return the row of what a node runs, or None if it has none."""
        module = self.module(node)
        return find_rule(module) if module is not None else FUNCTIONS.get(node.target)

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """Return the inputs of a node that depend on the network's input."""
        return [source for source in node.all_input_nodes if source in self.bounds]

    def gain(self, node: fx.Node) -> float | None:
        """Return the constant of a node's own operation, or None if it has several inputs."""
        sources = self.sources(self.fused.get(node, node))
        if len(sources) != 1 or not self.bounds[sources[0]]:
            return None
        return self.bounds[node] / self.bounds[sources[0]]


def propagate(
    module: nn.Module, input_shape: Sequence[int], past_obstacles: bool = False
) -> Propagation:
    """Bound every intermediate of a module for inputs of one shape.

    Args:
        module: a module with one tensor as input, as it is used: in eval mode.
        input_shape: shape of one input without the batch axis.
        past_obstacles: note operations without a rule in `obstacles` and go on. What comes out is
            then no bound unless there are none, and nothing is proven of the graph.

    Raises:
        UnknownLipschitz: an operation has no rule, or the module computes something else than its
            graph; the name of the operation and the reason are in the message.
        InputError: the module cannot process this shape.
    """
    result = bound_graph(module, input_shape, past_obstacles)
    if not result.obstacles:
        what = f"The graph of {type(module).__name__} computes something else than the module"
        prove_same(module, Meaning(result.network).run, example(module, input_shape), what)
    return result


@torch.no_grad()
def bound_graph(
    module: nn.Module, input_shape: Sequence[int], past_obstacles: bool = False
) -> Propagation:
    """Bound every intermediate of a module's graph, without a proof that it computes the module.

    Arguments and errors are those of `propagate`.
    """
    try:
        x = example(module, input_shape)
        # In a copy, since a module that is not in eval mode may change as it runs.
        copy.deepcopy(module)(x.clone())
    except InputError:
        raise
    except Exception as error:  # Whatever the user's code raises.
        raise InputError(
            f"The network does not accept inputs {tuple(input_shape)}: {error}"
        ) from error
    try:
        module = _plain(fold(module))
    except UnknownLipschitz:
        raise
    except ValueError as error:
        raise UnknownLipschitz(str(error)) from error
    except Exception as error:
        kind = type(module).__name__
        raise UnknownLipschitz(f"{kind} cannot be folded: {error}") from error
    tracer = _Tracer(x.clone())
    if tracer.is_leaf_module(module, ""):
        module = nn.Sequential(module)
    try:
        graph = tracer.trace(module)
    except Exception as error:  # Whatever the user's code raises when it meets a proxy.
        kind = type(module).__name__
        raise UnknownLipschitz(f"{kind} cannot be traced to a graph: {error}") from error
    result = Propagation(fx.GraphModule(tracer.root, graph))
    try:
        _Bounding(result, past_obstacles).run(x.clone())
    except UnknownLipschitz:
        raise
    except Exception as error:
        raise UnknownLipschitz(f"{type(module).__name__} cannot be bounded: {error}") from error
    return result


def _plain(network: nn.Module) -> nn.Module:
    """Keep the weights that parametrizations give in eval mode; they may run code of the user's."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module) and not module.training:
            names = list(module.parametrizations)  # type: ignore[arg-type]
            weights = {name: getattr(module, name).detach().clone() for name in names}
            for name, weight in weights.items():
                if digest(weight) != digest(getattr(module, name)):
                    raise UnknownLipschitz(
                        f"The {name} of {type(module).__name__} changes with every use, in eval "
                        "mode too; use a network with plain weights, as vanilla_model of "
                        "deel.torchlip makes one."
                    )
            del module.parametrizations
            # Torch's own way removes them from a class that copies share with what was copied.
            module.__class__ = type(module).__bases__[0]
            for name, weight in weights.items():
                module.register_parameter(name, nn.Parameter(weight, requires_grad=False))
    return network


def describe(node: fx.Node, network: nn.Module) -> tuple[str, str]:
    """Return the path of the module that a node belongs to, and the class or function it runs."""
    if node.op == "call_module":
        path = str(node.target)
        return path, type(network.get_submodule(path)).__name__
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path, getattr(node.target, "__name__", str(node.target))


class _Tracer(fx.Tracer):
    """Traces into the user's modules, and stops at those of torch and those with a rule.

    A tensor that is asked for its shape answers with that at the input x.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x
        self.running: fx.Interpreter | None = None
        self.following: set[fx.Node] = set()
        self.is_running = False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Shaped(node, self)

    def value(self, node: fx.Node) -> Any:
        """Run the graph as far as it is, and return the value of a node."""
        if self.running is None:
            self.running = fx.Interpreter(self.root, False, self.graph)
            self.running.args_iter = iter((self.x,))
        self.is_running = True
        try:
            for one in self.graph.nodes:
                if one not in self.running.env:
                    self.running.env[one] = self.running.run_node(one)
                    if one.op == "placeholder" or self.following & {*one.all_input_nodes}:
                        self.following.add(one)
        finally:
            self.is_running = False
        return self.running.env[node]

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Record a call of a module, or make it while the graph runs."""
        if self.is_running:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return what stands for a parameter, or the parameter while the graph runs."""
        if self.is_running:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return find_rule(m) is not None or super().is_leaf_module(m, module_qualified_name)

    def create_proxy(self, kind: str, target: Any, args: Any, *more: Any, **named: Any) -> Any:
        """Return what a call gives; of `x.chunk(n, …)` the n parts, as a list.

        A chunk of fewer parts is a graph that does not run, and is refused.
        """
        found: Any = super().create_proxy(kind, target, args, *more, **named)
        match args:
            case (_, int(parts), *_) if target in _CHUNK:
                return [found[part] for part in range(parts)]
        return found


class _Shaped(fx.Proxy):
    """A stand-in for a tensor while a network is traced."""

    tracer: _Tracer

    @property
    def shape(self) -> Any:
        """All sizes, but where images lie behind each other, that of the first axis stays open."""
        shape = self.tracer.value(self.node).shape
        return (self.size(0), *shape[1:]) if self.node in self.tracer.following else shape


class _Bounding(fx.Interpreter):
    """Runs a graph and bounds each node as it is computed."""

    def __init__(self, result: Propagation, past_obstacles: bool) -> None:
        super().__init__(result.network, garbage_collect_values=False)
        self.past_obstacles = past_obstacles
        self.extra_traceback = False
        self.result = result
        self.bounds = result.bounds
        self.entries: dict[fx.Node, Entries] = {}
        # For each node made of a single chunk of a map: the list of chunks, and which of them.
        self.chunk_of: dict[fx.Node, tuple[fx.Node, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        arguments, _ = self.fetch_args_kwargs_from_env(n)
        y = super().run_node(n)
        if isinstance(y, Tensor):
            self.result.shapes[n] = y.shape
        depends = any(source in self.bounds for source in n.all_input_nodes)
        if n.op == "placeholder":
            self.bounds[n] = 1.0
        elif not depends or (n.op != "call_module" and describes(n.target, arguments)):
            self.result.fixed.add(n)
        elif n.op == "output":
            map_arg(n.args, self._with_bound)
        else:
            try:
                found = self._bound(n, y)
                if isinstance(found, Entries):
                    self.entries[n] = found
                    found = joint_bound((found,))
                elif isinstance(y, Tensor):
                    _check_type(y)
                self.bounds[n] = found
                self._note_chunk(n)
                if not math.isfinite(self.bounds[n]):
                    raise UnknownLipschitz("the bound leaves the range of float64")
            except UnknownLipschitz as error:
                if self.past_obstacles:
                    self.result.obstacles[n] = error
                    sources = n.all_input_nodes
                    self.bounds[n] = max(self.bounds.get(source, 0.0) for source in sources)
                    return y
                path, kind = describe(n, self.result.network)
                where = f' at "{path}"' if path else ""
                reason = str(error).rstrip(".")
                raise UnknownLipschitz(f"No Lipschitz bound for {kind}{where}: {reason}.") from None
        return y

    def _bound(self, node: fx.Node, y: Any) -> float | Entries:
        picks = node.target in (operator.getitem, getattr)
        with_bound = self._with_positions if picks else self._with_bound
        arguments = map_arg(node.args, with_bound)
        options = map_arg(node.kwargs, with_bound)
        if node.op != "call_module":
            if self._joins_chunks(node):
                return max(self.bounds[source] for source in self.result.sources(node))
            return bound_call(node.target, arguments, options, y)
        if len(arguments) != 1 or options or not isinstance(arguments[0], Bounded):
            raise UnknownLipschitz("it is called with more than one input")
        module = self.result.module(node)
        assert module is not None
        if module.training and parametrize.is_parametrized(module):
            raise UnknownLipschitz("its weights change with every use; call eval() first")
        rule = find_rule(module)
        if rule is None:
            raise UnknownLipschitz("it has no rule")
        for name, value in vars(module).items():
            if not is_plain(value):
                kind = type(value).__name__
                raise UnknownLipschitz(f"its {name} is of a class of its own, {kind}")
        x = arguments[0]
        if node in self.result.fused:
            return float(x.bound)
        norm = self._norm_behind(node)
        if norm is None:
            return times(x.bound, rule.gain(module, x.value, y))
        assert isinstance(module, nn.Conv2d)
        return times(x.bound, conv_gain(module, x.value, y, batch_norm_factors(norm)))

    def _note_chunk(self, node: fx.Node) -> None:
        """Note of which chunk a node is made, if it is of one alone.

        Only of chunks that hold no entry twice: bounds of what is made of one are relative to the
        tensor whose entries it holds, not to the chunk.
        """
        sources = self.result.sources(node)
        origins = {self.chunk_of.get(source) for source in sources}
        if node.target is operator.getitem and sources[0].target in _CHUNK:
            chunks, index = self.entries.get(sources[0]), node.args[1]
            origins = {None}
            if chunks and holds_each_once(chunks) and isinstance(index, int) and index >= 0:
                origins = {(sources[0], index)}
        elif self._joins_chunks(node):
            origins = {self.chunk_of.get(chunks) for chunks, _ in filter(None, origins)}
        if len(origins) == 1 and (origin := origins.pop()):
            self.chunk_of[node] = origin

    def _joins_chunks(self, node: fx.Node) -> bool:
        """Return whether a node concatenates what was made of different chunks of one map each.

        They share no entry of it, so that the largest of their bounds is that of all (theory
        §13.1).
        """
        origins = [self.chunk_of.get(source) for source in self.result.sources(node)]
        known = [origin for origin in origins if origin]
        parts = node.args[0] if node.target is torch.cat and node.args else None
        return (
            isinstance(parts, list | tuple)
            and len(parts) == len(origins) == len(set(known))
            and len({chunks for chunks, _ in known}) == 1
        )

    def _norm_behind(self, node: fx.Node) -> nn.BatchNorm2d | None:
        """Return the BatchNorm that alone uses a convolution, noting that they are one kernel."""
        if not isinstance(self.result.module(node), nn.Conv2d) or len(node.users) != 1:
            return None
        (user,) = node.users
        norm = self.result.module(user)
        if not isinstance(norm, nn.BatchNorm2d) or find_rule(norm) is None:
            return None
        if uses_batch_statistics(norm):  # Its own rule refuses it by name.
            return None
        self.result.fused[user] = node
        return norm

    def _with_bound(self, node: fx.Node) -> Any:
        found = self._with_positions(node)
        if isinstance(found, Bounded) and _has_positions(found):
            raise UnknownLipschitz("Positions of what was compared jump and have no constant")
        return found

    def _with_positions(self, node: fx.Node) -> Any:
        value = self.env[node]
        if node not in self.bounds:
            return value
        bound = self.bounds[node]
        return Bounded(value, bound, self.entries.get(node) or all_of(node, bound, value))


def example(module: nn.Module, shape: Sequence[int]) -> Tensor:
    """Return a random input (1, *shape) of the module's own dtype, in [0, 1].

    Raises:
        UnknownLipschitz: its weights are no real floating-point numbers.
    """
    x = torch.rand((1, *shape), generator=torch.Generator().manual_seed(0))
    weight = next(module.parameters(), None)
    if weight is None:
        return x
    _check_type(weight)
    return x.to(weight)


def _check_type(value: object) -> None:
    """Refuse tensors of anything but plain real numbers, for which norms are something else.

    Raises:
        UnknownLipschitz: with their type.
    """
    plain = not isinstance(value, Tensor) or value.layout == torch.strided
    if isinstance(value, Tensor) and not (plain and value.is_floating_point()):
        raise UnknownLipschitz(f"it has no rule for numbers of type {value.dtype}, {value.layout}")


def _has_positions(found: Bounded) -> bool:
    return any(places is None for places in tree_leaves(found.entries.places))
