"""Download the official SVHN Format-1 archives: resumable, verified, unpacked whole or not at all.

Notable choices:
- An archive is `<name>.part` until it is complete; the next run continues it with an HTTP range
  request. It is verified before each unpacking, so that one fetched by other means is welcome
  too, and it stays afterwards.
- Unpacking goes to a temporary folder beside the target that is renamed at the end, so the target
  exists only when it is complete.
- Members may be plain files and folders inside the split's folder; anything else refuses the whole
  archive (`filter="data"` of tarfile, PEP 706, is the second line of defence).
- An archive of a mirror without a given hash is verified by its size and by gzip's checksum.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from lipdet.errors import InputError
from lipdet.images.fetch import fetch, require_http
from lipdet.progress import console

OFFICIAL = "http://ufldl.stanford.edu/housenumbers/"


class Archive(NamedTuple):
    """Size in bytes and SHA-256 of an official archive."""

    size: int
    sha256: str


# The server publishes no hashes. These are the ones recorded by the Hugging Face loader of SVHN
# (datasets/svhn/dataset_infos.json, "full_numbers"); docTR (doctr/datasets/svhn.py) records the
# same ones for train and test. The sizes agree with those checked by many older loaders.
OFFICIAL_ARCHIVES = {
    "train": Archive(
        404_141_560, "4b17bb33b6cd8f963493168f80143da956f28ec406cc12f8e5745a9f91a51898"
    ),
    "test": Archive(
        276_555_967, "57ac9ceb530e4aa85b55d991be8fc49c695b3d71c6f6a88afea86549efde7fb5"
    ),
    "extra": Archive(
        1_955_489_752, "e857e27d1e65bd1e7d3959b094061777f6506bbc39889a0df3bba6a729d60f9c"
    ),
}


def download_svhn(
    split: str,
    out: Path,
    base_url: str = OFFICIAL,
    sha256: str | None = None,
    md5: str | None = None,
) -> Path:
    """Fetch, verify and unpack one split of SVHN Format 1; a finished split is left as it is.

    Args:
        split: train, test or extra.
        out: receives `<split>.tar.gz` and the folder `<split>`.
        base_url: the folder of a server that holds `<split>.tar.gz`.
        sha256: hex digest to expect; known for the official server.
        md5: hex digest to expect, for mirrors that publish only this one.

    Returns:
        The folder `out/<split>`, which holds the pictures and `digitStruct.mat`.

    Raises:
        InputError: an unknown split, an address that cannot be used, a connection that stays
            broken, a corrupt or unsafe archive, or a folder that cannot be written.
    """
    if split not in OFFICIAL_ARCHIVES:
        raise InputError(f"{split!r}: no such split; choose {', '.join(OFFICIAL_ARCHIVES)}.")
    require_http(base_url)
    target, archive, part = (out / f"{split}{ending}" for ending in ("", ".tar.gz", ".tar.gz.part"))
    if (target / "digitStruct.mat").is_file():
        return target
    if target.exists():
        raise InputError(f"{target}: exists without digitStruct.mat; move it away and run again.")

    base_url = f"{base_url.rstrip('/')}/"
    official = (
        OFFICIAL_ARCHIVES[split] if base_url.replace("https://", "http://", 1) == OFFICIAL else None
    )
    expected = {"sha256": sha256 or (official and official.sha256), "md5": md5}
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _progress() as progress:
            if archive.is_file() and official and archive.stat().st_size < official.size:
                archive.rename(part)
            if not archive.is_file():
                fetch(base_url + archive.name, part, official.size if official else None, progress)
                part.rename(archive)
            _verify(archive, expected)
            _unpack(archive, split, target, progress)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); free space or choose another "
            "folder, then run the same command again."
        ) from None
    return target


def _progress() -> Progress:
    """Bar, sizes, rate and time left; `fetch` says every tenth where there is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=console.quiet or not console.is_terminal,
    )


def _verify(archive: Path, expected: dict[str, str | None]) -> None:
    """Compare the digests that are known; delete an archive that differs."""
    for algorithm, digest in expected.items():
        if digest is None:
            continue
        with archive.open("rb") as content:
            actual = hashlib.file_digest(content, algorithm).hexdigest()
        if actual != digest.lower():
            archive.unlink()
            raise InputError(
                f"{archive}: corrupt, its {algorithm} is {actual} instead of {digest}; it has been "
                "deleted, so run the same command again."
            )


def _unpack(archive: Path, split: str, target: Path, progress: Progress) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{split}-", dir=target.parent) as temporary:
        try:
            with (
                progress.open(archive, "rb", description=f"unpack {archive.name}") as packed,
                gzip.GzipFile(fileobj=packed) as content,
            ):
                with tarfile.open(fileobj=content, mode="r|") as tar:
                    for member in _checked(tar, split):
                        tar.extract(member, temporary, filter="data")
                # gzip compares its checksum only when the last byte has been read.
                while content.read(1 << 20):
                    pass
            unpacked = Path(temporary) / split
            if not (unpacked / "digitStruct.mat").is_file():
                raise tarfile.ReadError("it holds no digitStruct.mat")
        except (EOFError, gzip.BadGzipFile, zlib.error, tarfile.TarError) as error:
            archive.unlink()
            raise InputError(
                f"{archive}: cannot be used ({error}); it has been deleted, so check the address "
                "and run the same command again."
            ) from None
        unpacked.rename(target)


def _checked(tar: tarfile.TarFile, split: str) -> Iterator[tarfile.TarInfo]:
    """Yield the members, as long as each is a plain file or folder inside the split's folder."""
    for member in tar:
        parts = PurePosixPath(member.name).parts
        if parts[:1] != (split,) or ".." in parts:
            raise tarfile.ReadError(f"its member {member.name!r} lies outside {split}/")
        if not (member.isreg() or member.isdir()):
            raise tarfile.ReadError(f"its member {member.name!r} is a link or a device")
        yield member
