"""All that a training must remember to go on bit for bit, in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from lipdet import distributed
from lipdet.checkpoint import LAST, load_state, read_tensors, write_tensors
from lipdet.config import TrainConfig
from lipdet.detector import SSD
from lipdet.errors import InputError
from lipdet.segmenter import Segmenter
from lipdet.train.job import Job
from lipdet.train.muon import Muon


@dataclass
class TrainState:
    """A training between two steps.

    Attributes:
        detector: the weights that are trained, of a detector or a segmenter.
        average: their exponential moving average, the ones that are evaluated and kept.
        optimizer: with its moments.
        step: optimizer steps done.
        best: the two validation figures of the best weights so far; -1 before the first validation.
    """

    detector: SSD | Segmenter
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    best: tuple[float, float] = (-1.0, -1.0)

    @property
    def averaged(self) -> SSD | Segmenter:
        """Return the detector with the averaged weights."""
        module = self.average.module
        assert isinstance(module, SSD | Segmenter)
        return module

    @classmethod
    def start(cls, detector: SSD | Segmenter, config: TrainConfig) -> TrainState:
        """Return the state before the first step."""
        average = AveragedModel(
            detector, avg_fn=_moving_average(config.ema_decay), use_buffers=True
        )
        return cls(detector, average, _optimizer(detector, config))

    def save(self, run: Path, steps: int, info: Mapping[str, Any]) -> None:
        """Write the state, after some of `steps`, into a run folder; atomically."""
        info = {**info, "step": self.step, "steps": steps, "best": self.best}
        write_tensors(run / LAST, self._tensors(), info)

    def restore(self, run: Path, provenance: Mapping[str, Any]) -> None:
        """Take over the state of a run folder.

        Args:
            run: the run folder.
            provenance: job and data of the training that goes on; must be those of the run, but
                for its threads.

        Raises:
            InputError: the file is damaged, or belongs to another job or other data.
        """
        tensors, info = read_tensors(run / LAST)
        threads = provenance["training"]["train"]["threads"]
        for key, stored, now in (
            ("training", _completed(info.get("training"), threads), provenance["training"]),
            ("training_data", _hashes(info), _hashes(provenance)),
        ):
            if stored != now:
                raise InputError(
                    f"{run / LAST} was written by a training with other settings or data "
                    f"({key} differs); resume it with its own, choose another --out, or remove "
                    "the folder."
                )
        self._load(tensors, run)
        # Until 0.2 AP50 alone was kept.
        best = info["best"] if isinstance(info["best"], list) else [info["best"], -1.0]
        self.step, self.best = info["step"], (best[0], best[1])

    def share(self, run: Path) -> None:
        """Take over the state of the first process, which alone reads the run folder."""
        if distributed.size() > 1:
            mine = self._tensors(), self.step, self.best
            tensors, self.step, self.best = distributed.of_first(mine)
            self._load(tensors, run)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            **_prefixed("detector.", self.detector.state_dict()),
            **_prefixed("average.", self.average.state_dict()),
            **_prefixed("optimizer.", _flat(self.optimizer)),
        }

    def _load(self, tensors: Mapping[str, Tensor], run: Path) -> None:
        load_state(self.detector, _without("detector.", tensors), run / LAST)
        load_state(self.average, _without("average.", tensors), run / LAST)
        _unflatten(self.optimizer, _without("optimizer.", tensors))


def _completed(training: Any, threads: int) -> dict[str, Any] | None:
    """Return a stored job with these threads and the defaults of newer settings; None if none."""
    try:
        return Job.of_dict(training).with_threads(threads).as_dict()
    except (KeyError, TypeError):
        return None


def _hashes(info: Mapping[str, Any]) -> list[str]:
    """Return the hashes of the data of a training; how they are called may change."""
    return [one["hash"] for one in info.get("training_data", [])]


def _moving_average(decay: float) -> Any:
    def update(averaged: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
        if not averaged.is_floating_point():
            return current
        # Young averages forget faster, so that random initial weights leave no trace.
        young = (1 + int(updates)) / (10 + int(updates))
        return averaged.lerp(current, 1 - min(decay, young))

    return update


def _optimizer(detector: SSD | Segmenter, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = list(detector.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, nesterov=True)
    if config.optimizer == "muon":
        return Muon(groups, lr=config.learning_rate)
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def _flat(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": value
        for index, moments in optimizer.state_dict()["state"].items()
        for name, value in moments.items()
        if isinstance(value, Tensor)
    }


def _unflatten(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor.detach().cpu() for name, tensor in tensors.items()}


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
