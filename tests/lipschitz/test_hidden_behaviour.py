"""Networks that do what their traced graph does not show: all are refused."""

from __future__ import annotations

import copy
import operator
import random
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

from lipdet.certificate import UnknownLipschitz, lipschitz_bound
from lipdet.errors import InputError
from lipdet.layers import AOLConv2d, Householder, MaxMin, ScaledAvgPool2d, SLLBlock, fold
from tests.certificate.detectors import small_detector
from tests.certificate.helpers import Apply, conv, identity_conv

SHAPE = (4, 6, 6)
CALLS = {"number": 0}


class Step(nn.Module):
    """A convolution, and a function of its output and of what is 0 near images in [0, 1]."""

    def __init__(self, function: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> object:
        h = self.first(x)
        return self.function(h, _far(self.second(h)))


def _far(x: Tensor) -> Tensor:
    return functional.relu(x - 100)


Change = Callable[[Tensor, Tensor], object]


def _added(part: Callable[[Tensor], Tensor]) -> Change:
    """Add to a part of h, which h must show."""

    def function(h: Tensor, far: Tensor) -> Tensor:
        view = part(h)
        view += part(far)
        return h

    return function


def _unseen(change: Change) -> Change:
    """Change h where tracing, which hands over no tensor, does not see it."""

    def function(h: Tensor, far: Tensor) -> Tensor:
        if isinstance(h, Tensor):
            change(h, far)
        return h

    return function


def _alias(h: Tensor, far: Tensor) -> Tensor:
    keep = h
    h += far
    return keep


def _assigned(h: Tensor, far: Tensor) -> Tensor:
    h.data = h + far
    return h


def _to_column(h: Tensor, far: Tensor) -> None:
    h[..., 0] = (h + far)[..., 0]


def _by_data(h: Tensor, far: Tensor) -> None:
    part = h.data
    part += far


# Something reads what is changed, through a view or an alias.
IN_PLACE: dict[str, Change] = {
    "slice": _added(lambda h: h[:, :2]),
    "transpose": _added(lambda h: h.transpose(2, 3)),
    "chunk": _added(lambda h: h.chunk(2, 1)[1]),
    "view": _added(lambda h: h.view(1, -1)),
    "alias": _alias,
    "assigned data": _assigned,
    "data": _unseen(_by_data),
    "detach": _unseen(lambda h, far: h.detach().add_(far)),
    "diagonal": _unseen(lambda h, far: h.diagonal(0, 2, 3).add_(far.diagonal(0, 2, 3))),
    "expand": _unseen(lambda h, far: h.expand(1, 4, 6, 6).add_(far)),
    "as_strided": _unseen(lambda h, far: h.as_strided((4,), (36,)).add_(far[0, :, 0, 0])),
    "add_": _unseen(lambda h, far: h.add_(far)),
    "copy_": _unseen(lambda h, far: h.copy_(h + far)),
    "clamp_": _unseen(lambda h, far: h.clamp_(max=100)),
    "index_put_": _unseen(lambda h, far: h.index_put_((torch.tensor([0]),), (h + far)[:1])),
    "assigned column": _unseen(_to_column),
    "add out": _unseen(lambda h, far: torch.add(h, far, out=h)),
    "set_": _unseen(lambda h, far: h.set_(h + far)),
    "foreach": _unseen(lambda h, far: torch._foreach_add_([h], [far])),
    "activation of a view": lambda h, far: (functional.hardtanh(h[:, 1:], -9.0, 9.0, True), h)[1],
    "activation": lambda h, far: (functional.hardtanh(h, -100.0, 100.0, True), h)[1],
    "steep activation": lambda h, far: (functional.leaky_relu(h, 3.0, True), h)[1],
}


class Overwriting(nn.Module):
    """A backbone whose first map is changed after it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = small_detector().backbone

    def forward(self, images: Tensor) -> list[Tensor]:
        first, second = self.backbone(images)
        part = first[:, :2]
        part += _far(30 * part)
        return [first, second]


class ReadBefore(nn.Module):
    """Reads the input of an activation in place."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.first, self.activation = identity_conv(), kind(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        y: Tensor = self.activation(h)
        return y - h  # 0 in truth


def _caught(question: Callable[[Tensor], object]) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        try:
            return 10 * x if isinstance(x, Tensor) and question(x) else x
        except Exception:
            return x

    return function


# Branches that a traced graph does not have.
INVISIBLE: dict[str, Callable[[Tensor], object]] = {
    "isinstance": lambda x: x + _far(x) if isinstance(x, Tensor) else x,
    "values": lambda x: 10 * x if isinstance(x, Tensor) and x.max() > 5 else x,
    "numpy": lambda x: 10 * x if isinstance(x, Tensor) and x.detach().numpy().max() > 5 else x,
    "equal": lambda x: 10 * x if isinstance(x, Tensor) and torch.equal(x, x.round()) else x,
    "contains": lambda x: 10 * x if isinstance(x, Tensor) and 7.0 in x else x,
    "class": lambda x: x + _far(x) if type(x) is Tensor else x,
    "class, and values": lambda x: 10 * x if type(x) is Tensor and x.max() > 5 else x,
    "class, and numpy": lambda x: 10 * x if type(x) is Tensor and x.numpy().max() > 5 else x,
    "attribute": lambda x: x if hasattr(x, "no_such_attribute") else x + _far(x),
    "caught values": _caught(lambda x: x.max() > 5),
    "caught numpy": _caught(lambda x: x.numpy().max() > 5),
    "gradients": lambda x: 10 * x if torch.is_grad_enabled() else x,
    "gradient of the input": lambda x: 10 * x if isinstance(x, Tensor) and x.requires_grad else x,
    "inference": lambda x: 10 * x if torch.is_inference_mode_enabled() else x,
    "batch": lambda x: 10 * x if isinstance(x, Tensor) and x.shape[0] > 1 else x,
    "random": lambda x: x + torch.rand(4, 1, 1) * _far(x),
    "random where a tensor": lambda x: x + torch.rand(1) * _far(x) if isinstance(x, Tensor) else x,
    "random in Python": lambda x: 10 * x if random.random() < 1e-9 else x,
    "random in numpy": lambda x: 10 * x if np.random.rand() < 1e-9 else x,  # noqa: NPY002
}


class Counting(nn.Module):
    """Grows at the hundredth call, which would not be the one that was bounded."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.calls, self.log = way, 0, [0]
        self.register_buffer("count", torch.zeros(()))
        self.count: Tensor
        numbers = [0]
        self.next = lambda: numbers.__setitem__(0, numbers[0] + 1) or numbers[0]

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "buffer":
            self.count += 1
            return x
        if self.way == "attribute":
            self.calls += 1
            return 10 * x if self.calls > 100 else x
        if self.way == "list":
            self.log.append(0)
            return 10 * x if len(self.log) > 100 else x
        return 10 * x if self.next() > 100 else x


class Writing(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.mul_(1.5)
        return super().forward(x)


class LoudCall(nn.Module):
    def _call_impl(self, *args: object, **kwargs: object) -> object:
        return 10 * super()._call_impl(*args, **kwargs)


class OwnCall(LoudCall, nn.Conv2d):
    pass


class LoudSequential(LoudCall, nn.Sequential):
    pass


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return 10 * super()._conv_forward(x, weight, bias)


class OwnCheck(nn.BatchNorm2d):
    """Changes in place what a method of torch's only looks at."""

    def _check_input_dim(self, x: Tensor) -> None:
        x *= 10


def _on_instance(method: str) -> nn.Module:
    layer = nn.Conv2d(4, 4, 1)
    original = getattr(layer, method)
    setattr(layer, method, lambda *arguments: 10 * original(*arguments))
    return layer


def hooked(hook: Callable[..., object], place: str = "forward", **options: bool) -> nn.Module:
    layer = identity_conv()
    getattr(layer, f"register_{place}_hook")(hook, **options)
    return layer


def then_relu(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.ReLU()).eval()


def when(condition: Callable[[Tensor], bool]) -> nn.Module:
    return then_relu(hooked(lambda module, x, y: 10 * y if condition(x[0]) else y))


# Replaced methods and hooks of a layer of torch's.
REPLACED: dict[str, Callable[[], nn.Module]] = {
    "_call_impl of a class": lambda: OwnCall(4, 4, 1),
    "_conv_forward of a class": lambda: OwnConvForward(4, 4, 1),
    "_check_input_dim of a class": lambda: OwnCheck(4),
    "_conv_forward of an instance": lambda: _on_instance("_conv_forward"),
    "_call_impl of an instance": lambda: _on_instance("_call_impl"),
    "hook": lambda: hooked(lambda module, x, y: 10 * y),
    "hook before": lambda: hooked(lambda module, x: (10 * x[0],), "forward_pre"),
    "hook in place": lambda: hooked(lambda module, x, y: y.mul_(10)),
    "hook with keywords": lambda: hooked(lambda module, x, names, y: 10 * y, with_kwargs=True),
}
# Weights, factors and what makes complex numbers.
COMPLEX: dict[str, Callable[[], nn.Module]] = {
    "weight": lambda: conv(100j * torch.eye(4)[:, :, None, None]),
    "behind a real layer": lambda: nn.Sequential(nn.ReLU(), nn.Linear(6, 6, dtype=torch.cfloat)),
    "factor": lambda: Apply(lambda x: 100j * x),
    "complex": lambda: Apply(lambda x: torch.complex(x, 100 * x)),
    "view": lambda: Apply(lambda x: torch.view_as_complex(x.reshape(1, 4, 6, 3, 2))),
    "fft and back": lambda: Apply(lambda x: torch.fft.irfft2(9 * torch.fft.rfft2(x))),
    "to": lambda: Apply(lambda x: x.to(torch.complex64)),
}
MODES: dict[str, Callable[[Tensor], bool]] = {
    "the default call of a frozen network": lambda x: (
        torch.is_grad_enabled() and not x.requires_grad
    ),
    "one image in inference mode": lambda x: torch.is_inference_mode_enabled() and len(x) == 1,
    "three images": lambda x: len(x) > 2,
    "two images with gradients": lambda x: torch.is_grad_enabled() and len(x) > 1,
    "two images without": lambda x: not torch.is_grad_enabled() and len(x) > 1,
    "a plain tensor with gradients": lambda x: type(x) is Tensor and torch.is_grad_enabled(),
    "another memory layout": lambda x: not x.is_contiguous(),
}


class LargerWithGradients(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 10 * weight if torch.is_grad_enabled() else weight


def _weights_by_mode() -> nn.Module:
    layer = identity_conv()
    parametrize.register_parametrization(layer, "weight", LargerWithGradients())
    return layer.eval()


# Images of a batch mix.
MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "size": lambda x: x * x.size(0),
    "roll": lambda x: x + x.roll(1, 0),
    "flip": lambda x: x.flip(0),
    "softmax": lambda x: x.softmax(0),
    "maximum": lambda x: torch.maximum(x, x.flip(0)),
}
# Images mix in outputs of other shapes.
MIXED: dict[str, Callable[[], nn.Module]] = {
    "flattened": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.Softmax(0), nn.Flatten(0)),
    "flattened channels": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.Softmax(0), nn.Flatten(0, 1)
    ),
    "as channels": lambda: nn.Sequential(nn.Flatten(0, 1), nn.Unflatten(0, (1, -1)), MaxMin()),
    "as rows": lambda: nn.Sequential(
        nn.Flatten(), nn.Unflatten(0, (1, -1)), nn.AvgPool2d((2, 1), 1, (1, 0))
    ),
}


