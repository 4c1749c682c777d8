"""Which objectives the default attack and `worst` try, and what constants `demote` has.

    python scripts/choose_attack.py DETECTOR… --data svhn:SVHN/train --limit 96
    python scripts/choose_attack.py DETECTOR… --data svhn:SVHN/train --limit 96 --mix
    python scripts/choose_attack.py DETECTOR… --data svhn:SVHN/train --limit 96 --epsilon 0.5 --vary

The first prints a table for each radius: AP50 in percent under PGD on each objective, under the
worst of all but `demote` with as many steps each, and under `worst` as it is, with the processor
time of the latter two. The second shares the steps of the default attack and of `worst` among
objectives in several ways. The third varies one constant of `demote` at a time. What is shipped was
chosen on pictures that the detectors were trained on, none of which is in a table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace

from lipdet.attack import OBJECTIVES, AttackSettings, objectives
from lipdet.attack.settings import DEFAULT_OBJECTIVE, single_attacks
from lipdet.checkpoint import AnyDetector, load_any
from lipdet.evaluate.attacked import attack_pack, measure, prepare, worst
from lipdet.evaluate.run import detector_for
from lipdet.images.pack import Pack
from lipdet.images.spec import open_data
from lipdet.types import Detections

OTHERS = [objective for objective in OBJECTIVES if objective != DEFAULT_OBJECTIVE]
CONSTANTS = {
    "RANKED_WITHIN": (2.0, 4.0, 6.0),
    "SHARE_OF_WRONG": (0.12, 0.5, 1.0),
    "SLIDES_OFF_WITHIN": (0.02, 0.1),
}
# Shares of the steps for demote, mislabel, fabricate and multibox: of the default attack, and of
# `worst`, which takes twice as many.
MIXED = ("demote", "mislabel", "fabricate", "multibox")
MIXES = (
    (0.3, 0.4, 0.3, 0.0),
    (0.4, 0.2, 0.2, 0.2),
    (0.3, 0.3, 0.2, 0.2),
    (1.0, 0.5, 0.5, 0.0),
    (0.6, 0.6, 0.4, 0.4),
    (0.8, 0.4, 0.4, 0.4),
)


def attacked(loaded: AnyDetector, pack: Pack, settings: AttackSettings) -> list[Detections]:
    """Return what one attack leaves."""
    detector = detector_for(loaded, pack)
    return attack_pack(prepare(detector), pack, settings)


def ap50(found: list[Detections], pack: Pack) -> str:
    """Return AP50 in percent."""
    return f"{100 * measure(found, pack)['ap50']:.1f}"


def compare_objectives(loaded: AnyDetector, pack: Pack, settings: AttackSettings) -> Iterator[str]:
    """Yield the cells of a detector's row."""
    demoted = attacked(loaded, pack, settings)
    started = time.process_time()
    found = [attacked(loaded, pack, replace(settings, objective=objective)) for objective in OTHERS]
    between = time.process_time()
    few = [attacked(loaded, pack, one) for one in single_attacks("worst", settings)]
    seconds = [between - started, time.process_time() - between]
    every = [demoted, *found, worst(found, pack), worst(few, pack)]
    yield from (ap50(one, pack) for one in every)
    yield from (f"{one:.0f} s" for one in seconds)


def share_steps(loaded: AnyDetector, pack: Pack, settings: AttackSettings) -> Iterator[str]:
    """Yield the cells of a detector's row, one for each mix."""
    found: dict[AttackSettings, list[Detections]] = {}
    for mix in MIXES:
        attacks = [
            replace(settings, objective=objective, steps=round(share * settings.steps))
            for objective, share in zip(MIXED, mix, strict=True)
            if share
        ]
        for one in attacks:
            if one not in found:
                found[one] = attacked(loaded, pack, one)
        yield ap50(worst([found[one] for one in attacks], pack), pack)


def vary_demote(loaded: AnyDetector, pack: Pack, settings: AttackSettings) -> Iterator[str]:
    """Yield the cells of a detector's row: as it is, and with each other value."""
    demoting = replace(settings, objective="demote")
    yield ap50(attacked(loaded, pack, demoting), pack)
    for constant, values in CONSTANTS.items():
        shipped = getattr(objectives, constant)
        for value in values:
            setattr(objectives, constant, value)
            yield ap50(attacked(loaded, pack, demoting), pack)
        setattr(objectives, constant, shipped)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detectors", nargs="+")
    parser.add_argument("--data", default="rendered:48")
    parser.add_argument("--limit", type=int, default=48)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--steps", type=int, default=50)
    table = parser.add_mutually_exclusive_group()
    table.add_argument("--mix", action="store_true")
    table.add_argument("--vary", action="store_true")
    options = parser.parse_args()
    row_of = compare_objectives
    names = [DEFAULT_OBJECTIVE, *OTHERS, "the other six", "`worst`", "the other six", "`worst`"]
    if options.mix:
        row_of, names = share_steps, [" / ".join(f"{s:g}" for s in mix) for mix in MIXES]
    if options.vary:
        row_of = vary_demote
        names = ["as it is", *(f"{name} {one:g}" for name in CONSTANTS for one in CONSTANTS[name])]
    for epsilon in options.epsilon:
        print(f"\nε = {epsilon:g}, {options.steps} steps, {options.data}, seed {options.seed}\n")
        print("| detector |", " | ".join(names), "|")
        print("|---" * (len(names) + 1) + "|")
        for name in options.detectors:
            loaded = load_any(name)
            pack = open_data(options.data, "test", loaded.framing, options.seed)
            settings = AttackSettings(epsilon, steps=options.steps)
            row = row_of(loaded, pack.head(options.limit), settings)
            print(f"| `{name}` | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
