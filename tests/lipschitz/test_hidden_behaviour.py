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
from lipdet.errors import UnknownLipschitz
from lipdet.layers import Householder

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


class Mixing(nn.Module):
    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)


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
        lipschitz_bound(Mixing(mix), SHAPE)


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


def test_cropping_by_circular_padding_is_refused() -> None:
    # Torch returns uninitialised memory.
    with pytest.raises(UnknownLipschitz, match="cropping"):
        lipschitz_bound(nn.CircularPad2d((3, -3, 0, 0)), SHAPE)


@pytest.mark.parametrize(
    "build",
    [
        lambda: torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())),
        lambda: Mixing(lambda x: np.float32(3) * x),
    ],
    ids=["script", "number of numpy"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_cannot_be_traced_is_one_sentence(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(UnknownLipschitz):
        lipschitz_bound(build(), SHAPE)
