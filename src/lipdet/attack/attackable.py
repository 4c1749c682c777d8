"""What attacks and evaluations ask of a detector, answered by lipdet's own.

`foreign` answers the same for detectors that lipdet did not build.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lipdet.attack.loop import Objective
from lipdet.attack.objectives import OBJECTIVES, scene_of
from lipdet.attack.settings import AttackSettings
from lipdet.boxes import Selection
from lipdet.detector import SSD
from lipdet.detector.forward import detect_images, frozen
from lipdet.types import Detections, RawOutput, Target

# Images whose activations are held at a time.
MOST_AT_ONCE = 32


class Attackable(Protocol):
    """A detector of pictures whose labels count from 0."""

    @property
    def device(self) -> torch.device:
        """Return the device it computes on."""

    @property
    def at_once(self) -> int:
        """Return the number of images that are attacked at a time."""

    @property
    def display(self) -> Selection:
        """Return which of its detections are shown."""

    def detect(self, images: Tensor, selection: Selection) -> list[Detections]:
        """Detect on images (B, 3, H, W) in [0, 1], in eval mode; return to the CPU."""

    def can_raise(self, objective: str) -> bool:
        """Return whether there is what an objective reads."""

    def raising(
        self, objective: str
    ) -> AbstractContextManager[Callable[[Sequence[Target]], Objective]]:
        """Freeze the detector; meanwhile, targets of images give what an attack on them raises."""


@dataclass(frozen=True)
class AttackableSSD:
    """A detector of lipdet's, attacked by its raw output."""

    detector: SSD
    at_once = MOST_AT_ONCE

    @property
    def device(self) -> torch.device:
        """Return the device it computes on."""
        return self.detector.default_boxes.device

    @property
    def display(self) -> Selection:
        """Return which of its detections are shown."""
        return self.detector.display

    def detect(self, images: Tensor, selection: Selection) -> list[Detections]:
        """Detect on images (B, 3, H, W) in [0, 1], in the detector's precision."""
        return detect_images(self.detector, images, selection)

    def can_raise(self, objective: str) -> bool:
        """Return whether there is such an objective: all read boxes and logits."""
        return objective in OBJECTIVES

    @contextmanager
    def raising(self, objective: str) -> Iterator[Callable[[Sequence[Target]], Objective]]:
        """Freeze the detector; meanwhile, give what an attack on images with targets raises."""
        detector, value = self.detector, OBJECTIVES[objective]
        decoder = detector.decoder

        def of(targets: Sequence[Target]) -> Objective:
            scene = scene_of(targets, decoder)
            return lambda batch, rows: value(exact(detector(batch)), scene.at(rows), decoder)

        with frozen(detector):
            yield of


def attackable(detector: SSD | Attackable) -> Attackable:
    """Return what attacks ask a detector through."""
    return AttackableSSD(detector) if isinstance(detector, SSD) else detector


def raisable(detector: SSD | Attackable, attacks: Sequence[AttackSettings]) -> list[AttackSettings]:
    """Leave out the attacks on losses that a detector does not have, unless no other is left."""
    victim = attackable(detector)
    return [one for one in attacks if victim.can_raise(one.objective)] or list(attacks)


def exact(raw: RawOutput) -> RawOutput:
    """Return raw output in float32 at least: under autocast, networks return bf16."""
    return RawOutput(*(part.to(torch.promote_types(part.dtype, torch.float32)) for part in raw))
