"""Scenes drawn: as small SVG pictures for a page, and as a figure for a paper."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray
from PIL import Image

from lipdet.certificate.radius import Region
from lipdet.report.scenes import Scene, Shown
from lipdet.report.style import COLOURS, Drawing, styled

# Width of a letter and height of a line of the names on a tile, in pixels of the picture.
LETTER, LINE = 3.4, 5.6
# The same of the names in a figure.
NAME = (3.6, 7.0)
# On pictures: certified is blue and solid, uncertified orange and dashed.
CERTIFIED, UNCERTIFIED = COLOURS[5], COLOURS[4]


def tile(scene: Scene, attacked: bool) -> str:
    """Return one picture of a scene as `<figure>` with an inline SVG."""
    picture, found = _side(scene, attacked)
    size = picture.shape[0]
    regions = "" if attacked else "".join(_region(one, scene.epsilon) for one in found)
    boxes = "".join(_box(one, scene.epsilon) for one in reversed(found))
    boxes += _labels(found, scene.epsilon, size)
    return (
        f'<figure class="tile"><svg role="img" viewBox="0 0 {size} {size}">'
        f"<title>{escape(_described(scene, attacked))}</title>"
        f'<image width="{size}" height="{size}" href="{_data_url(picture)}"/>{regions}{boxes}'
        f"</svg><figcaption><b>{escape(scene.weights)}</b>, {escape(_caption(scene, attacked))}"
        "</figcaption></figure>"
    )


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
            picture, found = _side(scene, attacked)
            axes.imshow(picture, interpolation="nearest")
            for one in found:
                _draw(axes, one, scene.epsilon, region=not attacked)
            _name(axes, found, picture.shape[0])
            axes.set_title(_headed(scene, attacked), fontsize=7.5)
        change = scene.attacked.astype(float) - scene.clean.astype(float)
        gain = 100 / max(1.0, float(np.abs(change).max()))
        right.imshow(np.clip(128 + gain * change, 0, 255).astype(np.uint8), interpolation="nearest")
        right.set_title(f"what the attack changed, × {gain:.0f}\n", fontsize=7.5)
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


def _side(scene: Scene, attacked: bool) -> tuple[NDArray[np.uint8], tuple[Shown, ...]]:
    return (scene.attacked, scene.found_attacked) if attacked else (scene.clean, scene.found)


def _certified(one: Shown, epsilon: float) -> bool:
    return one.radius is not None and one.radius >= epsilon > 0


def _caption(scene: Scene, attacked: bool) -> str:
    read = _read(_side(scene, attacked)[1])
    if attacked:
        return f"attacked, ε {scene.epsilon:g}: {read}"
    count = sum(_certified(one, scene.epsilon) for one in scene.found)
    return f"clean: {read}; {count} of {len(scene.found)} certified"


def _described(scene: Scene, attacked: bool) -> str:
    truth = " ".join(scene.truth) or "nothing"
    text = f"{scene.weights}, picture {scene.picture + 1}, which shows {truth}. "
    text += f"{_caption(scene, attacked)}."
    if not attacked:
        text += "".join(
            f" {one.label}: certified up to {one.radius:.3f}." for one in scene.found if one.radius
        )
    return text


def _read(found: Sequence[Shown]) -> str:
    return " ".join(one.label for one in sorted(found, key=lambda one: one.box[0])) or "nothing"


def _box(one: Shown, epsilon: float) -> str:
    return f"<rect {_look(one, epsilon)} {_geometry(one.box)}/>"


def _look(one: Shown, epsilon: float) -> str:
    return f'class="{"sure" if _certified(one, epsilon) else "unsure"}"'


def _labels(found: Sequence[Shown], epsilon: float, size: int) -> str:
    """Names and radii; each above its box, or inside it where another's name is already."""
    texts = [f"{one.label} {one.radius:.2f}" if one.radius else one.label for one in found]
    places = _places(found, texts, size, LETTER, LINE)
    return "".join(
        f'<text {_look(one, epsilon)} x="{left:.1f}" y="{line:.1f}">{escape(text)}</text>'
        for one, text, (left, line) in zip(found, texts, places, strict=True)
    )


def _places(
    found: Sequence[Shown], texts: Sequence[str], size: int, letter: float, height: float
) -> list[tuple[float, float]]:
    """Left end and base line of each text, in pixels of the picture."""
    taken: list[tuple[float, float, float]] = []
    for one, text in zip(found, texts, strict=True):
        width = letter * len(text)
        left = max(0.0, min(one.box[0], size - width))
        line = max(one.box[1] - 1, height - 1)
        while any(
            left < end and start < left + width and abs(line - other) < height
            for start, end, other in taken
        ):
            line += 1
        taken.append((left, left + width, line))
    return [(start, line) for start, _, line in taken]


def _region(one: Shown, epsilon: float) -> str:
    if one.region is None or not _certified(one, epsilon):
        return ""
    return f'<path class="region" d="{_path(one.region)}"/>'


def _path(box: Region) -> str:
    left, top, right, bottom = box
    return f"M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}Z"


def _geometry(box: Region) -> str:
    left, top, right, bottom = box
    return (
        f'x="{left:.1f}" y="{top:.1f}" width="{max(0.0, right - left):.1f}" '
        f'height="{max(0.0, bottom - top):.1f}"'
    )


def _draw(axes: Axes, one: Shown, epsilon: float, region: bool) -> None:
    certified = _certified(one, epsilon)
    colour = CERTIFIED if certified else UNCERTIFIED
    style: dict[str, Any] = {
        "fill": False,
        "edgecolor": colour,
        "linewidth": 1.6,
        "ls": "-" if certified else "--",
    }
    left, top, right, bottom = (value - 0.5 for value in one.box)
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, **style))
    if region and one.region and certified:
        x1, y1, x2, y2 = (value - 0.5 for value in one.region)
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, color=colour, alpha=0.25, lw=0))


def _name(axes: Axes, found: Sequence[Shown], size: int) -> None:
    texts = [one.label for one in found]
    for (left, line), text in zip(_places(found, texts, size, *NAME), texts, strict=True):
        axes.text(
            left, line - 0.5, text, fontsize=8, color="white", va="bottom",
            bbox={"facecolor": "black", "alpha": 0.7, "pad": 0.8, "linewidth": 0},
        )  # fmt: skip


def _headed(scene: Scene, attacked: bool) -> str:
    """Return what is shown, and whether it is read right."""
    found = _side(scene, attacked)[1]
    sign = "✓" if _read(found) == (" ".join(scene.truth) or "nothing") else "✗"
    if attacked:
        return f"attacked, ε = {scene.epsilon:g}\nreads {_read(found)}  {sign}"
    count = sum(_certified(one, scene.epsilon) for one in found)
    return f"clean\nreads {_read(found)}  {sign}  {count} of {len(found)} certified"


def _keys() -> list[Patch]:
    return [
        Patch(fill=False, edgecolor=CERTIFIED, label="certified: stays, at any attack up to ε"),
        Patch(color=CERTIFIED, alpha=0.25, lw=0, label="where it remains, at worst"),
        Patch(fill=False, edgecolor=UNCERTIFIED, ls="--", label="not certified, or attacked"),
    ]


def _data_url(picture: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
