"""The training loop: it learns, it keeps the right weights, it says what it does."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lipdet.checkpoint import BEST, LAST, load_detector, read_tensors, write_tensors
from lipdet.config import DIGIT_CHANGES, DIGIT_CROP, DetectorConfig, TrainConfig, as_plain
from lipdet.detector import SSD, build_detector
from lipdet.errors import InputError, NonFiniteLossError
from lipdet.images.pack import Pack, PackedPicture, write_pack
from lipdet.images.prepare import pack_rendered
from lipdet.results import AveragePrecision
from lipdet.train import Trainer, loop, set_up, train
from lipdet.train.job import Job, load_job
from lipdet.train.log import LOG, TrainLog
from lipdet.train.setup import open_packs, summary_of, training_data
from lipdet.train.tasks import Boxes

# Four steps of four pictures: two epochs.
SHORT = TrainConfig(
    epochs=2,
    epoch_pictures=8,
    batch_size=4,
    precision="float32",
    validation_share=0.05,
    threads=1,
)


def job_on(pack: Pack, **changes: Any) -> Job:
    settings = dataclasses.replace(SHORT, **changes)
    return Job("naive", DetectorConfig(), settings, (str(pack.folder),), ())


def trainer_of(job: Job, run: Path) -> Trainer:
    return Trainer(set_up(job), run)


def entries(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / LOG).read_text().splitlines()]


def assert_same_files(one: Path, other: Path) -> None:
    """Two runs of the same job ended with the same tensors, bit for bit."""
    for name in (LAST, BEST):
        (expected, expected_info), (found, info) = (
            read_tensors(one / name),
            read_tensors(other / name),
        )
        assert expected.keys() == found.keys()
        differing = [key for key in expected if not torch.equal(expected[key], found[key])]
        assert not differing
        assert info == expected_info


@pytest.fixture(autouse=True)
def log_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 1)


@pytest.mark.slow
def test_it_learns_16_pictures(tmp_path: Path) -> None:
    pack = pack_rendered(tmp_path / "pack", "train", 16, DIGIT_CROP, seed=0)
    settings = {"augment": (), "validation_share": 0.0, "learning_rate": 0.01}
    job = job_on(pack, epochs=12, epoch_pictures=16, batch_size=8, validate_every=1, **settings)
    train(job, tmp_path / "run")
    losses = [entry["loss"] for entry in entries(tmp_path / "run")]
    assert len(losses) == 24
    # Two epochs at the end against two at the start, all on the same 16 pictures.
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    assert load_detector(str(tmp_path / "run")).info["training"] == job.as_dict()


def test_what_a_run_leaves(house_numbers: Pack, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = job_on(
        house_numbers, warmup=0.5, learning_rate=0.01, augment=DIGIT_CHANGES, validate_every=1
    )
    assert train(job, run) == run / BEST
    assert {path.name for path in run.iterdir()} == {"run.json", LOG, LAST, BEST}
    assert load_job(run) == job

    steps = [entry for entry in entries(run) if "loss" in entry]
    assert [(entry["step"], entry["epoch"]) for entry in steps] == [(1, 0), (2, 0), (3, 1), (4, 1)]
    for entry in steps:
        # α = 2 in the sum; see tests/detector/test_multibox.py.
        total = entry["classification"] + 2 * entry["localisation"]
        assert entry["loss"] == pytest.approx(total, rel=1e-5)
        assert entry["gradient_norm"] > 0
        assert entry["images_per_second"] > 0
        shares = [entry[f"share_{name}"] for name in ("load", "forward", "loss", "backward")]
        assert 0 < sum(shares) <= 1.001
    # By hand: 2 of 4 steps of warm-up, then a cosine that starts at the peak; cos(π / 2) = 0.
    rates = [entry["learning_rate"] for entry in steps]
    assert rates == pytest.approx([0.005, 0.01, 0.01, 0.005])
    validated = [entry for entry in entries(run) if "validation_ap50" in entry]
    assert [entry["step"] for entry in validated] == [2, 4]

    _, info = read_tensors(run / LAST)
    assert info["step"] == 4
    assert info["training_data"] == [house_numbers.describe()]
    _, info = read_tensors(run / BEST)
    assert info["detector"] == as_plain(DetectorConfig())
    assert info["training"] == job.as_dict()
    assert set(info["versions"]) >= {"lipdet", "torch"}


def averages_of(run: Path) -> dict[str, Tensor]:
    tensors, _ = read_tensors(run / LAST)
    prefix = "average.module."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def scripted(
    monkeypatch: pytest.MonkeyPatch, scores: Sequence[float | tuple[float, float]]
) -> list[dict[str, Tensor]]:
    """Let validations yield these AP50, with AP or 0; returns the averaged weights at each."""
    given, seen = iter(scores), []

    def validate(_: Boxes, network: SSD) -> AveragePrecision:
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        score = next(given)
        ap50, ap = score if isinstance(score, tuple) else (score, 0.0)
        return AveragePrecision(ap50=ap50, ap=ap, per_class={})

    monkeypatch.setattr(Boxes, "validate", validate)
    return seen


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.2, 0.5, 0.4], 2),
        # Of equal AP50 the higher AP counts, and then the later epoch, also where nothing is found
        # or all is.
        ([0.0, 0.0, 0.0], 3),
        ([1.0, 1.0, 1.0], 3),
        ([(0.5, 0.4), (0.5, 0.3), (0.2, 0.9)], 1),
        ([(0.5, 0.3), (0.5, 0.4), (0.5, 0.4)], 3),
    ],
)
def test_the_best_validated_weights_are_kept(
    house_numbers: Pack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scores: list[float | tuple[float, float]],
    best: int,
) -> None:
    """Of equal AP50 the higher AP counts, and then the later epoch."""
    seen = scripted(monkeypatch, scores)
    train(job_on(house_numbers, epochs=3, epoch_pictures=4), tmp_path / "run")
    tensors, info = read_tensors(tmp_path / "run" / BEST)
    chosen = scores[best - 1]
    ap50 = chosen[0] if isinstance(chosen, tuple) else chosen
    assert (info["epoch"], info["validation_ap50"]) == (best, ap50)
    assert all(torch.equal(tensors[name], one) for name, one in seen[best - 1].items())


@pytest.mark.slow
def test_the_average_of_the_weights(
    house_numbers: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the recursion in plain Python, from the weights after each step."""
    name = "backbone.fire8.0.weight"
    seen: list[Tensor] = []
    step = Trainer.step

    def recorded(trainer: Trainer, epoch: int, index: int) -> Any:
        result = step(trainer, epoch, index)
        seen.append(trainer.state.detector.state_dict()[name].clone())
        return result

    monkeypatch.setattr(Trainer, "step", recorded)
    train(job_on(house_numbers, validation_share=0.0, ema_decay=0.25), tmp_path / "run")
    expected = seen[0].double()
    for updates, weights in enumerate(seen[1:], start=1):
        # A young average forgets faster: decay (1 + n) / (10 + n), at most the one asked for.
        decay = min(0.25, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay) * weights.double()
    assert len(seen) == 4
    torch.testing.assert_close(averages_of(tmp_path / "run")[name].double(), expected)


