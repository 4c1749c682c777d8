"""Which objective is the default attack, and which `worst` tries: AP50 under every one of them.

    python scripts/choose_attack.py DETECTOR… --data rendered:48 --seed 1 --epsilon 0.25 0.5

Prints a table for each radius: AP50 in percent under PGD on each objective, under the worst of all
of them with as many steps each, and under `worst` as it is, with the processor time of the latter
two. The shipped choice was made on rendered pictures of another seed than those of the tables.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from lipdet.attack import OBJECTIVES, AttackSettings
from lipdet.attack.settings import single_attacks
from lipdet.checkpoint import AnyDetector, load_any
from lipdet.detector import SSD
from lipdet.evaluate.attacked import attack_pack, measure, prepare, worst
from lipdet.evaluate.run import detector_for
from lipdet.images.pack import Pack
from lipdet.images.spec import open_data
from lipdet.types import Detections


def attacked(loaded: AnyDetector, pack: Pack, settings: AttackSettings) -> list[Detections]:
    """What one attack leaves."""
    detector = detector_for(loaded, pack)
    prepared = prepare(detector) if isinstance(detector, SSD) else detector
    return attack_pack(prepared, pack, settings)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detectors", nargs="+")
    parser.add_argument("--data", default="rendered:48")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    for epsilon in options.epsilon:
        print(f"\nε = {epsilon:g}, {options.steps} steps, {options.data}, seed {options.seed}\n")
        print("| detector |", " | ".join(OBJECTIVES), "| all | `worst` | all | `worst` |")
        print("|---" * (len(OBJECTIVES) + 5) + "|")
        for name in options.detectors:
            loaded = load_any(name)
            pack = open_data(options.data, "test", loaded.framing, options.seed)
            settings = AttackSettings(epsilon, steps=options.steps)
            started = time.process_time()
            found = {
                objective: attacked(loaded, pack, replace(settings, objective=objective))
                for objective in OBJECTIVES
            }
            between = time.process_time()
            few = [attacked(loaded, pack, one) for one in single_attacks("worst", settings)]
            seconds = [between - started, time.process_time() - between]
            every = [*found.values(), worst(list(found.values()), pack), worst(few, pack)]
            row = [f"{100 * measure(one, pack)['ap50']:.1f}" for one in every] + [
                f"{one:.0f} s" for one in seconds
            ]
            print(f"| `{name}` | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
