"""Download the official SVHN Format-1 archives: resumable, verified, unpacked whole or not at all.

Notable choices:
- An archive is `<name>.part` until it is complete; the next run continues it with an HTTP range
  request. It is verified before each unpacking, so that one fetched by other means is welcome
  too, and it stays afterwards.
- Unpacking goes to a temporary folder beside the target that is renamed at the end, so the target
  exists only when it is complete.
- Members may be plain files and folders inside the split's folder; anything else refuses the whole
  archive (`filter="data"` of tarfile, PEP 706, is the second line of defence).
- An archive of a mirror is verified by its size and by gzip's checksum.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import NamedTuple, cast
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from rich.progress import DownloadColumn, Progress, TaskID, TransferSpeedColumn

from lipdet.errors import InputError
from lipdet.progress import progress_bar

OFFICIAL = "http://ufldl.stanford.edu/housenumbers/"
# Pause before each new attempt; attempts that came further do not count.
WAITS_S = (1, 2, 4, 8, 16)
TIMEOUT_S = 30
CHUNK = 1 << 16
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})


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


def download_svhn(split: str, out: Path, base_url: str = OFFICIAL) -> Path:
    """Fetch, verify and unpack one split of SVHN Format 1; a finished split is left as it is.

    Args:
        split: train, test or extra.
        out: receives `<split>.tar.gz` and the folder `<split>`.
        base_url: the folder of a server that holds `<split>.tar.gz`.

    Returns:
        The folder `out/<split>`, which holds the pictures and `digitStruct.mat`.

    Raises:
        InputError: an unknown split, an address that cannot be used, a connection that stays
            broken, a corrupt or unsafe archive, or a folder that cannot be written.
    """
    if split not in OFFICIAL_ARCHIVES:
        raise InputError(f"{split!r}: no such split; choose {', '.join(OFFICIAL_ARCHIVES)}.")
    if urlsplit(base_url).scheme not in ("http", "https"):
        raise InputError(f"{base_url}: not an http or https address; check the address.")
    target, archive, part = (out / f"{split}{ending}" for ending in ("", ".tar.gz", ".tar.gz.part"))
    if (target / "digitStruct.mat").is_file():
        return target
    if target.exists():
        raise InputError(f"{target}: exists without digitStruct.mat; move it away and run again.")

    base_url = f"{base_url.rstrip('/')}/"
    official = (
        OFFICIAL_ARCHIVES[split] if base_url.replace("https://", "http://", 1) == OFFICIAL else None
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with progress_bar(DownloadColumn(), TransferSpeedColumn()) as progress:
            if archive.is_file() and official and archive.stat().st_size < official.size:
                archive.rename(part)
            if not archive.is_file():
                fetch(base_url + archive.name, part, official.size if official else None, progress)
                part.rename(archive)
            if official:
                _verify(archive, official.sha256)
            _unpack(archive, split, target, progress)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); free space or choose another "
            "folder, then run the same command again."
        ) from None
    return target


def _verify(archive: Path, sha256: str) -> None:
    """Compare the digest; delete an archive that differs."""
    with archive.open("rb") as content:
        actual = hashlib.file_digest(content, "sha256").hexdigest()
    if actual != sha256:
        archive.unlink()
        raise InputError(
            f"{archive}: corrupt, its sha256 is {actual} instead of {sha256}; it has been deleted, "
            "so run the same command again."
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


class BrokenConnectionError(Exception):
    """The transfer ended early, in a way that another attempt may mend."""


def fetch(url: str, part: Path, size: int | None, progress: Progress) -> None:
    """Fetch `url` into `part`, after whose last byte an interrupted transfer goes on.

    Args:
        url: an http or https address.
        part: the file to write or continue; it stays when the transfer is broken off.
        size: the number of bytes to expect, where it is known beforehand.
        progress: shows the transfer.

    Raises:
        InputError: an answer that no further attempt can change, a size that
            differs from the server's, or a connection that stays broken.
    """
    task = progress.add_task(part.name.removesuffix(".part"), total=size)
    failures, furthest = 0, _length(part)
    while True:
        try:
            _attempt(url, part, size, progress, task)
            return
        except BrokenConnectionError as error:
            failures = 0 if _length(part) > furthest else failures + 1
            furthest = max(furthest, _length(part))
            if failures > len(WAITS_S):
                raise InputError(
                    f"{url}: the connection broke {failures} times ({error}); what has arrived is "
                    f"kept in {part}, so run the same command again to continue."
                ) from None
            wait = WAITS_S[max(failures - 1, 0)]
            progress.console.print(f"{error}; trying again in {wait} s")
            time.sleep(wait)


def _attempt(url: str, part: Path, size: int | None, progress: Progress, task: TaskID) -> None:
    start = _length(part)
    if size is not None and start == size:
        return
    if size is not None and start > size:
        part.unlink()
        start = 0
    response = _open(url, start)
    if response is None:
        part.unlink()
        raise BrokenConnectionError("the server has no bytes beyond those already here")
    with response:
        offset, total = _extent(response)
        if size is not None and total is not None and total != size:
            raise InputError(
                f"{url}: the server offers {total} bytes instead of {size}, so this is another "
                "file; check the address and the network."
            )
        if offset not in (0, start):
            raise BrokenConnectionError(f"asked from byte {start}, answered from byte {offset}")
        progress.update(task, total=total, completed=offset)
        with part.open("ab" if offset else "wb") as file:
            while chunk := _read(response):
                file.write(chunk)
                _advance(progress, task, len(chunk))
    if total is not None and _length(part) != total:
        raise BrokenConnectionError(f"{_length(part)} of {total} bytes arrived")


def _open(url: str, start: int) -> HTTPResponse | None:
    """Return the answer from byte `start`, or None where the server's file is no longer."""
    # Only http and https come here; `download_svhn` refuses others.
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310
    try:
        return cast(HTTPResponse, urlopen(request, timeout=TIMEOUT_S))  # noqa: S310
    except HTTPError as error:
        with error:
            if error.code == 416 and start:
                return None
            answer = f"{error.code} {error.reason}"
            if error.code in TRANSIENT:
                raise BrokenConnectionError(answer) from None
        raise InputError(f"{url}: the server answers {answer}; check the address.") from None
    except (OSError, HTTPException) as error:
        raise BrokenConnectionError(str(error)) from None
    except ValueError as error:
        raise InputError(f"{url}: not a usable address ({error}); check it.") from None


def _extent(response: HTTPResponse) -> tuple[int, int | None]:
    """Return the offset of the answer's first byte and the size of the whole file, if stated."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if match is None:
            raise BrokenConnectionError("the server's Content-Range cannot be read")
        return int(match[1]), int(match[2])
    stated = response.headers.get("Content-Length", "")
    return 0, int(stated) if stated.isdecimal() else None


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, HTTPException) as error:
        raise BrokenConnectionError(str(error)) from None


def _advance(progress: Progress, task: TaskID, received: int) -> None:
    """Move the bar; where there is none because the output is a log, print every tenth."""
    state = progress.tasks[task]
    tenth = int(state.percentage // 10)
    progress.advance(task, received)
    if not progress.console.is_terminal and state.percentage // 10 > tenth:
        progress.console.print(f"{state.description}: {state.percentage:.0f} % have arrived")


def _length(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