def _global(kept: object) -> bool:
    CALLS["number"] += 1
    return CALLS["number"] > 10**6


def _default(kept: object, calls: list[int] = [0]) -> bool:  # noqa: B006
    calls[0] += 1
    return calls[0] > 10**6


def counting(state: tuple[Any, Callable[[Any], bool]]) -> nn.Module:
    kept, count = state
    return when(lambda x: count(kept))


STATES: dict[str, tuple[Any, Callable[[Any], bool]]] = {
    "a generator of numpy": (np.random.default_rng(0), lambda one: one.random() < 1e-9),
    "a generator of Python": (random.Random(0), lambda one: one.random() < 1e-9),
    "an iterator": (iter(range(10**9)), lambda one: next(one) > 10**6),
    "a global": (None, _global),
    "a default": (None, _default),
}


def _in_a_thread(module: nn.Module, x: object, y: Tensor) -> None:
    thread = threading.Thread(target=lambda: y.mul_(10))
    thread.start()
    thread.join()


class OwnCopy(nn.Module):
    """Loses in a copy what it does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = then_relu(hooked(lambda module, x, y: 10 * y))

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)

    def __deepcopy__(self, memory: object) -> nn.Module:
        return nn.Sequential(nn.Identity())


# No operation shows what they do.
UNSEEN_HOOKS: dict[str, Callable[[nn.Module, object, Tensor], object]] = {
    "a write of another thread": _in_a_thread,
    "repr": lambda module, x, y: 10 * y if "e+" in repr(y) else y,
    "str": lambda module, x, y: 10 * y if "e+" in str(y) else y,
    "apply_": lambda module, x, y: y.apply_(lambda v: 10 * v) if type(y) is Tensor else y,
}


class OtherSides(tuple[int, ...]):
    """Tells Python something else than torch."""

    def __iter__(self) -> Any:
        return iter((9, 9))


def _changed(module: nn.Module, **attributes: Any) -> nn.Module:
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def _calling_otherwise() -> nn.Module:
    detector = small_detector()
    detector.heads[0].classification.__class__ = LoudSequential
    return detector


def _changed_after_folding() -> nn.Module:
    block = fold(SLLBlock(4))
    block.inner.padding = block.outer.padding = (0, 2)
    block.inner.kernel_size = (1, 1)
    block.inner.dilation = block.outer.dilation = (1, 2)
    return nn.Sequential(nn.Identity(), block)


def _cropped(sides: tuple[int, ...]) -> nn.Module:
    layer = nn.Conv2d(4, 4, 1, padding_mode="circular")
    return _changed(layer, _reversed_padding_repeated_twice=list(sides))


class Refused(NamedTuple):
    """A network, what the message says of it, and the shape of an input."""

    build: Callable[[], nn.Module]
    message: str | None = None
    shape: tuple[int, ...] = SHAPE


def _each(
    kind: str, parts: Mapping[str, Any], build: Callable[..., nn.Module], message: str | None = None
) -> dict[str, Refused]:
    return {
        f"{kind}: {name}": Refused(partial(build, part), message) for name, part in parts.items()
    }


INTEGERS = nn.Parameter(torch.ones(4, 4, 1, 1, dtype=torch.int64), requires_grad=False)
CROPPING = {str(sides): sides for sides in [(-3, 3, 0, 0), (3, -3, 0, 0), (-3, 3, -3, 3)]}
WRITTEN, MULTIPLIED = r"something else.*aten\.add_", r"something else.*aten\.mul"
REFUSED: dict[str, Refused] = {
    **_each("in place", IN_PLACE, Step, "something else"),
    "in place in a submodule": Refused(
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(nn.ReLU(), Step(_alias))), WRITTEN
    ),
    "in place in the backbone of an SSD": Refused(
        lambda: _changed(small_detector(), backbone=Overwriting()), WRITTEN, (3, 8, 8)
    ),
    "images in place": Refused(
        lambda: _changed(small_detector(), normalize=Apply(lambda images: images.mul_(3))),
        "mul_",
        (3, 8, 8),
    ),
    **_each(
        "input read",
        {kind.__name__: kind for kind in (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU)},
        ReadBefore,
        "something else",
    ),
    **_each("tracing cannot see", INVISIBLE, Apply),
    **_each("counts", {way: way for way in ("buffer", "attribute", "list", "closure")}, Counting),
    "writes to its weights": Refused(lambda: nn.Sequential(Writing(4, 4, 1))),
    **_each("replaced", REPLACED, lambda build: build().eval(), MULTIPLIED),
    **_each("replaced before ReLU", REPLACED, lambda build: then_relu(build()), MULTIPLIED),
    "head called otherwise": Refused(_calling_otherwise, r"heads\.0\.classification", (3, 8, 8)),
    "changed after folding": Refused(
        _changed_after_folding, r"something else|does not accept", (4, 5, 6)
    ),
    **_each("complex", COMPLEX, operator.call),
    "integers": Refused(lambda: _changed(nn.Conv2d(4, 4, 1, bias=False), weight=INTEGERS), "int64"),
    **_each("mode", MODES, when),
    "weights by mode": Refused(_weights_by_mode),
    **_each("images mix", MIXING, Apply),
    **_each("images mix", MIXED, operator.call, "other images"),
    **_each("state", STATES, counting, "change as it runs"),
    **_each("unseen", UNSEEN_HOOKS, lambda hook: then_relu(hooked(hook))),
    "a copy of its own": Refused(OwnCopy),
    **_each(
        "no pair",
        {"one side": (2,), "list": [2, 2]},
        lambda window: nn.Sequential(_changed(ScaledAvgPool2d(2), kernel_size=window)),
        "tuple of two numbers",
    ),
    **_each(
        "read differently",
        {
            "window": lambda: _changed(ScaledAvgPool2d(2), kernel_size=OtherSides((2, 2))),
            "stride": lambda: _changed(nn.Conv2d(4, 4, 3), stride=OtherSides((1, 1))),
            "stride of a pool": lambda: _changed(nn.MaxPool2d(2, 1), stride=OtherSides((1, 1))),
        },
        lambda build: nn.Sequential(build()),
        "OtherSides",
    ),
    # Torch returns uninitialised memory.
    **_each("cropping by a convolution", CROPPING, _cropped, "cropping"),
    **_each("cropping by padding", CROPPING, nn.CircularPad2d, "cropping"),
    # Neither can be traced; the message is one sentence all the same.
    "script": Refused(lambda: torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))),
    "number of numpy": Refused(lambda: Apply(lambda x: np.float32(3) * x)),
}


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("network", REFUSED.values(), ids=REFUSED)
def test_a_network_that_its_graph_may_not_show_is_refused(network: Refused) -> None:
    module = network.build()
    with pytest.raises(UnknownLipschitz, match=network.message):
        lipschitz_bound(module, network.shape)


@pytest.fixture(params=["forward", "pre", "always called"])
def global_hook(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "pre":
        handle = torch_module.register_module_forward_pre_hook(
            lambda module, x: (10 * x[0],) if isinstance(module, nn.Conv2d) else None
        )
    else:
        handle = torch_module.register_module_forward_hook(
            lambda module, x, y: 10 * y if isinstance(module, nn.Conv2d) else None,
            always_call=request.param == "always called",
        )
    yield
    handle.remove()


@pytest.mark.usefixtures("global_hook")
@pytest.mark.parametrize("network", [identity_conv(), nn.Sequential(identity_conv(), nn.ReLU())])
def test_hooks_of_all_modules_are_seen(network: nn.Module) -> None:
    with pytest.raises(UnknownLipschitz, match="hooks of all modules"):
        lipschitz_bound(network, SHAPE)


class ByRegistry(nn.Module):
    """Computes what stands under itself in a table, where no copy of it stands."""

    FACTORS: ClassVar = weakref.WeakKeyDictionary[nn.Module, float]()

    def forward(self, x: Tensor) -> Tensor:
        return self.FACTORS.get(self, 1.0) * x


class Forgetting(nn.Module):
    """Loses its factor as it is copied."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = 100.0

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "factor": 1.0}

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


