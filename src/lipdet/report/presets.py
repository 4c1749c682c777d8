"""Drawings of the presets: what `lipdet train` can make, beside the detectors of a report."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

import torch

from lipdet.config import PRESETS, DetectorConfig
from lipdet.detector import build_detector
from lipdet.report.architecture import Architecture, describe_architecture, draw_architecture
from lipdet.report.style import Drawing

PREFIX = "preset-"


def draw_presets(without: Collection[DetectorConfig]) -> list[Drawing]:
    """Return one drawing for each architecture among the presets, named `preset-NAME`.

    Args:
        without: architectures that are drawn elsewhere.
    """
    names = {preset.detector: name for name, preset in reversed(PRESETS.items())}
    return [
        draw_architecture(name, _architecture(config))._replace(name=f"{PREFIX}{name}")
        for config, name in reversed(names.items())
        if config not in without
    ]


@cache
def _architecture(config: DetectorConfig) -> Architecture:
    # The weights do not show, and the caller's random numbers go on as if none were drawn here.
    with torch.random.fork_rng():
        return describe_architecture(build_detector(config))
