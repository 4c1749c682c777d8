"""Files appear whole or not at all, and there is one way of writing and reading them."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
from PIL import Image

import lipdet
from lipdet.errors import InputError
from lipdet.files import write_complete, write_picture

PACKAGE = Path(lipdet.__file__).parent


def test_a_full_disk_leaves_the_old_file_and_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A good result stays, and nothing unfinished is left."""
    file = tmp_path / "result.json"
    write_complete(file, "good ε")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: write_complete(file, "new"),
        lambda: write_picture(file, Image.new("RGB", (2, 2))),
    ):
        with pytest.raises(InputError, match=r"result\.json cannot be written \(No space left"):
            write()
    assert file.read_text(encoding="utf-8") == "good ε"
    assert list(tmp_path.iterdir()) == [file]


def test_two_that_write_one_file_do_not_collide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, sync = tmp_path / "result.json", os.fsync

    def meanwhile(number: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        write_complete(file, "other")
        sync(number)

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_complete(file, "ours")
    assert file.read_text() == "ours"
    plain = tmp_path / "plain"
    plain.touch()
    assert file.stat().st_mode == plain.stat().st_mode
    assert len(list(tmp_path.iterdir())) == 2


def test_links_and_devices_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_complete(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "text"
    write_complete(Path(os.devnull), "text")
    assert Path(os.devnull).is_char_device()


# What reads or writes in another way, and where it may: logs and downloads grow, a pack is a folder
# that appears at once, an exporter's library writes into a temporary folder. Of a
# mask the numbers count, which a picture's colours are not.
OTHERS = {
    r"\.write_(text|bytes)\(": {"files.py": 1},
    r"""open\([^)\n]*["'][wax]b?["']""": {
        "files.py": 1,
        "train/log.py": 1,
        "images/download.py": 1,
    },
    r"\bnp\.save\(": {"images/pack.py": 5},
    r"onnx\.save\(": {"export/onnx_file.py": 1},
    r"Image\.open\(": {"images/source.py": 3, "images/render.py": 1, "images/masks.py": 1},
    r"savefig\(": {"report/style.py": 2},
    # Pictures come to a canvas by `cut`. What is drawn, or shown larger, has sizes of its own.
    r"\.(resize|thumbnail|crop)\(": {
        "images/crop.py": 1,
        "images/resize.py": 4,
        "images/ink.py": 1,
        "images/render.py": 3,
        "images/surface.py": 2,
        "reading/marks.py": 2,
        "reading/pixels.py": 1,
        "app/session.py": 1,
        "lipschitz/torchvision_heads.py": 1,
    },
}


@pytest.mark.parametrize("pattern", OTHERS)
def test_there_is_no_other_way_in_the_source(pattern: str) -> None:
    """One function writes files; one reads pictures, and one frames them."""
    found = {
        str(file.relative_to(PACKAGE)): len(re.findall(pattern, file.read_text(encoding="utf-8")))
        for file in PACKAGE.rglob("*.py")
    }
    assert {name: count for name, count in found.items() if count} == OTHERS[pattern]
