"""Settings that cannot work are refused by name and value; settings survive json."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from lipdet.config import DIGITS, PRESETS, DetectorConfig, TrainConfig, as_plain
from lipdet.errors import InputError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("epochs", "batch_size", "learning_rate", "gradient_clip")),
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


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup": 0.0, "ema_decay": 0.0, "validation_share": 0.0},
        {"validation_limit": 0, "weight_decay": 0.0, "threads": 0, "checkpoint_seconds": 0.0},
        {"optimizer": "sgd", "precision": "bf16"},
    ],
)
def test_settings_at_the_edge_work(settings: dict[str, Any]) -> None:
    assert dataclasses.asdict(TrainConfig(**settings)).items() >= settings.items()


@pytest.mark.parametrize("preset", PRESETS.values())
def test_settings_survive_json(preset: Any) -> None:
    detector = json.loads(json.dumps(as_plain(preset.detector)))
    assert DetectorConfig(**{**detector, "class_names": tuple(detector["class_names"])}) == (
        preset.detector
    )
    assert TrainConfig(**json.loads(json.dumps(as_plain(preset.train)))) == preset.train


def test_the_naive_detector() -> None:
    # Source: the reference experiment: ten digits, 74 × 74 pixels.
    config = PRESETS["naive"].detector
    assert config.class_names == DIGITS == tuple("0123456789")
    assert config.image_size == 74


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().seed = 3  # type: ignore[misc]
