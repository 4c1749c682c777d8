"""Where a detector computes: on a device of its own, everything of an evaluation stays there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lipdet import hardware
from lipdet.boxes import AP_SELECTION
from lipdet.certificate.verifier import verifier_of
from lipdet.checkpoint import load_any, save_detector
from lipdet.cli import main
from lipdet.config import PRESETS
from lipdet.detector import build_detector
from lipdet.evaluate.chunks import State, weights_hash
from lipdet.images.render import rendered
from lipdet.types import Canvas
from tests.elsewhere import ELSEWHERE, Elsewhere, Placed


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small 1-Lipschitz detector with random weights."""
    torch.manual_seed(0)
    config = replace(PRESETS["certified-small"].detector, canvas=Canvas(32, 32))
    file = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_detector(file, build_detector(config), config, {})
    return str(file)


def test_attacks_are_the_same_on_another_device(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(rendered("test", 0)[0]).save(tmp_path / "door.png")

    def measured(place: torch.device) -> list[Any]:
        monkeypatch.setattr(hardware, "chosen_device", lambda name: place)
        out = tmp_path / place.type
        attack = ["--epsilon", "0.25", "--attack", "pgd", "--steps", "2", "--quiet"]
        main(["attack", weights, str(tmp_path / "door.png"), *attack, "--out", str(out)])
        files = [out / "attack.json", out / "eval.json"]
        main(["eval", weights, "--data", "rendered:2", *attack, "--json", str(files[1])])
        shown, figures = (json.loads(file.read_text()) for file in files)
        assert figures.pop("device") == place.type
        return [shown, {**figures, "seconds": 0}]

    here = measured(torch.device("cpu"))
    with Elsewhere() as elsewhere:
        there = measured(ELSEWHERE)
    # The numbers are the CPU's, so nothing but the way there and back could differ.
    assert there == here
    assert elsewhere.run["convolution"] > 0
    assert elsewhere.run["convolution_backward"] > 0


@pytest.mark.slow
def test_a_certificate_bounds_on_the_cpu_and_measures_where_the_detector_is(weights: str) -> None:
    loaded = load_any(weights)
    here = verifier_of(loaded.detector, AP_SELECTION)
    with Elsewhere() as elsewhere:
        loaded.module.to(ELSEWHERE)
        there = verifier_of(loaded.detector, AP_SELECTION)
    assert there.rounding == here.rounding > 0
    assert torch.equal(there.bounds.logits, here.bounds.logits)
    assert torch.equal(there.decoder.default_boxes, here.decoder.default_boxes)
    assert elsewhere.run["convolution"] > 0


def test_kept_results_say_where_they_were_computed(weights: str, tmp_path: Path) -> None:
    loaded = load_any(weights)
    here, own = State.of(tmp_path, loaded.detector), weights_hash(loaded.detector)
    with Elsewhere():
        loaded.module.to(ELSEWHERE)
        assert State.of(tmp_path, loaded.detector) != here
        assert weights_hash(loaded.detector) == own


def test_the_other_device_refuses_what_a_gpu_refuses() -> None:
    with Elsewhere():
        there = torch.ones(3, device=ELSEWHERE)
        assert isinstance(there * 2, Placed)
        assert (there * 2).cpu().tolist() == [2, 2, 2]
        with pytest.raises(AssertionError, match="two devices"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError):
            there.numpy()


def test_the_device_is_the_gpu_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["eval", "naive", "--data", "rendered:1", *words])
        assert ended.value.code == 2
        return capsys.readouterr().err

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware.measuring_device().type == "cpu"
    assert "There is no GPU" in refusal("--device", "cuda")
    assert "leave out --device cuda" in refusal("--device", "cuda", "--float64")
    assert "mps" in refusal("--device", "mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for place in (torch.backends.cuda.matmul, torch.backends.cudnn):
        place.allow_tf32 = True
    assert hardware.measuring_device("cpu").type == "cpu"
    assert hardware.measuring_device(float64=True).type == "cpu"
    assert torch.backends.cudnn.allow_tf32
    assert hardware.measuring_device().type == "cuda"
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
