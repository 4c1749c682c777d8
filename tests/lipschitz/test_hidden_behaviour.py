"""Modules that hide what they do from one look: by modes, batches, state, threads, and printing."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lipdet.certificate import lipschitz_bound
from lipdet.errors import InputError, UnknownLipschitz
from lipdet.layers import Householder, MaxMin, ScaledAvgPool2d
from tests.certificate.helpers import Apply

SHAPE = (4, 6, 6)
CALLS = {"number": 0}


def hooked(change: Callable[[Tensor, Tensor], Tensor | None]) -> nn.Module:
    """An identity, of bound 1, whose hook sees its input and output and may replace the latter."""
    conv = nn.Conv2d(4, 4, 1, bias=False)
    nn.init.dirac_(conv.weight)
    conv.register_forward_hook(lambda module, x, y: change(x[0], y))
    return nn.Sequential(conv, nn.ReLU()).eval()


def when(condition: Callable[[Tensor], bool]) -> nn.Module:
    return hooked(lambda x, y: 10 * y if condition(x) else y)


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


@pytest.mark.parametrize("condition", MODES.values(), ids=MODES.keys())
def test_no_mode_hides_anything(condition: Callable[[Tensor], bool]) -> None:
    """What depends on whether gradients are on is refused."""
    with pytest.raises(UnknownLipschitz):
        lipschitz_bound(when(condition), SHAPE)


class LargerWithGradients(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 10 * weight if torch.is_grad_enabled() else weight


def test_weights_that_depend_on_the_mode_are_refused() -> None:
    conv = nn.Conv2d(4, 4, 1, bias=False)
    nn.init.dirac_(conv.weight)
    parametrize.register_parametrization(conv, "weight", LargerWithGradients())
    with pytest.raises(UnknownLipschitz):
        lipschitz_bound(conv.eval(), SHAPE)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x * x.size(0),
        lambda x: x + x.roll(1, 0),
        lambda x: x.flip(0),
        lambda x: x.softmax(0),
        lambda x: torch.maximum(x, x.flip(0)),
    ],
    ids=["size", "roll", "flip", "softmax", "maximum"],
)
def test_images_of_a_batch_do_not_mix(mix: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UnknownLipschitz):
        lipschitz_bound(Apply(mix), SHAPE)


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


@pytest.mark.parametrize("build", MIXED.values(), ids=MIXED.keys())
def test_images_do_not_mix_in_outputs_of_other_shapes(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(UnknownLipschitz, match="other images"):
        lipschitz_bound(build(), SHAPE)


@pytest.mark.parametrize(
    "rearrange",
    [lambda x: x.transpose(0, 1), lambda x: x.flatten(), lambda x: (x, torch.ones(3, 2))],
    ids=["second axis", "flat", "constant"],
)
def test_images_may_lie_along_any_axis(rearrange: Callable[[Tensor], Any]) -> None:
    assert lipschitz_bound(Apply(rearrange), SHAPE) == pytest.approx(1)


def counting(kept: Any, count: Callable[[Any], bool]) -> nn.Module:
    return hooked(lambda x, y: 10 * y if count(kept) else y)


def _global(kept: object) -> bool:
    CALLS["number"] += 1
    return CALLS["number"] > 10**6


def _default(kept: object, calls: list[int] = [0]) -> bool:  # noqa: B006
    calls[0] += 1
    return calls[0] > 10**6


STATES: dict[str, tuple[Any, Callable[[Any], bool]]] = {
    "a generator of numpy": (np.random.default_rng(0), lambda one: one.random() < 1e-9),
    "a generator of Python": (random.Random(0), lambda one: one.random() < 1e-9),
    "an iterator": (iter(range(10**9)), lambda one: next(one) > 10**6),
    "a global": (None, _global),
    "a default": (None, _default),
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES.keys())
def test_no_state_is_missed(state: tuple[Any, Callable[[Any], bool]]) -> None:
    with pytest.raises(UnknownLipschitz, match="change as it runs"):
        lipschitz_bound(counting(*state), SHAPE)


def _in_a_thread(x: Tensor, y: Tensor) -> None:
    thread = threading.Thread(target=lambda: y.mul_(10))
    thread.start()
    thread.join()


class OwnCopy(nn.Module):
    """Loses in a copy what it does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = hooked(lambda x, y: 10 * y)

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)

    def __deepcopy__(self, memory: object) -> nn.Module:
        return nn.Sequential(nn.Identity())


SEEN_BY_NUMBERS: dict[str, Callable[[], nn.Module]] = {
    "a write of another thread": lambda: hooked(_in_a_thread),
    "repr": lambda: hooked(lambda x, y: 10 * y if "e+" in repr(y) else y),
    "str": lambda: hooked(lambda x, y: 10 * y if "e+" in str(y) else y),
    "apply_": lambda: hooked(lambda x, y: y.apply_(lambda v: 10 * v) if type(y) is Tensor else y),
    "a copy of its own": OwnCopy,
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("build", SEEN_BY_NUMBERS.values(), ids=SEEN_BY_NUMBERS.keys())
def test_what_no_operation_shows_is_refused(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(UnknownLipschitz):
        lipschitz_bound(build(), SHAPE)


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


@pytest.mark.parametrize("window", [(2,), [2, 2]])
def test_windows_that_are_no_pair_are_refused(window: Any) -> None:
    pool = ScaledAvgPool2d(2)
    pool.kernel_size = window
    with pytest.raises(UnknownLipschitz, match="tuple of two numbers"):
        lipschitz_bound(nn.Sequential(pool), SHAPE)


class OtherSides(tuple[int, ...]):
    """Tells Python something else than torch."""

    def __iter__(self) -> Any:
        return iter((9, 9))


@pytest.mark.parametrize(
    ("layer", "name", "value"),
    [
        (ScaledAvgPool2d(2), "kernel_size", OtherSides((2, 2))),
        (nn.Conv2d(4, 4, 3), "stride", OtherSides((1, 1))),
        (nn.MaxPool2d(2, 1), "stride", OtherSides((1, 1))),
    ],
)
def test_numbers_that_python_and_torch_read_differently_are_refused(
    layer: nn.Module, name: str, value: Any
) -> None:
    setattr(layer, name, value)
    with pytest.raises(UnknownLipschitz, match="OtherSides"):
        lipschitz_bound(nn.Sequential(layer), SHAPE)


@pytest.mark.parametrize("sides", [[-3, 3, 0, 0], [3, -3, 0, 0], [-3, 3, -3, 3]])
def test_cropping_by_circular_padding_is_refused(sides: list[int]) -> None:
    # Torch returns uninitialised memory.
    conv = nn.Conv2d(4, 4, 1, padding_mode="circular")
    conv._reversed_padding_repeated_twice = sides
    for layer in (conv, nn.CircularPad2d(tuple(sides))):
        with pytest.raises(UnknownLipschitz, match="cropping"):
            lipschitz_bound(layer, SHAPE)


@pytest.mark.parametrize(
    "build",
    [
        lambda: torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())),
        lambda: Apply(lambda x: np.float32(3) * x),
    ],
    ids=["script", "number of numpy"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_cannot_be_traced_is_one_sentence(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(UnknownLipschitz):
        lipschitz_bound(build(), SHAPE)


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
