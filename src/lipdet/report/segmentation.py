"""The results of `lipdet eval` of segmenters: tables for the terminal, and a page with pictures.

What is certified comes first: the IoU of classes, on the page that of rare ones, and what of them
can be missed. Beside it stands one answer for all pixels, which every certificate keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from lipdet.attack.pixels import attack_pixels
from lipdet.attack.settings import AttackSettings
from lipdet.certificate.flips import most_flipped
from lipdet.certificate.pixels import PixelBounds, margins_of
from lipdet.checkpoint import LoadedSegmenter
from lipdet.errors import UnknownLipschitz
from lipdet.evaluate.attacked import Campaign
from lipdet.evaluate.segmentation import check_pack, evaluate_segmenter, logits_of, masks_of
from lipdet.images.pack import Pack
from lipdet.images.tensors import to_uint8
from lipdet.lipschitz.profile import LayerRow
from lipdet.reading.marks import COLOURS
from lipdet.reading.pixels import (
    COLOUR_MAP,
    FLIPPED,
    RADII,
    TICKS,
    draw_classes,
    draw_flips,
    enlarged,
    under_radii,
)
from lipdet.report import sections
from lipdet.report.inspection import OBSERVED
from lipdet.report.lipschitz import (
    SegmenterProfile,
    pixel_bounds,
    plot_profiles,
    profile_segmenter,
    segmenter_sentence,
)
from lipdet.report.markup import Cell, Drawings, Section, figures, number, paragraph, table, tile
from lipdet.report.page import write_html
from lipdet.report.style import Drawing, new_figure, styled
from lipdet.report.table import new_table, percent
from lipdet.results import CertifiedPixels, Pixels, SegmentationResult
from lipdet.types import IGNORED, Canvas


def segmentation_table(result: SegmentationResult) -> Table:
    """Return what is certified first, then what is right under attack and without; in percent.

    The last row is one answer for all pixels, which every certificate keeps.
    """
    names = list(result["clean"]["per_class"])
    columns = ("", "ε", "accuracy", "mean IoU", *(f"IoU {name}" for name in names))
    title = f"{result['weights']} on {result['data']['name']}, percent"
    table = new_table(title, columns, ("",))

    def row(what: str, epsilon: str, figures: Pixels | CertifiedPixels) -> None:
        ious = [figures["per_class"][name]["iou"] for name in names]
        shares = [figures["accuracy"], figures["miou"], *ious]
        table.add_row(what, epsilon, *map(percent, shares))

    for certified in result["certified"]:
        row("certified", f"{certified['epsilon']:g}", certified)
    for attack in result["attacked"]:
        row(f"attacked ({attack['attack']}, {attack['norm']})", f"{attack['epsilon']:g}", attack)
    row("clean", "0", result["clean"])
    row("one answer for all", "any", result["constant"])
    return table


def missed_table(result: SegmentationResult) -> Table:
    """Return the largest share of each class that can be missed, and what promises it."""
    names = list(result["clean"]["per_class"])
    missed = [f"{name} missed at most" for name in names]
    columns = (
        "ε",
        *missed,
        "accuracy by single pixels",
        "accuracy by the budget",
        "pixels flipped at most, mean",
    )
    table = new_table(f"{result['weights']}, certified, percent", columns)
    for entry in result["certified"]:
        shares = [entry["per_class"][name]["false_negatives"] for name in names]
        promises = entry["single"], entry["joint"]
        cells = map(percent, (*shares, *promises))
        table.add_row(f"{entry['epsilon']:g}", *cells, f"{entry['flipped']:,.1f}")
    return table


class PixelScene(NamedTuple):
    """One picture through the eyes of one segmenter.

    Attributes:
        picture: number of the photograph in the data.
        epsilon: radius of the attack.
        clean: (H, W, 3) uint8.
        attacked: (H, W, 3) uint8, rounded for show.
        mask: (H, W) uint8.
        before: (H, W) classes that are shown on the clean picture.
        after: the same on the attacked one, before rounding.
        radius: (H, W) below which a pixel keeps its class; None without certificates.
        most: pixels that can flip at `epsilon`, at most; None without certificates.
    """

    picture: int
    epsilon: float
    clean: NDArray[np.uint8]
    attacked: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    radius: NDArray[np.float64] | None
    most: int | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for json, without the pictures."""
        known = self.mask != IGNORED
        return {
            "picture": self.picture,
            "epsilon": self.epsilon,
            "pixels": self.mask.size,
            "labelled": int(known.sum()),
            "wrong": int((known & (self.before != self.mask)).sum()),
            "flipped": int((self.before != self.after).sum()),
            "flipped_at_most": self.most,
        }


