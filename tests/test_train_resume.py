"""A training that is killed or interrupted ends with the very bits of one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lipdet.checkpoint import LAST, read_tensors
from lipdet.commands.train import resumed
from lipdet.config import PRESETS, DetectorConfig, TrainConfig
from lipdet.errors import InputError
from lipdet.images.pack import Pack
from lipdet.train import train
from lipdet.train.job import JOB, Job, load_job
from tests.test_train import assert_same_files, entries

# 60 pictures to train on, 24 of them in each of two epochs.
STEPS_PER_EPOCH, STEPS = 6, 12
SETTINGS = TrainConfig(
    epochs=2,
    epoch_pictures=24,
    batch_size=4,
    learning_rate=0.01,
    precision="float32",
    validation_share=0.07,
    checkpoint_seconds=0.0,
    threads=1,
)


def step_of(run: Path) -> int:
    """Steps done according to the last checkpoint, 0 if there is none that can be read.

    It is replaced atomically, but safetensors opens it twice: for its header and for its tensors.
    """
    try:
        step = read_tensors(run / LAST)[1]["step"]
    except (InputError, RuntimeError):
        return 0
    assert isinstance(step, int)
    return step


def stopped(run: Path, step: int, number: int) -> tuple[int, str]:
    """Train in another process, send it a signal once `step` is done; return how it ended."""
    command = [sys.executable, "-m", "lipdet", "train", "--resume", "--out", str(run)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 500
        while step_of(run) < step:
            assert process.poll() is None, "the training ended by itself"
            assert time.monotonic() < deadline, "the training is stuck"
            time.sleep(0.03)
        process.send_signal(number)
        _, printed = process.communicate(timeout=500)
        return process.returncode, printed
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def job(house_numbers: Pack) -> Job:
    return Job("naive", DetectorConfig(), SETTINGS, (str(house_numbers.folder),), ())


@pytest.fixture(scope="module")
def uninterrupted(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("straight") / "run"
    train(job, run)
    return run


@pytest.mark.slow
def test_killed_and_interrupted(job: Job, uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / JOB).write_text(json.dumps(job.as_dict()))

    assert stopped(run, 2, signal.SIGKILL)[0] == -signal.SIGKILL
    killed_at = step_of(run)
    assert 2 <= killed_at < STEPS_PER_EPOCH, "the kill came too late to fall into the epoch"

    # Ctrl-C in the second epoch of the resumed run: it ends in order and keeps its last step.
    status, printed = stopped(run, STEPS_PER_EPOCH + 2, signal.SIGINT)
    assert status == 130
    assert "Interrupted" in printed
    assert "Traceback" not in printed
    interrupted_at = step_of(run)
    assert STEPS_PER_EPOCH < interrupted_at < STEPS
    assert not list(run.glob(".*"))

    train(load_job(run), run, resume=True)
    assert step_of(run) == STEPS
    # Oracle: the same training in one go; every tensor of both files, bit for bit.
    assert_same_files(uninterrupted, run)
    validations = [entry for entry in entries(uninterrupted) if "validation_ap50" in entry]
    assert [entry["step"] for entry in validations] == [STEPS_PER_EPOCH, STEPS]
    assert [entry for entry in entries(run) if "validation_ap50" in entry] == validations


def test_only_threads_may_change(job: Job, uninterrupted: Path) -> None:
    train(job.with_threads(2), uninterrupted, resume=True)
    naive = PRESETS["naive"]
    for asked, changed in ((replace(naive.train, threads=2), 2), (naive.train, 1)):
        going_on = resumed(Job("naive", naive.detector, asked, ("rendered",)), job, Path("run"))
        assert going_on == job.with_threads(changed)
    for other in (replace(job.train, threads=2, epochs=3), replace(naive.train, seed=3)):
        with pytest.raises(InputError, match="run was started with other options"):
            resumed(replace(job, train=other), job, Path("run"))
