"""Weights on disk: round trip, and one sentence for every file that cannot be used."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lipdet import checkpoint
from lipdet.checkpoint import (
    BEST,
    load_detector,
    packaged_names,
    read_tensors,
    save_detector,
    weights_file,
    write_tensors,
)
from lipdet.config import DetectorConfig, as_plain
from lipdet.detector import SSD, build_detector
from lipdet.errors import InputError

CONFIG = DetectorConfig()


@pytest.fixture(scope="module")
def detector() -> SSD:
    torch.manual_seed(0)
    built = build_detector(CONFIG)
    # Buffers that differ from those of a new detector.
    built(torch.rand(2, 3, 74, 74))
    return built


def test_weights_that_are_no_numbers(detector: SSD, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    name = next(iter(state))
    state[name].flatten()[0] = torch.nan
    write_tensors(tmp_path / "nan.safetensors", state, {"detector": as_plain(CONFIG)})
    with pytest.raises(InputError, match=f"no numbers, in {name}"):
        load_detector(str(tmp_path / "nan.safetensors"))


@pytest.fixture
def saved(detector: SSD, tmp_path: Path) -> Path:
    file = tmp_path / "weights.safetensors"
    save_detector(file, detector, CONFIG, {"training": {"seed": 3}})
    return file


def test_round_trip(detector: SSD, saved: Path) -> None:
    loaded = load_detector(str(saved))
    assert loaded.name == str(saved)
    assert loaded.info == {"detector": as_plain(CONFIG), "training": {"seed": 3}}
    assert loaded.detector.config == CONFIG
    assert not any(module.training for module in loaded.detector.modules())
    stored = loaded.detector.state_dict()
    assert all(torch.equal(stored[name], one) for name, one in detector.state_dict().items())


def test_a_failed_write_leaves_the_old_file(
    detector: SSD, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def broken(number: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(InputError, match="disk full"):
        save_detector(saved, detector, CONFIG, {"training": {"seed": 4}})
    assert saved.read_bytes() == before


def test_what_a_detector_means(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(InputError, match=f"{run} is no finished run"):
        weights_file(str(run))
    (run / BEST).write_bytes(saved.read_bytes())
    assert weights_file(str(run)) == run / BEST
    assert weights_file(str(saved)) == saved
    packaged = tmp_path / "packaged"
    packaged.mkdir()
    for name in ("one", "two"):
        (packaged / f"{name}.safetensors").write_bytes(saved.read_bytes())
    monkeypatch.setattr(checkpoint, "PACKAGED", packaged)
    assert packaged_names() == ["one", "two"]
    assert weights_file("two") == packaged / "two.safetensors"
    assert load_detector("one").name == "one"
    with pytest.raises(InputError, match=r"no detector 'three'.*one of: one, two"):
        weights_file("three")
    with pytest.raises(InputError, match="no detector ''"):
        weights_file("")


@pytest.mark.parametrize("kept", [0, 4, 100, 20_000, -1])
def test_a_truncated_file(saved: Path, kept: int) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(InputError, match=f"{saved} is no readable safetensors file"):
        load_detector(str(saved))


@pytest.mark.parametrize("place", [0, 8, 9, 30])
def test_a_corrupt_header(saved: Path, place: int) -> None:
    data = bytearray(saved.read_bytes())
    data[place] ^= 0x80
    saved.write_bytes(data)
    with pytest.raises(InputError, match=str(saved)):
        load_detector(str(saved))


def test_weights_of_another_program(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="was not written by lipdet"):
        load_detector(str(tmp_path / "w.safetensors"))
    save_file({"weight": torch.zeros(3)}, tmp_path / "w.safetensors", {"lipdet": "{cut"})
    with pytest.raises(InputError, match="was not written by lipdet"):
        load_detector(str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    "info",
    [
        [],
        3,
        {},
        {"detector": None},
        {"detector": {}},
        {"detector": {"class_names": None}},
        {"detector": {**as_plain(CONFIG), "colour": "red"}},
        {"detector": {**as_plain(CONFIG), "width": "wide"}},
        {"detector": {**as_plain(CONFIG), "stride": [8]}},
        {"detector": {**as_plain(CONFIG), "most_shown": True}},
        {"detector": {**as_plain(CONFIG), "nms_iou": {}}},
        {"detector": {**as_plain(CONFIG), "sides": "x"}},
    ],
)
def test_a_file_that_does_not_describe_a_detector(tmp_path: Path, info: Any) -> None:
    write_tensors(tmp_path / "w", {"weight": torch.zeros(3)}, info)
    with pytest.raises(InputError, match="does not describe a lipdet detector"):
        load_detector(str(tmp_path / "w"))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.int8])
def test_weights_of_another_kind_of_numbers(saved: Path, dtype: torch.dtype) -> None:
    tensors, info = read_tensors(saved)
    name = next(name for name, one in tensors.items() if one.is_floating_point())
    write_tensors(saved, {**tensors, name: tensors[name].to(dtype)}, info)
    with pytest.raises(InputError, match=f"values that are no numbers, in {name}"):
        load_detector(str(saved))


@pytest.mark.parametrize(
    ("name", "value"),
    [("nms_iou", float("nan")), ("most_shown", 0), ("class_margin", -1.0), ("class_names", ())],
)
def test_a_configuration_that_cannot_work(
    detector: SSD, tmp_path: Path, name: str, value: Any
) -> None:
    info = {"detector": {**as_plain(CONFIG), name: value}}
    write_tensors(tmp_path / "w", detector.state_dict(), info)
    with pytest.raises(InputError, match=f"{name} must"):
        load_detector(str(tmp_path / "w"))


def test_an_unknown_architecture(detector: SSD, tmp_path: Path) -> None:
    config = DetectorConfig(architecture="yolo")
    save_detector(tmp_path / "w", detector, config, {})
    with pytest.raises(InputError, match=r"'yolo'.*does not have; it has: tinier-ssd"):
        load_detector(str(tmp_path / "w"))


@pytest.mark.parametrize("change", ["missing", "additional", "shape", "classes"])
def test_weights_of_another_architecture(detector: SSD, tmp_path: Path, change: str) -> None:
    tensors = dict(detector.state_dict())
    config = CONFIG
    name = next(iter(tensors))
    if change == "missing":
        del tensors[name]
    elif change == "additional":
        tensors["other"] = torch.zeros(3)
    elif change == "shape":
        tensors[name] = torch.zeros(3)
    else:
        config = DetectorConfig(class_names=("cat", "dog"))
    write_tensors(tmp_path / "w", tensors, {"detector": as_plain(config)})
    with pytest.raises(InputError, match="weights of another architecture"):
        load_detector(str(tmp_path / "w"))


def test_tensors_and_json_round_trip(tmp_path: Path) -> None:
    tensors = {
        "strided": torch.arange(12.0).reshape(3, 4).T,
        "count": torch.tensor(7),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "none": torch.zeros(0, 4),
    }
    info = {"number": 0.1, "text": "ε", "list": [1, None]}
    write_tensors(tmp_path / "w", tensors, info)
    found, header = read_tensors(tmp_path / "w")
    assert header == json.loads(json.dumps(info))
    assert all(torch.equal(found[name], one) for name, one in tensors.items())
    assert found["half"].dtype == torch.bfloat16
