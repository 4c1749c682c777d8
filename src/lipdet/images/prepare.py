"""Turn annotated pictures, or the renderer's stream, into a pack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from lipdet.config import DIGITS, INK_CLASSES
from lipdet.images.crop import (
    Region,
    cut,
    cut_mask,
    full_region,
    into_region,
    jittered_region,
    reference_region,
)
from lipdet.images.masks import read_mask
from lipdet.images.pack import Pack, PackedPicture, write_pack
from lipdet.images.render import rendered, rendered_ink
from lipdet.images.scenes import rendered_scene
from lipdet.images.source import AnnotatedPicture, Skipped, Source, load_rgb, picture_size
from lipdet.progress import console, track
from lipdet.types import Canvas

Crop = Literal["reference", "jitter", "full"]
Rendered = Literal["crops", "scenes", "ink"]


def pack_source(
    source: Source, folder: Path, crop: Crop, canvas: Canvas, seed: int, crops: int = 1
) -> Pack:
    """Cut every picture of a source and pack what was cut.

    Args:
        source: annotated pictures.
        folder: the pack to write.
        crop: how to cut; see `lipdet.images.crop`.
        canvas: height and width of what is cut in pixels.
        seed: the random choices of picture i depend on it, on i and on nothing else.
        crops: of each picture; more than one is useful with `jitter` only.

    Raises:
        InputError: the folder exists, a picture cannot be read, or none is usable.
    """
    skipped = list(source.skipped)
    if skipped:
        first = f"{skipped[0].name}: {skipped[0].reason}"
        console.log(f"{source.name}: left out or doubtful, {len(skipped)} in all: {first}")
    chosen: list[tuple[int, list[Region]]] = []
    for index, picture in enumerate(track(source.pictures, f"Measuring {source.name}")):
        rng = np.random.default_rng([seed, index])
        regions = _regions(picture, crop, crops, canvas, rng)
        if regions:
            chosen.append((index, regions))
        else:
            skipped.append(Skipped(picture.path.name, "no square around its objects fits"))
    return write_pack(
        folder,
        _cut_all(source, chosen, canvas),
        count=sum(len(regions) for _, regions in chosen),
        canvas=canvas,
        class_names=source.class_names,
        provenance={
            "name": f"{source.name}, {'whole pictures' if crop == 'full' else f'{crop} crops'}",
            "crop": crop,
            "crops": crops,
            "seed": seed,
        },
        skipped=skipped,
    )


def _regions(
    picture: AnnotatedPicture, crop: Crop, crops: int, canvas: Canvas, rng: np.random.Generator
) -> list[Region]:
    width, height = picture_size(picture.path)
    draw: dict[Crop, Callable[[], Region | None]] = {
        "reference": lambda: reference_region(picture.boxes, width, height, rng),
        "jitter": lambda: jittered_region(picture.boxes, rng) if len(picture.boxes) else None,
        "full": lambda: full_region(width, height, canvas),
    }
    drawn = [draw[crop]() for _ in range(crops)]
    return [region for region in drawn if region is not None]


def _cut_all(
    source: Source, chosen: list[tuple[int, list[Region]]], canvas: Canvas
) -> Iterator[PackedPicture]:
    for index, regions in track(chosen, f"Packing {source.name}"):
        picture = source.pictures[index]
        image = load_rgb(picture.path)
        for region in regions:
            boxes, has_area = into_region(picture.boxes, region, canvas)
            areas, left = into_region(picture.ignored[:, 1:].astype(np.float32), region, canvas)
            yield PackedPicture(
                cut(image, region, canvas),
                boxes[has_area],
                picture.labels[has_area],
                index,
                np.hstack([picture.ignored[left, :1], areas[left]]),
                cut_mask(read_mask(picture.mask), region, canvas) if picture.mask else None,
            )


def pack_rendered(
    folder: Path, stream: str, count: int, canvas: Canvas, seed: int, kind: Rendered = "crops"
) -> Pack:
    """Render the first `count` pictures of a stream and pack them.

    Crops are squares; on another canvas they are letter-boxed. So is ink: the same pictures, in
    which no digit has a box, and every pixel a class. Scenes fill the canvas.
    """
    draw = {"crops": _crop_on, "scenes": _scene_on, "ink": _ink_on}[kind]
    pictures = (
        draw(canvas, stream, index, seed)
        for index in track(range(count), f"Rendering {count} house numbers")
    )
    return write_pack(
        folder,
        pictures,
        count=count,
        canvas=canvas,
        class_names=INK_CLASSES if kind == "ink" else DIGITS,
        provenance={
            "name": f"rendered{'-ink' if kind == 'ink' else ''}:{count} ({stream} stream)",
            "crop": "full" if kind == "scenes" else "none",
            "seed": seed,
        },
    )


def _crop_on(canvas: Canvas, stream: str, index: int, seed: int) -> PackedPicture:
    side = min(canvas)
    image, boxes, labels = rendered(stream, index, seed, side)
    region = full_region(side, side, canvas)
    placed, _ = into_region(boxes, region, canvas)
    return PackedPicture(cut(Image.fromarray(image), region, canvas), placed, labels, index)


def _scene_on(canvas: Canvas, stream: str, index: int, seed: int) -> PackedPicture:
    return PackedPicture(*rendered_scene(stream, index, seed, canvas), index)


def _ink_on(canvas: Canvas, stream: str, index: int, seed: int) -> PackedPicture:
    side = min(canvas)
    image, mask = rendered_ink(stream, index, seed, side)
    region = full_region(side, side, canvas)
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    placed = cut(Image.fromarray(image), region, canvas)
    return PackedPicture(placed, *nothing, index, mask=cut_mask(mask, region, canvas))
