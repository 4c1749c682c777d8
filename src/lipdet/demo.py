"""What the project has found, in a few minutes: two detectors attacked, certified, side by side.

Then photographs, certified as a whole.

Nothing is trained here: a detector that is worth looking at takes longer than that. The pages of
docs/ that train one are named at the end.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from lipdet.attack import AttackSettings, detect
from lipdet.attack.damage import true_positives
from lipdet.boxes import Selection
from lipdet.certificate.radius import REMAINING_IOU
from lipdet.certificate.verifier import verifier_of
from lipdet.checkpoint import LoadedDetector, load_detector
from lipdet.evaluate.attacked import Campaign, attack_pack, prepare
from lipdet.evaluate.chunks import State
from lipdet.files import write_json, write_picture
from lipdet.images.pack import Pack
from lipdet.images.scenes import rendered_scene
from lipdet.images.spec import open_data
from lipdet.progress import show
from lipdet.reading import certified, look, regions_of
from lipdet.reading.detections import with_radius
from lipdet.reading.marks import draw_certificates
from lipdet.report.build import build_report
from lipdet.report.page import write_figures, write_page
from lipdet.report.scenes import certified_detections
from lipdet.report.table import comparison_table, finding
from lipdet.types import Detections, Target

DATA = "rendered:64"
ORDINARY, CERTIFIED, PHOTOGRAPHS = "naive", "certified", "certified-photo"
SCENES = range(4)
EPSILONS = (0.25, 0.5)
SHOWN = 4


def demo(out: Path, seed: int) -> None:
    """Run the demonstration; a second call goes on from what the first has left.

    Args:
        out: receives `state/`, `results.json`, `figures/`, `index.html` and `photographs/`.
        seed: of the attacks' random starts.
    """
    ordinary, robust = detectors = load_detector(ORDINARY), load_detector(CERTIFIED)
    pack = open_data(DATA, "test", ordinary.framing)
    out.mkdir(parents=True, exist_ok=True)
    settings = AttackSettings(EPSILONS[0], seed=seed)
    campaign, state = Campaign("pgd", EPSILONS, settings), out / "state"
    show(
        f"Attacking and certifying {ORDINARY} and {CERTIFIED} on {DATA}: PGD, "
        f"{settings.steps} steps …"
    )
    shown = telling_pictures(ordinary, robust, pack, campaign, state)
    framing = ordinary.framing
    results, inspections = build_report(
        detectors, {framing: pack}, 0, campaign, (), {framing: shown}, state
    )
    write_json(out / "results.json", results)
    found = [finding(results, epsilon) for epsilon in reversed(EPSILONS)]
    trained = " ".join(map(how_trained, detectors))
    note = (
        f"{trained} Nothing was trained here; docs/your-own-data.md shows how. Tables count all "
        "pictures; those that are shown are chosen: both detectors read them, and under a single "
        f"attack of ε = {EPSILONS[0]:g} {robust.name} alone still does, where there are such."
    )
    write_page(out / "index.html", results, inspections, "lipdet on rendered house numbers", note)
    write_figures(out / "figures", results, inspections)
    show(comparison_table(results), *found, note)
    show(f"Page: {out}/index.html", f"Figures: {out}/figures")
    show(*certified_photographs(out / "photographs"))


def certified_photographs(folder: Path) -> list[str]:
    """Certify rendered photographs, one pass over each, and write them with what was found.

    Args:
        folder: receives NAME.png as the network sees it, and NAME-certified.png.

    Returns:
        What is said of each, and where it is.
    """
    loaded = load_detector(PHOTOGRAPHS)
    network, (canvas, _) = loaded.detector, loaded.framing
    selection = network.display
    verifier, sentences = verifier_of(network, selection), []
    folder.mkdir(parents=True, exist_ok=True)
    for index in SCENES:
        picture = Image.fromarray(rendered_scene("test", index, 0, canvas)[0])
        regions = regions_of(network, picture, None)
        views = look(network, loaded.class_names, picture, regions, selection)
        [view] = certified(views, verifier, REMAINING_IOU)
        write_picture(folder / f"{index}.png", picture)
        drawn = draw_certificates(Image.fromarray(view.pixels), view.detections)
        write_picture(folder / f"{index}-certified.png", drawn)
        words = ", ".join(with_radius(one, canvas) for one in view.detections)
        sentences.append(f"{folder}/{index}-certified.png: {words or 'nothing found'}")
    return sentences


def how_trained(loaded: LoadedDetector) -> str:
    """Say on how many pictures a detector was trained, as its weights file has it."""
    training = loaded.info["training"]
    count = training["train"]["epochs"] * training["train"]["epoch_pictures"]
    data = ", ".join(Path(name).name for name in training["data"])
    return f"{loaded.name} was trained on {count:,} crops of its data ({data})."


def telling_pictures(
    ordinary: LoadedDetector, robust: LoadedDetector, pack: Pack, campaign: Campaign, state: Path
) -> list[int]:
    """Choose pictures that both detectors read, and under attack the robust one alone.

    Args:
        ordinary: shall be fooled.
        robust: shall not be; pictures in which more is proven of it come first.
        pack: annotated pictures.
        campaign: the attack, whose smallest radius counts.
        state: folder in which finished parts are kept and looked for.

    Returns:
        Indices of up to `SHOWN` pictures; the first of the pack if none tells anything.
    """
    epsilon = campaign.settings.epsilon
    before, after = _read(ordinary, pack, campaign, state)
    _, stands = _read(robust, pack, campaign, state)
    telling = [i for i in range(len(pack)) if before[i] and not after[i] and stands[i]]
    if not telling:
        return list(range(min(SHOWN, len(pack))))
    pixels = pack.images[telling]
    shown = certified_detections(robust.detector, pixels, epsilon, pack.class_names)
    proven = [min((one.radius or 0.0 for one in found), default=0.0) for found in shown]
    return [telling[place] for place in np.argsort(proven)[::-1][:SHOWN]]


def _read(
    loaded: LoadedDetector, pack: Pack, campaign: Campaign, state: Path
) -> tuple[list[bool], list[bool]]:
    """Return whether each picture is read rightly, clean and under attack."""
    detector = prepare(loaded.detector)
    settings = dataclasses.replace(campaign.settings, schedule="pgd")
    clean = detect(detector, pack.pixels(range(len(pack))))
    attacked = attack_pack(detector, pack, settings, State.of(state, detector))
    targets = [pack.target(index) for index in range(len(pack))]
    clean_read, attacked_read = (
        [_reads(one, target, detector.display) for one, target in zip(found, targets, strict=True)]
        for found in (clean, attacked)
    )
    return clean_read, attacked_read


def _reads(found: Detections, target: Target, display: Selection) -> bool:
    shown = found["scores"] > display.score_floor
    right = true_positives(found, target)[shown]
    return bool(right.all()) and len(right) == len(target["labels"])
