"""The reference experiment's SLL detectors: size, shapes, constants, trainability."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lipdet.certificate import lipschitz_bound, output_bounds
from lipdet.checkpoint import BEST, load_detector
from lipdet.config import PRESETS, DetectorConfig
from lipdet.detector import build_detector
from lipdet.detector.sll_ssd import BLOCKS, SLLBackbone
from lipdet.images.pack import Pack
from lipdet.train import train
from lipdet.train.job import Job

SMALL = [name for name in PRESETS if name.startswith("sll-") and name.endswith("-small")]


def parameters(width: int) -> int:
    """By hand: an entry, twelve blocks (kernel, bias, q), four heads of 4·(11 + 4) filters."""
    entry = 27 * width + width
    block = 9 * width**2 + 2 * width
    head = 60 * (9 * width + 1)
    return entry + sum(BLOCKS) * block + 4 * head


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("sll")])
def test_number_of_parameters(name: str) -> None:
    config = PRESETS[name].detector
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build_detector(config).parameters())
    assert count == parameters(config.width)
    if name not in SMALL:
        # The reference experiment says "about 7 million".
        assert 6.5e6 < count < 7.5e6


@pytest.mark.parametrize("name", SMALL)
def test_shapes_and_background(name: str) -> None:
    torch.manual_seed(0)
    detector = build_detector(PRESETS[name].detector).eval()
    with torch.no_grad():
        raw = detector(torch.rand(2, 3, 74, 74))
    assert raw.logits.shape == (2, 1700, 11)
    assert raw.offsets.shape == (2, 1700, 4)
    assert (raw.logits.argmax(dim=2) == 0).all()


@pytest.mark.slow
def test_the_body_adds_nothing() -> None:
    torch.manual_seed(0)
    # An identity entry leaves the body alone, up to one rounding of each constructed weight.
    body = SLLBackbone(torch.nn.Identity(), width=4).eval()
    parts = [lipschitz_bound(stage, (4, 8, 8)) for stage in body.stages]
    assert max(parts) <= 1 + 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sll-spectral", "sll-l2"])
def test_constants_of_the_edges(architecture: str) -> None:
    torch.manual_seed(0)
    detector = build_detector(DetectorConfig(architecture, width=8)).eval()
    bounds = output_bounds(detector)
    assert len(bounds.features) == 4
    if architecture == "sll-spectral":
        # Two from the mapping to [-1, 1], one from everything behind it.
        assert max(bounds.features) <= 2 * (1 + 1e-4)
        assert bounds.logits.max() <= 2 * (1 + 1e-4)
    if architecture == "sll-l2":
        # Unit-norm filters: each output's constant is at most that of its features.
        assert bounds.logits.max() <= max(bounds.features) * (1 + 1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_presets_train(name: str, house_numbers: Pack, tmp_path: Path) -> None:
    preset = PRESETS[name]
    detector = replace(preset.detector, width=8)
    settings = replace(preset.train, epochs=1, epoch_pictures=4, batch_size=4)
    job = Job(name, detector, settings, (str(house_numbers.folder),), ())
    train(job, tmp_path / "run")
    assert load_detector(str(tmp_path / "run" / BEST)).detector.config == detector
