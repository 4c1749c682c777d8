"""A cached weight is never a stale one."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lipdet.certificate import lipschitz_bound
from lipdet.config import PRESETS
from lipdet.detector import build_detector
from lipdet.detector.forward import raw_output
from lipdet.layers import AOLConv2d, L2NormConv2d, SLLBlock, SpectralConv2d, UnitNormConv2d
from lipdet.layers.base import ConstructedWeight
from lipdet.types import Canvas


class Counted(AOLConv2d):
    """Counts how often its weight is built."""

    built = 0

    def construct(self) -> Tensor:
        type(self).built += 1
        return super().construct()


@pytest.fixture
def layer() -> Counted:
    torch.manual_seed(0)
    layer = Counted(2, 2, 3, padding=1)
    nn.init.normal_(layer.raw)
    Counted.built = 0
    return layer.eval()


X = torch.ones(1, 2, 4, 4)


@torch.no_grad()
def _fresh(layer: Counted) -> Tensor:
    """Oracle: the weight built from the parameters as they are now."""
    return AOLConv2d.construct(layer).to(layer.raw.dtype)


def test_built_once_in_eval_without_gradients(layer: Counted) -> None:
    with torch.no_grad():
        layer(X)
        layer(X)
    with torch.inference_mode():
        layer(X)
    assert Counted.built == 1


def test_built_once_for_a_frozen_layer_even_with_gradients(layer: Counted) -> None:
    layer.requires_grad_(False)
    x = X.clone().requires_grad_()
    layer(x).sum().backward()
    layer(x).sum().backward()
    assert Counted.built == 1


@torch.no_grad()
def test_train_and_eval_drop_the_cache(layer: Counted) -> None:
    layer(X)
    layer.raw.data.mul_(torch.rand_like(layer.raw))  # torch does not record this write
    assert not torch.equal(layer.weight, _fresh(layer))
    layer.eval()
    assert torch.equal(layer.weight, _fresh(layer))


def _load(layer: Counted, assign: bool) -> None:
    state = {f"0.0.{name}": torch.randn_like(value) for name, value in layer.state_dict().items()}
    nn.Sequential(nn.Sequential(layer)).load_state_dict(state, assign=assign)


CHANGES: dict[str, Callable[[Counted], object]] = {
    "in place": lambda layer: layer.raw.mul_(torch.rand_like(layer.raw)),
    "loaded": lambda layer: _load(layer, assign=False),
    "assigned": lambda layer: _load(layer, assign=True),
    "moved": lambda layer: nn.Sequential(layer).double(),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_parameters_drops_the_cache(
    layer: Counted, change: Callable[[Counted], object]
) -> None:
    before = layer.weight
    change(layer)
    assert layer.weight.dtype == layer.raw.dtype
    assert not torch.equal(layer.weight, before.to(layer.raw))
    assert torch.equal(layer.weight, _fresh(layer))


@torch.no_grad()
def test_copies_do_not_share_the_cache(layer: Counted) -> None:
    layer(X)
    twin = copy.deepcopy(layer)
    nn.init.normal_(twin.raw)
    assert torch.equal(twin.weight, _fresh(twin))
    assert torch.equal(layer.weight, _fresh(layer))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded._kept is None
    assert torch.equal(loaded.weight, layer.weight)


@torch.no_grad()
def test_functional_call_uses_the_parameters_it_is_given(layer: Counted) -> None:
    layer(X)
    other = {"raw": torch.randn_like(layer.raw), "bias": torch.zeros(2)}
    y = torch.func.functional_call(layer, other, X)
    layer.raw.copy_(other["raw"])
    assert torch.equal(y, layer(X))


def test_a_cache_that_another_thread_drops_meanwhile_is_not_missed(
    layer: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer.requires_grad_(False)
    expected = layer.weight.clone()
    parameters = layer.parameters

    def disturbed() -> Iterator[nn.Parameter]:
        yield from parameters()
        # The worst moment: the parameters have been found unchanged, the weight is not yet read.
        layer.drop_cache()

    monkeypatch.setattr(layer, "parameters", disturbed)
    assert torch.equal(layer.weight, expected)
    assert torch.equal(layer.weight, expected)


@torch.no_grad()
@pytest.mark.parametrize("write", [lambda w: w.mul_(10), nn.init.kaiming_normal_, Tensor.zero_])
@pytest.mark.parametrize("build", [lambda: AOLConv2d(2, 2, 3, padding=1), lambda: SLLBlock(2)])
def test_the_weight_that_is_handed_out_is_a_copy(
    write: Callable[[Tensor], object], build: Callable[[], ConstructedWeight]
) -> None:
    layer = build().eval()
    expected = layer(X)
    write(layer.weight)
    assert torch.equal(layer(X), expected)


@torch.no_grad()
def test_an_assigned_attribute_drops_the_cache() -> None:
    layer = SpectralConv2d(2, 2, 3, stride=3).eval()
    layer(X)
    layer.stride = (1, 1)
    # Oracle: a layer that never had another stride.
    fresh = SpectralConv2d(2, 2, 3)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(layer.weight, fresh.weight)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad])
def test_a_step_that_torch_does_not_record_follows_a_use_with_gradients(
    layer: Counted, kind: Callable[..., torch.optim.Optimizer]
) -> None:
    with torch.no_grad():
        layer(X)
    layer(X).square().sum().backward()
    kind(layer.parameters(), lr=0.5, fused=True).step()
    with torch.no_grad():
        assert torch.equal(layer.weight, _fresh(layer))


def _by_data(raw: nn.Parameter) -> None:
    raw.data.copy_(raw.roll(1, 0).detach() * torch.rand_like(raw))


def _by_vector(raw: nn.Parameter) -> None:
    vector = torch.nn.utils.parameters_to_vector([raw]).detach()
    torch.nn.utils.vector_to_parameters(vector * torch.rand_like(vector), [raw])


def _by_numpy(raw: nn.Parameter) -> None:
    raw.detach().numpy()[:] = 0


def _by_optimiser(raw: nn.Parameter) -> None:
    raw.grad = torch.rand_like(raw)
    torch.optim.SGD([raw], lr=1.0, fused=True).step()


UNRECORDED = [_by_data, _by_vector, _by_numpy, _by_optimiser]


@torch.no_grad()
@pytest.mark.parametrize("write", UNRECORDED)
def test_a_bound_is_of_the_weight_that_then_runs(write: Callable[[nn.Parameter], None]) -> None:
    torch.manual_seed(0)
    layer = L2NormConv2d(2, 2, 1, bias=False).eval()
    layer(X)
    before = layer.weight
    write(layer.raw)
    assert torch.equal(layer.weight, before)
    bound = lipschitz_bound(nn.Sequential(layer), (2, 4, 4))
    # Oracle: SVD of the matrix that acts on each pixel of what the layer gives.
    columns = layer(torch.eye(2)[:, :, None, None])[:, :, 0, 0].double()
    norm = float(torch.linalg.matrix_norm(columns, 2))
    assert bound == pytest.approx(norm, rel=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("write", UNRECORDED)
def test_outputs_that_are_certified_are_of_fresh_weights(
    write: Callable[[nn.Parameter], None],
) -> None:
    config = replace(PRESETS["certified-small"].detector, canvas=Canvas(34, 34))
    detector = build_detector(config).eval()
    images = torch.rand(1, 3, 34, 34)
    before = raw_output(detector, images)
    layer = detector.heads[0].classification
    assert isinstance(layer, UnitNormConv2d)
    write(layer.raw)
    found = raw_output(detector, images)
    assert not torch.equal(found.logits, before.logits)
    # Oracle: a copy, which takes no kept weight along.
    assert torch.equal(found.logits, copy.deepcopy(detector)(images).logits)
