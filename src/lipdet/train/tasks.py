"""What a training teaches: objects by their boxes, or the class of every pixel.

The loop asks a task for the loss of a batch, for figures of held-out pictures, and for what
is decided once the best weights are there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from lipdet.boxes import AP_SELECTION, Decoder
from lipdet.boxes.coding import corners
from lipdet.checkpoint import load_detector, load_segmenter, save_detector
from lipdet.config import DetectorConfig, SegmenterConfig
from lipdet.detector import SSD, build_detector
from lipdet.detector.calibration import calibrated
from lipdet.detector.forward import BATCH_SIZE
from lipdet.detector.matching import PaddedTargets, match, pad_targets
from lipdet.detector.multibox import MultiboxLoss, multibox_loss, training_scores
from lipdet.detector.one_map import KINDS
from lipdet.evaluate.average_precision import average_precision
from lipdet.evaluate.run import detect_pack
from lipdet.evaluate.segmentation import confusion_of_pack, figures, sampled_pixels
from lipdet.evaluate.selection import choose_rules
from lipdet.progress import console
from lipdet.segmenter import Segmenter
from lipdet.segmenter.calibration import add_offsets, choose_offsets
from lipdet.segmenter.loss import PixelLoss, class_weights, labelled_weight, pixel_loss
from lipdet.train.setup import LEAST_HELD_OUT, Setup, objects_of, pixels_of_classes
from lipdet.types import RawOutput, Target

Network = TypeVar("Network", SSD, Segmenter)
Raw = TypeVar("Raw", RawOutput, Tensor)
Wanted = TypeVar("Wanted", PaddedTargets, Tensor)
# A mean over a batch, with the means that it is made of.
Loss = MultiboxLoss | PixelLoss


class Task(ABC, Generic[Network, Raw, Wanted]):
    """The answers of a kind of network to what the loop asks."""

    # Of a validation, and what they are called; the first one chooses the best weights.
    FIGURES: ClassVar[dict[str, str]]

    def __init__(self, setup: Setup, device: torch.device) -> None:
        self.job, _, _, self.validation = setup
        self.config, self.device = self.job.train, device
        self.held_out = [part for part in self.validation if len(part.indices)]

    @abstractmethod
    def collated(self, targets: Sequence[Target]) -> Wanted:
        """Return the targets of a batch as the loss takes them, on the device."""

    @abstractmethod
    def loss(self, network: Network, raw: Raw, wanted: Wanted, progress: float) -> Loss:
        """Return the loss of what the network gives for pictures.

        Args:
            network: that is trained.
            raw: its output.
            wanted: of `collated`.
            progress: the share of all steps that is done.
        """

    @abstractmethod
    def divisor(self, network: Network, wanted: Wanted) -> Tensor:
        """Return what a loss is divided by, if that is at least 1."""

    @abstractmethod
    def calibrated(self, averaged: Network) -> Network:
        """Return the averaged weights as they are validated and kept."""

    @abstractmethod
    def validate(self, network: Network) -> Mapping[str, Any] | None:
        """Return the figures on all held-out pictures together; None without any."""

    @abstractmethod
    def decide(self, file: Path) -> None:
        """Decide, once, what held-out pictures say of the best weights; keep it with them."""


class Boxes(Task[SSD, RawOutput, PaddedTargets]):
    """A detector learns boxes and classes of objects."""

    FIGURES: ClassVar[dict[str, str]] = {"ap50": "AP50", "ap": "AP"}

    def collated(self, targets: Sequence[Target]) -> PaddedTargets:
        """Return the objects of a batch."""
        return pad_targets(targets).to(self.device)

    def loss(self, network: SSD, raw: RawOutput, wanted: PaddedTargets, progress: float) -> Loss:
        """Return the multibox loss."""
        return multibox_loss(
            raw,
            wanted,
            self.decoder(network, progress),
            self.config.margin,
            self.config.localisation_weight,
            self.config.near_iou,
        )

    def decoder(self, network: SSD, progress: float) -> Decoder:
        """Return the detector's decoder, with the scores that are trained at this point."""
        progress = 1.0 if self.config.start_from else progress
        start, decoder = self.config.start_temperature, network.decoder
        return decoder._replace(scores=training_scores(decoder.scores, start, progress))

    def divisor(self, network: SSD, wanted: PaddedTargets) -> Tensor:
        """Return the number of positives."""
        return match(corners(network.default_boxes), wanted).positive.sum()

    def calibrated(self, averaged: SSD) -> SSD:
        """Shift the logits by held-out pictures, if there are any."""
        if not self.held_out:
            return averaged
        return calibrated(averaged, self.batches(), self.config.near_iou)

    def batches(self) -> Iterator[tuple[Tensor, PaddedTargets]]:
        """Yield held-out pictures (B, 3, H, W) in [0, 1] with their objects."""
        for part in self.held_out:
            for indices in np.array_split(part.indices, math.ceil(len(part.indices) / BATCH_SIZE)):
                images = part.pack.pixels(indices.tolist()).to(self.device)
                yield images, self.collated([part.pack.target(one) for one in indices.tolist()])

    def validate(self, network: SSD) -> Mapping[str, Any] | None:
        """Return average precision."""
        if not self.held_out:
            return None
        targets = [part.pack.target(index) for part in self.held_out for index in part.indices]
        found = [
            one
            for part in self.held_out
            for one in detect_pack(network, part.pack, part.indices.tolist(), AP_SELECTION)
        ]
        return average_precision(targets, found, self.job.detector.class_names)

    def decide(self, file: Path) -> None:
        """Choose how far boxes move, which may stand side by side, and which are shown.

        Only for architectures that read it from their configuration, where the job leaves it open
        and enough objects are held out.
        """
        asked = self.job.detector
        assert isinstance(asked, DetectorConfig)
        kind, given = KINDS.get(asked.architecture), (asked.nms_iou, asked.class_margin)
        if not kind or given != (None, None):
            return
        if len(objects_of(self.validation)[1]) < LEAST_HELD_OUT:
            return
        best = load_detector(str(file))
        if "shown_above" in best.info.get("rules", {}):
            return
        console.log(
            "Choosing how far boxes move, which may stand side by side, and which are shown; that "
            "can take minutes."
        )
        # With the rules before any choice, whatever an older training has chosen.
        network = build_detector(asked).eval()
        network.load_state_dict(best.detector.state_dict())
        choice = choose_rules(network.to(self.device), self.validation, kind.bounded)
        config = replace(
            best.detector.config, **choice.rules._asdict(), shown_above=choice.shown_above
        )
        save_detector(file, best.detector, config, {**best.info, "rules": choice.as_dict()})


