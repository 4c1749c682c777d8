"""A Lipschitz profile as figure, tables and json: certified bound beside observed constant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter
from rich.table import Table

from lipdet.certificate.constants.outputs import (
    OutputBounds,
    bounds_of_outputs,
    detector_profile,
    propagate_detector,
)
from lipdet.certificate.pixels import PixelBounds
from lipdet.checkpoint import LoadedDetector, LoadedSegmenter
from lipdet.detector.forward import on_cpu
from lipdet.errors import UnknownLipschitz
from lipdet.evaluate.segmentation import bounds_on
from lipdet.images.pack import Pack
from lipdet.lipschitz.profile import LayerRow, layer_profile
from lipdet.lipschitz.propagation import propagate
from lipdet.report.style import (
    COLOURS,
    Drawing,
    colour,
    in_legend,
    marker,
    new_figure,
    save_figure,
    styled,
)
from lipdet.report.table import constant, new_table
from lipdet.results import DataSummary
from lipdet.segmenter import Segmenter
from lipdet.versions import versions

_BOUND, _OBSERVED = COLOURS[:2]


class Profile(TypedDict):
    """The json of `lipdet lipschitz` of any network; docs/json.md describes it."""

    weights: str
    observed_on: DataSummary
    versions: dict[str, str]
    joint: float
    layers: list[dict[str, Any]]


class DetectorProfile(Profile):
    """The same with the bound of each map's features, and the largest of a single output."""

    features: list[float]
    largest_logit: float
    largest_offset: float


class PixelConstants(TypedDict):
    """Constants in certificates of pixels, for pictures of every size."""

    joint: float
    contrasts: float
    largest_difference: float
    rounding: float


class SegmenterProfile(Profile):
    """The same with the constants of certificates, or a sentence that says why there are none."""

    pixels: PixelConstants | str


@styled
def plot_profile(rows: Sequence[LayerRow], file: Path) -> None:
    """Plot the cumulative constants along the path to each head, on a logarithmic scale.

    Args:
        rows: from `layer_profile`.
        file: where to write; its ending chooses the format.
    """
    figure, axes = new_figure(height=5.0, width=max(6.0, 0.22 * len(rows)))
    for line in _branches(rows):
        bounds = [rows[index].cumulative for index in line]
        axes.plot(line, bounds, color=_BOUND, marker="o", markersize=3, linewidth=1)
        observed = [value for index in line if (value := rows[index].observed) is not None]
        if observed:
            axes.plot(line, observed, color=_OBSERVED, marker="x", markersize=4, linewidth=1)
    axes.plot([], [], color=_BOUND, marker="o", markersize=3, label="certified upper bound")
    if any(row.observed is not None for row in rows):
        axes.plot([], [], color=_OBSERVED, marker="x", label="observed at images (lower bound)")
    _log_scale(axes)
    axes.set_ylabel("Lipschitz constant from the image, L2")
    axes.set_xticks(range(len(rows)), [row.name for row in rows], rotation=90, fontsize=6)
    axes.grid(visible=False, axis="x")
    axes.legend()
    save_figure(figure, file)


@styled
def plot_profiles(profiles: Mapping[str, Sequence[LayerRow]]) -> Drawing | None:
    """Draw the constants of several detectors along the path to their last head, side by side.

    Args:
        profiles: name of a detector to its rows; without rows where a layer has no bound.

    Returns:
        None if there are no rows at all.
    """
    if not any(profiles.values()):
        return None
    figure, axes = new_figure(height=3.4)
    ends = []
    for index, (name, rows) in enumerate(profiles.items()):
        if not rows:
            continue
        line = [rows[place] for place in _branches(rows)[-2 if rows[-1].heads else 0]]
        bounds = [row.cumulative for row in line]
        axes.plot(
            bounds, color=colour(index), marker=marker(index), markersize=3, label=in_legend(name)
        )
        observed = [(i, row.observed) for i, row in enumerate(line) if row.observed]
        if observed:
            axes.plot(*zip(*observed, strict=True), color=colour(index), ls=":")
        ends.append(f"{name}: {constant(bounds[-1])} after {len(line)} layers")
    _log_scale(axes)
    axes.set_xlabel("layer, from the image to the last logits")
    axes.set_ylabel("Lipschitz constant from the image, L2")
    axes.legend(loc="upper left")
    return Drawing(
        "lipschitz",
        figure,
        "Where the Lipschitz bound comes from. Markers: certified upper bound from the image to "
        "the end of each layer. Dotted: observed at pictures, a lower bound of the same constant. "
        "The last point is of all logits of a map together, not of a single one.",
        f"Certified bound at the end: {'; '.join(ends)}.",
    )


