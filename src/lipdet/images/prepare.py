"""Turn annotated pictures, or the renderer's stream, into a pack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from lipdet.config import DIGITS
from lipdet.images.crop import (
    Region,
    cut,
    full_region,
    into_region,
    jittered_region,
    reference_region,
)
from lipdet.images.pack import Pack, PackedPicture, write_pack
from lipdet.images.render import rendered
from lipdet.images.source import AnnotatedPicture, Skipped, Source, load_rgb, picture_size
from lipdet.progress import track

Crop = Literal["reference", "jitter", "full"]


def pack_source(
    source: Source, folder: Path, crop: Crop, size: int, seed: int, crops: int = 1
) -> Pack:
    """Cut every picture of a source into squares and pack them.

    Args:
        source: annotated pictures.
        folder: the pack to write.
        crop: how to cut; see `lipdet.images.crop`.
        size: side of the squares in pixels.
        seed: the random choices of picture i depend on it, on i and on nothing else.
        crops: squares per picture; more than one is useful with `jitter` only.

    Raises:
        InputError: the folder exists, a picture cannot be read, or none is usable.
    """
    skipped = list(source.skipped)
    chosen: list[tuple[int, list[Region]]] = []
    for index, picture in enumerate(track(source.pictures, f"Measuring {source.name}")):
        rng = np.random.default_rng([seed, index])
        regions = _regions(picture, crop, crops, rng)
        if regions:
            chosen.append((index, regions))
        else:
            skipped.append(Skipped(picture.path.name, "no square around its objects fits"))
    return write_pack(
        folder,
        _cut_all(source, chosen, size),
        count=sum(len(regions) for _, regions in chosen),
        size=size,
        class_names=source.class_names,
        provenance={
            "name": f"{source.name}, {crop} crops",
            "crop": crop,
            "crops": crops,
            "seed": seed,
        },
        skipped=skipped,
    )


def _regions(
    picture: AnnotatedPicture, crop: Crop, crops: int, rng: np.random.Generator
) -> list[Region]:
    width, height = picture_size(picture.path)
    draw: dict[Crop, Callable[[], Region | None]] = {
        "reference": lambda: reference_region(picture.boxes, width, height, rng),
        "jitter": lambda: jittered_region(picture.boxes, rng) if len(picture.boxes) else None,
        "full": lambda: full_region(width, height),
    }
    drawn = [draw[crop]() for _ in range(crops)]
    return [region for region in drawn if region is not None]


def _cut_all(
    source: Source, chosen: list[tuple[int, list[Region]]], size: int
) -> Iterator[PackedPicture]:
    for index, regions in track(chosen, f"Packing {source.name}"):
        picture = source.pictures[index]
        image = load_rgb(picture.path)
        for region in regions:
            boxes, has_area = into_region(picture.boxes, region, size)
            yield PackedPicture(
                cut(image, region, size), boxes[has_area], picture.labels[has_area], index
            )


def pack_rendered(folder: Path, stream: str, count: int, size: int, seed: int) -> Pack:
    """Render the first `count` pictures of a stream and pack them."""
    pictures = (
        PackedPicture(*rendered(stream, index, seed, size), index)
        for index in track(range(count), f"Rendering {count} house numbers")
    )
    return write_pack(
        folder,
        pictures,
        count=count,
        size=size,
        class_names=DIGITS,
        provenance={"name": f"rendered:{count} ({stream} stream)", "crop": "none", "seed": seed},
    )
