"""Detectors: image to raw output, and the loss that trains them."""

from collections.abc import Callable

from lipdet.config import DetectorConfig
from lipdet.detector.one_map import KINDS, one_map_ssd
from lipdet.detector.sll_ssd import EDGES, sll_ssd
from lipdet.detector.ssd import SSD
from lipdet.detector.tinier_ssd import tinier_ssd

ARCHITECTURES: dict[str, Callable[[DetectorConfig], SSD]] = {
    "tinier-ssd": tinier_ssd,
    **dict.fromkeys(KINDS, one_map_ssd),
    **dict.fromkeys(EDGES, sll_ssd),
}

__all__ = ["SSD", "build_detector"]


def build_detector(config: DetectorConfig) -> SSD:
    """Return a detector with random weights, as `config` describes it."""
    return ARCHITECTURES[config.architecture](config)
