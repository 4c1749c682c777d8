"""What the verbs do with a segmenter: the same options, where they mean something.

`cli` decides what is one: a weights file says what it is of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lipdet import distributed
from lipdet.attack.pixels import PixelSettings, attack_pixels
from lipdet.attack.settings import default_steps, single_attacks
from lipdet.certificate.flips import most_flipped
from lipdet.certificate.pixels import bounds_of_pixels, margins_of
from lipdet.certificate.radius import REMAINING_IOU
from lipdet.checkpoint import load_segmenter
from lipdet.commands.attack_options import attack_facts, measured_epsilons, parse_epsilons
from lipdet.commands.options import (
    check_positive,
    check_writable,
    write_json,
)
from lipdet.commands.pictures import PictureFiles
from lipdet.errors import InputError
from lipdet.evaluate.attacked import Campaign
from lipdet.evaluate.segmentation import evaluate_segmenter, logits_of
from lipdet.images.crop import cut, full_region
from lipdet.images.spec import open_data
from lipdet.images.tensors import to_tensor, to_uint8
from lipdet.progress import show
from lipdet.reading.detections import distance
from lipdet.reading.marks import captioned, contact_sheet
from lipdet.reading.pixels import draw_classes, draw_radii, enlarged, with_legend
from lipdet.report.table import missed_table, segmentation_table
from lipdet.segmenter import Segmenter
from lipdet.types import Canvas

MEASURED = "Rounding is measured, not proven"
ON_THE_CPU = "Pixels are computed on the CPU"
WHOLE = "The whole picture is seen"
# What ends the name of an overlay of classes beside one of radii.
RADII, CLASSES = "-radii", "-classes"


def evaluate(detector: str, data: str, **options: Any) -> None:
    """Do what `lipdet.commands.eval.run` does, for a segmenter."""
    if distributed.size() > 1:
        raise InputError("A segmenter is measured by one process: leave out --processes.")
    _refuse(options, float64=MEASURED, device=ON_THE_CPU, state="Nothing is kept")
    attack, certify = options["attack"], options["certify"]
    limit, json, seed = options["limit"], options["json"], options["seed"]
    check_positive("--limit", limit)
    check_positive("--steps", options["steps"])
    check_writable(json)
    epsilons = measured_epsilons(options["epsilon"], attack, certify, options["norm"])
    campaign = None
    if attack is not None:
        campaign = Campaign(attack, epsilons, _settings(epsilons[0], options), options["objective"])
    loaded = load_segmenter(detector)
    if campaign is not None:
        campaign = campaign.with_steps(options["steps"] or default_steps(loaded.framing.canvas))
    pack = open_data(data, "test", loaded.framing, seed).head(limit)
    result = evaluate_segmenter(loaded, pack, seed, campaign, epsilons if certify else ())
    if write_json(json, result):
        return
    show(segmentation_table(result))
    if result["certified"]:
        show(missed_table(result))


def detect(detector: str, images: Sequence[Path], out: Path, **options: Any) -> None:
    """Do what `lipdet.commands.detect.run` does, for a segmenter: classes of pixels as overlays."""
    _refuse(options, crop=WHOLE)
    _refuse_boxes(score=(options["score"], None))
    files, loaded = PictureFiles(images, out), load_segmenter(detector)
    segmenter, canvas = loaded.segmenter, loaded.framing.canvas
    result = {"weights": loaded.name, "canvas": list(canvas)}
    with files.written("detections.json", result):
        for index, photograph in files.each("Segmenting"):
            picture = _seen(photograph, canvas)
            predicted = logits_of(segmenter, to_tensor([picture])).argmax(dim=1)[0].numpy()
            pixels = _counted(segmenter, predicted)
            files.keep(
                index,
                {"": _overlay(segmenter, picture, predicted)},
                {"pixels": pixels},
                _shares(pixels),
            )
    print(f"Overlays and detections.json: {out} (pictures at {canvas})")


def certify(detector: str, images: Sequence[Path], out: Path, **options: Any) -> None:
    """Do what `lipdet.commands.certify.run` does, for a segmenter: radii of pixels as overlays."""
    _refuse(options, float64=MEASURED, device=ON_THE_CPU, crop=WHOLE)
    _refuse_boxes(
        iou=(options["iou"], REMAINING_IOU),
        score=(options["score"], None),
    )
    epsilons = parse_epsilons(options["epsilon"])
    files = PictureFiles(images, out, ends=(RADII, CLASSES))
    loaded = load_segmenter(detector)
    segmenter, canvas = loaded.segmenter, loaded.framing.canvas
    [(_, first)] = next(files.batches(1))
    bounds = bounds_of_pixels(segmenter, to_tensor([_seen(first, canvas)]))
    result = {
        "weights": loaded.name,
        "canvas": list(canvas),
        "joint_constant": bounds.joint,
        "rounding": bounds.rounding,
    }
    with files.written("certificates.json", result):
        for index, photograph in files.each("Certifying"):
            picture = _seen(photograph, canvas)
            [logits] = logits_of(segmenter, to_tensor([picture]))
            found = margins_of(logits, segmenter, bounds)
            overlays = {
                CLASSES: _overlay(segmenter, picture, found.predicted),
                RADII: draw_radii(Image.fromarray(picture), found.radius),
            }
            certified = []
            for epsilon in epsilons:
                alone = int((found.radius <= epsilon).sum())
                together = most_flipped(found, bounds, epsilon)
                certified.append({"epsilon": epsilon, "alone": alone, "together": together})
            pixels = _counted(segmenter, found.predicted)
            told = ", ".join(
                f"ε = {one['epsilon']:g}: at most {one['together']:,} can flip" for one in certified
            )
            words = f"{_shares(pixels)}; of {picture[..., 0].size:,} pixels, {told}"
            files.keep(index, overlays, {"pixels": pixels, "certified": certified}, words)
    print(f"Overlays and certificates.json: {out} (radii in L2 norm at {canvas})")


def attack(
    detector: str, images: Sequence[Path], out: Path, epsilon: Sequence[str], **options: Any
) -> None:
    """Do what `lipdet.commands.attack.run` does, for a segmenter: what it sees is to change."""
    [radius] = parse_epsilons(epsilon)
    _refuse(options, device=ON_THE_CPU, crop=WHOLE)
    check_positive("--steps", options["steps"])
    settings = _settings(radius, options)
    single_attacks(options["attack"], settings, options["objective"])  # refused before loading
    files, loaded = PictureFiles(images, out), load_segmenter(detector)
    segmenter, canvas = loaded.segmenter, loaded.framing.canvas
    settings = replace(settings, steps=options["steps"] or default_steps(canvas))
    attacks = single_attacks(options["attack"], settings, options["objective"])
    result = attack_facts(loaded, options["attack"], settings, attacks)
    with files.written("attack.json", result):
        for index, photograph in files.each("Attacking"):
            picture = _seen(photograph, canvas)
            clean = to_tensor([picture])
            before = logits_of(segmenter, clean).argmax(dim=1)
            masks = before.to(torch.uint8)
            changed = attack_pixels(segmenter, clean, masks, attacks, [index]).cpu()
            after = logits_of(segmenter, changed).argmax(dim=1)
            attacked = to_uint8(changed[0])
            flipped = int((before != after).sum())
            panels = [
                captioned(enlarged(draw_classes(Image.fromarray(one), shown[0].numpy())), text)
                for one, shown, text in (
                    (picture, before, "clean"),
                    (attacked, after, f"attacked: {flipped:,} pixels flipped"),
                )
            ]
            present = {*before.flatten().tolist(), *after.flatten().tolist()}
            sheet = with_legend(contact_sheet(panels, 2), present, segmenter.config.class_names)
            entry = {"distance": distance(clean[0], changed[0]), "flipped": flipped}
            words = f"{flipped:,} of {before.numel():,} pixels flipped"
            files.keep(index, {"": sheet}, entry, words)
    levels = canvas.in_grey_levels(radius, settings.norm)
    print(f"Panels and attack.json: {out} (ε = {radius:g}: {levels})")


VERBS: dict[str, Callable[..., None]] = {
    "eval": evaluate,
    "detect": detect,
    "certify": certify,
    "attack": attack,
}


def _settings(epsilon: float, options: Mapping[str, Any]) -> PixelSettings:
    named = {name: options[name] for name in ("norm", "restarts", "seed")}
    return PixelSettings(epsilon, **named)


def _refuse(options: Mapping[str, Any], **reasons: str) -> None:
    """Refuse options that mean nothing for a segmenter."""
    for name, reason in reasons.items():
        if options[name]:
            raise InputError(f"{reason}: leave out --{name} with a segmenter.")


def _refuse_boxes(**options: tuple[float | None, float | None]) -> None:
    """Refuse options of boxes, each given with its default, that were chosen."""
    if any(chosen != default for chosen, default in options.values()):
        names = " and ".join(f"--{name}" for name in options)
        raise InputError(f"A segmenter finds no boxes: leave out {names}.")


def _counted(segmenter: Segmenter, predicted: NDArray[np.int64]) -> dict[str, int]:
    """Count the pixels of each class of a picture (H, W)."""
    names = segmenter.config.class_names
    counts = np.bincount(predicted.ravel(), minlength=len(names)).tolist()
    return dict(zip(names, counts, strict=True))


def _overlay(
    segmenter: Segmenter, picture: NDArray[np.uint8], predicted: NDArray[np.int64]
) -> Image.Image:
    """Return a picture (H, W, 3) in the colours of its classes (H, W), enlarged, with a legend."""
    shown = enlarged(draw_classes(Image.fromarray(picture), predicted))
    return with_legend(shown, set(predicted.ravel().tolist()), segmenter.config.class_names)


def _shares(pixels: Mapping[str, int]) -> str:
    whole = sum(pixels.values())
    return ", ".join(f"{100 * count / whole:.1f} % {name}" for name, count in pixels.items())


def _seen(photograph: Image.Image, canvas: Canvas) -> NDArray[np.uint8]:
    """Return what a segmenter sees of a photograph, (H, W, 3)."""
    return cut(photograph, full_region(*photograph.size, canvas), canvas)
