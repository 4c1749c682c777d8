"""Settings that cannot be meant are refused in one sentence."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from lipdet.attack import NAMED_EPSILONS, OBJECTIVES, AttackSettings, parse_epsilon
from lipdet.attack.settings import DEFAULT_OBJECTIVE, WORST, single_attacks
from lipdet.commands import attack, check_attack, eval
from lipdet.errors import InputError


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"epsilon": -0.1}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"epsilon": float("inf")}, "epsilon"),
        ({"steps": 0}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"seed": -1}, "seed"),
        ({"objective": "annoy"}, "annoy"),
        ({"norm": "l7"}, "l7"),
        ({"schedule": "sgd"}, "sgd"),
    ],
)
def test_bad_settings(changes: dict[str, Any], names: str) -> None:
    with pytest.raises(InputError, match=names):
        AttackSettings(**{"epsilon": 0.5, **changes})


def test_radii_by_number_and_by_name() -> None:
    assert parse_epsilon("0.25") == 0.25
    # 0.5 where pixels lie in [-1, 1] is 0.25 where they lie in [0, 1].
    assert {name: parse_epsilon(name) for name in NAMED_EPSILONS} == {
        "reference-minus1-1": 0.25,
        "reference-0-1": 0.5,
    }
    for text in ("much", "", "nan", "-1"):
        with pytest.raises(InputError, match="epsilon"):
            parse_epsilon(text)


def test_worst_is_an_explicit_list() -> None:
    settings = AttackSettings(0.5, "vanish", "apgd", steps=7)
    assert [one.objective for one in single_attacks("worst", settings)] == list(WORST)
    assert set(WORST) < set(OBJECTIVES)
    assert single_attacks("pgd", settings) == [AttackSettings(0.5, "vanish", "pgd", steps=7)]


def test_the_strongest_objective_is_the_default_wherever_one_can_be_chosen() -> None:
    assert AttackSettings(0.5).objective == DEFAULT_OBJECTIVE == next(iter(WORST))
    functions = [attack.run, check_attack.run, eval.run]
    defaults = {inspect.signature(run).parameters["objective"].default for run in functions}
    assert defaults == {DEFAULT_OBJECTIVE}
