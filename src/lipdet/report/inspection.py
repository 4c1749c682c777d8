"""Inspect a network: all that a report tells of it beside the results of `lipdet eval`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import torch

from lipdet.attack import AttackSettings
from lipdet.checkpoint import LoadedDetector, LoadedSegmenter
from lipdet.detector import SSD
from lipdet.errors import UnknownLipschitz
from lipdet.evaluate.attacked import Campaign, prepare
from lipdet.evaluate.segmentation import check_pack, evaluate_segmenter
from lipdet.images.pack import Pack
from lipdet.lipschitz.profile import LayerRow
from lipdet.report.architecture import Architecture, describe_architecture
from lipdet.report.lipschitz import (
    DetectorProfile,
    SegmenterProfile,
    pixel_bounds,
    profile_detector,
    profile_segmenter,
)
from lipdet.report.scenes import PixelScene, Scene, pixel_scenes, scenes
from lipdet.results import SegmentationResult

# Power iteration takes a dozen passes per layer for each picture.
OBSERVED = 2
TIMED_BATCH = 32
TIMED_RUNS = 3


class Speed(TypedDict):
    """Speed of forward passes on this machine, and how it was timed."""

    images_per_second: float
    batch: int
    device: str
    threads: int


@dataclass(frozen=True)
class Inspection:
    """One detector.

    Attributes:
        loaded: the detector.
        speed: of forward passes.
        architecture: what runs.
        layers: its Lipschitz profile; none where a layer has no bound.
        lipschitz: as `lipdet lipschitz --json`, or a sentence that says why there is none.
        scenes: what it sees in some pictures; none where no radius was given.
    """

    loaded: LoadedDetector
    speed: Speed
    architecture: Architecture
    layers: Sequence[LayerRow]
    lipschitz: DetectorProfile | str
    scenes: Sequence[Scene]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for json."""
        return {
            "weights": self.loaded.name,
            "speed": self.speed,
            "architecture": asdict(self.architecture),
            "lipschitz": self.lipschitz,
            "pictures": [scene.as_dict() for scene in self.scenes],
            "file": self.loaded.info,
        }


def inspect_detector(
    loaded: LoadedDetector, pack: Pack, shown: Sequence[int], attacks: Sequence[AttackSettings]
) -> Inspection:
    """Measure speed, constants and what the detector sees in some pictures.

    Args:
        loaded: a detector.
        pack: pictures of its input size.
        shown: indices of the pictures that are attacked and shown.
        attacks: at one ε; none to show no pictures.
    """
    detector, pack = loaded.detector, pack.in_classes(loaded.class_names)
    layers: Sequence[LayerRow] = ()
    lipschitz: DetectorProfile | str
    try:
        layers, lipschitz, _ = profile_detector(loaded, pack.head(OBSERVED))
    except UnknownLipschitz as error:
        lipschitz = str(error)
    return Inspection(
        loaded,
        time_forward(detector, pack),
        describe_architecture(detector),
        layers,
        lipschitz,
        scenes(loaded.name, detector, pack, shown, attacks) if attacks else (),
    )


@dataclass(frozen=True)
class SegmenterInspection:
    """All that a page tells of a segmenter beside the result of `lipdet eval`.

    Attributes:
        loaded: the segmenter.
        layers: its Lipschitz profile; none where a layer has no bound.
        lipschitz: as `lipdet lipschitz --json`, or a sentence that says why there is none.
        scenes: what it sees in some pictures; none where no radius was given.
    """

    loaded: LoadedSegmenter
    layers: Sequence[LayerRow]
    lipschitz: SegmenterProfile | str
    scenes: Sequence[PixelScene]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for json."""
        return {
            "weights": self.loaded.name,
            "speed": None,
            "lipschitz": self.lipschitz,
            "pictures": [scene.as_dict() for scene in self.scenes],
            "file": self.loaded.info,
        }


def inspect_segmenter(
    loaded: LoadedSegmenter,
    pack: Pack,
    seed: int,
    campaign: Campaign | None,
    shown: Sequence[int],
) -> tuple[SegmentationResult, SegmenterInspection]:
    """Measure a segmenter, clean, attacked and certified where it can be, and look at pictures.

    Args:
        loaded: the segmenter.
        pack: pictures with masks.
        seed: the one that the pack was made with.
        campaign: attacks with `PixelSettings`, whose radii are those of certificates; or None.
        shown: indices of the pictures that are attacked, at the first radius, and shown.

    Raises:
        InputError: the pack has no masks, or other classes.
    """
    check_pack(loaded, pack)
    found = pixel_bounds(loaded.segmenter, pack)
    bounds = None if isinstance(found, str) else found
    certify = campaign.epsilons if campaign and bounds else ()
    result = evaluate_segmenter(loaded, pack, seed, campaign, certify, bounds)
    scenes: list[PixelScene] = []
    if campaign:
        attacks = campaign.attacks(campaign.epsilons[0])
        scenes = pixel_scenes(loaded, pack, shown, attacks, bounds)
    layers: list[LayerRow] = []
    lipschitz: SegmenterProfile | str
    try:
        layers, lipschitz = profile_segmenter(loaded, pack.head(OBSERVED), found)
    except UnknownLipschitz as error:
        lipschitz = str(error)
    return result, SegmenterInspection(loaded, layers, lipschitz, scenes)


@torch.inference_mode()
def time_forward(detector: SSD, pack: Pack) -> Speed:
    """Time forward passes in float32 on this machine; of three runs the fastest counts."""
    prepared = prepare(detector)
    part = pack.head(TIMED_BATCH)
    images = part.pixels(range(len(part))).to(detector.default_boxes)
    prepared(images)
    seconds = []
    for _ in range(TIMED_RUNS):
        started = time.perf_counter()
        prepared(images)
        if images.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return {
        "images_per_second": len(images) / min(seconds),
        "batch": len(images),
        "device": images.device.type,
        "threads": torch.get_num_threads(),
    }
