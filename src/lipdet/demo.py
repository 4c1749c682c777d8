"""The whole road in a few minutes: render, train, evaluate, detect, show.

A detector is trained from nothing on a small set of rendered house numbers and set beside the
packaged one, on pictures that neither has seen.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from PIL import Image
from rich.console import Console

from lipdet.boxes import DISPLAY_SELECTION
from lipdet.checkpoint import LoadedDetector, load_detector
from lipdet.config import PRESETS
from lipdet.evaluate.run import detect_pack, evaluate
from lipdet.images.pack import Pack
from lipdet.images.spec import open_data
from lipdet.job import Job
from lipdet.report.overlay import contact_sheet, draw_detections
from lipdet.report.page import Figure, write_page
from lipdet.report.table import results_table
from lipdet.train import train

TRAINING = "rendered:4000"
EPOCHS = 5
TEST = "rendered:500"
SHOWN = 12
COLUMNS = 4


def demo(out: Path, seed: int) -> None:
    """Run the demonstration; a second call goes on from what the first has left.

    Args:
        out: receives `run/`, `results.json`, `detections-*.png` and `index.html`.
        seed: of the training.
    """
    console = Console()
    naive = PRESETS["naive"]
    settings = dataclasses.replace(naive.train, epochs=EPOCHS, seed=seed)
    console.print(f"Training the naive detector on {TRAINING}, {EPOCHS} epochs …")
    train(Job("naive", naive.detector, settings, (TRAINING,), ()), out / "run", resume=True)

    pack = open_data(TEST, "test", naive.detector.image_size)
    detectors = [load_detector("naive"), load_detector(str(out / "run"))]
    console.print(f"Evaluating on {TEST} …")
    results = [evaluate(loaded, pack, seed=0) for loaded in detectors]
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    console.print(results_table(results))

    figures = []
    for name, loaded in zip(("packaged", "demo"), detectors, strict=True):
        sheet = gallery(loaded, pack)
        sheet.save(out / f"detections-{name}.png")
        figures.append(Figure(sheet, f"Detections of {loaded.name} on {SHOWN} rendered pictures"))
    write_page(out / "index.html", "lipdet: detections on rendered house numbers", results, figures)
    console.print(f"Pictures: {out}/detections-packaged.png, {out}/detections-demo.png")
    console.print(f"Page: {out}/index.html")


def gallery(loaded: LoadedDetector, pack: Pack) -> Image.Image:
    """The first pictures of a pack with a detector's detections."""
    indices = range(min(SHOWN, len(pack)))
    found = detect_pack(loaded.detector, pack, indices, DISPLAY_SELECTION)
    overlays = [
        draw_detections(Image.fromarray(pack.images[index]), one, pack.class_names)
        for index, one in zip(indices, found, strict=True)
    ]
    return contact_sheet(overlays, COLUMNS)
