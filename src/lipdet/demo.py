"""The whole road in a few minutes: render, train, evaluate, attack, certify, show.

A detector is trained from nothing on a small set of rendered house numbers and set beside the
packaged ones, on pictures that none of them has seen.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from rich.console import Console

from lipdet.attack import AttackSettings
from lipdet.checkpoint import load_detector
from lipdet.config import PRESETS
from lipdet.evaluate.attacked import Campaign
from lipdet.images.spec import open_data
from lipdet.job import Job
from lipdet.report.build import build_report
from lipdet.report.comparison import comparison_table
from lipdet.report.page import write_figures, write_page
from lipdet.train import train

TRAINING = "rendered:4000"
EPOCHS = 5
TEST = "rendered:64"
PACKAGED = ("naive", "certified")
EPSILONS = (0.1, 0.25)
# A quick attack; `lipdet report` has a strong one.
STEPS = 10
SHOWN = 4


def demo(out: Path, seed: int) -> None:
    """Run the demonstration; a second call goes on from what the first has left.

    Args:
        out: receives `run/`, `attacks/`, `results.json`, `figures/` and `index.html`.
        seed: of the training.
    """
    console = Console()
    naive = PRESETS["naive"]
    settings = dataclasses.replace(naive.train, epochs=EPOCHS, seed=seed)
    console.print(f"Training the naive detector on {TRAINING}, {EPOCHS} epochs …")
    train(Job("naive", naive.detector, settings, (TRAINING,), ()), out / "run", resume=True)

    pack = open_data(TEST, "test", naive.detector.image_size)
    detectors = [load_detector(name) for name in (*PACKAGED, str(out / "run"))]
    console.print(f"Evaluating, attacking and certifying on {TEST} …")
    attack = AttackSettings(EPSILONS[0], steps=STEPS)
    campaign = Campaign("pgd", EPSILONS, attack, out / "attacks")
    results, inspections = build_report(detectors, pack, 0, campaign, (), SHOWN)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    console.print(comparison_table(results))

    write_page(out / "index.html", results, inspections, "lipdet on rendered house numbers")
    write_figures(out / "figures", results, inspections)
    console.print(f"Page: {out}/index.html")
    console.print(f"Figures: {out}/figures")
