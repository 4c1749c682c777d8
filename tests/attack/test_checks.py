"""The checks of an attack: each fails on curves that break it, and a weakened attack fails."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from lipdet.attack import AttackSettings, attack_batch
from lipdet.checkpoint import load_detector
from lipdet.detector import SSD
from lipdet.evaluate import attack_curves
from lipdet.evaluate.attack_checks import judge
from lipdet.evaluate.attack_curves import Curves, measure_attack
from lipdet.evaluate.chunks import State
from lipdet.images.pack import Pack
from lipdet.report.attack_checks import plot_checks

GOOD = Curves(
    objects=200,
    clean=0.8,
    epsilon=0.25,
    attack=0.4,
    noise=0.79,
    square=0.7,
    transfer=0.45,
    objectives={"mislabel": 0.4, "vanish": 0.38},
    sweep=[(0.1, 0.7, 0.8), (0.25, 0.4, 0.79), (4.0, 0.005, 0.7)],
    steps=[(1, 0.7), (10, 0.45), (50, 0.4), (100, 0.39)],
    restarts=[(1, 0.4), (3, 0.39)],
    loss=[0.0, 5.0, 8.0, 9.0, 9.5, 9.8, 9.9, 9.95, 10.0, 10.0, 10.0],
)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"sweep": [(0.1, 0.7, 0.8), (4.0, 0.05, 0.7)]}, "AP collapses"),
        # Nothing is left where noise of that size leaves nothing either.
        ({"sweep": [(0.1, 0.7, 0.8), (64.0, 0.0, 0.5)]}, "AP collapses"),
        ({"sweep": [(0.1, 0.4, 0.8), (0.25, 0.5, 0.8), (4.0, 0.0, 0.7)]}, "AP falls"),
        ({"steps": [(1, 0.7), (10, 0.35), (50, 0.4), (100, 0.4)]}, "more steps never help"),
        ({"steps": [(1, 0.7), (50, 0.4), (100, 0.37)]}, "more steps change nothing"),
        ({"restarts": [(1, 0.4), (3, 0.35)]}, "more restarts"),
        ({"loss": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]}, "plateau"),
        ({"loss": [1.0, 1.0, 1.0]}, "plateau"),
        ({"noise": 0.39}, "noise"),
        ({"square": 0.3}, "Square"),
        ({"transfer": 0.3}, "transferred"),
        ({"objectives": {"mislabel": 0.4, "vanish": 0.36}}, "no other objective"),
    ],
)
def test_each_check_fails_alone(change: dict[str, object], name: str) -> None:
    assert judge(GOOD).passed
    report = judge(replace(GOOD, **change))  # type: ignore[arg-type]
    assert not report.passed
    assert [name in check.name for check in report.checks if not check.passed] == [True]


def test_of_few_objects_two_may_be_chance() -> None:
    steps = [(1, 0.7), (10, 0.38), (50, 0.4), (100, 0.37)]
    assert not judge(replace(GOOD, steps=steps)).passed
    assert judge(replace(GOOD, steps=steps, objects=60)).passed
    assert not judge(replace(GOOD, steps=[(1, 0.7), (50, 0.4), (100, 0.36)], objects=60)).passed


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two radii, of which the attacks are compared at the larger; few queries and restarts."""
    monkeypatch.setattr(attack_curves, "RADII", (0.5, 4.0))
    monkeypatch.setattr(attack_curves, "LARGEST_RADIUS", 4.0)
    monkeypatch.setattr(attack_curves, "QUERIES", 20)
    monkeypatch.setattr(attack_curves, "MORE_RESTARTS", 2)


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_the_attack_on_the_naive_detector_passes(doors: Pack, tmp_path: Path) -> None:
    # Some seconds: a real attack has to converge here.
    settings = AttackSettings(0.0, steps=60)
    report = judge(measure_attack(load_detector("naive").detector, doors.head(2), settings))
    assert [check.name for check in report.checks if not check.passed] == []
    plot_checks(report, tmp_path / "checks.svg")
    assert (tmp_path / "checks.svg").read_text().lstrip().startswith("<?xml")


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_a_weakened_attack_fails(doors: Pack) -> None:
    # One step, one start, and gradients through the statistics of the batch.
    detector = load_detector("naive").detector
    weakened = AttackSettings(0.0, steps=1)
    curves = measure_attack(
        detector, doors.head(3), weakened, "mislabel", source=through_batch_statistics(detector)
    )
    failed = {check.name for check in judge(curves).checks if not check.passed}
    assert {"AP collapses", "the objective rises to a plateau"} <= failed


@pytest.mark.usefixtures("short")
def test_checks_go_on_where_they_were_interrupted(
    doors: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, pack = load_detector("naive").detector, doors.head(1)
    settings, state = AttackSettings(0.0, steps=2), State.of(tmp_path, detector)
    whole = measure_attack(detector, pack, settings)
    attacks: list[AttackSettings] = []

    def interrupted(*args: Any, **options: Any) -> Tensor:
        if len(attacks) == 10:
            raise KeyboardInterrupt
        return counted(*args, **options)

    def counted(*args: Any, **options: Any) -> Tensor:
        attacks.append(args[3])
        return attack_batch(*args, **options)

    monkeypatch.setattr(attack_curves, "attack_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_attack(detector, pack, settings, state=state)
    monkeypatch.setattr(attack_curves, "attack_batch", counted)
    assert measure_attack(detector, pack, settings, state=state) == whole
    # Both radii, of four objectives each, were there; what was begun after them is done again.
    assert attacks[10:12] == attacks[8:10]
    assert measure_attack(detector, pack, replace(settings, seed=1), state=state) != whole


def through_batch_statistics(detector: SSD) -> SSD:
    """A copy whose normalisation always behaves as in training."""
    other = copy.deepcopy(detector)
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = None
    return other
