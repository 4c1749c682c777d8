"""A drawing of a detector, read off the network as it runs: stages, map sizes, channels, heads.

Notable choices:
- Nothing is described by hand: one forward pass on a black picture tells which layers run, in
  which order, on maps of which size. A stage is a run of layers on maps of one size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor, nn

from lipdet.config import PRESETS, DetectorConfig
from lipdet.detector import SSD, build_detector
from lipdet.report.style import COLOURS, INK, Drawing, new_figure, styled
from lipdet.types import Canvas

# Upper end of the axes; a picture has the side 1.
_TOP = 1.35
# Layers that change neither size nor channels and have no weights are not drawn.
_SILENT = (nn.Identity, nn.Sequential, nn.ZeroPad2d)
# Names of drawings of what `lipdet train` can make, beside the detectors of a report.
PREFIX = "preset-"


@dataclass(frozen=True)
class Stage:
    """Consecutive layers of the body on maps of one size, up to a map that a head looks at.

    Attributes:
        cells: rows and columns of the map.
        channels: at the end of the stage.
        layers: how often each kind of layer runs, in the order of first use.
        parameters: of these layers.
        tapped: whether a head looks at its last map.
    """

    cells: Canvas
    channels: int
    layers: dict[str, int]
    parameters: int
    tapped: bool


@dataclass(frozen=True)
class HeadShape:
    """One head.

    Attributes:
        cells: rows and columns of its feature map.
        channels: of its feature map.
        boxes: default boxes per cell.
        logits: per default box.
        parameters: of the head.
    """

    cells: Canvas
    channels: int
    boxes: int
    logits: int
    parameters: int


@dataclass(frozen=True)
class Architecture:
    """The parts of a detector, from image to outputs."""

    canvas: Canvas
    stages: tuple[Stage, ...]
    heads: tuple[HeadShape, ...]
    default_boxes: int
    parameters: int


@torch.no_grad()
def describe_architecture(detector: SSD) -> Architecture:
    """Run a detector once and note what runs.

    Args:
        detector: any; it is left as it was.
    """
    seen: list[tuple[nn.Module, Tensor]] = []
    maps: list[tuple[Tensor, Tensor]] = []
    body = [module for module in detector.backbone.modules() if _is_layer(module)]

    def note(module: nn.Module, _: object, features: object) -> None:
        # A backbone of one module may return a list of maps, or what is no map.
        if isinstance(features, Tensor) and features.ndim == 4:
            seen.append((module, features))

    hooks = [module.register_forward_hook(note) for module in body]
    hooks += [
        head.register_forward_hook(lambda _, x, y: maps.append((x[0], y.logits)))
        for head in detector.heads
    ]
    canvas, was_training = detector.config.canvas, detector.training
    try:
        detector.eval()(detector.default_boxes.new_zeros(1, 3, *canvas))
    finally:
        detector.train(was_training)
        for hook in hooks:
            hook.remove()
    heads = tuple(
        HeadShape(
            cells=_cells(features),
            channels=features.shape[1],
            boxes=logits.numel() // (features.shape[-2:].numel() * head.logits),
            logits=head.logits,
            parameters=_size(head),
        )
        for head, (features, logits) in zip(detector.heads, maps, strict=True)
        if isinstance(head.logits, int)
    )
    return Architecture(
        canvas, tuple(_stages(seen, maps)), heads, len(detector.default_boxes), _size(detector)
    )


@styled
def draw_architecture(name: str, architecture: Architecture, place: int = 1) -> Drawing:
    """Draw stages from left to right as blocks as high as their maps, heads below their maps.

    Args:
        name: of the detector.
        architecture: of `describe_architecture`.
        place: among the drawings of a report; part of the drawing's name.
    """
    stages = architecture.stages
    bottom = -0.42 - 0.085 * max((len(stage.layers) for stage in stages), default=0)
    figure, axes = new_figure(
        height=1.43 * (_TOP - bottom), width=max(4.4, 1.05 * (len(stages) + 1))
    )
    axes.set_axis_off()
    left = 0.0
    _block(axes, left, 1.0, COLOURS[6])
    _text(axes, left, 1.06, f"{_short_size(architecture.canvas)}\n3")
    heads = list(architecture.heads)
    for index, stage in enumerate(stages):
        left = index + 1.0
        side = (stage.cells.height / architecture.canvas.height) ** 0.5
        _block(axes, left, side, COLOURS[0])
        _text(axes, left, side + 0.06, f"{_short_size(stage.cells)}\n{stage.channels}")
        _arrow(axes, (left - 0.62, 0.08), (left - 0.38, 0.08))
        words = "\n".join(
            f"{count} × {kind}" if count > 1 else kind for kind, count in stage.layers.items()
        )
        words = words.replace("2d", "").replace("BatchNorm", "BN")
        axes.text(left - 0.35, -0.42, words, fontsize=6.5, va="top", linespacing=1.3)
        if stage.tapped:
            head = heads.pop(0)
            _arrow(axes, (left, 0.0), (left, -0.13))
            axes.text(
                left, -0.15, f"{head.boxes} boxes\nper cell", fontsize=7, va="top", ha="center",
                fontweight="bold", linespacing=1.1,
            )  # fmt: skip
    axes.set(xlim=(-0.5, len(stages) + 0.5), ylim=(bottom, _TOP))
    caption = (
        f"{name}: {architecture.parameters:,} parameters, {architecture.default_boxes:,} default "
        "boxes. Above each block the size of its maps and their channels; below it the heads and "
        "the layers that run."
    )
    return Drawing(f"architecture-{place}", figure, caption, _described(name, architecture))


def _is_layer(module: nn.Module) -> bool:
    """Return whether a module is drawn as one: a leaf, or a block."""
    return not isinstance(module, _SILENT) and (
        not any(module.children()) or type(module).__name__.endswith("Block")
    )


def _stages(seen: list[tuple[nn.Module, Tensor]], maps: list[tuple[Tensor, Tensor]]) -> list[Stage]:
    stages: list[Stage] = []
    kinds: Counter[str] = Counter()
    parameters = 0
    for index, (module, features) in enumerate(seen):
        kinds[type(module).__name__] += 1
        parameters += _size(module)
        cells = _cells(features)
        tapped = any(features is tap for tap, _ in maps)
        if tapped or index + 1 == len(seen) or _cells(seen[index + 1][1]) != cells:
            stages.append(Stage(cells, features.shape[1], dict(kinds), parameters, tapped))
            kinds, parameters = Counter(), 0
    return stages


def _cells(features: Tensor) -> Canvas:
    return Canvas(*features.shape[-2:])


def _short_size(cells: Canvas) -> str:
    height, width = cells
    return f"{height}²" if height == width else f"{height}×{width}"


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _block(axes: Axes, left: float, side: float, colour: str) -> None:
    axes.add_patch(Rectangle((left - 0.3, 0), 0.6, side, facecolor=colour, alpha=0.75))


def _text(axes: Axes, left: float, bottom: float, words: str) -> None:
    axes.text(left, bottom, words, fontsize=7, va="bottom", ha="center", linespacing=1.1)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=7, color=INK))


def _described(name: str, architecture: Architecture) -> str:
    stages = "; ".join(
        f"{stage.cells.height}×{stage.cells.width} maps of {stage.channels} channels"
        for stage in architecture.stages
    )
    heads = ", ".join(_short_size(head.cells) for head in architecture.heads)
    return f"{name}: {stages}. Heads on the maps of {heads} cells."


def draw_presets(without: Collection[DetectorConfig]) -> list[Drawing]:
    """Return one drawing for each detector's architecture among the presets, named `preset-NAME`.

    Args:
        without: architectures that are drawn elsewhere.
    """
    names = {
        preset.detector: name
        for name, preset in reversed(PRESETS.items())
        if isinstance(preset.detector, DetectorConfig)
    }
    return [
        draw_architecture(name, _of_preset(config))._replace(name=f"{PREFIX}{name}")
        for config, name in reversed(names.items())
        if config not in without
    ]


@cache
def _of_preset(config: DetectorConfig) -> Architecture:
    # The weights do not show, and the caller's random numbers go on as if none were drawn here.
    with torch.random.fork_rng():
        return describe_architecture(build_detector(config))
