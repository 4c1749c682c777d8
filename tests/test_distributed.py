"""Several processes do what one does: the same weights, the same json, whichever of them is lost.

Processes are forked from a server that has imported the package once, with the environment that
torchrun gives; the last tests use `--processes`, which is the launcher of torchrun.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed import TCPStore

from lipdet import cli, distributed
from lipdet.certificate import lipschitz_bound
from lipdet.checkpoint import BEST, LAST, read_tensors
from lipdet.evaluate import attacked, certified, run
from lipdet.evaluate.chunks import Pass
from lipdet.images.pack import Pack, PackedPicture, write_pack
from lipdet.images.spec import Purpose
from lipdet.train import Trainer, set_up, setup
from lipdet.train.job import load_job
from lipdet.types import Canvas
from tests.test_train import assert_same_files

pytestmark = pytest.mark.slow

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["lipdet.cli"])

Change = Callable[[], None]


class Ended(NamedTuple):
    """Exit status of each process, and all that they printed."""

    statuses: list[int]
    out: str
    err: str


def lipdet(
    folder: Path,
    *words: object,
    processes: int = 2,
    changes: Sequence[Change] = (),
    patience: float = 0.2,
) -> Ended:
    """Run a command line in several processes, and end all after one fails, as torchrun does."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    printed = [(folder / f"out-{rank}", folder / f"err-{rank}") for rank in range(processes)]
    started = [
        FORKSERVER.Process(
            target=_process,
            args=(
                {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                [str(word) for word in words],
                list(changes),
                printed[rank],
            ),
        )
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    while any(process.is_alive() for process in started):
        if any(process.exitcode for process in started):
            for process in started:
                process.join(patience)
                process.terminate()
        time.sleep(0.02)
    out, err = ("".join(file.read_text() for file in files) for files in zip(*printed, strict=True))
    return Ended([int(process.exitcode or 0) for process in started], out, err)


def _process(
    environment: dict[str, str], words: list[str], changes: list[Change], printed: tuple[Path, Path]
) -> None:
    os.environ.update(environment, NO_COLOR="1")
    for descriptor, file in enumerate(printed, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    torch.set_num_threads(1)
    for change in changes:
        change()
    cli.main(words)
    sys.stdout.flush()


def in_float64() -> None:
    """Compute in float64: which of two almost equal values a maximum takes must not matter."""
    first = setup.first_detector

    def doubled(*given: Any) -> nn.Module:
        detector = first(*given).double()
        detector.default_boxes = detector.default_boxes.float()
        detector.register_forward_pre_hook(lambda _, images: (images[0].double(),))
        return detector

    setup.first_detector = doubled  # type: ignore[assignment]


def small_chunks() -> None:
    """Five and three chunks of the eval tests' pictures."""
    attacked.CHUNK, run.BATCH_SIZE, certified.BATCH_SIZE = 2, 4, 4


def _in_step(step: int, act: Change) -> None:
    load = Trainer.load

    def loaded(trainer: Trainer, epoch: int, index: int) -> Any:
        if trainer.state.step == step and distributed.rank() == 1:
            act()
        return load(trainer, epoch, index)

    Trainer.load = loaded  # type: ignore[assignment, method-assign]


def interrupted_in_the_first_step() -> None:
    """Process 1 alone gets a signal."""
    _in_step(0, lambda: signal.raise_signal(signal.SIGINT))


def killed_in_the_third_step() -> None:
    """Process 1 dies without a word."""
    _in_step(2, lambda: os.kill(os.getpid(), signal.SIGKILL))


def killed_in_its_second_attack() -> None:
    """Process 1 dies when a chunk is half done."""
    attack, calls = attacked.attack_batch, []  # type: ignore[attr-defined]

    def attack_or_die(*arguments: Any, **others: Any) -> Tensor:
        calls.append(1)
        if distributed.rank() == 1 and len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return attack(*arguments, **others)

    attacked.attack_batch = attack_or_die  # type: ignore[attr-defined]


def telling_what_is_computed() -> None:
    """Print a line for each chunk that is computed."""
    result = Pass._result

    def told(one: Pass, chunk: range) -> Any:
        known = one._file(chunk).is_file()
        found = result(one, chunk)
        if not known:
            os.write(2, f"{distributed.rank()} computed {one.label} {chunk}\n".encode())
        return found

    Pass._result = told  # type: ignore[assignment, method-assign]


def one_has_other_data() -> None:
    """Process 1 finds another pack under the same name."""
    first = setup.open_packs

    def opened(job: Any, specs: Sequence[str], purpose: Purpose) -> list[Pack]:
        packs = first(job, specs, purpose)
        return [pack.head(11) for pack in packs] if distributed.rank() else packs

    setup.open_packs = opened


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Twelve small pictures of noise, of which every second has no object and others up to four."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("packs") / "sparse"
    boxes = np.array([[2, 2, 12, 14], [16, 3, 27, 15], [4, 16, 14, 30], [17, 17, 30, 29]])
    pictures = []
    for index in range(12):
        count = 0 if index % 2 else 1 + index // 2 % 4
        image = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        labels = random.integers(0, 2, count)
        pictures.append(PackedPicture(image, boxes[:count].astype(np.float32), labels, index))
    return write_pack(folder, pictures, 12, Canvas(32, 32), ("cat", "dog"), {"name": "by hand"})


def certified_training(pack: Pack, out: Path) -> list[object]:
    """Three steps: later, rounding decides which negatives are the hardest on some processors.

    With heads of 5×5 cells it does in the third.
    """
    settings = ["--epochs", 1, "--epoch_pictures", 12, "--batch_size", 4, "--precision", "float32"]
    others = ["--image_size", 32, "--validation_share", 0.34, "--checkpoint_seconds", 0]
    preset = ["--preset", "certified-small", "--head_size", 3, "--data", pack.folder, "--out", out]
    return ["train", *preset, *settings, *others, "--threads", 1]


@pytest.fixture(scope="module")
def by_two(sparse: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified detector trained by two processes in one go."""
    folder = tmp_path_factory.mktemp("two")
    ended = lipdet(folder, *certified_training(sparse, folder / "run"))
    assert ended.statuses == [0, 0], ended.err
    # The first alone speaks.
    assert ended.out.count("Weights:") == 1
    return folder / "run"


def largest_difference(one: Path, other: Path) -> float:
    """Of all values of the state, relative to the largest value of their tensor."""
    (expected, _), (found, _) = read_tensors(one / LAST), read_tensors(other / LAST)
    assert expected.keys() == found.keys()
    return max(
        float((found[name] - value).abs().max()) / max(float(value.abs().max()), 1e-6)
        for name, value in expected.items()
        if value.numel()
    )


def test_a_certified_detector_trained_by_two(sparse: Pack, by_two: Path, tmp_path: Path) -> None:
    job = load_job(by_two)
    mixture = set_up(job).training
    objects = [[len(one["labels"]) for one in mixture.batch(0, step).targets] for step in (0, 1, 2)]
    # What a mean of two losses would get wrong: parts with different numbers of objects.
    assert any(sum(own[:2]) != sum(own[2:]) for own in objects)
    assert any(sum(own[:2]) == 0 or sum(own[2:]) == 0 for own in objects)
    # Oracle: the same command in one process.
    ended = lipdet(tmp_path, *certified_training(sparse, tmp_path / "one"), processes=1)
    assert ended.statuses == [0], ended.err
    assert largest_difference(tmp_path / "one", by_two) < 1e-4


def test_a_naive_detector_trained_by_two(house_numbers: Pack, tmp_path: Path) -> None:
    """Batch normalisation sees the whole batch, and the random changes are those of one process."""
    words = ["train", "--data", house_numbers.folder, "--optimizer", "sgd", "--epochs", 1]
    words += ["--epoch_pictures", 8, "--batch_size", 4, "--precision", "float32", "--threads", 1]
    words += ["--learning_rate", 0.01, "--validation_share", 0]
    for processes in (1, 2):
        out = ["--out", tmp_path / str(processes)]
        ended = lipdet(tmp_path, *words, *out, processes=processes, changes=[in_float64])
        assert ended.statuses == [0] * processes, ended.err
    # Oracle: the same command in one process.
    assert largest_difference(tmp_path / "1", tmp_path / "2") < 1e-5


def test_interrupted_and_killed_trainings_go_on(sparse: Pack, by_two: Path, tmp_path: Path) -> None:
    words = certified_training(sparse, tmp_path / "run")
    ended = lipdet(tmp_path, *words, changes=[interrupted_in_the_first_step])
    assert ended.statuses == [130, 130]
    assert ended.err.count("lipdet: ") == 1
    # Both stopped after the step in which one was interrupted.
    assert read_tensors(tmp_path / "run" / LAST)[1]["step"] == 1

    ended = lipdet(tmp_path, *words, "--resume", changes=[killed_in_the_third_step])
    assert ended.statuses == [1, -signal.SIGKILL]
    assert ended.err.count("lipdet: ") == 1
    assert "A process of this run was lost or told to stop; finished work is kept" in ended.err
    assert read_tensors(tmp_path / "run" / LAST)[1]["step"] == 2

    ended = lipdet(tmp_path, *words, "--resume")
    assert ended.statuses == [0, 0], ended.err
    # Oracle: the same training of two processes in one go, bit for bit.
    assert_same_files(by_two, tmp_path / "run")


def evaluation(detector: Path, pack: Pack, out: Path) -> list[object]:
    attack = ["--attack", "pgd", "--steps", 2, "--epsilon", 0.1, 0.5, "--certify"]
    return ["eval", detector, "--data", pack.folder, *attack, "--json", out]


def result_in(file: Path) -> Any:
    found = json.loads(file.read_text())
    assert found.pop("seconds") > 0
    return found


def test_the_json_is_that_of_one_process_whoever_is_lost(
    sparse: Pack, by_two: Path, tmp_path: Path
) -> None:
    changes = [small_chunks]
    words = evaluation(by_two / BEST, sparse, tmp_path / "one.json")
    assert lipdet(tmp_path, *words, processes=1, changes=changes).statuses == [0]
    expected = result_in(tmp_path / "one.json")
    assert expected["data"]["images"] == 12
    assert [len(expected[key]) for key in ("attacked", "certified")] == [2, 2]

    words = evaluation(by_two / BEST, sparse, tmp_path / "two.json")
    ended = lipdet(tmp_path, *words, changes=changes)
    assert ended.statuses == [0, 0], ended.err
    assert result_in(tmp_path / "two.json") == expected

    words = [*evaluation(by_two / BEST, sparse, tmp_path / "lost.json"), "--state", tmp_path / "s"]
    changes.append(telling_what_is_computed)
    lost = lipdet(tmp_path, *words, changes=[*changes, killed_in_its_second_attack])
    assert lost.statuses == [1, -signal.SIGKILL], lost.err
    assert lost.err.count("lipdet: ") == 1
    assert not (tmp_path / "lost.json").exists()
    again = lipdet(tmp_path, *words, changes=changes)
    assert again.statuses == [0, 0], again.err
    assert result_in(tmp_path / "lost.json") == expected
    computed = [
        line.split(maxsplit=1)[1]
        for line in (lost.err + again.err).splitlines()
        if " computed " in line
    ]
    # By hand: twelve pictures are 3 chunks of certificates and clean AP, and 6 of each of eight
    # attacks (two radii, four objectives); none of them twice, although one process was lost. The
    # other may have been stopped between keeping a chunk and telling.
    assert 3 + 6 * 8 - len(computed) in (0, 1)
    assert len(set(computed)) == len(computed)
    # The part of the one that was lost is left to its successor.
    assert "1" in {line[0] for line in again.err.splitlines() if " computed " in line}


class ToldToStop(nn.Module):
    """Stands for code in the midst of which the launcher ends this process."""

    def forward(self, x: Tensor) -> Tensor:
        distributed._told_to_stop()
        return x


def test_the_end_of_a_run_is_no_fault_of_the_network_that_is_bounded() -> None:
    with pytest.raises(distributed.LostProcessError):
        lipschitz_bound(ToldToStop(), (1, 3, 8, 8))


def test_mistakes_end_all_processes_with_one_sentence(
    sparse: Pack, by_two: Path, tmp_path: Path
) -> None:
    training = certified_training(sparse, tmp_path / "run")
    bad: list[tuple[list[object], list[Change], str]] = [
        (["eval", "nobody", "--data", sparse.folder], [], "There is no detector 'nobody'"),
        (["train", "--nonsense"], [], "nonsense"),
        (["detect", by_two], [], ""),
        ([*training, "--batch_size", 3], [], "A batch of 3 pictures cannot be shared evenly by 2"),
        (training, [one_has_other_data], "The training data of process 1"),
        (
            ["eval", "naive", "--data", sparse.folder, "--processes", 3],
            [],
            "--processes 3 contradicts the 2 that torchrun started",
        ),
    ]
    for words, changes, sentence in bad:
        ended = lipdet(tmp_path, *words, changes=changes, patience=30)
        assert ended.statuses == [2, 2]
        assert ended.err.count("lipdet: ") == 1
        assert sentence in ended.err
        assert not (tmp_path / "run").exists()


def started(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command line as a user does."""
    command = [sys.executable, "-m", "lipdet", *words]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_option_starts_processes(house_numbers: Pack, tmp_path: Path) -> None:
    # Two chunks, so that each of two processes has one.
    attack = ["--attack", "pgd", "--steps", "1", "--epsilon", "0.25", "--limit", "34"]
    words = ["eval", "naive", "--data", str(house_numbers.folder), *attack, "--json"]
    done = started(*words, "-", "--processes", "2")
    assert done.returncode == 0, done.stderr
    cli.main([*words, str(tmp_path / "one.json")])
    one = json.loads((tmp_path / "one.json").read_text())
    # What else the process of the tests has imported counts among its versions.
    told = {key: one[key] for key in ("seconds", "versions")}
    assert {**json.loads(done.stdout), **told} == one


def test_a_mistake_of_started_processes_is_one_sentence(tmp_path: Path) -> None:
    words = ["train", "--data", "rendered:8", "--batch_size", "3", "--out", str(tmp_path / "run")]
    done = started(*words, "--processes", "2")
    assert done.returncode == 2
    assert done.stderr.startswith("lipdet: A batch of 3 pictures cannot be shared evenly by 2")
    assert done.stderr.count("\n") == 1