def test_sgd_and_the_clipped_gradient(
    house_numbers: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"optimizer": "sgd", "gradient_clip": 0.5, "weight_decay": 0.0, "warmup": 0.0}
    job = job_on(house_numbers, **settings, epochs=1, epoch_pictures=4, learning_rate=0.1)
    torch.manual_seed(job.train.seed)
    before = dict(build_detector(job.detector).named_parameters())
    train(job, tmp_path / "run")
    tensors, _ = read_tensors(tmp_path / "run" / LAST)
    moved = [tensors[f"detector.{name}"] - weight.detach() for name, weight in before.items()]
    norm = math.sqrt(sum(float(step.double().square().sum()) for step in moved))
    # By hand: Nesterov's first step is lr · (1 + momentum) · gradient, of norm 0.5 after clipping.
    assert entries(tmp_path / "run")[0]["gradient_norm"] > 0.5
    assert norm == pytest.approx(0.1 * 1.9 * 0.5, rel=1e-3)
    assert any(key.endswith("momentum_buffer") for key in tensors)


@pytest.mark.slow
def test_bf16(house_numbers: Pack, tmp_path: Path) -> None:
    job = job_on(house_numbers, precision="bf16", epochs=1)
    assert trainer_of(job, tmp_path).bf16
    train(job, tmp_path / "run")
    assert all(math.isfinite(entry.get("loss", 0)) for entry in entries(tmp_path / "run"))
    # Weights and moments stay in float32.
    tensors, _ = read_tensors(tmp_path / "run" / LAST)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32, torch.int64}


