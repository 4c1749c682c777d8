"""`lipdet attack`: attack single pictures and show what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from lipdet.attack import AttackSettings, attack_unlabelled
from lipdet.attack.attackable import raisable
from lipdet.attack.outcome import Outcome
from lipdet.attack.settings import AttackName, Norm, default_steps, single_attacks
from lipdet.checkpoint import load_any
from lipdet.commands.attack_options import EPSILON_HELP, add_objective, attack_facts, parse_epsilons
from lipdet.commands.options import ANY_DETECTOR_HELP, Parser, check_positive
from lipdet.commands.pictures import PictureFiles, picture_parser
from lipdet.hardware import DeviceName, measuring_device
from lipdet.images.crop import cut, full_region
from lipdet.images.tensors import to_tensor
from lipdet.progress import progress_bar
from lipdet.reading import Detection, named
from lipdet.reading.detections import as_rows, distance, read_out
from lipdet.reading.marks import captioned, contact_sheet, draw_classes, magnified, to_picture
from lipdet.reading.search import in_picture

# Pictures at a time; those that are done are written while the next are attacked.
BATCH = 16


def parser() -> Parser:
    """Return the parser of the options of `run`."""
    parser = picture_parser(
        "Attack pictures: change them by at most epsilon so that the detector errs.",
        "lipdet attack naive door.jpg --epsilon 0.5 --out attacked",
        ANY_DETECTOR_HELP,
    )
    parser.add_argument("--epsilon", nargs=1, default=[], metavar="E", help=EPSILON_HELP)
    add_objective(parser)
    parser.add_function_arguments(run, skip={"detector", "images", "epsilon", "objective"})
    return parser


def run(
    detector: str,
    images: Sequence[Path],
    epsilon: Sequence[str],
    out: Path,
    attack: AttackName = "worst",
    objective: str | None = None,
    norm: Norm = "l2",
    steps: int | None = None,
    restarts: int = 1,
    seed: int = 0,
    device: DeviceName | None = None,
) -> None:
    """Attack each whole picture, letter-boxed to the network's input.

    Panels are written as they are done; the json, when all are or the work is interrupted.

    Args:
        detector: DETECTOR.
        images: picture files, or folders of them.
        epsilon: radius.
        out: folder for a panel NAME.png of each picture and one attack.json for all.
        attack: pgd, apgd, or worst: PGD with more objectives.
        objective: what pgd and apgd raise.
        norm: of the perturbation, l2 or linf.
        steps: gradients per start; by default 50, and 100 on canvases of more than 10,000 pixels.
        restarts: random starts.
        seed: of the random starts.
        device: cpu or cuda; by default the GPU if there is one.
    """
    [radius] = parse_epsilons(epsilon)
    check_positive("--steps", steps)
    settings = AttackSettings(radius, norm=norm, restarts=restarts, seed=seed)
    single_attacks(attack, settings, objective)  # refused before anything is loaded
    files = PictureFiles(images, out)
    place = measuring_device(device)
    loaded = load_any(detector)
    loaded.module.to(place)
    canvas = loaded.framing.canvas
    settings = replace(settings, steps=steps or default_steps(canvas))
    singles = raisable(loaded.detector, single_attacks(attack, settings, objective))
    result = attack_facts(loaded, attack, settings, singles)
    gradients = restarts * sum(one.steps + 1 for one in singles)
    with files.written("attack.json", result), progress_bar() as bar:
        task = bar.add_task("Attacking", total=len(files.paths) * gradients)

        def on_step(step: int, places: Tensor, values: Tensor) -> None:
            bar.advance(task, len(places))

        for batch in files.batches(BATCH):
            indices = [index for index, _ in batch]
            photographs = [photograph for _, photograph in batch]
            regions = [full_region(*photograph.size, canvas) for photograph in photographs]
            pairs = zip(photographs, regions, strict=True)
            clean = to_tensor([cut(*pair, canvas) for pair in pairs])
            found = attack_unlabelled(loaded.detector, clean, singles, indices, on_step)
            before, after = (one._replace(images=one.images.cpu()) for one in found)
            names = loaded.class_names or _numbers(found)
            for at, index in enumerate(indices):
                seen = [named(one.detections[at], names) for one in (before, after)]
                panel = _panel(before.images[at], after.images[at], seen, names)
                size = photographs[at].size
                rows = [
                    as_rows(named(in_picture(one.detections[at], regions[at], canvas, size), names))
                    for one in (before, after)
                ]
                entry = {
                    "width": size[0],
                    "height": size[1],
                    "region": list(regions[at]),
                    "distance": distance(before.images[at], after.images[at]),
                    "clean": rows[0],
                    "attacked": rows[1],
                }
                files.keep(index, {"": panel}, entry, f"{read_out(seen[0])} → {read_out(seen[1])}")
    print(f"Panels and attack.json: {out} (ε = {radius:g}: {canvas.in_grey_levels(radius, norm)})")


def _numbers(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Name the labels of a module that has no names for them; it counts from 1."""
    found = [one for outcome in outcomes for one in outcome.detections]
    largest = max((int(label) for one in found for label in one["labels"]), default=0)
    return tuple(str(number) for number in range(1, largest + 2))


def _panel(
    clean: Tensor,
    attacked: Tensor,
    found: Sequence[Sequence[Detection]],
    class_names: Sequence[str],
) -> Image.Image:
    """Return clean picture, attacked picture and their difference side by side, with captions."""
    difference, gain = magnified(attacked - clean)
    norm = distance(clean, attacked)["l2"]
    panels = [
        (draw_classes(to_picture(clean), found[0], class_names), "clean"),
        (draw_classes(to_picture(attacked), found[1], class_names), "attacked"),
        (draw_classes(difference, (), class_names), f"difference × {gain:g}, L2 {norm:.3f}"),
    ]
    return contact_sheet([captioned(picture, text) for picture, text in panels], columns=3)
