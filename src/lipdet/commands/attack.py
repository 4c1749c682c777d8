"""`lipdet attack`: attack single pictures where `detect` looks, and show what became of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from lipdet.attack import AttackSettings, attack_unlabelled
from lipdet.attack.attackable import raisable
from lipdet.attack.loop import OnStep
from lipdet.attack.outcome import Outcome
from lipdet.attack.settings import AttackName, Norm, default_steps, single_attacks
from lipdet.checkpoint import AnyDetector, load_any
from lipdet.commands.attack_options import EPSILON_HELP, add_objective, attack_facts, parse_epsilons
from lipdet.commands.options import ANY_DETECTOR_HELP, Parser, check_positive, parse_region
from lipdet.commands.pictures import PictureFiles, picture_parser
from lipdet.hardware import DeviceName, measuring_device
from lipdet.images.crop import Region, cut
from lipdet.images.tensors import to_tensor
from lipdet.progress import progress_bar
from lipdet.reading import named, regions_of
from lipdet.reading.detections import as_rows, distance, read_out
from lipdet.reading.marks import captioned, contact_sheet, draw_classes, magnified, to_picture
from lipdet.reading.search import in_picture
from lipdet.types import Canvas, Detections

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
    crop: str | None = None,
    attack: AttackName = "worst",
    objective: str | None = None,
    norm: Norm = "l2",
    steps: int | None = None,
    restarts: int = 1,
    seed: int = 0,
    device: DeviceName | None = None,
) -> None:
    """Attack the squares of each picture that `lipdet detect` looks at.

    Panels are written as they are done; the json, when all are or the work is interrupted.

    Args:
        detector: DETECTOR.
        images: picture files, or folders of them.
        epsilon: radius.
        out: folder for a panel NAME-N.png of each square and one attack.json for all.
        crop: LEFT,TOP,RIGHT,BOTTOM in pixels: look only there, and do not search. With a minus
            first it is written --crop=-5,….
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
    part = parse_region(crop) if crop else None
    settings = AttackSettings(radius, norm=norm, restarts=restarts, seed=seed)
    single_attacks(attack, settings, objective)  # refused before anything is loaded
    # How many squares a picture has is found out later.
    files = PictureFiles(images, out, ends=())
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
        squares = len(files.paths)

        def on_step(step: int, places: Tensor, values: Tensor) -> None:
            bar.advance(task, len(places))

        for batch in files.batches(BATCH):
            regions = [regions_of(loaded.detector, photograph, part) for _, photograph in batch]
            squares += sum(map(len, regions)) - len(batch)
            bar.update(task, total=squares * gradients)
            attacked = _attacked(loaded, batch, regions, singles, on_step)
            for (index, photograph), own in zip(batch, regions, strict=True):
                seen = [next(attacked) for _ in own]
                overlays = {f"-{square}": one.panel() for square, one in enumerate(seen, start=1)}
                entry = {
                    "width": photograph.width,
                    "height": photograph.height,
                    "regions": [one.as_dict(photograph.size) for one in seen],
                }
                words = "; ".join(one.words for one in seen)
                files.keep(index, overlays, entry, words or "nothing found, nothing attacked")
    print(f"Panels and attack.json: {out} (ε = {radius:g}: {canvas.in_grey_levels(radius, norm)})")


@dataclass(frozen=True, eq=False)
class Attacked:
    """One square of a picture, before and after an attack.

    Attributes:
        region: of the picture.
        images: clean and attacked, (3, H, W) in [0, 1].
        found: what is shown on them, in pixels of them.
        class_names: of its labels.
    """

    region: Region
    images: tuple[Tensor, Tensor]
    found: tuple[Detections, Detections]
    class_names: Sequence[str]

    @property
    def words(self) -> str:
        """What is read before and after."""
        clean, attacked = (read_out(named(one, self.class_names)) for one in self.found)
        return f"{clean} → {attacked}"

    def as_dict(self, size: tuple[int, int]) -> dict[str, Any]:
        """Return plain values for json, boxes in pixels of a picture of this width and height."""
        canvas = Canvas(*self.images[0].shape[1:])
        clean, attacked = (
            as_rows(named(in_picture(one, self.region, canvas, size), self.class_names))
            for one in self.found
        )
        return {
            "region": list(self.region),
            "distance": distance(*self.images),
            "clean": clean,
            "attacked": attacked,
        }

    def panel(self) -> Image.Image:
        """Return clean square, attacked square and their difference side by side, with captions."""
        clean, attacked = self.images
        difference, gain = magnified(attacked - clean)
        norm = distance(clean, attacked)["l2"]
        before, after = (named(one, self.class_names) for one in self.found)
        panels = [
            (to_picture(clean), before, "clean"),
            (to_picture(attacked), after, "attacked"),
            (difference, (), f"difference × {gain:g}, L2 {norm:.3f}"),
        ]
        drawn = [
            captioned(draw_classes(picture, shown, self.class_names), text)
            for picture, shown, text in panels
        ]
        return contact_sheet(drawn, columns=3)


def _attacked(
    loaded: AnyDetector,
    batch: Sequence[tuple[int, Image.Image]],
    regions: Sequence[Sequence[Region]],
    singles: Sequence[AttackSettings],
    on_step: OnStep,
) -> Iterator[Attacked]:
    """Attack all regions of some pictures together, and yield them one by one."""
    canvas = loaded.framing.canvas
    seen = [
        (index, cut(photograph, region, canvas), region)
        for (index, photograph), own in zip(batch, regions, strict=True)
        for region in own
    ]
    if not seen:
        return
    indices, pixels, places = zip(*seen, strict=True)
    found = attack_unlabelled(loaded.detector, to_tensor(pixels), singles, indices, on_step)
    before, after = (one._replace(images=one.images.cpu()) for one in found)
    names = loaded.class_names or _numbers(found)
    for at, region in enumerate(places):
        images = before.images[at], after.images[at]
        yield Attacked(region, images, (before.detections[at], after.detections[at]), names)


def _numbers(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Name the labels of a module that has no names for them; it counts from 1."""
    found = [one for outcome in outcomes for one in outcome.detections]
    largest = max((int(label) for one in found for label in one["labels"]), default=0)
    return tuple(str(number) for number in range(1, largest + 2))
