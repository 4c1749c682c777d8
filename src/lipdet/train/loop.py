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
from pathlib import Path

import torch

from lipdet import distributed
from lipdet.attack import AttackSettings, attack_batch
from lipdet.checkpoint import BEST, LAST, save_detector
from lipdet.detector import SSD
from lipdet.detector.matching import PaddedTargets
from lipdet.errors import InputError, NonFiniteLossError
from lipdet.hardware import chosen_device, computes_in_bf16, keep_freed_memory
from lipdet.images.augment import augment
from lipdet.progress import console, progress_bar
from lipdet.train.batch_norm import share_batch_statistics
from lipdet.train.job import Job, save_job
from lipdet.train.log import Stopwatch, TrainLog, check_tensorboard
from lipdet.train.setup import Setup, set_up, summary_of
from lipdet.train.state import TrainState
from lipdet.train.tasks import Loss, task_of
from lipdet.types import Target
from lipdet.versions import versions

LOG_EVERY = 20


def train(job: Job, run: Path, resume: bool = False) -> Path:
    """Train to the end and return the file of the best weights.

    The run folder receives `run.json`, `log.jsonl`, `last.safetensors` (to resume) and
    `best.safetensors` (a DETECTOR). What its boxes suppress is chosen last, by held-out pictures.

    Args:
        job: what to train.
        run: the run folder; new or empty, unless `resume`.
        resume: go on from the last checkpoint, if there is one.

    Raises:
        InputError: data or folder cannot be used, or are not those of the run to be resumed.
        NonFiniteLossError: the loss became infinite or NaN.
        KeyboardInterrupt: interrupted; the state is kept.
    """
    leads = distributed.rank() == 0
    # Refused before anything is read.
    distributed.own_part(job.train.batch_size)
    empty = run.is_dir() and not any(run.iterdir())
    if leads and run.exists() and not resume and not empty:
        raise InputError(f"{run} exists already; choose another --out, or add --resume.")
    if job.train.tensorboard:
        check_tensorboard()
    keep_freed_memory()
    if job.train.threads:
        torch.set_num_threads(job.train.threads)
    setup = set_up(job)
    if leads:
        console.log(summary_of(setup))
    trainer = Trainer(setup, run)
    if leads:
        run.mkdir(parents=True, exist_ok=True)
        if (run / LAST).exists():
            trainer.state.restore(run, trainer.provenance)
            console.log(f"Going on after step {trainer.state.step:,} of {trainer.total_steps:,}.")
        save_job(setup.job, run)
    trainer.state.share(run)
    step, tensorboard = trainer.state.step, job.train.tensorboard
    with (
        TrainLog(run, step, tensorboard) if leads else nullcontext() as log,
        _interruption() as numbers,
    ):
        trainer.run_all(log, numbers)
    if leads:
        try:
            trainer.task.decide(run / BEST)
        except KeyboardInterrupt:
            console.log(how_to_go_on(run))
            raise
    return run / BEST


def how_to_go_on(run: Path) -> str:
    """Say what takes an interrupted training up again."""
    return f"Go on with: lipdet train --resume --out {run}"


class Trainer:
    """The loop and what it needs; `run_all` is the way in."""

    def __init__(self, setup: Setup, run: Path) -> None:
        self.job, detector, self.training, _ = setup
        self.config, self.run = self.job.train, run
        self.device = chosen_device()
        self.task = task_of(setup, self.device)
        self.own_part = distributed.own_part(self.config.batch_size)
        share_batch_statistics(detector)
        detector = detector.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.state = TrainState.start(detector, self.config)
        self.total_steps = self.config.epochs * self.training.batches_per_epoch
        self.bf16 = self.config.precision == "bf16" or (
            self.config.precision == "auto" and computes_in_bf16(self.device)
        )
        self.watch, self.watched_from = Stopwatch(), 0
        self.pace = 0.0
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
                    self.state.save(self.run, self.total_steps, self.provenance)
                    saved = time.monotonic()
                if stops:
                    if log:
                        console.log(how_to_go_on(self.run))
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
            progress = self.state.step / self.total_steps
            loss = self.task.loss(detector, raw, targets, progress)
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

    def backward_of_all(self, loss: Loss, targets: PaddedTargets | torch.Tensor) -> Loss:
        """Take the gradient of the loss of the whole batch; returns that loss.

        Every loss is a sum over pictures divided by what `divisor` counts in them, or by 1 if that
        is less. So the sums are added, and divided by that of all. Hard negatives are chosen in
        each picture by itself.

        Args:
            loss: of this process's part of the batch.
            targets: of the same part.
        """
        counted = self.task.divisor(self.state.detector, targets)
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

    def load(self, epoch: int, index: int) -> tuple[torch.Tensor, PaddedTargets | torch.Tensor]:
        """Load this process's images (B, 3, H, W) in [0, 1] and targets onto the device.

        Images are channels last. The random choices are those of the whole batch, whoever takes
        which part.
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
        return images, self.task.collated(wanted)

    def attacked(self, images: torch.Tensor, targets: Sequence[Target]) -> torch.Tensor:
        """Return the worst pictures that a few steps of PGD find, from starts of this step."""
        settings = AttackSettings(
            self.config.adversarial_epsilon,
            "multibox",
            steps=self.config.adversarial_steps,
            seed=self.config.seed,
        )
        detector = self.state.detector
        assert isinstance(detector, SSD)
        first = self.state.step * self.config.batch_size + self.own_part.start
        with torch.autocast(self.device.type, torch.bfloat16, self.bf16):
            return attack_batch(
                detector, images, targets, settings, range(first, first + len(images))
            )

    def learning_rate(self) -> float:
        """Return that of a linear warm-up, then of half a cosine to zero."""
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
        first, self.pace = not self.pace, seconds / steps
        if first:
            console.log(f"{self.time_left().capitalize()}.")
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
        detector = self.task.calibrated(self.state.averaged.eval())
        measured, names = self.task.validate(detector), self.task.FIGURES
        found = {f"validation_{name}": measured[name] for name in names if measured}
        if found:
            told = zip(names.values(), found.values(), strict=True)
            words = ", ".join(f"{name} {100 * value:.1f}" for name, value in told)
            left = "" if last else f"; {self.time_left()}"
            console.log(f"epoch {epoch + 1}/{self.config.epochs}: validation {words}{left}")
            log.write(self.state.step, **found)
        # Without held-out pictures the last weights are the ones to keep.
        score = tuple(found.values()) or (0.0, 0.0)
        # Of epochs with the same first figure the one with the higher second; then the later one.
        if score >= self.state.best or not found:
            self.state.best = score
            chosen_by = f"validation_{next(iter(names))}"
            info = {**self.provenance, "epoch": epoch + 1, chosen_by: score[0]}
            save_detector(self.run / BEST, detector, self.job.detector, info)
        self.restart_watch()

    def time_left(self) -> str:
        """Say how long the steps that are left take, at the pace of the last ones."""
        minutes = max(1, round((self.total_steps - self.state.step) * self.pace / 60))
        return f"about {minutes} minutes are left" if minutes > 1 else "about a minute is left"

    def restart_watch(self) -> tuple[float, dict[str, float]]:
        """Return seconds and shares since the watch was started, and start it anew."""
        self.watched_from = self.state.step
        return self.watch.take()


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
