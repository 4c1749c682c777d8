"""What a network may do that its traced graph does not: refused, unless it makes no difference."""

from __future__ import annotations

import copy
import itertools
import math
import operator
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as torch_module

from lipdet.certificate import UnknownLipschitz, lipschitz_bound
from lipdet.detector.ssd import SSD
from lipdet.layers import AOLConv2d, MaxMin, SLLBlock, fold
from tests.certificate.detectors import small_detector
from tests.certificate.helpers import Apply, conv, jacobian_norm

SHAPE = (4, 6, 6)


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


@pytest.mark.parametrize("function", IN_PLACE.values(), ids=IN_PLACE.keys())
def test_a_change_in_place_that_something_reads_is_refused(function: Change) -> None:
    """Through a view or an alias."""
    with pytest.raises(UnknownLipschitz, match="something else"):
        lipschitz_bound(Step(function), SHAPE)


def test_a_change_in_place_in_a_submodule_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(nn.ReLU(), Step(_alias)))
    with pytest.raises(UnknownLipschitz, match=r"something else.*aten\.add_"):
        lipschitz_bound(network, SHAPE)


class Overwriting(nn.Module):
    """A backbone whose first map is changed after it was made."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> list[Tensor]:
        first, second = self.backbone(images)
        part = first[:, :2]
        part += _far(30 * part)
        return [first, second]


def test_a_backbone_that_changes_its_maps_in_place_is_refused() -> None:
    """Also in the backbone of an SSD."""
    detector = small_detector()
    detector.backbone = Overwriting(detector.backbone)
    with pytest.raises(UnknownLipschitz, match=r"something else.*aten\.add_"):
        lipschitz_bound(detector, (3, 8, 8))


def _identity_conv(factor: float = 1.0) -> nn.Conv2d:
    return conv(factor * torch.eye(4)[:, :, None, None])


class Sum(nn.Module):
    """x + f(x), written in place where nothing reads what is lost."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.add = add
        self.first, self.second = _identity_conv(), _identity_conv(2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.add(self.second(x), x)


HARMLESS: dict[str, tuple[nn.Module, float]] = {
    "identity": (Sum(operator.iadd), 3.0),
    "view": (Sum(lambda y, x: operator.iadd(y.flatten(1), x.flatten(1))), 3.0),
    "function": (Sum(lambda y, x: functional.relu(y, True) + x), 3.0),
    "first": (nn.Sequential(nn.ReLU(inplace=True), _identity_conv(2.0)), 2.0),
    "steep": (nn.Sequential(_identity_conv(), nn.LeakyReLU(2.0, inplace=True)), 2.0),
    "steep alone": (nn.LeakyReLU(2.0, inplace=True), 2.0),
    "relu6": (nn.Sequential(_identity_conv(), nn.ReLU6(inplace=True)), 1.0),
    "hardtanh": (nn.Sequential(_identity_conv(), nn.Hardtanh(inplace=True)), 1.0),
    "dropout": (nn.Sequential(_identity_conv(3.0), nn.Dropout(inplace=True)), 3.0),
    "behind a view": (nn.Sequential(nn.Linear(6, 6), nn.ReLU(True)), math.nan),
    "factor by item": (Apply(lambda x: torch.tensor(3.0).item() * x), 3.0),
    "constants in place": (Apply(lambda x: x * torch.ones(4, 1, 1).mul_(3)), 3.0),
}


@pytest.mark.parametrize(("network", "constant"), HARMLESS.values(), ids=HARMLESS.keys())
def test_harmless_changes_in_place_are_bounded(network: nn.Module, constant: float) -> None:
    # Oracle: by hand, in the table; SVD of the weights where there are random ones.
    network = network.eval()
    if math.isnan(constant):
        constant = float(torch.linalg.matrix_norm(network[0].weight.detach().double(), 2))
    assert lipschitz_bound(network, SHAPE) == pytest.approx(constant, rel=1e-6)


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU])
def test_an_activation_in_place_whose_input_is_read_is_refused(kind: type[nn.Module]) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.activation = _identity_conv(), kind(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            y: Tensor = self.activation(h)
            return y - h  # 0 in truth

    with pytest.raises(UnknownLipschitz, match="something else"):
        lipschitz_bound(Both(), SHAPE)


def _caught(question: Callable[[Tensor], object]) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        try:
            return 10 * x if isinstance(x, Tensor) and question(x) else x
        except Exception:
            return x

    return function


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


@pytest.mark.parametrize("function", INVISIBLE.values(), ids=INVISIBLE.keys())
def test_what_tracing_cannot_see_is_refused(function: Callable[[Tensor], object]) -> None:
    """Branches that a traced graph does not have."""
    with pytest.raises(UnknownLipschitz):
        lipschitz_bound(Apply(function), SHAPE)


class Counting(nn.Module):
    """Grows at the hundredth call."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.calls, self.log = way, 0, [0]
        self.register_buffer("count", torch.zeros(()))
        self.count: Tensor
        numbers = [0]
        self.next = lambda: numbers.__setitem__(0, numbers[0] + 1) or numbers[0]
        self.iterator = itertools.count()

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
        number = self.next() if self.way == "closure" else next(self.iterator)
        return 10 * x if number > 100 else x


@pytest.mark.parametrize("way", ["buffer", "attribute", "list", "closure", "iterator"])
def test_a_module_that_counts_is_refused(way: str) -> None:
    """Its hundredth call would not be the one that was bounded."""
    with pytest.raises(UnknownLipschitz):
        lipschitz_bound(Counting(way), SHAPE)


class Writing(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.mul_(1.5)
        return super().forward(x)


def test_a_module_that_writes_to_its_weights_is_refused() -> None:
    with pytest.raises(UnknownLipschitz):
        lipschitz_bound(nn.Sequential(Writing(4, 4, 1)), SHAPE)


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


def _hooked(hook: Callable[..., object], place: str = "forward", **options: bool) -> nn.Module:
    layer = nn.Conv2d(4, 4, 1)
    getattr(layer, f"register_{place}_hook")(hook, **options)
    return layer


REPLACED: dict[str, Callable[[], nn.Module]] = {
    "_call_impl of a class": lambda: OwnCall(4, 4, 1),
    "_conv_forward of a class": lambda: OwnConvForward(4, 4, 1),
    "_check_input_dim of a class": lambda: OwnCheck(4),
    "_conv_forward of an instance": lambda: _on_instance("_conv_forward"),
    "_call_impl of an instance": lambda: _on_instance("_call_impl"),
    "hook": lambda: _hooked(lambda module, x, y: 10 * y),
    "hook before": lambda: _hooked(lambda module, x: (10 * x[0],), "forward_pre"),
    "hook in place": lambda: _hooked(lambda module, x, y: y.mul_(10)),
    "hook with keywords": lambda: _hooked(lambda module, x, names, y: 10 * y, with_kwargs=True),
}


@pytest.mark.parametrize("build", REPLACED.values(), ids=REPLACED.keys())
@pytest.mark.parametrize("alone", [False, True])
def test_what_a_layer_of_torch_was_made_to_compute_is_seen(
    build: Callable[[], nn.Module], alone: bool
) -> None:
    """Replaced methods and hooks of a layer."""
    network = build().eval() if alone else nn.Sequential(build(), nn.ReLU()).eval()
    with pytest.raises(UnknownLipschitz, match=r"something else.*aten\.mul"):
        lipschitz_bound(network, SHAPE)


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
@pytest.mark.parametrize("network", [_identity_conv(), nn.Sequential(_identity_conv(), nn.ReLU())])
def test_hooks_of_all_modules_are_seen(network: nn.Module) -> None:
    """Global hooks."""
    with pytest.raises(UnknownLipschitz, match=r"something else.*aten\.mul"):
        lipschitz_bound(network, SHAPE)


def test_hooks_that_change_nothing_or_in_the_open_are_part_of_the_bound() -> None:
    network = nn.Sequential(nn.Sequential(_identity_conv(3.0)), nn.ReLU())
    for module in (network, network[0][0]):
        module.register_forward_hook(lambda module, x, y: None)
    assert lipschitz_bound(network, SHAPE) == pytest.approx(3.0, rel=1e-6)
    network[0].register_forward_hook(lambda module, x, y: 10 * y)
    assert lipschitz_bound(network, SHAPE) == pytest.approx(30.0, rel=1e-6)


def test_a_sequential_head_that_calls_otherwise_is_refused() -> None:
    detector = small_detector()
    detector.heads[0].classification.__class__ = LoudSequential
    with pytest.raises(UnknownLipschitz, match=r"heads\.0\.classification"):
        lipschitz_bound(detector, (3, 8, 8))


def test_a_folded_block_whose_convolutions_were_changed_is_refused() -> None:
    block = fold(SLLBlock(4))
    block.inner.padding = block.outer.padding = (0, 2)
    block.inner.kernel_size = (1, 1)
    block.inner.dilation = block.outer.dilation = (1, 2)
    with pytest.raises(UnknownLipschitz, match=r"something else|does not accept"):
        lipschitz_bound(nn.Sequential(nn.Identity(), block), (4, 5, 6))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("behind_conv", [True, False])
def test_batch_norm_is_read_as_torch_reads_it(affine: bool, behind_conv: bool) -> None:
    """Torch reads `weight`, not `affine`."""
    norm = nn.BatchNorm2d(4, eps=0.0).eval()
    nn.init.constant_(norm.weight, 10.0)
    norm.affine = affine
    norm.track_running_stats = False
    norm.momentum = None
    network = nn.Sequential(_identity_conv(), norm) if behind_conv else norm
    # Oracle: weight / √running_var, dense.
    assert jacobian_norm(network, (4, 2, 2)) == pytest.approx(10.0)
    assert lipschitz_bound(network, (4, 2, 2)) == pytest.approx(10.0, rel=1e-6)


def test_attributes_are_read_when_the_layer_runs() -> None:
    # As torch reads them, whatever they were at construction.
    layer = _identity_conv(2.0)
    layer.groups, layer.weight = 2, nn.Parameter(2 * torch.ones(4, 2, 1, 1))
    # Oracle: two blocks [[2, 2], [2, 2]] of norm 4.
    assert lipschitz_bound(layer, SHAPE) == pytest.approx(4.0, rel=1e-6)


COMPLEX: dict[str, Callable[[], nn.Module]] = {
    "weight": lambda: conv(100j * torch.eye(4)[:, :, None, None]),
    "behind a real layer": lambda: nn.Sequential(nn.ReLU(), nn.Linear(6, 6, dtype=torch.cfloat)),
    "factor": lambda: Apply(lambda x: 100j * x),
    "complex": lambda: Apply(lambda x: torch.complex(x, 100 * x)),
    "view": lambda: Apply(lambda x: torch.view_as_complex(x.reshape(1, 4, 6, 3, 2))),
    "fft and back": lambda: Apply(lambda x: torch.fft.irfft2(9 * torch.fft.rfft2(x))),
    "to": lambda: Apply(lambda x: x.to(torch.complex64)),
}


@pytest.mark.parametrize("build", COMPLEX.values(), ids=COMPLEX.keys())
@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_complex_numbers_are_refused(build: Callable[[], nn.Module]) -> None:
    """Weights, factors and what makes complex numbers."""
    with pytest.raises(UnknownLipschitz):
        lipschitz_bound(build(), SHAPE)


def test_integer_weights_are_refused() -> None:
    layer = nn.Conv2d(4, 4, 1, bias=False)
    layer.weight = nn.Parameter(torch.ones(4, 4, 1, 1, dtype=torch.int64), requires_grad=False)
    with pytest.raises(UnknownLipschitz, match="int64"):
        lipschitz_bound(layer, SHAPE)


def test_the_user_s_module_is_not_changed_by_the_proof() -> None:
    network = nn.Sequential(AOLConv2d(4, 4, 3), MaxMin(), Counting("attribute"))
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(UnknownLipschitz, match="attributes"):
        lipschitz_bound(network, SHAPE)
    assert network[2].calls == 0
    assert all(p.grad is None and type(p) is nn.Parameter for p in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_network_for_single_images_is_bounded() -> None:
    network = nn.Sequential(_identity_conv(3.0), nn.Unflatten(0, (1, 1)), nn.Flatten(0, 1))
    with pytest.raises(RuntimeError):
        network(torch.rand(2, *SHAPE))
    assert lipschitz_bound(network, SHAPE) == pytest.approx(3.0, rel=1e-6)


def test_float64_networks_are_proven_too() -> None:
    network = nn.Sequential(_identity_conv(3.0), nn.BatchNorm2d(4, eps=0.0), nn.ReLU(True))
    assert lipschitz_bound(network.double().eval(), SHAPE) == pytest.approx(3.0, rel=1e-6)


def test_a_detector_is_proven_as_a_whole() -> None:
    class Shifting(SSD):
        """Adds to its images in place before the parts see them."""

    detector = small_detector()
    detector.normalize = Apply(lambda images: images.mul_(3))
    with pytest.raises(UnknownLipschitz, match="mul_"):
        lipschitz_bound(detector, (3, 8, 8))
    detector = small_detector()
    detector.__class__ = Shifting
    assert math.isfinite(lipschitz_bound(detector, (3, 8, 8)))
