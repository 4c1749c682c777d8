"""Settings that cannot work are refused by name and value; settings survive json and YAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lipdet.cli import build_parser
from lipdet.config import (
    PRESETS,
    DetectorConfig,
    TrainConfig,
    as_plain,
    network_config,
    stored,
    train_config,
)
from lipdet.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("batch_size", "learning_rate", "gradient_clip")),
        *((name, -1) for name in ("epochs", "batch_size", "learning_rate", "validate_every")),
        *((name, -1) for name in ("epoch_pictures", "weight_decay", "validation_limit")),
        *((name, -1) for name in ("seed", "threads")),
        *((name, 1.0) for name in ("warmup", "ema_decay", "validation_share")),
        *((name, -0.1) for name in ("warmup", "ema_decay", "validation_share")),
        ("learning_rate", float("nan")),
        ("weight_decay", float("nan")),
        ("gradient_clip", float("nan")),
        ("warmup", float("nan")),
        ("checkpoint_seconds", -1.0),
        ("optimizer", "adam"),
        ("precision", "float16"),
    ],
)
def test_settings_that_cannot_work(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"{name} must .*{value}"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("unit", [-0.1, float("nan"), float("inf")])
def test_offset_units_that_cannot_work(unit: float) -> None:
    with pytest.raises(InputError, match=f"offset_unit must be positive.*not {unit}"):
        DetectorConfig(offset_unit=unit)


@pytest.mark.parametrize("size", [-3, 0, 2])
def test_head_sizes_that_cannot_work(size: int) -> None:
    with pytest.raises(InputError, match=f"head_size must be an odd number.*not {size}"):
        DetectorConfig(head_size=size)


@pytest.mark.parametrize("preset", PRESETS.values())
def test_settings_survive_json(preset: Any) -> None:
    assert network_config(json.loads(json.dumps(stored(preset.detector)))) == preset.detector
    assert train_config(json.loads(json.dumps(as_plain(preset.train)))) == preset.train


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_first_line_is_the_command(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    command = path.read_text().splitlines()[0]
    assert command.startswith(f"# lipdet train --config {name} --out runs/")
    words = command.replace(name, str(path)).split()[2:]
    assert build_parser().parse_args(words).train.preset
