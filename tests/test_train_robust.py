"""Training for robustness: adversarial pictures, fine-tuning, the temperature of the scores."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from lipdet.boxes import SigmoidScores
from lipdet.checkpoint import LAST, load_detector, read_tensors, save_detector, write_tensors
from lipdet.config import PRESETS
from lipdet.detector import build_detector
from lipdet.detector.fitting import fit_default_boxes
from lipdet.detector.multibox import multibox_loss
from lipdet.errors import InputError
from lipdet.images.pack import Pack
from lipdet.train import train
from lipdet.train.job import Job
from lipdet.train.setup import set_up
from tests.test_train import SHORT, job_on, trainer_of


def test_adversarial_pictures_are_near_and_worse(house_numbers: Pack, tmp_path: Path) -> None:
    plain = trainer_of(job_on(house_numbers, augment=False), tmp_path)
    attacked = trainer_of(
        job_on(house_numbers, augment=False, adversarial_epsilon=0.5, adversarial_steps=2), tmp_path
    )
    images, targets = plain.load(0, 0)
    worse, _ = attacked.load(0, 0)
    distances = (worse - images).flatten(1).norm(dim=1)
    # By the definition of the L2 ball of radius ε = 0.5 in pixels of [0, 1].
    assert (distances <= 0.5 + 1e-5).all()
    assert (distances > 0.1).all()
    assert worse.min() >= 0
    assert worse.max() <= 1
    detector = plain.state.detector.eval()
    with torch.no_grad():
        clean, found = (
            multibox_loss(detector(batch), targets, detector.decoder).total
            for batch in (images, worse)
        )
    assert found > clean
    # Random starts are those of the step: the same again at the same step, others at the next.
    assert torch.equal(worse, attacked.load(0, 0)[0])
    attacked.state.step += 1
    assert not torch.equal(worse, attacked.load(0, 0)[0])
    assert attacked.state.detector.training


@pytest.mark.slow
def test_fine_tuning_starts_from_the_weights_given(house_numbers: Pack, tmp_path: Path) -> None:
    train(job_on(house_numbers, epochs=1), tmp_path / "first")
    job = job_on(house_numbers, start_from=str(tmp_path / "first"), epochs=1)
    state = trainer_of(job, tmp_path).state.detector.state_dict()
    tensors, _ = read_tensors(tmp_path / "first" / "best.safetensors")
    # Oracle: the file itself.
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
    # What offsets mean may change.
    unit = 0.37
    job = dataclasses.replace(job, detector=dataclasses.replace(job.detector, offset_unit=unit))
    train(job, tmp_path / "second")
    coding = load_detector(str(tmp_path / "second")).detector.coding
    default_box = torch.tensor([30.0, 40.0, 10.0, 20.0])
    moved = coding.decode(torch.tensor([1.0, 0.0, 0.0, 0.5]), default_box)
    # Oracle: the definition, by hand.
    half = 20 * math.exp(unit) / 2
    expected = torch.tensor([25 + 10 * unit, 40 - half, 35 + 10 * unit, 40 + half])
    torch.testing.assert_close(moved, expected)
    # Heads that are taken over keep what they learned to mean, whatever was chosen afterwards.
    tensors, info = read_tensors(tmp_path / "second" / "best.safetensors")
    info["detector"]["offset_unit"] = unit / 2
    write_tensors(tmp_path / "chosen.safetensors", tensors, info)
    job = job_on(house_numbers, start_from=str(tmp_path / "chosen.safetensors"), epochs=1)
    assert set_up(job).job.detector.offset_unit == unit


def test_fine_tuning_another_detector_is_refused(house_numbers: Pack, tmp_path: Path) -> None:
    preset = PRESETS["certified-small"]
    settings = dataclasses.replace(SHORT, start_from="naive")
    job = Job("certified-small", preset.detector, settings, (str(house_numbers.folder),), ())
    with pytest.raises(InputError, match="start from weights of the same preset"):
        train(job, tmp_path / "run")
    assert not (tmp_path / "run" / LAST).exists()


@pytest.mark.parametrize("size", [3, 5])
def test_heads_of_another_size_start_anew(
    house_numbers: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    preset = PRESETS["certified-small"]
    sides = fit_default_boxes(house_numbers.boxes[:], house_numbers.labels[:], 10, 0, 8).sides
    config = dataclasses.replace(preset.detector, sides=sides)
    torch.manual_seed(1)
    first, detector = tmp_path / "first.safetensors", build_detector(config)
    save_detector(first, detector, config, {})
    settings = dataclasses.replace(SHORT, start_from=str(first))
    wanted = dataclasses.replace(preset.detector, head_size=size)
    setup = set_up(Job("certified-small", wanted, settings, (str(house_numbers.folder),), ()))
    said = " ".join(capsys.readouterr().err.split())
    assert ("Heads that read 3×3 cells start anew" in said) == (size == 3)
    own, other = setup.detector.state_dict(), detector.state_dict()
    taken = {name for name in own if own[name].equal(other[name])}
    assert {name for name in own if name.startswith("backbone")} <= taken
    assert (taken == set(own)) == (size == 5)


@pytest.mark.parametrize("wide", [True, False])
def test_boxes_of_other_weights_stay_unless_they_cover_little(
    house_numbers: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str], wide: bool
) -> None:
    preset = PRESETS["certified-small"]
    # By hand: digits are about twice as high as wide, so that 60×20 covers none of them.
    fitted = fit_default_boxes(house_numbers.boxes[:], house_numbers.labels[:], 10, 0, 8).sides
    sides = ((60.0, 20.0),) if wide else fitted
    detector = build_detector(dataclasses.replace(preset.detector, sides=sides))
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(0.01)
    first = tmp_path / "first.safetensors"
    save_detector(first, detector, detector.config, {})
    settings = dataclasses.replace(SHORT, start_from=str(first))
    job = Job("certified-small", preset.detector, settings, (str(house_numbers.folder),), ())
    setup = set_up(job)
    said = " ".join(capsys.readouterr().err.split())
    assert ("cover 0.0 % of the objects: others are fitted" in said) == wide
    assert (setup.job.detector.sides == sides) == (not wide)
    # The body is taken over, and so are the heads if their boxes are.
    own, other = setup.detector.state_dict(), detector.state_dict()
    taken = {name.partition(".")[0] for name in own if torch.equal(own[name], other[name])}
    assert taken >= {"backbone"} | (set() if wide else {"heads"})
    assert ("heads" in taken) == (not wide)


def test_the_temperature_of_a_training(house_numbers: Pack, tmp_path: Path) -> None:
    preset = PRESETS["certified-small"]
    job = Job("certified-small", preset.detector, SHORT, (str(house_numbers.folder),), ())
    trainer = trainer_of(job, tmp_path)
    detector = trainer.state.detector
    final = detector.scores
    assert isinstance(final, SigmoidScores)
    started = dataclasses.replace(final, temperature=SHORT.start_temperature)
    assert trainer.task.decoder(detector, 0.0).scores == started != final
    assert trainer.task.decoder(detector, 1.0).scores == final
