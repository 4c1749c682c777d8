"""`lipdet check-attack`: whether an attack is strong enough to be believed."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from lipdet.attack import AttackSettings
from lipdet.attack.settings import ScheduleName, default_steps, single_attacks
from lipdet.checkpoint import load_detector
from lipdet.commands.attack_options import add_objective
from lipdet.commands.options import (
    DETECTOR_HELP,
    SPEC_HELP,
    Parser,
    check_plot,
    check_positive,
    check_state,
    check_writable,
    verb_parser,
    write_json,
)
from lipdet.errors import InputError
from lipdet.evaluate.attack_checks import judge
from lipdet.evaluate.attack_curves import measure_attack
from lipdet.evaluate.chunks import State
from lipdet.evaluate.run import in_classes_of
from lipdet.hardware import DeviceName, measuring_device
from lipdet.images.spec import open_data
from lipdet.progress import show
from lipdet.report.attack_checks import checks_table, plot_checks
from lipdet.versions import versions


def parser() -> Parser:
    """Return the parser of the options of `run`."""
    parser = verb_parser(
        "Check that an attack is strong enough: it must beat noise, black-box and transferred "
        "attacks, and have nothing left to gain from more steps or restarts.",
        "lipdet check-attack naive --data svhn:SVHN/test --plot checks.png",
    )
    parser.add_argument("detector", help=DETECTOR_HELP)
    parser.add_argument("--data", required=True, metavar="SPEC", help=SPEC_HELP)
    add_objective(parser)
    parser.add_function_arguments(run, skip={"detector", "data", "objective"})
    return parser


def run(
    detector: str,
    data: str,
    limit: int = 32,
    attack: ScheduleName = "pgd",
    objective: str | None = None,
    steps: int | None = None,
    restarts: int = 1,
    seed: int = 0,
    transfer: str | None = None,
    plot: Path | None = None,
    state: Path | None = None,
    device: DeviceName | None = None,
    json: Path | None = None,  # the option is called --json
) -> None:
    """Check an L2 attack.

    Args:
        detector: DETECTOR.
        data: SPEC.
        limit: only the first so many pictures.
        attack: pgd or apgd.
        objective: what it raises.
        steps: gradients per start; by default 50, and 100 on canvases of more than 10,000 pixels.
        restarts: random starts.
        seed: of crops, rendered pictures and random choices.
        transfer: DETECTOR to transfer an attack from; without it, a copy with weights 5 % off.
        plot: file for the figure; its ending chooses the format.
        state: folder that keeps finished parts, for going on after an interruption.
        device: cpu or cuda; by default the GPU if there is one.
        json: file for the result; `-` prints it instead of the table.
    """
    check_positive("--limit", limit)
    check_positive("--steps", steps)
    check_writable(json)
    check_plot(plot)
    check_state(state, [detector, *([transfer] if transfer else [])])
    # No radius is the subject here: the checks sweep over all.
    settings = AttackSettings(0.0, schedule=attack, restarts=restarts, seed=seed)
    single_attacks(attack, settings, objective)  # refused before anything is loaded
    place = measuring_device(device)
    loaded = load_detector(detector)
    loaded.detector.to(place)
    settings = replace(settings, steps=steps or default_steps(loaded.framing.canvas))
    other = load_detector(transfer).detector.to(place) if transfer else None
    if other is not None and other.framing != loaded.framing:
        raise InputError(
            f"{transfer} takes {other.framing} and {detector} {loaded.framing}; an attack can only "
            "be transferred at one size."
        )
    pack = in_classes_of(loaded, open_data(data, "test", loaded.framing, seed).head(limit))
    kept = State.of(state, loaded.detector)
    curves = measure_attack(loaded.detector, pack, settings, objective, other, state=kept)
    report = judge(curves)
    if plot is not None:
        plot_checks(report, plot)
    result = {
        "weights": loaded.name,
        "data": pack.describe(),
        "attack": attack,
        "objective": objective,
        "steps": settings.steps,
        "restarts": restarts,
        "seed": seed,
        "transfer": transfer,
        "versions": versions(),
        "passed": report.passed,
        "checks": [asdict(check) for check in report.checks],
        "curves": asdict(report.curves),
    }
    if write_json(json, result):
        return
    show(checks_table(loaded.name, report))
