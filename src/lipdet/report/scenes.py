"""Scenes: one picture through one network, clean and attacked, and what is proven about it.

Radii are those of `lipdet certify`; the reach of a box is that at ε, not at its radius.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from lipdet.attack import AttackSettings, attack_batch, detect, look, worst_of
from lipdet.attack.attackable import Attackable, attackable, raisable
from lipdet.attack.pixels import attack_pixels
from lipdet.certificate.flips import most_flipped
from lipdet.certificate.pixels import PixelBounds, margins_of
from lipdet.checkpoint import LoadedSegmenter
from lipdet.detector import SSD
from lipdet.evaluate.attacked import prepare
from lipdet.evaluate.segmentation import logits_of, masks_of
from lipdet.images.crop import Region
from lipdet.images.pack import Pack
from lipdet.images.tensors import to_tensor, to_uint8
from lipdet.reading import Detection, certified, known_verifier, named
from lipdet.reading.detections import as_rows, count_certified, radii_told, read_out
from lipdet.reading.marks import (
    CERTIFIED,
    SMALLEST_SIDE,
    TEXT,
    UNCERTIFIED,
    certificate_marks,
    draw,
    magnified,
)
from lipdet.reading.pixels import draw_classes, draw_flips, enlarged, under_radii
from lipdet.reading.views import look_at_pixels
from lipdet.report.markup import tile
from lipdet.report.style import Drawing, styled
from lipdet.types import IGNORED, Target

# Pixels of a figure for each of a tile.
ZOOM = 2


class Scene(NamedTuple):
    """One picture through the eyes of one detector.

    Attributes:
        weights: the detector's name.
        picture: number of the photograph in the data.
        epsilon: radius of the attack and of the worst-case regions.
        clean: (H, W, 3) uint8.
        attacked: (H, W, 3) uint8, rounded for show.
        truth: class names of the objects, left to right.
        found: on the clean picture, with reach where it is certified at ε.
        found_attacked: on the attacked one, before rounding.
    """

    weights: str
    picture: int
    epsilon: float
    clean: NDArray[np.uint8]
    attacked: NDArray[np.uint8]
    truth: tuple[str, ...]
    found: tuple[Detection, ...]
    found_attacked: tuple[Detection, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for json, without the pictures."""
        return {
            "picture": self.picture,
            "epsilon": self.epsilon,
            "truth": list(self.truth),
            "clean": as_rows(self.found, radius="radius", region="reach"),
            "attacked": as_rows(self.found_attacked, radius="radius", region="reach"),
        }


def scenes(
    name: str,
    detector: SSD | Attackable,
    pack: Pack,
    indices: Sequence[int],
    attacks: Sequence[AttackSettings],
) -> list[Scene]:
    """Return pictures of a pack, attacked, with what is certified about each detection.

    Args:
        name: of the detector.
        detector: of the pack's input size and classes.
        pack: annotated pictures.
        indices: of the pictures.
        attacks: at one ε; of each picture the most damaging one is shown.
    """
    prepared = prepare(detector)
    images = pack.pixels(indices).to(attackable(prepared).device)
    targets = [pack.target(index) for index in indices]
    outcomes = [
        look(prepared, attack_batch(prepared, images, targets, one, indices), targets)
        for one in raisable(prepared, attacks)
    ]
    outcome = worst_of(outcomes)
    after = detect(prepared, outcome.images, attackable(prepared).display)
    before = certified_detections(
        prepared, pack.images[list(indices)], attacks[0].epsilon, pack.class_names
    )
    rounded = to_uint8(outcome.images)
    return [
        Scene(
            name,
            int(pack.pictures[index]),
            attacks[0].epsilon,
            pack.images[index].copy(),
            rounded[place],
            _names(targets[place], pack.class_names),
            before[place],
            named(after[place], pack.class_names),
        )
        for place, index in enumerate(indices)
    ]


def certified_detections(
    detector: SSD | Attackable,
    pixels: NDArray[np.uint8],
    epsilon: float,
    class_names: Sequence[str],
) -> list[tuple[Detection, ...]]:
    """Return what is shown on pictures (B, H, W, 3), with radii, and reach at ε.

    Without both where a layer has no Lipschitz bound, or the detector is no `SSD`.
    """
    if not isinstance(detector, SSD):
        found = detect(detector, to_tensor(pixels), detector.display)
        return [named(one, class_names) for one in found]
    height, width = pixels.shape[1:3]
    whole = Region(0, 0, width, height)
    views = look_at_pixels(detector, class_names, list(pixels), [whole] * len(pixels))
    verifier = known_verifier(detector)
    if verifier is not None:
        views = certified(views, verifier)
    return [view.at(epsilon, verifier) for view in views]


