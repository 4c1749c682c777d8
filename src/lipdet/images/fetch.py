"""Fetch one file over HTTP into a `.part` file, continuing where the last attempt stopped."""

from __future__ import annotations

import re
import time
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import cast
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from rich.progress import Progress, TaskID

from lipdet.errors import InputError

WAITS_S = (1, 2, 4, 8, 16)
"""Pause before each new attempt; attempts that came further do not count."""
TIMEOUT_S = 30
CHUNK = 1 << 16
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})


class BrokenConnectionError(Exception):
    """The transfer ended early, in a way that another attempt may mend."""


def require_http(url: str) -> None:
    """Refuse addresses of another scheme, such as file:.

    Raises:
        InputError: neither http nor https.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise InputError(f"{url}: not an http or https address; check the address.")


def fetch(url: str, part: Path, size: int | None, progress: Progress) -> None:
    """Fetch `url` into `part`, after whose last byte an interrupted transfer goes on.

    Args:
        url: an address that has passed `require_http`.
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
            progress.console.print(f"{error}; trying again in {wait} s", markup=False)
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
    """The answer from byte `start`, or None where the server's file is not longer than that."""
    # Only http and https come here; see `require_http`.
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
    """Offset of the answer's first byte and the size of the complete file, where stated."""
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
