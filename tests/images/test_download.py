"""The downloader against a server on this machine that can misbehave in every way we know."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lipdet.errors import InputError
from lipdet.images import download
from lipdet.images.download import OFFICIAL_ARCHIVES, Archive, download_svhn
from lipdet.images.svhn import read_svhn
from tests.images.svhn_format import write_archive, write_split


class Server(ThreadingHTTPServer):
    """Serves `content` at /train.tar.gz and keeps the Range header of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = b""
        self.ranges: list[str | None] = []
        self.break_after: list[int] = []  # bytes to send before closing, for successive requests
        self.statuses: list[int] = []  # error answers, for successive requests
        self.honours_range = True
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        if self.path != "/train.tar.gz" or server.statuses:
            self.send_error(server.statuses.pop(0) if server.statuses else 404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        total = len(server.content)
        if asked and server.honours_range and start >= total:
            self.send_error(416)
            return
        if asked and server.honours_range:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            start = 0
            self.send_response(200)
        body = server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.break_after.pop(0)] if server.break_after else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "WAITS_S", (0, 0, 0))
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A split of three pictures and, so that a break has a middle, 300 kB of noise."""
    folder = tmp_path_factory.mktemp("official") / "train"
    write_split(folder, {f"{i}.png": [(i, 2, 3, 4, 5), (10, 9, 3, 4, 5)] for i in (1, 2, 3)})
    (folder / "see_bboxes.m").write_bytes(random.Random(0).randbytes(300_000))
    return write_archive(folder.parent / "train.tar.gz", folder).read_bytes()


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_fetches_unpacks_and_is_readable(server: Server, archive: bytes, tmp_path: Path) -> None:
    server.content = archive
    out = tmp_path / "new" / "svhn"
    target = download_svhn("train", out, server.url)
    assert target == out / "train"
    assert listing(out) == ["train", "train.tar.gz"]
    assert [p.labels.tolist() for p in read_svhn(target).pictures] == [[1, 0], [2, 0], [3, 0]]


def test_finished_target_is_not_fetched_again(
    server: Server, archive: bytes, tmp_path: Path
) -> None:
    server.content = archive
    download_svhn("train", tmp_path, server.url)
    (tmp_path / "train.tar.gz").unlink()
    assert download_svhn("train", tmp_path, server.url) == tmp_path / "train"
    assert server.ranges == [None]


def test_broken_connection_goes_on_where_it_stopped(
    server: Server, archive: bytes, tmp_path: Path
) -> None:
    server.content = archive
    server.break_after = [100_000, 50_000]
    download_svhn("train", tmp_path, server.url)
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert (tmp_path / "train.tar.gz").read_bytes() == archive


def test_part_of_an_earlier_run_is_continued(
    server: Server, archive: bytes, tmp_path: Path
) -> None:
    server.content = archive
    (tmp_path / "train.tar.gz.part").write_bytes(archive[:1234])
    download_svhn("train", tmp_path, server.url)
    assert server.ranges == ["bytes=1234-"]
    assert listing(tmp_path) == ["train", "train.tar.gz"]


def test_connection_that_stays_broken(server: Server, archive: bytes, tmp_path: Path) -> None:
    server.content = archive
    server.break_after = [1000] + [0] * 9
    with pytest.raises(InputError, match=r"broke 4 times \(1000 of \d+ bytes .* run the same"):
        download_svhn("train", tmp_path, server.url)
    # The first answer and, without progress, one attempt more than there are waits.
    assert len(server.ranges) == 5
    assert (tmp_path / "train.tar.gz.part").read_bytes() == archive[:1000]
    assert listing(tmp_path) == ["train.tar.gz.part"]

    server.break_after = []
    assert (download_svhn("train", tmp_path, server.url) / "digitStruct.mat").is_file()


def test_answers_that_end_or_repeat(server: Server, archive: bytes, tmp_path: Path) -> None:
    server.content = archive
    server.statuses = [404]
    with pytest.raises(InputError, match="answers 404 Not Found; check the address"):
        download_svhn("train", tmp_path, server.url)
    assert len(server.ranges) == 1
    server.statuses = [503, 500]
    download_svhn("train", tmp_path, server.url)
    assert len(server.ranges) == 4


def members(*entries: tuple[str, bytes | str]) -> bytes:
    """A tar.gz; a str instead of bytes is the target of a symbolic link."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    # Without the time of day: the bytes name tests, on which all test processes must agree.
    return gzip.compress(packed.getvalue(), mtime=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (members(("train/1.png", b"x"), ("../evil", b"x")), r"'\.\./evil' lies outside train/"),
        (members(("train/../../evil", b"x")), "lies outside train/"),
        (members(("/train/evil", b"x")), "'/train/evil' lies outside train/"),
        (members(("test/1.png", b"x")), "'test/1.png' lies outside train/"),
        (members(("train/a", "../../evil"), ("train/a/b", b"x")), "'train/a' is a link"),
        (members(("train/1.png", b"x")), r"holds no digitStruct\.mat"),
        (members(), r"holds no digitStruct\.mat"),
        (b"<html>log in first</html>", "Not a gzipped file"),
        (b"", "cannot be used"),
    ],
)
def test_unusable_archive_leaves_nothing(
    server: Server, tmp_path: Path, content: bytes, message: str
) -> None:
    server.content = content
    out = tmp_path / "a" / "b"
    with pytest.raises(InputError, match=message):
        download_svhn("train", out, server.url)
    assert listing(out) == []
    assert listing(tmp_path) == ["a"]
    assert listing(tmp_path / "a") == ["b"]


def test_without_a_hash_gzip_finds_every_flipped_or_missing_byte(
    server: Server, archive: bytes, tmp_path: Path
) -> None:
    # The last 8 bytes are gzip's checksum and length; tarfile alone would never read them.
    for damaged in (
        archive[:200_000] + b"\0\0\0\0" + archive[200_004:],
        archive[:-6] + b"\0" + archive[-5:],
        archive[:-1],
        archive[:150_000],
    ):
        server.content = damaged
        with pytest.raises(InputError, match="cannot be used"):
            download_svhn("train", tmp_path, server.url)
        assert listing(tmp_path) == []


@pytest.fixture
def official(server: Server, archive: bytes, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server in the role of the official one, with its table of sizes and hashes."""
    server.content = archive
    known = Archive(len(archive), hashlib.sha256(archive).hexdigest())
    monkeypatch.setattr(download, "OFFICIAL", server.url)
    monkeypatch.setitem(OFFICIAL_ARCHIVES, "train", known)
    return server


def test_official_archives_are_checked(official: Server, archive: bytes, tmp_path: Path) -> None:
    official.content = archive[:5000] + b"\0" + archive[5001:]
    with pytest.raises(InputError, match="corrupt, its sha256"):
        download_svhn("train", tmp_path, official.url)
    official.content = archive[:5000]
    with pytest.raises(InputError, match=rf"offers 5000 bytes instead of {len(archive)}"):
        download_svhn("train", tmp_path, official.url)
    assert listing(tmp_path) == []
    official.content = archive
    # The address is recognised without its last slash.
    download_svhn("train", tmp_path, official.url.rstrip("/"))


@pytest.mark.parametrize("url", ["file:///etc/", "ftp://127.0.0.1/", "housenumbers", ""])
def test_other_schemes_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match="not an http or https address"):
        download_svhn("train", tmp_path, url)


def test_unknown_split_and_unusable_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'valid': no such split; choose train, test, extra"):
        download_svhn("valid", tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match=r"train: exists without digitStruct\.mat"):
        download_svhn("train", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be written"):
        download_svhn("train", tmp_path / "file")