def _branches(rows: Sequence[LayerRow]) -> list[list[int]]:
    """Return rows to join by a line: to each head's logits, and from its features to its offsets.

    All rows in their order where there are no heads.
    """
    if not any(row.heads for row in rows):
        return [list(range(len(rows)))]
    lines = []
    for head in sorted({head for row in rows for head in row.heads}):
        *body, logits, offsets = (index for index, row in enumerate(rows) if head in row.heads)
        lines += [[*body, logits], [*body[-1:], offsets]]
    return lines


def profile_table(name: str, rows: Sequence[LayerRow]) -> Table:
    """List the layers: their own constant, the bound up to their end, and what was observed."""
    columns = ("layer", "kind", "bound alone", "bound so far", "observed ≥")
    title = f"Lipschitz constants of {name}, from the image in [0, 1], L2"
    table = new_table(title, columns, columns[:2])
    for row in rows:
        values = (row.constant, row.cumulative, row.observed)
        table.add_row(row.name, row.kind, *map(constant, values))
    return table


def bounds_table(bounds: OutputBounds) -> Table:
    """Return the largest bound of a single logit and of an offset, for each feature map."""
    columns = ("feature map", "features", "any logit", "any offset")
    table = new_table(f"Outputs; all together: {constant(bounds.joint)}", columns)
    for level, (features, own) in enumerate(zip(bounds.features, bounds.anchors, strict=True)):
        values = (features, float(bounds.logits[own].max()), float(bounds.offsets[own].max()))
        table.add_row(str(level), *map(constant, values))
    return table


def profile_detector(
    loaded: LoadedDetector, pack: Pack
) -> tuple[list[LayerRow], DetectorProfile, OutputBounds]:
    """Bound a detector's layers and outputs, and observe the layers on a few pictures.

    Args:
        loaded: the detector; what is bounded is a copy on the CPU, if it is elsewhere.
        pack: the pictures, of its canvas.

    Returns:
        The layers, what `lipdet lipschitz --json` writes, and the bounds of single outputs.

    Raises:
        UnknownLipschitz: a layer has no rule.
    """
    detector = on_cpu(loaded.detector)
    propagation = propagate_detector(detector)
    bounds = bounds_of_outputs(detector, propagation)
    images = pack.pixels(range(len(pack))).to(detector.default_boxes)
    rows = detector_profile(propagation, images)
    profile: DetectorProfile = {
        "weights": loaded.name,
        "observed_on": pack.describe(),
        "versions": versions(),
        "joint": bounds.joint,
        "features": list(bounds.features),
        "largest_logit": bounds.logits.max().item(),
        "largest_offset": bounds.offsets.max().item(),
        "layers": [asdict(row) for row in rows],
    }
    return rows, profile, bounds


def pixel_bounds(segmenter: Segmenter, pack: Pack) -> PixelBounds | str:
    """Return what certificates of pixels use, or a sentence that says why there are none."""
    try:
        return bounds_on(segmenter, pack)
    except UnknownLipschitz as error:
        return str(error)


def profile_segmenter(
    loaded: LoadedSegmenter, pack: Pack, bounds: PixelBounds | str
) -> tuple[list[LayerRow], SegmenterProfile]:
    """Bound a segmenter's layers, and observe them on a few pictures of its canvas.

    Args:
        loaded: the segmenter.
        pack: the pictures.
        bounds: as `pixel_bounds` gives them.

    Returns:
        The layers, and what `lipdet lipschitz --json` writes.

    Raises:
        UnknownLipschitz: a layer has no rule.
    """
    propagation = propagate(loaded.segmenter, (3, *pack.canvas))
    rows = layer_profile(propagation, pack.pixels(range(len(pack))))
    pixels: PixelConstants | str
    if isinstance(bounds, str):
        pixels = bounds
    else:
        pixels = {
            "joint": bounds.joint,
            "contrasts": bounds.contrasts,
            "largest_difference": bounds.pairwise.max().item(),
            "rounding": bounds.rounding,
        }
    return rows, {
        "weights": loaded.name,
        "observed_on": pack.describe(),
        "versions": versions(),
        "joint": propagation.joint,
        "pixels": pixels,
        "layers": [asdict(row) for row in rows],
    }


def segmenter_sentence(profile: SegmenterProfile) -> str:
    """Say what `profile_segmenter` found of all layers together."""
    together = f"All logits together: {constant(profile['joint'])} at this size."
    pixels = profile["pixels"]
    if isinstance(pixels, str):
        return f"{together} {pixels}"
    return (
        f"{together} In certificates, which hold for every size: all logits "
        f"{constant(pixels['joint'])}, what flipped pixels pay together "
        f"{constant(pixels['contrasts'])}, difference of two logits of a pixel at most "
        f"{constant(pixels['largest_difference'])}; rounding {constant(pixels['rounding'])}, as "
        "measured."
    )


def _log_scale(axes: Axes) -> None:
    """Scale the y axis by logarithm, with plain numbers: figures have no formulas."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(LogFormatter())
