"""Pictures that visitors bring: read with limits, and cut to the square that networks see."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps

from lipdet.detect import Found, detect_in_photograph
from lipdet.errors import InputError
from lipdet.evaluate.run import Network
from lipdet.images.crop import Region, full_region
from lipdet.images.render import rendered

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


def samples(size: int) -> list[Image.Image]:
    """Rendered house numbers, as networks of this input size see them."""
    return [Image.fromarray(rendered("test", index, size=size)[0]) for index in SAMPLES]


def square_of(detector: Network, image: Image.Image, search: bool) -> Region:
    """Return the square of a picture that networks are shown.

    Args:
        detector: looks for numbers.
        image: RGB.
        search: whether to look for a number and take the square around it. A picture that has
            the network's size is taken as it is, and so is one in which nothing is found.
    """
    size = detector.decoder.image_size
    if search and image.size != (size, size):
        found = detect_in_photograph(detector, image)
        if found.regions:
            return _around_best(found)
    return full_region(image.width, image.height)


def _around_best(found: Found) -> Region:
    """The square that holds the best detection; the first one if nothing passed the fine look."""
    centres = (found.detections["boxes"][:1, :2] + found.detections["boxes"][:1, 2:]) / 2
    return next(
        (
            region
            for region in found.regions
            for x, y in centres.tolist()
            if region.left <= x <= region.right and region.top <= y <= region.bottom
        ),
        found.regions[0],
    )
