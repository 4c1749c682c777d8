"""Pictures that visitors bring: read with limits, and cut to what networks see."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps

from lipdet.app.exhibits import Exhibit
from lipdet.errors import InputError
from lipdet.images.crop import Region, full_region
from lipdet.images.render import rendered
from lipdet.reading import View, look
from lipdet.reading.search import searched_regions
from lipdet.types import Canvas

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
LARGEST_FILE = 20 * 2**20
# More than any phone's default, and 75 MB once decoded.
MOST_PIXELS = 25_000_000
# A larger picture is shrunk: a house number in it is still larger than what networks see.
LONGEST_SIDE = 1_600
SAMPLES = tuple(range(8))


def read_picture(path: Path) -> Image.Image:
    """Read a picture as RGB, upright, its longer side at most LONGEST_SIDE.

    Raises:
        InputError: not a picture, damaged, or too large; found out from the header, before
            anything is decoded.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(
            f"{path.name} has more than {LARGEST_FILE >> 20} MB; choose a smaller one."
        )
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_size(path.name, image.width, image.height)
            image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
            return ImageOps.exif_transpose(image).convert("RGB")
    except Image.DecompressionBombError:
        raise InputError(f"{path.name} has far too many pixels; choose a smaller one.") from None
    except (OSError, SyntaxError, ValueError):
        raise InputError(
            f"{path.name} cannot be read as a picture; choose a {', '.join(FORMATS)} file."
        ) from None


def _check_size(name: str, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise InputError(
            f"{name} has {width}×{height} pixels, {width * height / 1e6:.1f} million; "
            f"choose one of at most {MOST_PIXELS // 1_000_000} million."
        )


def samples(canvas: Canvas) -> list[Image.Image]:
    """Rendered house numbers, as networks of this input size see them."""
    side = min(canvas)
    return [Image.fromarray(rendered("test", index, size=side)[0]) for index in SAMPLES]


def region_of(exhibit: Exhibit, image: Image.Image, search: bool) -> Region:
    """Return the part of a picture that networks are shown.

    Args:
        exhibit: looks for numbers.
        image: RGB.
        search: whether to look for numbers and take the square with the best detection, if the
            detector is one of crops. A picture of the network's size is taken as it is, and so is
            one in which nothing is found.
    """
    canvas, whole = exhibit.detector.framing
    if search and not whole and image.size != (canvas.width, canvas.height):
        squares = searched_regions(exhibit.detector, image)
        views = look(exhibit.detector, exhibit.class_names, image, squares)
        if views:
            return max(views, key=_best_score).region
    return full_region(*image.size, canvas)


def _best_score(view: View) -> float:
    """Return 0 if nothing passed the second look."""
    return max((one.score for one in view.detections), default=0.0)
