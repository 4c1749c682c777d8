"""Autocast, torch.compile and DistributedDataParallel."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lipdet.layers import (
    AOLConv2d,
    BCOPConv2d,
    ConstructedWeight,
    CPLBlock,
    L2NormConv2d,
    MaxMin,
    SLLBlock,
    SpectralConv2d,
)

BUILDERS = [
    lambda: AOLConv2d(4, 4, 3, padding=1),
    lambda: BCOPConv2d(4, 6, 3, padding=1),
    lambda: SpectralConv2d(4, 4, 3),
    lambda: L2NormConv2d(4, 4, 3),
    lambda: SLLBlock(4),
    lambda: CPLBlock(4),
]


@pytest.mark.parametrize("build", BUILDERS)
def test_autocast_leaves_the_weight_alone(build: object) -> None:
    layer: ConstructedWeight = build()  # type: ignore[operator]
    expected = layer.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.weight.dtype == torch.float32
        assert torch.equal(layer.weight, expected)
        y = layer(torch.randn(1, 4, 5, 5))
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("build", BUILDERS)
def test_gradients_are_finite_even_from_zero_weights(build: object) -> None:
    torch.manual_seed(0)
    layer: ConstructedWeight = build()  # type: ignore[operator]
    for reset in (nn.init.normal_, nn.init.zeros_):
        for parameter in layer.parameters():
            reset(parameter)
        layer.zero_grad()
        layer(torch.randn(2, 4, 5, 5)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("build", BUILDERS)
def test_compiles_without_graph_breaks(build: object) -> None:
    # Oracle: the same layer in eager mode.
    torch.compiler.reset()
    torch.manual_seed(0)
    layer: ConstructedWeight = build()  # type: ignore[operator]
    twin = copy.deepcopy(layer)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.randn(2, 4, 5, 5)
    for model in (compiled, twin):
        model(x).square().sum().backward()
    for ours, expected in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)
    layer.eval()
    twin.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), twin(x))


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_trains_under_distributed_data_parallel() -> None:
    # Oracle: the same model without the wrapper, over two steps.
    torch.manual_seed(0)
    model = nn.Sequential(BCOPConv2d(4, 4, 3, padding=1), MaxMin(), SLLBlock(4), AOLConv2d(4, 4, 3))
    twin = copy.deepcopy(model)
    x = torch.randn(2, 4, 5, 5)
    for net, parameters in (
        (nn.parallel.DistributedDataParallel(model), model.parameters()),
        (twin, twin.parameters()),
    ):
        optimizer = torch.optim.SGD(parameters, 0.01)
        for _ in range(2):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    for ours, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)
