"""`lipdet eval`: average precision on a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lipdet import distributed
from lipdet.attack import AttackSettings
from lipdet.attack.settings import AttackName, Norm, default_steps
from lipdet.checkpoint import certifiable, load_any
from lipdet.commands.attack_options import EPSILON_HELP, add_objective, measured_epsilons
from lipdet.commands.options import (
    ANY_DETECTOR_HELP,
    FLOAT64_HELP,
    SPEC_HELP,
    Parser,
    add_processes,
    check_positive,
    check_state,
    check_writable,
    verb_parser,
    write_json,
)
from lipdet.errors import InputError
from lipdet.evaluate.attacked import Campaign
from lipdet.evaluate.together import evaluate_together
from lipdet.hardware import DeviceName, measuring_device
from lipdet.images.spec import open_data
from lipdet.progress import show
from lipdet.report.certificate import (
    certified_classes_table,
    certified_table,
    reading_table,
    reasons_table,
)
from lipdet.report.table import attacked_table, classes_table, results_table


def parser() -> Parser:
    """Return the parser of the options of `run`."""
    parser = verb_parser(
        "Measure average precision on a data set: clean, under attack, certified.",
        "lipdet eval naive --data svhn:SVHN/test --epsilon 0.25 0.5 --attack worst",
    )
    parser.add_argument("detector", help=ANY_DETECTOR_HELP)
    parser.add_argument("--data", required=True, metavar="SPEC", help=SPEC_HELP)
    parser.add_argument("--epsilon", nargs="+", default=[], metavar="E", help=EPSILON_HELP)
    parser.add_argument(
        "--certify",
        action="store_true",
        help="also bound AP under every L2 perturbation of at most each radius",
    )
    parser.add_argument("--float64", action="store_true", help=FLOAT64_HELP)
    add_objective(parser)
    parser.add_function_arguments(
        run, skip={"detector", "data", "epsilon", "certify", "float64", "objective"}
    )
    add_processes(parser)
    return parser


def run(
    detector: str,
    data: str,
    limit: int | None = None,
    seed: int = 0,
    epsilon: Sequence[str] = (),
    attack: AttackName | None = None,
    certify: bool = False,
    float64: bool = False,
    objective: str | None = None,
    norm: Norm = "l2",
    steps: int | None = None,
    restarts: int = 1,
    state: Path | None = None,
    device: DeviceName | None = None,
    json: Path | None = None,  # the option is called --json
) -> None:
    """Measure average precision.

    Args:
        detector: DETECTOR.
        data: SPEC.
        limit: only the first so many pictures.
        seed: of crops, rendered pictures and random starts of attacks.
        epsilon: radii.
        certify: also bound AP under every L2 perturbation of at most each radius.
        float64: compute in float64.
        attack: also measure under this attack; worst tries several objectives and reports the
            lowest.
        objective: what pgd and apgd raise.
        norm: of the perturbation, l2 or linf.
        steps: gradients of an attack per start; by default 50, and 100 on canvases of more than
            10,000 pixels.
        restarts: random starts of an attack.
        state: folder that keeps finished parts, for going on after an interruption.
        device: cpu or cuda; by default the GPU if there is one, with --float64 the CPU.
        json: file for the result; `-` prints it instead of the tables.
    """
    check_positive("--limit", limit)
    check_positive("--steps", steps)
    check_writable(json)
    check_state(state, [detector])
    campaign = None
    epsilons = measured_epsilons(epsilon, attack, certify, norm)
    if attack is not None:
        settings = AttackSettings(epsilons[0], norm=norm, restarts=restarts, seed=seed)
        campaign = Campaign(attack, epsilons, settings, objective)
    if float64 and attack is not None:
        raise InputError("Attacks run in float32: leave out --float64, or --attack.")
    place = measuring_device(device, float64)
    loaded = load_any(detector)
    loaded.module.to(place)
    if campaign is not None:
        campaign = campaign.with_steps(steps or default_steps(loaded.framing.canvas))
    if certify or float64:
        network = certifiable(loaded)
        if float64:
            network.double()
    pack = distributed.made_once(lambda: open_data(data, "test", loaded.framing, seed))
    pack = pack.head(limit)
    result = evaluate_together(loaded, pack, seed, campaign, epsilons if certify else (), state)
    if result is None:
        return  # the first of several processes writes it
    if write_json(json, result):
        return
    show(results_table([result]), classes_table(result))
    if result["attacked"]:
        show(attacked_table(result))
    if result["certified"]:
        show(certified_table(result), certified_classes_table(result))
        show(reading_table(result), reasons_table(result))