class Pixels(Task[Segmenter, Tensor, Tensor]):
    """A segmenter learns the class of every labelled pixel."""

    FIGURES: ClassVar[dict[str, str]] = {"miou": "mean IoU", "accuracy": "pixel accuracy"}

    def __init__(self, setup: Setup, device: torch.device) -> None:
        super().__init__(setup, device)
        classes = len(self.job.detector.class_names)
        counts = pixels_of_classes(setup.training.parts, classes)
        self.weights = class_weights(torch.from_numpy(counts)).to(device)

    def collated(self, targets: Sequence[Target]) -> Tensor:
        """Return the masks of a batch, (B, H, W)."""
        return torch.stack([one["mask"] for one in targets]).to(self.device)

    def loss(self, network: Segmenter, raw: Tensor, wanted: Tensor, progress: float) -> Loss:
        """Return the loss of logits (B, K, H, W) with masks (B, H, W)."""
        return pixel_loss(raw, wanted, self.weights, network.temperature, self.config.margin)

    def divisor(self, network: Segmenter, wanted: Tensor) -> Tensor:
        """Return the weight of the labelled pixels."""
        return labelled_weight(wanted, self.weights)

    def calibrated(self, averaged: Segmenter) -> Segmenter:
        """Leave the weights as they are; offsets are decided once, at the end."""
        return averaged

    def validate(self, network: Segmenter) -> Mapping[str, Any] | None:
        """Return mean IoU and accuracy over all pixels."""
        if not self.held_out:
            return None
        counts = [
            confusion_of_pack(network, part.pack, part.indices.tolist()) for part in self.held_out
        ]
        return figures(sum(counts[1:], counts[0]), self.held_out[0].pack.class_names)

    def decide(self, file: Path) -> None:
        """Choose by how much each class is preferred."""
        best = load_segmenter(str(file))
        if not self.held_out or "offsets" in best.info:
            return
        sampled = [sampled_pixels(best.segmenter, one, self.config.seed) for one in self.held_out]
        logits, labels = (torch.cat(both) for both in zip(*sampled, strict=True))
        offsets = choose_offsets(logits, labels)
        add_offsets(best.segmenter, offsets)
        measured = self.validate(best.segmenter) or {}
        told = [f"{name} {100 * measured[key]:.1f}" for key, name in self.FIGURES.items()]
        console.log(f"With offsets of classes chosen on held-out pictures: {', '.join(told)}")
        info = {**best.info, "offsets": offsets.tolist()}
        save_detector(file, best.segmenter, self.job.detector, info)


def task_of(setup: Setup, device: torch.device) -> Task[Any, Any, Any]:
    """Return the task of a job's network."""
    kind = Pixels if isinstance(setup.job.detector, SegmenterConfig) else Boxes
    return kind(setup, device)
