"""What all tests share: a cache of their own, threads, small data sets, a browser."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from lipdet.certificate.constants import outputs, rounding
from lipdet.config import DIGIT_CROP
from lipdet.images.pack import Pack
from lipdet.images.prepare import pack_rendered
from lipdet.lipschitz import profile
from lipdet.report import inspection, page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# For what tests start. Most operations are tiny: threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).parent.parent
SVHN = REPOSITORY.parent / "shared" / "svhn"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder that no other run has touched, for this process and those it starts."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("LIPDET_CACHE")
    os.environ["LIPDET_CACHE"] = str(folder)
    torch.set_num_threads(1)
    yield folder
    if before is None:
        del os.environ["LIPDET_CACHE"]
    else:
        os.environ["LIPDET_CACHE"] = before


@pytest.fixture(scope="session")
def house_numbers(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """64 rendered house numbers."""
    return pack_rendered(
        tmp_path_factory.mktemp("packs") / "rendered", "train", 64, DIGIT_CROP, seed=3
    )


_PROVEN: dict[tuple[object, ...], Any] = {}


@pytest.fixture(scope="module")
def proven_once() -> Iterator[None]:
    """Prove a bound of the same weights once only, however many commands of a module ask for it."""

    def once(prove: Callable[..., Any]) -> Callable[..., Any]:
        def remembered(network: nn.Module, *rest: Any) -> Any:
            tensors = [*network.parameters(), *network.buffers()]
            tensors += [one for one in rest if isinstance(one, Tensor)]
            digest = hashlib.sha256()
            for tensor in tensors:
                digest.update(tensor.detach().contiguous().numpy().tobytes())
            plain = tuple(one for one in rest if isinstance(one, tuple | bool))
            key = (prove, str(network), digest.digest(), plain)
            if key not in _PROVEN:
                _PROVEN[key] = prove(network, *rest)
            return _PROVEN[key]

        return remembered

    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (outputs, "bound_graph"),
            (outputs, "_prove"),
            (rounding, "measured_rounding"),
        ):
            patch.setattr(module, name, once(getattr(module, name)))
        yield


@pytest.fixture(scope="module")
def small_pages() -> Iterator[None]:
    """Leave out of pages what has tests of its own: drawings of presets, power iteration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "draw_presets", lambda _: [])
        patch.setattr(inspection, "OBSERVED", 1)
        patch.setattr(profile, "_ITERATIONS", 1)
        yield


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
