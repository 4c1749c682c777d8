"""The one way in which files are written: beside their place, then moved there."""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
from pathlib import Path

from PIL import Image

from lipdet.errors import InputError


def write_complete(path: Path, content: bytes | str) -> None:
    """Write a file so that it is never seen in part; text in UTF-8.

    What is no file, such as a pipe or `/dev/stdout`, is written to as it is.

    Raises:
        InputError: it cannot be written; an older file of the name is as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    target = path.resolve()  # a link stays one
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)
            return
        # A name of its own: two processes may write one file.
        unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}.unfinished")
        try:
            with unfinished.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); an older file of that name is "
            "as it was."
        ) from None


def write_json(path: Path, value: object) -> None:
    """Write a value as json, as `write_complete` does."""
    write_complete(path, json.dumps(value, indent=1) + "\n")


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture as PNG, as `write_complete` does."""
    write_complete(path, png(picture))


def png(picture: Image.Image) -> bytes:
    """Return a picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def check_space(folder: Path, size: int, what: str) -> None:
    """Refuse to write more bytes than the disk of a folder that exists has left.

    Raises:
        InputError: it says both numbers.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        raise InputError(
            f"{what} take {size / 1e9:,.1f} GB, but {folder} has {free / 1e9:,.1f} GB left; take "
            "fewer or smaller pictures, or another disk."
        )
