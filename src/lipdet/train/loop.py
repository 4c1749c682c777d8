"""The loop of a training, from the first step to the best weights on held-out pictures.

Notable choices:
- Every batch and every augmentation depends on (seed, step) alone, so that a training that was
  killed goes on as if nothing had happened: bit for bit in float32.
- Of several processes each takes its part of every such batch, and all take the same step. The
  first alone validates and writes.
- The weights that are validated and kept are the moving average, evaluated in float32.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch

from lipdet import distributed
from lipdet.attack import AttackSettings, attack_batch
from lipdet.batch_norm import share_batch_statistics
from lipdet.boxes import AP_SELECTION, Decoder
from lipdet.boxes.coding import corners
from lipdet.checkpoint import BEST, load_detector, load_segmenter, save_detector
from lipdet.config import DetectorConfig, SegmenterConfig
from lipdet.detector import SSD
from lipdet.detector.calibration import calibrated
from lipdet.detector.forward import BATCH_SIZE
from lipdet.detector.matching import PaddedTargets, match, pad_targets
from lipdet.detector.multibox import multibox_loss, training_scores
from lipdet.detector.one_map import KINDS
from lipdet.errors import InputError, NonFiniteLossError
from lipdet.evaluate.average_precision import average_precision
from lipdet.evaluate.run import detect_pack
from lipdet.evaluate.segmentation import confusion_of_pack, figures, sampled_pixels
from lipdet.evaluate.selection import choose_rules
from lipdet.hardware import chosen_device, computes_in_bf16, keep_freed_memory
from lipdet.images.augment import augment
from lipdet.images.batches import Part
from lipdet.progress import console, progress_bar
from lipdet.segmenter.calibration import add_offsets, choose_offsets
from lipdet.segmenter.loss import class_weights, labelled_weight, pixel_loss
from lipdet.train.job import Job, save_job
from lipdet.train.log import Stopwatch, TrainLog, check_tensorboard
from lipdet.train.setup import (
    LEAST_HELD_OUT,
    Setup,
    objects_of,
    pixels_of_classes,
    set_up,
    summary_of,
)
from lipdet.train.state import STATE, TrainState
from lipdet.types import Target
from lipdet.versions import versions

LOG_EVERY = 20


class Loss(Protocol):
    """A mean over a batch, and the means that it is made of."""

    @property
    def total(self) -> torch.Tensor:
        """What is minimised."""

    @property
    def parts(self) -> dict[str, torch.Tensor]:
        """What the log shows besides the total, which is linear in them; none if it is alone."""

    def with_means(self, means: torch.Tensor, /) -> Self:
        """Return the loss of a larger batch, of whose parts, or whose total, the means are."""


def train(job: Job, run: Path, resume: bool = False) -> Path:
    """Train to the end and return the file of the best weights.

    The run folder receives `run.json`, `log.jsonl`, `last.safetensors` (to resume) and
    `best.safetensors` (a DETECTOR). What its boxes suppress is chosen last, by held-out pictures.

    Args:
        job: what to train.
        run: the run folder; new, unless `resume`.
        resume: go on from the last checkpoint, if there is one.

    Raises:
        InputError: data or folder cannot be used, or are not those of the run to be resumed.
        NonFiniteLossError: the loss became infinite or NaN.
        KeyboardInterrupt: interrupted; the state is kept.
    """
    leads = distributed.rank() == 0
    # Refused before anything is read.
    distributed.own_part(job.train.batch_size)
    if leads and run.exists() and not resume:
        raise InputError(f"{run} exists already; choose another --out, or add --resume.")
    if job.train.tensorboard:
        check_tensorboard()
    keep_freed_memory()
    if job.train.threads:
        torch.set_num_threads(job.train.threads)
    setup = set_up(job)
    if leads:
        console.log(summary_of(setup))
    is_segmenter = isinstance(setup.job.detector, SegmenterConfig)
    trainer = (SegmenterTrainer if is_segmenter else Trainer)(setup, run)
    if leads:
        run.mkdir(parents=True, exist_ok=True)
        if (run / STATE).exists():
            trainer.state.restore(run, trainer.provenance)
        save_job(setup.job, run)
    trainer.state.share(run)
    step, tensorboard = trainer.state.step, job.train.tensorboard
    with (
        TrainLog(run, step, tensorboard) if leads else nullcontext() as log,
        _interruption() as numbers,
    ):
        trainer.run_all(log, numbers)
    if leads:
        trainer.choose_rules()
    return run / BEST


class Trainer:
    """The loop and what it needs of a detector; `run_all` is the way in."""

    # Of a validation, and what they are called; the first one chooses the best weights.
    FIGURES: ClassVar[dict[str, str]] = {"ap50": "AP50", "ap": "AP"}

    def __init__(self, setup: Setup, run: Path) -> None:
        self.job, detector, self.training, self.validation = setup
        self.config, self.run = self.job.train, run
        self.device = chosen_device()
        self.own_part = distributed.own_part(self.config.batch_size)
        share_batch_statistics(detector)
        detector = detector.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.state = TrainState.start(detector, self.config)
        self.total_steps = self.config.epochs * self.training.batches_per_epoch
        self.bf16 = self.config.precision == "bf16" or (
            self.config.precision == "auto" and computes_in_bf16(self.device)
        )
        self.watch, self.watched_from = Stopwatch(), 0
        self.provenance = {
            "training": self.job.as_dict(),
            "training_data": [part.pack.describe() for part in self.training.parts],
            "versions": versions(),
        }

    def run_all(self, log: TrainLog | None, numbers: list[int]) -> None:
        """Take all steps that are left, with validation after epochs and regular checkpoints.

        Without a log, another process validates and writes the checkpoints.
        """
        per_epoch = self.training.batches_per_epoch
        saved = time.monotonic()
        self.restart_watch()
        with progress_bar() as bar:
            task = bar.add_task("Training", total=self.total_steps, completed=self.state.step)
            while self.state.step < self.total_steps:
                epoch, index = divmod(self.state.step, per_epoch)
                loss, norm = self.step(epoch, index)
                bar.update(task, advance=1, description=f"Training, loss {loss.total.item():.2f}")
                if log and self.state.step % LOG_EVERY == 0:
                    self.log_step(log, epoch, loss, norm)
                if log and index + 1 == per_epoch:
                    self.finish_epoch(log, epoch)
                stops = distributed.any_of(bool(numbers))
                out_of_time = time.monotonic() - saved >= self.config.checkpoint_seconds
                if log and (index + 1 == per_epoch or out_of_time or stops):
                    self.state.save(self.run, self.provenance)
                    saved = time.monotonic()
                if stops:
                    raise KeyboardInterrupt(*numbers)

    def step(self, epoch: int, index: int) -> tuple[Loss, float]:
        """Take one optimizer step on one batch; return its loss and the gradient's norm."""
        detector, optimizer, part = self.state.detector, self.state.optimizer, self.watch.part
        with part("load"):
            images, targets = self.load(epoch, index)
        detector.train()
        with part("forward"), torch.autocast(self.device.type, torch.bfloat16, self.bf16):
            raw = detector(images)
        with part("loss"):
            loss = self.loss(raw, targets)
        with part("backward"):
            optimizer.zero_grad()
            if distributed.size() > 1:
                loss = self.backward_of_all(loss, targets)
            else:
                loss.total.backward()  # type: ignore[no-untyped-call]
        with part("update"):
            parameters = detector.parameters()
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip).item()
            if not math.isfinite(norm) or not math.isfinite(loss.total.item()):
                raise NonFiniteLossError(
                    f"Step {self.state.step + 1}: the loss is {loss.total.item()} and its gradient "
                    f"has norm {norm}; nothing after the last checkpoint in {self.run} was kept. "
                    "Try a smaller --learning_rate or --precision float32."
                )
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate()
            optimizer.step()
            self.state.average.update_parameters(detector)
        self.state.step += 1
        return loss, norm

    def loss(self, raw: Any, targets: Any) -> Loss:
        """Return the loss of what the network gives for pictures, with what `collated` gave."""
        return multibox_loss(
            raw,
            targets,
            self.decoder(),
            self.config.margin,
            self.config.localisation_weight,
            self.config.near_iou,
        )

    def collated(self, targets: Sequence[Target]) -> Any:
        """Return the targets of a batch as the loss takes them, on the device."""
        return pad_targets(targets).to(self.device)

    def divisor(self, targets: Any) -> torch.Tensor:
        """Return what a loss is divided by, if that is at least 1: here the positives."""
        return match(corners(self.ssd.default_boxes), targets).positive.sum()

    def backward_of_all(self, loss: Loss, targets: Any) -> Loss:
        """Take the gradient of the loss of the whole batch; returns that loss.

        Every loss is a sum over pictures divided by what `divisor` counts in them, or by 1 if that
        is less. So the sums are added, and divided by that of all. Hard negatives are chosen in
        each picture by itself.

        Args:
            loss: of this process's part of the batch.
            targets: of the same part.
        """
        counted = self.divisor(targets)
        own = counted.clamp(min=1)
        (loss.total * own).backward()  # type: ignore[no-untyped-call]
        parts = list(loss.parts.values()) or [loss.total]
        sums = torch.stack([*(own * one.detach() for one in parts), counted.float()])
        gradients = [one.grad for one in self.state.detector.parameters() if one.grad is not None]
        distributed.add_up([*gradients, sums])
        whole = sums[-1].clamp(min=1)
        for gradient in gradients:
            gradient /= whole
        return loss.with_means(sums[:-1] / whole)

    @property
    def ssd(self) -> SSD:
        """The detector that is trained."""
        assert isinstance(self.state.detector, SSD)
        return self.state.detector

    def decoder(self) -> Decoder:
        """Return the detector's decoder, with the scores that this step trains."""
        decoder = self.ssd.decoder
        progress = 1.0 if self.config.start_from else self.state.step / self.total_steps
        return decoder._replace(
            scores=training_scores(decoder.scores, self.config.start_temperature, progress)
        )

    def load(self, epoch: int, index: int) -> tuple[torch.Tensor, Any]:
        """This process's images (B, 3, H, W) in [0, 1], channels last, and targets, on the device.

        The random choices are those of the whole batch, whoever takes which part.
        """
        batch = self.training.batch(epoch, index)
        images = batch.images.to(self.device).float() / 255
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.state.step)
        changes = self.config.augment or ()
        images, targets = augment(images, batch.targets, changes, generator, self.config.scales)
        images = images[self.own_part].contiguous(memory_format=torch.channels_last)
        wanted = targets[self.own_part]
        if self.config.adversarial_epsilon:
            images = self.attacked(images, wanted)
        return images, self.collated(wanted)

    def attacked(self, images: torch.Tensor, targets: Sequence[Target]) -> torch.Tensor:
        """The worst pictures that a few steps of PGD on the loss find, from starts of this step."""
        settings = AttackSettings(
            self.config.adversarial_epsilon,
            "multibox",
            steps=self.config.adversarial_steps,
            seed=self.config.seed,
        )
        first = self.state.step * self.config.batch_size + self.own_part.start
        with torch.autocast(self.device.type, torch.bfloat16, self.bf16):
            return attack_batch(
                self.ssd, images, targets, settings, range(first, first + len(images))
            )

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine to zero."""
        done = self.state.step / self.total_steps
        if done < self.config.warmup:
            return (
                self.config.learning_rate
                * (self.state.step + 1)
                / (self.config.warmup * self.total_steps)
            )
        rest = (done - self.config.warmup) / (1 - self.config.warmup)
        return self.config.learning_rate * (1 + math.cos(math.pi * rest)) / 2

    def log_step(self, log: TrainLog, epoch: int, loss: Loss, norm: float) -> None:
        """Write the last step's figures and the loop's speed since the last entry."""
        steps = self.state.step - self.watched_from
        seconds, shares = self.restart_watch()
        if self.state.step == LOG_EVERY:
            left = (self.total_steps - self.state.step) * seconds / steps
            console.log(f"About {max(1, round(left / 60))} minutes are left.")
        log.write(
            self.state.step,
            epoch=epoch,
            loss=loss.total.item(),
            **{name: part.item() for name, part in loss.parts.items()},
            gradient_norm=norm,
            learning_rate=self.state.optimizer.param_groups[0]["lr"],
            images_per_second=round(steps * self.config.batch_size / seconds, 1),
            **{f"share_{name}": share for name, share in shares.items()},
        )

    def finish_epoch(self, log: TrainLog, epoch: int) -> None:
        """Validate the averaged weights and keep them if they are the best so far."""
        last = epoch + 1 == self.config.epochs
        if not last and (epoch + 1) % self.config.validate_every:
            return
        detector = self.calibrated_average()
        measured = self.validate(detector)
        found = {f"validation_{name}": measured[name] for name in self.FIGURES if measured}
        if found:
            told = zip(self.FIGURES.values(), found.values(), strict=True)
            words = ", ".join(f"{name} {100 * value:.1f}" for name, value in told)
            console.log(f"epoch {epoch + 1}/{self.config.epochs}: validation {words}")
            log.write(self.state.step, **found)
        # Without held-out pictures the last weights are the ones to keep.
        score = tuple(found.values()) or (0.0, 0.0)
        # Of epochs with the same first figure the one with the higher second; then the later one.
        if score >= self.state.best or not found:
            self.state.best = score
            chosen_by = f"validation_{next(iter(self.FIGURES))}"
            info = {**self.provenance, "epoch": epoch + 1, chosen_by: score[0]}
            save_detector(self.run / BEST, detector, self.job.detector, info)
        self.restart_watch()

    def choose_rules(self) -> None:
        """Choose, once, which boxes of the best weights may stand side by side; keep it with them.

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
        best = load_detector(str(self.run / BEST))
        if "rules" in best.info:
            return
        choice = choose_rules(best.detector.to(self.device), self.validation, kind.bounded)
        console.log(str(choice))
        config = replace(best.detector.config, **choice.rules._asdict())
        info = {**best.info, "rules": choice.as_dict()}
        save_detector(self.run / BEST, best.detector, config, info)

    def restart_watch(self) -> tuple[float, dict[str, float]]:
        """Seconds and shares since the watch was started, which it is anew."""
        self.watched_from = self.state.step
        return self.watch.take()

    def calibrated_average(self) -> Any:
        """Return the averaged weights, calibrated on the held-out pictures if there are any."""
        averaged = self.state.averaged.eval()
        assert isinstance(averaged, SSD)
        parts = [part for part in self.validation if len(part.indices)]
        if not parts:
            return averaged
        return calibrated(averaged, self.held_out(parts), self.config.near_iou)

    def held_out(self, parts: Sequence[Part]) -> Iterator[tuple[torch.Tensor, PaddedTargets]]:
        """Batches of held-out pictures (B, 3, H, W) in [0, 1] and their objects."""
        for part in parts:
            for indices in np.array_split(part.indices, math.ceil(len(part.indices) / BATCH_SIZE)):
                images = part.pack.pixels(indices.tolist()).to(self.device)
                targets = [part.pack.target(index) for index in indices.tolist()]
                yield images, pad_targets(targets).to(self.device)

    def validate(self, detector: Any) -> Any:
        """Return the figures on all held-out pictures together; None without any."""
        parts = [part for part in self.validation if len(part.indices)]
        if not parts:
            return None
        targets = [part.pack.target(index) for part in parts for index in part.indices]
        found = [
            one
            for part in parts
            for one in detect_pack(detector, part.pack, part.indices.tolist(), AP_SELECTION)
        ]
        return average_precision(targets, found, self.job.detector.class_names)


