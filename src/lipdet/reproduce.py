"""The published table and what lies beyond it: every row trained or loaded, then measured alike.

Notable choices:
- Rows whose weights come with the package are loaded; all others are trained on the same data.
- A finished training and a finished chunk of pictures are never done again; rows are put together
  anew, so that other radii or steps in the same folder add to what is there.
- A row is a preset, or any DETECTOR: packaged weights without a preset, or one's own run.
- `worst` attacks and certificates use the same pictures, so certified ≤ attacked can be read off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lipdet.attack import AttackSettings
from lipdet.attack.settings import default_steps, single_attacks
from lipdet.checkpoint import LoadedDetector, load_detector, packaged_names
from lipdet.config import PRESETS
from lipdet.evaluate.attacked import Campaign, attack_pack, prepare, worst
from lipdet.evaluate.bootstrap import ap50_interval
from lipdet.evaluate.certified import certificate_pass
from lipdet.evaluate.chunks import State, in_order
from lipdet.evaluate.ranking import false_positives_per_image
from lipdet.evaluate.run import evaluate
from lipdet.files import write_complete, write_json
from lipdet.images.pack import Pack, same_pictures
from lipdet.images.spec import open_data
from lipdet.progress import console
from lipdet.report.inspection import inspect_detector
from lipdet.report.page import write_figures, write_page
from lipdet.report.table import comparison_markdown
from lipdet.results import EvaluationResult, WorkingPoint
from lipdet.train import train
from lipdet.train.job import Job
from lipdet.types import Canvas, Detections, Framing

EPSILONS = (0.1, 0.25, 0.5, 1.0)
RECALLS = (0.25, 0.5, 0.75)
# Pictures on the page, each attacked.
SHOWN = 6
# The reference experiment at the width for two cores; at its own, a training takes most of a day.
COMPARED = ("naive", "naive-adversarial", "sll-spectral-small", "sll-conv-small", "sll-l2-small")
ROWS = (*COMPARED, "certified")
QUICK_ROWS = (*COMPARED, "certified-small")


@dataclass(frozen=True)
class Effort:
    """The effort that is spent on a table.

    Attributes:
        training: SPECs that rows without packaged weights are trained on.
        epochs: of each training; 0 leaves the preset's.
        pictures: of the data to evaluate on; None for all.
        steps: of each attack; None for as many as the canvas of a row wants.
        packaged: whether weights of the package are used where there are any.
        epsilons: L2 radii of attacks and certificates.
    """

    training: tuple[str, ...]
    epochs: int
    pictures: int | None
    steps: int | None
    packaged: bool
    epsilons: tuple[float, ...] = EPSILONS


FULL = Effort(("rendered:20000",), 0, None, None, True)
QUICK = Effort(("rendered:4000",), 2, 24, 10, False)


def reproduce(
    out: Path,
    rows: Sequence[str],
    data: str,
    effort: Effort,
    seed: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008 (immutable)
) -> list[EvaluationResult]:
    """Measure every row and write the page; a second call goes on from what the first has left.

    Args:
        out: receives `runs/ROW`, `state/` and `rows/ROW.json`, and of the rows asked for
            `results.json`, `table.md`, `index.html` and `figures/`.
        rows: presets and DETECTORs, in their order.
        data: SPEC to evaluate on.
        effort: how much is spent.
        seed: of trainings, crops and random starts.
        device: where rows are measured; trainings choose for themselves.

    Returns:
        The rows, each the json object of `lipdet eval` with `working_points`.
    """
    # Settings and data that cannot be used are refused before hours of training.
    framings = list(dict.fromkeys(map(framing_of, rows)))
    settings = {framing: settings_for(framing.canvas, effort, seed) for framing in framings}
    opened = [open_data(data, "test", framing, seed) for framing in framings]
    opened = [pack.head(effort.pictures or len(pack)) for pack in opened]
    packs = dict(zip(framings, opened, strict=True))
    shown = dict(zip(framings, same_pictures(opened, SHOWN), strict=True))
    (out / "rows").mkdir(parents=True, exist_ok=True)
    results, inspections = [], []
    for number, row in enumerate(rows, start=1):
        console.log(f"{row} ({number} of {len(rows)})")
        loaded = detector_of(row, out, effort, seed)
        loaded.detector.to(device)
        pack = packs[loaded.framing]
        results.append(measured(loaded, pack, out / "state", effort, seed))
        # A row can be read before the last one is done.
        write_json(out / "rows" / f"{loaded.name}.json", results[-1])
        attacks = single_attacks("worst", settings[loaded.framing])
        inspections.append(inspect_detector(loaded, pack, shown[loaded.framing], attacks))
    write_json(out / "results.json", results)
    write_complete(out / "table.md", comparison_markdown(results))
    write_page(out / "index.html", results, inspections, f"All detectors on {data}")
    write_figures(out / "figures", results, inspections)
    return results


def row_name(row: str) -> str:
    """Return what a preset or DETECTOR is called in the table."""
    return Path(row).name.removesuffix(".safetensors")


def framing_of(row: str) -> Framing:
    """Return how pictures get onto the canvas of a preset or DETECTOR."""
    config = PRESETS[row].detector if row in PRESETS else load_detector(row).detector.config
    return config.framing


def detector_of(row: str, out: Path, effort: Effort, seed: int) -> LoadedDetector:
    """Return the weights of a row under its name: given ones, or those a training ends with."""
    if row not in PRESETS or (effort.packaged and row in packaged_names()):
        return dataclasses.replace(load_detector(row), name=row_name(row))
    settings = dataclasses.replace(PRESETS[row].train, seed=seed)
    if effort.epochs:
        settings = dataclasses.replace(settings, epochs=effort.epochs)
    run = out / "runs" / row
    train(Job(row, PRESETS[row].detector, settings, effort.training, ()), run, resume=True)
    return dataclasses.replace(load_detector(str(run)), name=row)


def settings_for(canvas: Canvas, effort: Effort, seed: int) -> AttackSettings:
    """Return the settings of attacks on a canvas, at the first radius."""
    steps = default_steps(canvas) if effort.steps is None else effort.steps
    return AttackSettings(effort.epsilons[0], steps=steps, seed=seed)


def measured(
    loaded: LoadedDetector, pack: Pack, state: Path, effort: Effort, seed: int
) -> EvaluationResult:
    """Measure clean, attacked and certified AP of one row, with intervals and false positives."""
    settings = settings_for(loaded.framing.canvas, effort, seed)
    campaign = Campaign("worst", effort.epsilons, settings)
    kept = State.of(state, loaded.detector)
    result = evaluate(loaded, pack, seed, campaign, effort.epsilons, kept)
    # All of it was computed before; this reads what the state folder holds.
    chunks = certificate_pass(loaded.detector, pack, effort.epsilons, kept).results()
    found = {0.0: in_order([chunk.detections for chunk in chunks])}
    detector = prepare(loaded.detector)
    for epsilon in effort.epsilons:
        singles = campaign.attacks(epsilon)
        found[epsilon] = worst([attack_pack(detector, pack, one, kept) for one in singles], pack)
    return {**result, "working_points": working_points(pack, found, seed)}


def working_points(
    pack: Pack, found: Mapping[float, Sequence[Detections]], seed: int
) -> list[WorkingPoint]:
    """Return at each ε (0: clean) the 95 % interval of AP50, and false positives at fixed recalls.

    Under attack both are those of the outcome with the lowest AP50: of one objective, or of the
    worst of all per picture.
    """
    targets = [pack.target(index) for index in range(len(pack))]
    return [
        {
            "epsilon": epsilon,
            "ap50_interval": list(ap50_interval(targets, detections, len(pack.class_names), seed)),
            "false_positives_per_image": {
                f"recall {recall:g}": false_positives_per_image(targets, detections, recall)
                for recall in RECALLS
            },
        }
        for epsilon, detections in found.items()
    ]