def test_what_the_network_is_given(house_numbers: Pack, tmp_path: Path) -> None:
    job = job_on(house_numbers, augment=())
    trainer = trainer_of(job, tmp_path)
    images, targets = trainer.load(0, 0)
    assert images.is_contiguous(memory_format=torch.channels_last)
    # Oracle: the pack's own bytes.
    expected = trainer.training.batch(0, 0)
    assert torch.equal(images, expected.images.float() / 255)
    assert targets.valid.sum().item() == sum(len(one["labels"]) for one in expected.targets)
    augmented = trainer_of(job_on(house_numbers, augment=DIGIT_CHANGES), tmp_path)
    assert not torch.equal(augmented.load(0, 0)[0], images)


def test_a_loss_that_is_no_number_names_its_step(house_numbers: Pack, tmp_path: Path) -> None:
    job = job_on(house_numbers, learning_rate=1e30, warmup=0.0)
    # The first step throws the weights away; the second has no finite loss.
    with pytest.raises(NonFiniteLossError, match=r"Step 2: the loss is .*--learning_rate"):
        train(job, tmp_path / "run")
    assert not (tmp_path / "run" / BEST).exists()


def test_an_existing_run_is_kept(house_numbers: Pack, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # A folder that was made for it is none.
    run.mkdir()
    train(job_on(house_numbers, epochs=1), run)
    before = {file: file.read_bytes() for file in run.iterdir()}
    with pytest.raises(InputError, match=r"run exists already; choose another --out, or add"):
        train(job_on(house_numbers), run)
    assert {file: file.read_bytes() for file in run.iterdir()} == before


def pack_of_pets(folder: Path) -> Pack:
    image, box = np.zeros((74, 74, 3), np.uint8), np.array([[10, 10, 40, 40]], np.float32)
    pictures = [PackedPicture(image, box, np.array([index % 2]), index) for index in range(8)]
    return write_pack(folder, pictures, 8, DIGIT_CROP, ("cat", "dog"), {"name": "by hand"})


def test_the_detector_takes_the_classes_of_its_data(tmp_path: Path) -> None:
    pack = pack_of_pets(tmp_path / "pets")
    train(job_on(pack, epochs=1, epoch_pictures=4), tmp_path / "run")
    assert load_job(tmp_path / "run").detector.class_names == ("cat", "dog")
    assert load_detector(str(tmp_path / "run")).detector.config.class_names == ("cat", "dog")


def test_unusable_data_leaves_no_run(house_numbers: Pack, tmp_path: Path) -> None:
    job = job_on(house_numbers)
    pets = pack_of_pets(tmp_path / "pets")
    bad = {
        r"An epoch of 8 pictures is smaller than a batch of 9": job_on(house_numbers, batch_size=9),
        r"'nowhere' is not understood": dataclasses.replace(job, data=("nowhere",)),
        r"by hand has the classes cat, dog; cat, dog is none of 0, 1, ": dataclasses.replace(
            job, data=(*job.data, str(pets.folder))
        ),
    }
    for words, one in bad.items():
        with pytest.raises(InputError, match=words):
            train(one, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_held_out_pictures_without_objects_are_said(house_numbers: Pack, tmp_path: Path) -> None:
    """Nothing can be chosen by them."""
    image, nothing = np.zeros((74, 74, 3), np.uint8), (np.zeros((0, 4)), np.zeros(0, np.int64))
    empty = [PackedPicture(image, *nothing, index) for index in range(3)]
    names = house_numbers.class_names
    held_out = write_pack(tmp_path / "no", empty, 3, DIGIT_CROP, names, {"name": "by hand"})
    job = dataclasses.replace(job_on(house_numbers), validation=(str(held_out.folder),))
    assert "Held out: 3 pictures with 0 objects, too few to choose by" in summary_of(set_up(job))


def test_data_sets_are_mixed_by_weight(house_numbers: Pack, tmp_path: Path) -> None:
    other = pack_rendered(tmp_path / "pack", "train", 16, DIGIT_CROP, seed=8)
    folders = (str(house_numbers.folder), str(other.folder))
    config = dataclasses.replace(SHORT, epoch_pictures=0)
    packs = open_packs(Job("naive", DetectorConfig(), config, folders, ()), folders, "train")
    mixture, validation = training_data(config, (), packs)
    # By hand: of 64 pictures 3 are held out, of 16 none; all others once an epoch.
    assert mixture.counts.tolist() == [61, 16]
    assert [len(part.indices) for part in validation] == [3, 0]
    weighted, _ = training_data(config, (1.0, 6.0), packs)
    assert weighted.counts.tolist() == [11, 66]
    with pytest.raises(InputError, match="--validation has what is learned from"):
        training_data(config, (), packs, [other])


def interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Send this process a signal in the middle of a step."""
    load = Trainer.load

    def load_and_interrupt(trainer: Trainer, epoch: int, index: int) -> Any:
        if trainer.state.step + 1 == step:
            signal.raise_signal(number)
        return load(trainer, epoch, index)

    monkeypatch.setattr(Trainer, "load", load_and_interrupt)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "number"),
    [("adamw", signal.SIGTERM), ("sgd", signal.SIGINT), ("muon", signal.SIGINT)],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    house_numbers: Pack, tmp_path: Path, optimizer: str, number: int
) -> None:
    job = job_on(house_numbers, optimizer=optimizer, learning_rate=0.01)
    train(job, tmp_path / "straight")
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 3, number)
        with pytest.raises(KeyboardInterrupt):
            train(job, tmp_path / "run")
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    # The step that was under way was finished and kept.
    assert read_tensors(tmp_path / "run" / LAST)[1]["step"] == 3
    train(load_job(tmp_path / "run"), tmp_path / "run", resume=True)
    assert_same_files(tmp_path / "straight", tmp_path / "run")
    losses = [[entry.get("loss") for entry in entries(tmp_path / r)] for r in ("straight", "run")]
    assert losses[0] == losses[1]


@pytest.fixture
def finished(house_numbers: Pack, tmp_path: Path) -> tuple[Job, Path]:
    shutil.copytree(house_numbers.folder, tmp_path / "pack")
    settings = dataclasses.replace(SHORT, epochs=1, epoch_pictures=4, validation_share=0.0)
    job = Job("naive", DetectorConfig(), settings, (str(tmp_path / "pack"),), ())
    train(job, tmp_path / "run")
    return job, tmp_path / "run"


def test_weights_of_an_unfinished_run_say_so(
    house_numbers: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 3, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train(job_on(house_numbers), tmp_path / "run")
    capsys.readouterr()
    load_detector(str(tmp_path / "run"))
    assert "has been trained for 3 of 4 steps" in " ".join(capsys.readouterr().err.split())
    train(load_job(tmp_path / "run"), tmp_path / "run", resume=True)
    capsys.readouterr()
    load_detector(str(tmp_path / "run"))
    assert not capsys.readouterr().err


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir()}


def test_a_state_from_before_a_setting_was_added_is_resumed(finished: tuple[Job, Path]) -> None:
    job, run = finished
    tensors, info = read_tensors(run / LAST)
    del info["training"]["detector"]["most_shown"]
    write_tensors(run / LAST, tensors, info)
    assert train(job, run, resume=True) == run / BEST
    info["training"]["detector"]["most_shown"] = 40
    write_tensors(run / LAST, tensors, info)
    with pytest.raises(InputError, match=r"\(training differs\)"):
        train(job, run, resume=True)


def test_resuming_with_other_settings_is_refused(finished: tuple[Job, Path]) -> None:
    job, run = finished
    before = contents(run)
    for change in ({"learning_rate": 1e-4}, {"epochs": 9}, {"seed": 1}):
        other = dataclasses.replace(job, train=dataclasses.replace(job.train, **change))
        with pytest.raises(InputError, match=r"other settings or data \(training differs\)"):
            train(other, run, resume=True)
    assert contents(run) == before


def test_resuming_with_other_data_is_refused(finished: tuple[Job, Path]) -> None:
    job, run = finished
    shutil.rmtree(job.data[0])
    pack_rendered(Path(job.data[0]), "train", 64, DIGIT_CROP, seed=77)
    before = contents(run)
    with pytest.raises(InputError, match=r"other settings or data \(training_data differs\)"):
        train(job, run, resume=True)
    assert contents(run) == before


def test_a_damaged_state_is_named(finished: tuple[Job, Path]) -> None:
    job, run = finished
    data = (run / LAST).read_bytes()
    (run / LAST).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=f"{run / LAST} is no readable safetensors file"):
        train(job, run, resume=True)
    # The best weights of another run in its place are no state.
    shutil.copy(run / BEST, run / LAST)
    with pytest.raises(InputError, match=f"{LAST} holds weights of another architecture"):
        train(job, run, resume=True)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"preset": "naive"}'])
def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match="holds no run to resume"):
        load_job(tmp_path)


def test_the_log_forgets_what_was_lost(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
    (tmp_path / LOG).write_text("\n".join([*lines, '{"step": 4, "lo']))
    with TrainLog(tmp_path, 2, tensorboard=False) as log:
        log.write(3, loss=0.5)
    assert entries(tmp_path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": 0.5},
    ]