@dataclass(frozen=True)
class SegmenterInspection:
    """All that a page tells of a segmenter beside the result of `lipdet eval`.

    Attributes:
        loaded: the segmenter.
        layers: its Lipschitz profile; none where a layer has no bound.
        lipschitz: as `lipdet lipschitz --json`, or a sentence that says why there is none.
        scenes: what it sees in some pictures; none where no radius was given.
    """

    loaded: LoadedSegmenter
    layers: Sequence[LayerRow]
    lipschitz: SegmenterProfile | str
    scenes: Sequence[PixelScene]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for json."""
        return {
            "weights": self.loaded.name,
            "speed": None,
            "lipschitz": self.lipschitz,
            "pictures": [scene.as_dict() for scene in self.scenes],
            "file": self.loaded.info,
        }


def inspect_segmenter(
    loaded: LoadedSegmenter,
    pack: Pack,
    seed: int,
    campaign: Campaign | None,
    shown: Sequence[int],
) -> tuple[SegmentationResult, SegmenterInspection]:
    """Measure a segmenter, clean, attacked and certified where it can be, and look at pictures.

    Args:
        loaded: the segmenter.
        pack: pictures with masks.
        seed: the one that the pack was made with.
        campaign: attacks with `PixelSettings`, whose radii are those of certificates; or None.
        shown: indices of the pictures that are attacked, at the first radius, and shown.

    Raises:
        InputError: the pack has no masks, or other classes.
    """
    check_pack(loaded, pack)
    found = pixel_bounds(loaded.segmenter, pack)
    bounds = None if isinstance(found, str) else found
    certify = campaign.epsilons if campaign and bounds else ()
    result = evaluate_segmenter(loaded, pack, seed, campaign, certify, bounds)
    scenes: list[PixelScene] = []
    if campaign:
        attacks = campaign.attacks(campaign.epsilons[0])
        scenes = _scenes(loaded, pack, shown, attacks, bounds)
    layers: list[LayerRow] = []
    lipschitz: SegmenterProfile | str
    try:
        layers, lipschitz = profile_segmenter(loaded, pack.head(OBSERVED), found)
    except UnknownLipschitz as error:
        lipschitz = str(error)
    return result, SegmenterInspection(loaded, layers, lipschitz, scenes)


def _scenes(
    loaded: LoadedSegmenter,
    pack: Pack,
    indices: Sequence[int],
    attacks: Sequence[AttackSettings],
    bounds: PixelBounds | None,
) -> list[PixelScene]:
    segmenter, images = loaded.segmenter, pack.pixels(indices)
    masks, epsilon = masks_of(pack)[list(indices)], attacks[0].epsilon
    changed = attack_pixels(segmenter, images, torch.from_numpy(masks), attacks, indices).cpu()
    rounded = to_uint8(changed)
    logits, after = (logits_of(segmenter, one) for one in (images, changed))
    scenes = []
    for place, index in enumerate(indices):
        radius, most = None, None
        if bounds:
            found = margins_of(logits[place], segmenter, bounds)
            radius, most = found.radius, most_flipped(found, bounds, epsilon)
        before, attacked = (one[place].argmax(dim=0).numpy() for one in (logits, after))
        number = int(pack.pictures[index])
        both = np.asarray(pack.images[index]), rounded[place]
        scenes.append(
            PixelScene(number, epsilon, *both, masks[place], before, attacked, radius, most)
        )
    return scenes


def write_segmentation_page(
    path: Path,
    results: Sequence[SegmentationResult],
    inspections: Sequence[SegmenterInspection],
    title: str,
) -> None:
    """Write the page about segmenters, in the form of those about detectors.

    Args:
        path: the html file.
        results: json objects of `lipdet eval`, one per segmenter, on the same data.
        inspections: of the same segmenters, in the same order.
        title: heading of the page.

    Raises:
        InputError: the place cannot be written.
    """
    document = {"results": list(results), "detectors": [one.as_dict() for one in inspections]}
    profiles = plot_profiles({one.loaded.name: one.layers for one in inspections})
    drawings = {"radii": _colour_bar(), **({"lipschitz": profiles} if profiles else {})}
    constants = sections.lipschitz(document, drawings)
    told = "".join(
        paragraph(f"{one.loaded.name}. {segmenter_sentence(one.lipschitz)}")
        for one in inspections
        if not isinstance(one.lipschitz, str)
    )
    parts = [
        _headline(document, results),
        _promises(document, results),
        _gallery(results, inspections, drawings),
        constants._replace(body=told + constants.body),
        sections.provenance(document),
    ]
    write_html(path, title, _answer(results), parts, document)


def _answer(results: Sequence[SegmentationResult]) -> str:
    """Say first what a reader wants to know: one sentence for each radius, the largest first."""
    lines = [
        _finding(results, at)
        for at in reversed(range(max(len(one["attacked"]) for one in results)))
    ]
    if not lines:
        clean = (f"{one['weights']} {percent(_iou(one, one['clean']))}" for one in results)
        lines = [f"No perturbation was looked at. {_measure(results[0])}: {'; '.join(clean)}."]
    described = {
        f"{one['data']['images']:,} pictures of {one['data']['name']}, "
        f"{Canvas(*one['data']['canvas'])} pixels": None
        for one in results
    }
    unit = "Shares in percent, over the labelled pixels of all pictures together."
    attacks = [(", ".join(one["objectives"]), one) for of in results for one in of["attacked"]]
    return sections.answered(lines, f"{'; '.join(described)}.", unit, attacks)


def _finding(results: Sequence[SegmentationResult], at: int) -> str:
    """Say what an attack of one size leaves of each segmenter, and what is proven."""
    clauses = []
    for result in results:
        clean, attack = (_iou(result, one) for one in (result["clean"], result["attacked"][at]))
        proven = "nothing"
        if result["certified"]:
            proven = percent(_iou(result, result["certified"][at]))
        clauses.append(
            f"{result['weights']} keeps {percent(attack)} of {percent(clean)}, of which {proven} "
            "is proven"
        )
    first = results[0]
    answer = percent(_iou(first, first["constant"]))
    return (
        f"{_measure(first)} under attack of ε = {first['attacked'][at]['epsilon']:g}: "
        f"{'; '.join(clauses)}. One answer for all pixels, {_constant(first)}, has {answer}."
    )


def _headline(document: Any, results: Sequence[SegmentationResult]) -> Section:
    """Return for each segmenter what is certified, attacked, clean, and what one answer has."""
    body = ""
    for i, result in enumerate(results):
        columns = [
            (f"{kind}, ε\u00a0{entry['epsilon']:g}", f"results/{i}/{kind}/{at}")
            for kind in ("certified", "attacked")
            for at, entry in enumerate(result[kind])
        ]
        columns.append(("clean", f"results/{i}/clean"))
        columns.append((f"{_constant(result)} everywhere", f"results/{i}/constant"))
        rows: list[list[Cell | str]] = []
        for name in _rare_first(result):
            places = [(f"{path}/per_class/{sections.key(name)}") for _, path in columns]
            rows.append([f"IoU of {name}", *(number(document, f"{one}/iou") for one in places)])
            rows.append([f"{name} missed", *(_missed(document, one) for one in places)])
        for key, words in (("miou", "mean IoU"), ("accuracy", "accuracy")):
            rows.append([words, *(number(document, f"{path}/{key}") for _, path in columns)])
        caption = (
            f"{result['weights']}, percent of pixels. Certified: at least; of what is missed, at "
            "most"
        )
        body += table(caption, ["", *(words for words, _ in columns)], rows)
    note = (
        "A certificate is cheap where most pixels are of one class: that class everywhere is "
        "certified at every ε. So rare classes come first, and the last column is what a "
        "certificate is worth something beyond."
    )
    heading = "Certified, attacked, clean"
    return Section("figures", heading, paragraph(note) + body)


def _missed(document: Any, path: str) -> Cell:
    """Return the share of a class that is not found as it, which only certificates state as such.

    Elsewhere it is what the recall lacks to 1.
    """
    if "/certified/" in path:
        return number(document, f"{path}/false_negatives")
    return number(document, f"{path}/recall", lambda one: percent(None if one is None else 1 - one))


def _promises(document: Any, results: Sequence[SegmentationResult]) -> Section:
    """Return what each of the two promises alone certifies, and how many pixels flip."""
    rows: list[list[Cell | str]] = []
    for i, result in enumerate(results):
        for at, entry in enumerate(result["attacked"]):
            proof, attack = (f"results/{i}/{kind}/{at}" for kind in ("certified", "attacked"))
            rows.append(
                [
                    f"{result['weights']}, ε\u00a0{entry['epsilon']:g}",
                    *(number(document, f"{proof}/{key}") for key in ("single", "joint")),
                    *(
                        number(document, f"{path}/flipped", "{:,.1f}".format)
                        for path in (proof, attack)
                    ),
                    number(document, f"{attack}/grey_levels", "{:.2g}".format),
                ]
            )
    heading = "How many pixels can flip"
    if not rows:
        return Section("flips", heading, paragraph("Nothing was attacked; give --epsilon."))
    head = [
        "",
        "accuracy by radii alone",
        "accuracy by the budget alone",
        "flipped at most",
        "flipped by the attack",
        "grey levels",
    ]
    caption = "Certified accuracy in percent by one promise; flipped: mean pixels of a picture"
    return Section("flips", heading, table(caption, head, rows))


def _gallery(
    results: Sequence[SegmentationResult],
    inspections: Sequence[SegmenterInspection],
    drawings: Drawings,
) -> Section:
    """Return the same pictures, their masks, and what each segmenter sees, clean and attacked."""
    if not any(one.scenes for one in inspections):
        return sections.same_pictures("", [])
    _, *names = results[0]["clean"]["per_class"]
    keys = [(name, COLOURS[at % len(COLOURS)]) for at, name in enumerate(names)]
    keys.append(("flipped by the attack", FLIPPED))
    text = (
        f"Attacked at ε = {inspections[0].scenes[0].epsilon:g}, each segmenter with its own "
        "gradients. The radius of a pixel is how large a change must be before that pixel can get "
        "another class."
    )
    spans = (f'<span style="--key:{colour}">{escape(name)}</span>' for name, colour in keys)
    intro = paragraph(text) + f'<p class="keys">{"".join(spans)}</p>'
    if any(scene.radius is not None for one in inspections for scene in one.scenes):
        intro += figures(drawings, "radii")
    rows = []
    for same_picture in zip(*(one.scenes for one in inspections), strict=True):
        first = same_picture[0]
        which = f"Picture {first.picture + 1}"
        known = np.where(first.mask == IGNORED, 0, first.mask).astype(np.int64)
        original = Image.fromarray(first.clean)
        tiles = [
            tile(enlarged(original), f"{which} as it is.", "", "the picture"),
            tile(enlarged(draw_classes(original, known)), f"{which}: its mask.", "", "the mask"),
        ]
        for inspection, scene in zip(inspections, same_picture, strict=True):
            tiles += _tiles(inspection.loaded.name, which, scene)
        rows.append((which, tiles))
    return sections.same_pictures(intro, rows)


def _tiles(name: str, which: str, scene: PixelScene) -> list[str]:
    """Return what a segmenter sees, what of it is certified, and what is seen under attack."""
    facts, clean = scene.as_dict(), Image.fromarray(scene.clean)
    after = draw_classes(Image.fromarray(scene.attacked), scene.after)
    shown = [
        (
            draw_classes(clean, scene.before),
            f"clean: {facts['wrong']:,} of {facts['labelled']:,} labelled pixels wrong",
        )
    ]
    if scene.radius is not None:
        told = f"radii: at most {scene.most:,} of {facts['pixels']:,} pixels can flip"
        shown.append((under_radii(clean, scene.radius), told))
    shown.append(
        (
            draw_flips(after, scene.before != scene.after),
            f"attacked, ε {scene.epsilon:g}: {facts['flipped']:,} pixels flipped",
        )
    )
    return [tile(enlarged(one), f"{name}, {which}, {text}.", name, text) for one, text in shown]


@styled
def _colour_bar() -> Drawing:
    """Draw which colour is which radius."""
    figure, axes = new_figure(height=0.55)
    scale = ScalarMappable(LogNorm(*RADII), COLOUR_MAP)
    figure.colorbar(scale, cax=axes, orientation="horizontal", ticks=TICKS)
    low, *inner, high = (f"{tick:g}" for tick in TICKS)
    axes.set_xticks(TICKS, [f"≤ {low}", *inner, f"≥ {high}"])
    axes.minorticks_off()
    return Drawing(
        "radii",
        figure,
        "The radius of a pixel, an L2 length.",
        f"From dark, {low} and less, to light, {high} and more, on a logarithmic scale.",
    )


def _rare_first(result: SegmentationResult) -> list[str]:
    entries = result["clean"]["per_class"]
    return sorted(entries, key=lambda name: entries[name]["pixels"])


def _constant(result: SegmentationResult) -> str:
    """Return the class that is the one answer for all pixels."""
    return _rare_first(result)[-1]


def _measure(result: SegmentationResult) -> str:
    """Return of what the first sentences speak: of the rarer of two classes, or of all."""
    names = _rare_first(result)
    return f"IoU of {names[0]}" if len(names) == 2 else "Mean IoU"


def _iou(result: SegmentationResult, entry: Any) -> float | None:
    """Return that of an entry of a result; None where there is none."""
    names = _rare_first(result)
    found = entry["per_class"][names[0]]["iou"] if len(names) == 2 else entry["miou"]
    return None if found is None else float(found)
