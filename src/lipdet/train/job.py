"""What is trained, on what and how; stored in the run folder, so that the run can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lipdet.config import NetworkConfig, TrainConfig, as_plain, network_config, stored, train_config
from lipdet.errors import InputError
from lipdet.files import write_json

JOB = "run.json"


@dataclass(frozen=True)
class Job:
    """A training: of what, on what, and how; stored as `run.json` in the run folder.

    Attributes:
        preset: name of the preset it came from.
        detector: what to build, a detector or a segmenter; its classes, framing and default boxes
            become those of the data, and it shows as many boxes as these need.
        train: how to train it.
        data: SPECs of the training data.
        weights: relative share of each SPEC in an epoch.
        validation: SPECs of the held-out data; none cuts them from the training data.
    """

    preset: str
    detector: NetworkConfig
    train: TrainConfig
    data: tuple[str, ...]
    weights: tuple[float, ...] = ()
    validation: tuple[str, ...] = ()

    def with_detector(self, **changes: Any) -> Job:
        """Return the same job with what its data decide of the detector."""
        return replace(self, detector=replace(self.detector, **changes))

    def with_threads(self, threads: int) -> Job:
        """Return the same job on other threads, which are a matter of the machine."""
        return replace(self, train=replace(self.train, threads=threads))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for json."""
        return {
            "preset": self.preset,
            **stored(self.detector),
            "train": as_plain(self.train),
            "data": list(self.data),
            "weights": list(self.weights),
            "validation": list(self.validation),
        }

    @classmethod
    def of_dict(cls, plain: Mapping[str, Any]) -> Job:
        """Return what `as_dict` was called on; fields that are newer have their defaults.

        Raises:
            KeyError, TypeError: it is something else.
        """
        return cls(
            plain["preset"],
            network_config(plain),
            train_config(plain["train"]),
            tuple(plain["data"]),
            tuple(plain["weights"]),
            tuple(plain["validation"]),
        )


def save_job(job: Job, run: Path) -> None:
    """Write the job into a run folder, atomically."""
    write_json(run / JOB, job.as_dict())


def load_job(run: Path) -> Job:
    """Return the job of an interrupted run.

    Raises:
        InputError: the folder holds no run that could go on.
    """
    try:
        return Job.of_dict(json.loads((run / JOB).read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{run} holds no run to resume (its {JOB} is missing or damaged); start it without "
            "--resume."
        ) from None
