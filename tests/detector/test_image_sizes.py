"""Which image sizes each detector takes, and that all others are refused in one sentence."""

from __future__ import annotations

import pytest
import torch

from lipdet.config import DetectorConfig
from lipdet.detector import build_detector
from lipdet.errors import InputError
from lipdet.types import Canvas

# By hand, from kernels and strides of the poolings: 18, 9, 4 and 2 cells come out of these alone.
FIXED = {"tinier-ssd": (74, 77), "sll-conv": (72, 75)}


def config(architecture: str, size: int) -> DetectorConfig:
    width = {"tinier-ssd": 0, "sll-conv": 8}[architecture]
    return DetectorConfig(architecture, ("a",), Canvas(size, size), width=width)


@pytest.mark.parametrize(
    ("architecture", "size"),
    [(name, size) for name, ends in FIXED.items() for size in ends],
)
def test_as_many_outputs_as_default_boxes(architecture: str, size: int) -> None:
    detector = build_detector(config(architecture, size)).eval()
    with torch.no_grad():
        raw = detector(torch.zeros(1, 3, size, size))
    assert raw.logits.shape[1] == raw.offsets.shape[1] == len(detector.default_boxes)


@pytest.mark.parametrize(("architecture", "size"), [(n, s) for n, e in FIXED.items() for s in e])
def test_the_next_sizes_are_refused(architecture: str, size: int) -> None:
    smallest, largest = FIXED[architecture]
    beyond = smallest - 1 if size == smallest else largest + 1
    with pytest.raises(
        InputError,
        match=f"{architecture} .* of {smallest} to {largest}, not {beyond}x{beyond}; the presets",
    ):
        build_detector(config(architecture, beyond))