@pytest.mark.parametrize("kind", [ByRegistry, Forgetting])
def test_a_module_that_its_copy_is_not_is_refused(kind: type[nn.Module]) -> None:
    module = kind()
    ByRegistry.FACTORS[module] = 100.0
    with pytest.raises(UnknownLipschitz, match="something else"):
        lipschitz_bound(nn.Sequential(nn.ReLU(), module), SHAPE)


def test_the_user_s_module_is_not_changed_by_the_proof() -> None:
    network = nn.Sequential(AOLConv2d(4, 4, 3), MaxMin(), Counting("attribute"))
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(UnknownLipschitz, match="attributes"):
        lipschitz_bound(network, SHAPE)
    assert network[2].calls == 0
    assert all(p.grad is None and type(p) is nn.Parameter for p in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def _raising(error: Exception) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        raise error

    return function


@pytest.mark.parametrize(
    "error", [IndexError(), TypeError(), AttributeError(), ZeroDivisionError(), KeyError("x")]
)
def test_whatever_a_module_raises_is_bad_input(error: Exception) -> None:
    with pytest.raises(InputError, match=r"does not accept inputs \(4, 6, 6\)"):
        lipschitz_bound(Apply(_raising(error)), SHAPE)


def test_a_part_that_is_missing_is_bad_input() -> None:
    network = nn.Sequential(nn.ReLU())
    network._modules["1"] = None
    with pytest.raises(InputError, match="does not accept inputs"):
        lipschitz_bound(network, SHAPE)


def test_a_counting_method_of_torch_s_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = [0], nn.Conv2d._conv_forward

    def counted(*arguments: Any) -> Tensor:
        calls[0] += 1
        y = original(*arguments)
        return 10 * y if calls[0] > 10**6 else y

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", counted)
    with pytest.raises(UnknownLipschitz, match="change as it runs"):
        lipschitz_bound(nn.Sequential(nn.Conv2d(4, 4, 1)), SHAPE)


def test_reflections_do_not_repeat_their_input() -> None:
    # One pair of channels and four angles: four pairs would come out, of norm 2.
    with pytest.raises(ValueError, match="8 channels was given 2"):
        Householder(8)(torch.rand(1, 2, 6, 6))


@pytest.mark.parametrize("shape", [(1, 5), (1, 1, 1, 7)])
def test_angles_of_another_shape_do_not_repeat_channels(shape: tuple[int, ...]) -> None:
    layer = Householder(2)
    layer.theta = nn.Parameter(torch.full(shape, 0.3))
    with pytest.raises(ValueError, match="was given 2"):
        layer(torch.rand(1, 2, 6, 6))
