"""Pictures are read upright, and refused in one sentence."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from lipdet.errors import InputError
from lipdet.images.source import as_rgb, load_rgb, picture_size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int, tmp_path: Path) -> None:
    # The way back of each orientation, from the EXIF specification (tag 0x0112).
    undo = {
        1: lambda pixels: pixels,
        2: lambda pixels: pixels[:, ::-1],
        3: lambda pixels: pixels[::-1, ::-1],
        4: lambda pixels: pixels[::-1],
        5: lambda pixels: pixels.transpose(1, 0, 2),
        6: lambda pixels: np.rot90(pixels, -1),
        7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: lambda pixels: np.rot90(pixels, 1),
    }
    stored = np.random.default_rng(0).integers(0, 256, (4, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "phone.png"
    Image.fromarray(stored).save(path, exif=exif)
    upright = undo[orientation](stored)
    assert np.array_equal(np.asarray(load_rgb(path)), upright)
    assert picture_size(path) == (upright.shape[1], upright.shape[0])


def test_values_of_other_depths(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (5, 6), dtype=np.uint8)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(load_rgb(tmp_path / "deep.png")), np.stack([grey] * 3, axis=2))
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match=r"float\.tif.*32 bits"):
        load_rgb(tmp_path / "float.tif")


def test_too_large_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (100, 100)).save(path)
    # Pillow refuses at twice this many pixels.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000)
    for read in (load_rgb, picture_size):
        with warnings.catch_warnings(), pytest.raises(InputError, match=r"huge\.png"):
            read(path)


def test_twelve_bits_in_sixteen_are_refused_not_nearly_black(tmp_path: Path) -> None:
    """12-bit grey in a 16-bit PNG."""
    grey = np.linspace(0, 4095, 30).reshape(5, 6).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "microscope.png")
    with pytest.raises(InputError, match=r"microscope\.png: .*values end at 4095 of 65535"):
        load_rgb(tmp_path / "microscope.png")


def test_an_image_of_pillows_is_read_like_its_file(tmp_path: Path) -> None:
    """Turned upright, and with 16 bits as in the file."""
    grey = np.random.default_rng(0).integers(0, 256, (4, 7), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for name, pixels in (("turned.png", grey), ("deep.png", grey.astype(np.uint16) * 257)):
        path = tmp_path / name
        Image.fromarray(pixels).save(path, exif=exif)
        with Image.open(path) as image:
            same = as_rgb(image)
        assert np.array_equal(np.asarray(same), np.asarray(load_rgb(path)))
        assert same.size == (4, 7)
