"""Resize pictures to the same bytes with every version of pillow.

Notable choices:
- Pillow filters columns and rows one after the other and rounds to 8 bits in between, so that the
  order shows. Until version 12 columns (the width) came first, since 13 whichever seemed cheaper;
  here the order is our own: the one that pillow 13 takes.
"""

from __future__ import annotations

from PIL import Image

Box = tuple[float, float, float, float]


def resized(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling, box: Box | None = None
) -> Image.Image:
    """Return an image, or a box of it, at another size.

    Args:
        image: of any mode.
        size: width and height.
        resample: the filter.
        box: left, top, right, bottom in pixels, inside the image; all of it if None.
    """
    left, top, right, bottom = box or (0, 0, *image.size)
    if image.height - size[1] > max(0, 2 * (image.width - size[0])):
        image = image.resize((image.width, size[1]), resample, (0, top, image.width, bottom))
        return image.resize(size, resample, (left, 0, right, size[1]))
    image = image.resize((size[0], image.height), resample, (left, 0, right, image.height))
    return image.resize(size, resample, (0, top, size[0], bottom))