class SegmenterTrainer(Trainer):
    """The same loop for a segmenter: it learns from the class of every labelled pixel."""

    FIGURES: ClassVar[dict[str, str]] = {"miou": "mean IoU", "accuracy": "pixel accuracy"}

    def __init__(self, setup: Setup, run: Path) -> None:
        super().__init__(setup, run)
        classes = len(self.job.detector.class_names)
        counts = pixels_of_classes(self.training.parts, classes)
        self.weights = class_weights(torch.from_numpy(counts)).to(self.device)

    def loss(self, raw: torch.Tensor, targets: torch.Tensor) -> Loss:
        """Return the loss of logits (B, K, H, W) with masks (B, H, W)."""
        temperature = self.state.detector.temperature
        assert isinstance(temperature, float)
        return pixel_loss(raw, targets, self.weights, temperature, self.config.margin)

    def collated(self, targets: Sequence[Target]) -> torch.Tensor:
        """Return the masks of a batch, (B, H, W) on the device."""
        return torch.stack([one["mask"] for one in targets]).to(self.device)

    def divisor(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the weight of the labelled pixels."""
        return labelled_weight(targets, self.weights)

    def calibrated_average(self) -> Any:
        """Return the averaged weights as they are; offsets are chosen once, at the end."""
        return self.state.averaged.eval()

    def validate(self, detector: Any) -> Any:
        """Return mean IoU and accuracy over all held-out pixels; None without held-out pictures."""
        parts = [part for part in self.validation if len(part.indices)]
        counts = [confusion_of_pack(detector, one.pack, one.indices.tolist()) for one in parts]
        return figures(sum(counts[1:], counts[0]), parts[0].pack.class_names) if parts else None

    def choose_rules(self) -> None:
        """Choose, once, how much each class is preferred, by held-out pictures of the best run."""
        parts = [part for part in self.validation if len(part.indices)]
        best = load_segmenter(str(self.run / BEST))
        if not parts or "offsets" in best.info:
            return
        sampled = [sampled_pixels(best.segmenter, part, self.config.seed) for part in parts]
        logits, labels = (torch.cat(both) for both in zip(*sampled, strict=True))
        offsets = choose_offsets(logits, labels)
        add_offsets(best.segmenter, offsets)
        measured = self.validate(best.segmenter)
        told = [f"{name} {100 * measured[key]:.1f}" for key, name in self.FIGURES.items()]
        console.log(f"With offsets of classes chosen on held-out pictures: {', '.join(told)}")
        info = {**best.info, "offsets": offsets.tolist()}
        save_detector(self.run / BEST, best.segmenter, self.job.detector, info)


@contextmanager
def _interruption() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM by their numbers, so that a step is never cut in two."""
    numbers: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: numbers.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield numbers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
