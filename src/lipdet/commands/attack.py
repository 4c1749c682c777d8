"""`lipdet attack`: attack single pictures and show what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lipdet.attack import AttackSettings, attack_unlabelled
from lipdet.attack.outcome import Outcome
from lipdet.attack.settings import DEFAULT_OBJECTIVE, AttackName, Norm, single_attacks
from lipdet.checkpoint import AnyDetector, load_any
from lipdet.commands.attack_options import EPSILON_HELP, parse_epsilons
from lipdet.commands.options import (
    ANY_DETECTOR_HELP,
    Parser,
    as_json,
    check_folder,
    check_no_input,
    distinct_stems,
    picture_files,
    verb_parser,
)
from lipdet.files import write_complete, write_picture
from lipdet.hardware import DeviceName, measuring_device
from lipdet.images.crop import cut, full_region
from lipdet.images.source import load_rgb
from lipdet.progress import progress_bar
from lipdet.reading import Detection, named
from lipdet.reading.detections import as_rows, distance, read_out
from lipdet.reading.marks import captioned, contact_sheet, draw_classes, magnified, to_picture
from lipdet.reading.search import in_picture
from lipdet.versions import versions


def parser() -> Parser:
    """Options of `run`."""
    parser = verb_parser(
        "Attack pictures: change them by at most epsilon so that the detector errs.",
        "lipdet attack naive door.jpg --epsilon 0.5 --out attacked",
    )
    parser.add_argument("detector", help=ANY_DETECTOR_HELP)
    parser.add_argument("images", nargs="+", type=Path, help="picture files, or folders of them")
    parser.add_argument("--epsilon", nargs=1, default=[], metavar="E", help=EPSILON_HELP)
    parser.add_function_arguments(run, skip={"detector", "images", "epsilon"})
    return parser


def run(
    detector: str,
    images: Sequence[Path],
    epsilon: Sequence[str],
    out: Path,
    attack: AttackName = "worst",
    objective: str = DEFAULT_OBJECTIVE,
    norm: Norm = "l2",
    steps: int = 50,
    restarts: int = 1,
    seed: int = 0,
    device: DeviceName | None = None,
) -> None:
    """Attack each whole picture, letter-boxed to the network's input.

    Args:
        detector: DETECTOR.
        images: picture files, or folders of them.
        epsilon: radius.
        out: folder for a panel NAME.png of each picture and one attack.json for all.
        attack: pgd or apgd with one objective, or worst: PGD with several.
        objective: what pgd and apgd raise: mislabel (mostly the strongest), vanish,
            fabricate, multibox, classification or localisation.
        norm: of the perturbation, l2 or linf.
        steps: gradients per start.
        restarts: random starts.
        seed: of the random starts.
        device: cpu or cuda; by default the GPU if there is one.
    """
    [radius] = parse_epsilons(epsilon)
    settings = AttackSettings(
        radius, objective, norm=norm, steps=steps, restarts=restarts, seed=seed
    )
    check_folder(out)
    images = picture_files(images)
    stems = distinct_stems(images)
    check_no_input((out / f"{stem}.png" for stem in stems), images)
    place = measuring_device(device)
    loaded = load_any(detector)
    loaded.module.to(place)
    photographs = [load_rgb(path) for path in images]
    canvas = loaded.framing.canvas
    regions = [full_region(*photograph.size, canvas) for photograph in photographs]
    cuts = [cut(one, region, canvas) for one, region in zip(photographs, regions, strict=True)]
    clean = torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2).float() / 255
    singles = single_attacks(attack, settings)
    before, after, names = _attack(loaded, clean, singles)
    out.mkdir(parents=True, exist_ok=True)
    entries = []
    for index, (path, stem) in enumerate(zip(images, stems, strict=True)):
        photograph, region = photographs[index], regions[index]
        both = (before.detections[index], after.detections[index])
        found = [named(one, names) for one in both]
        images_of = (before.images[index], after.images[index])
        write_picture(out / f"{stem}.png", _panel(*images_of, found, names))
        clean_there, attacked_there = (
            as_rows(named(in_picture(one, region, canvas, photograph.size), names)) for one in both
        )
        entries.append(
            {
                "image": str(path),
                "width": photograph.width,
                "height": photograph.height,
                "region": list(region),
                "distance": distance(*images_of),
                "clean": clean_there,
                "attacked": attacked_there,
            }
        )
        print(f"{path}: {read_out(found[0])} → {read_out(found[1])}")
    result = {
        "weights": loaded.name,
        "canvas": list(canvas),
        "epsilon": radius,
        "grey_levels": canvas.grey_levels(radius, norm),
        "attack": attack,
        "norm": norm,
        "objectives": [single.objective for single in singles],
        "steps": steps,
        "restarts": restarts,
        "seed": seed,
        "versions": versions(),
        "pictures": entries,
    }
    write_complete(out / "attack.json", as_json(result) + "\n")
    print(f"Panels and attack.json: {out} (ε = {radius:g}: {canvas.in_grey_levels(radius, norm)})")


def _attack(
    loaded: AnyDetector, clean: Tensor, singles: Sequence[AttackSettings]
) -> tuple[Outcome, Outcome, tuple[str, ...]]:
    """Return what is shown before and after, and the names of its classes."""
    gradients = singles[0].restarts * (singles[0].steps + 1)
    with progress_bar() as bar:
        task = bar.add_task("Attacking", total=len(singles) * len(clean) * gradients)

        def on_step(step: int, places: Tensor, values: Tensor) -> None:
            bar.advance(task, len(places))

        found = attack_unlabelled(loaded.detector, clean, singles, on_step)
        before, after = (one._replace(images=one.images.cpu()) for one in found)
        return before, after, loaded.class_names or _numbers(found)


def _numbers(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """The labels of a module that has no names for them; it counts from 1."""
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