def _names(target: Target, class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the objects of a picture, left to right."""
    order = target["labels"][target["boxes"][:, 0].argsort()].tolist()
    return tuple(class_names[label] for label in order)


def tile_of(scene: Scene, attacked: bool) -> str:
    """Return one picture of a scene with its caption."""
    drawn, caption = _drawn(scene, attacked, 1), _caption(scene, attacked)
    return tile(drawn, _described(scene, attacked), scene.weights, caption)


@styled
def plot_scenes(rows: Sequence[Scene], name: str = "gallery") -> Drawing:
    """Return each scene as a row: the clean picture, the attacked one, and their difference.

    Args:
        rows: of any detectors and pictures, at least one.
        name: stem of the files.
    """
    figure = Figure(figsize=(6.0, 2.35 * len(rows) + 0.35), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), 3, squeeze=False)
    for scene, (left, middle, right) in zip(rows, panels, strict=True):
        for axes, attacked in ((left, False), (middle, True)):
            axes.imshow(_drawn(scene, attacked, ZOOM), interpolation="none")
            axes.set_title(_headed(scene, attacked), fontsize=7.5)
        change, gain = magnified(to_tensor(scene.attacked) - to_tensor(scene.clean))
        right.imshow(change, interpolation="nearest")
        right.set_title(f"what the attack changed, × {gain:g}\n", fontsize=7.5)
        left.set_ylabel(scene.weights, fontsize=10, fontweight="bold")
        for axes in (left, middle, right):
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            for spine in axes.spines.values():
                spine.set_visible(False)
    figure.legend(handles=_keys(), loc="outside lower center", ncols=3, fontsize=7)
    alternative = " ".join(
        _described(scene, attacked) for scene in rows for attacked in (False, True)
    )
    return Drawing(name, figure, LEGEND, alternative)


LEGEND = (
    "Blue, solid: certified, so a detection of this class surely remains in this place under every "
    "perturbation of at most ε. Orange, dashed: not certified, or under attack. Shaded: the "
    "region in which the box remains."
)


def _side(scene: Scene, attacked: bool) -> tuple[NDArray[np.uint8], tuple[Detection, ...]]:
    return (scene.attacked, scene.found_attacked) if attacked else (scene.clean, scene.found)


def _drawn(scene: Scene, attacked: bool, zoom: int) -> Image.Image:
    pixels, found = _side(scene, attacked)
    scale = zoom * SMALLEST_SIDE / len(pixels)
    return draw(Image.fromarray(pixels), certificate_marks(found), scale, zoom * TEXT)


def _caption(scene: Scene, attacked: bool) -> str:
    read = read_out(_side(scene, attacked)[1])
    if attacked:
        return f"attacked, ε {scene.epsilon:g}: {read}"
    return f"clean: {read}; {count_certified(scene.found)} of {len(scene.found)} certified"


def _described(scene: Scene, attacked: bool) -> str:
    truth = " ".join(scene.truth) or "nothing"
    told = "" if attacked else radii_told(scene.found)
    return (
        f"{scene.weights}, picture {scene.picture + 1}, which shows {truth}. "
        f"{_caption(scene, attacked)}.{told}"
    )


def _headed(scene: Scene, attacked: bool) -> str:
    """Return what is shown, and whether it is read right."""
    found = _side(scene, attacked)[1]
    sign = "✓" if read_out(found) == (" ".join(scene.truth) or "nothing") else "✗"
    if attacked:
        return f"attacked, ε = {scene.epsilon:g}\nreads {read_out(found)}  {sign}"
    count = f"{count_certified(found)} of {len(found)} certified"
    return f"clean\nreads {read_out(found)}  {sign}  {count}"


def _keys() -> list[Patch]:
    return [
        Patch(fill=False, edgecolor=CERTIFIED, label="certified: stays, at any attack up to ε"),
        Patch(color=CERTIFIED, alpha=0.25, lw=0, label="where it remains, at worst"),
        Patch(fill=False, edgecolor=UNCERTIFIED, ls="--", label="not certified, or attacked"),
    ]


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


def pixel_scenes(
    loaded: LoadedSegmenter,
    pack: Pack,
    indices: Sequence[int],
    attacks: Sequence[AttackSettings],
    bounds: PixelBounds | None,
) -> list[PixelScene]:
    """Attack some pictures and look at both, clean and attacked, with a segmenter.

    Args:
        loaded: the segmenter.
        pack: pictures with masks.
        indices: which of them.
        attacks: with `PixelSettings`, at one ε.
        bounds: of the segmenter; None shows no certificates.
    """
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


def pixel_tiles(name: str, which: str, scene: PixelScene) -> list[str]:
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
