"""What all tests share: a cache of their own, threads, small data sets, a browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from lipdet.images.pack import Pack
from lipdet.images.prepare import pack_rendered

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# One thread for each of several workers, and for what they start.
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

REPOSITORY = Path(__file__).parent.parent
SVHN = REPOSITORY.parent / "shared" / "svhn"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder that no other run has touched, for this process and those it starts."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("LIPDET_CACHE")
    os.environ["LIPDET_CACHE"] = str(folder)
    torch.set_num_threads(THREADS)
    yield folder
    if before is None:
        del os.environ["LIPDET_CACHE"]
    else:
        os.environ["LIPDET_CACHE"] = before


@pytest.fixture(scope="session")
def house_numbers(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """64 rendered house numbers."""
    return pack_rendered(tmp_path_factory.mktemp("packs") / "rendered", "train", 64, 74, seed=3)


@pytest.fixture(scope="session")
def svhn() -> Path:
    """The folder of real photographs beside the repository; tests without it are skipped."""
    if not SVHN.is_dir():
        pytest.skip("../shared/svhn is not here")
    return SVHN


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium: the system's (`.ci/run` installs it), never a download of the driver."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with driver.sync_playwright() as playwright:
        # A container's root cannot have Chromium's sandbox; the page is our own.
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()
