"""The app without its page: pictures, squares, views, attacks, panels, markup, the command."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urljoin
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image

from lipdet.app.exhibits import Attacked, Exhibit, Shown, attack, load_exhibits, look
from lipdet.app.markup import proven, show, status
from lipdet.app.session import (
    LONGEST_SIDE,
    Session,
    Stops,
    as_dict,
    attack_settings,
    open_session,
    read_picture,
    region_of,
    samples,
)
from lipdet.config import DIGIT_CROP
from lipdet.errors import InputError
from lipdet.images.crop import Region
from lipdet.images.source import load_rgb
from lipdet.layers.base import ConstructedWeight
from lipdet.types import Framing

# The detectors that these look at are proven first.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("proven_once")]

SIDE_OF_INPUT = 74


def radii(shown: Shown) -> list[float | None]:
    return [one.radius for one in shown.view.detections]


def reaches(shown: Shown, epsilon: float) -> list[tuple[float, ...] | None]:
    return [one.reach for one in shown.at(epsilon)]


@pytest.fixture(scope="module")
def exhibits() -> dict[str, Exhibit]:
    return load_exhibits(["naive", "certified-small", "naive"])


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("sample") / "<b>photo.png"
    samples(Framing(DIGIT_CROP))[2].save(file)
    return file


@pytest.fixture(scope="module")
def session(exhibits: dict[str, Exhibit], sample: Path) -> Session:
    return open_session(sample, list(exhibits), True, exhibits)


def test_a_40_megapixel_picture_is_refused_by_its_header(tmp_path: Path) -> None:
    # It holds no pixels: decoding it would fail otherwise.
    data = struct.pack(">IIBBBBB", 8_000, 5_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(data)) + b"IHDR" + data
    chunk += struct.pack(">I", zlib.crc32(b"IHDR" + data))
    # The beginning of the pixels: readers stop here, at their header.
    chunk += struct.pack(">I", 1_000_000) + b"IDAT"
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    with pytest.raises(InputError, match="8000×5000 pixels; choose one of at most 25"):
        read_picture(tmp_path / "huge.png")


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    empty = tmp_path / "empty.png"
    empty.touch()
    truncated = tmp_path / "half.png"
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    truncated.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    for file in (text, empty, truncated):
        with pytest.raises(InputError, match=f"{file.name}: cannot be read as a picture"):
            read_picture(file)


def test_a_large_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    with file.open("wb") as stream:
        stream.truncate((20 << 20) + 1)
    with pytest.raises(InputError, match=r"large\.png has more than 20 MB"):
        read_picture(file)


def test_a_picture_that_was_deleted_meanwhile_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^That picture is no longer here; bring it again\.$"):
        read_picture(tmp_path / "gone.png")


def test_photographs_are_shrunk_and_turned_upright(tmp_path: Path) -> None:
    photo = Image.new("RGB", (3_000, 1_000), "red")
    exif = Image.Exif()
    exif[274] = 6  # EXIF: the camera was turned by a quarter
    photo.save(tmp_path / "photo.jpg", exif=exif)
    read = read_picture(tmp_path / "photo.jpg")
    assert (read.mode, max(read.size)) == ("RGB", LONGEST_SIDE)
    assert read.width < read.height


def test_square_goes_around_a_number_in_a_wall(exhibits: dict[str, Exhibit]) -> None:
    number = samples(Framing(DIGIT_CROP))[2]
    wall = Image.new("RGB", (240, 160), tuple(np.asarray(number).mean((0, 1)).astype(int).tolist()))
    wall.paste(number, (130, 60))
    detector = exhibits["naive"]
    # What was pasted lies at 130…204, 60…134: by construction.
    found = region_of(detector, wall, search=True)
    assert found.left < 167 < found.right
    assert found.top < 97 < found.bottom
    assert found.right - found.left < 160
    # The whole picture, letter-boxed into its longer side.
    assert region_of(detector, wall, search=False) == Region(0, -40, 240, 200)


def test_the_naive_detector_has_no_certificate(session: Session) -> None:
    [view, _] = session.views
    assert set(radii(view)) == {0.0}
    assert proven(view, 0.25).startswith("Nothing is certified. A change of ε can move")
    assert set(reaches(view, 0.25)) == {None}


def test_regions_at_epsilon_hold_their_box_and_grow(session: Session) -> None:
    [_, view] = session.views
    radius = max(one or 0.0 for one in radii(view))
    index = radii(view).index(radius)
    assert radius > 0, "the packaged detector certifies nothing in this sample; take another"
    small, large = (reaches(view, share * radius)[index] for share in (0.5, 1.0))
    assert small is not None
    assert large is not None
    # A larger ball holds the smaller one.
    assert all(a >= b - 1e-6 for a, b in zip(small[:2], large[:2], strict=True))
    assert all(a <= b + 1e-6 for a, b in zip(small[2:], large[2:], strict=True))
    box = view.view.detections[index].box
    assert small[0] <= box[0] < box[2] <= small[2]
    # Beyond the radius, and at 0, nothing is claimed.
    assert reaches(view, radius + 1e-3)[index] is None
    assert reaches(view, 0.0)[index] is None
    assert proven(view, radius).startswith(f"1 of {len(radii(view))} certified")
    assert proven(view, radius).endswith("can take this one away.")


def test_where_nothing_is_certified_nothing_is_promised(session: Session) -> None:
    [_, view] = session.views
    told = proven(view, max(one or 0.0 for one in radii(view)) + 1e-3)
    assert told.startswith(f"None of {len(radii(view))} certified at ε = ")
    assert "away" not in told


def test_a_detector_without_bounds_says_which_layer(
    exhibits: dict[str, Exhibit], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lipdet.certificate import UnknownLipschitz

    def unknown(*_: object) -> None:
        raise UnknownLipschitz("backbone.3: no bound is known for Softplus")

    monkeypatch.setattr("lipdet.app.exhibits.verifier_of", unknown)
    fresh = Exhibit("mine", exhibits["naive"].detector)
    view = look(fresh, samples(Framing(DIGIT_CROP))[2], Region(0, 0, 74, 74))
    assert "backbone.3" in view.reason
    assert view.largest_constant is None
    for epsilon in (0.0, 0.5):
        assert set(reaches(view, epsilon)) == {None}


def test_an_attack_leaves_the_detector_that_visitors_share_alone(
    session: Session, exhibits: dict[str, Exhibit]
) -> None:
    shared = exhibits["certified-small"]
    layers = [one for one in shared.detector.modules() if isinstance(one, ConstructedWeight)]
    before = [layer._ready_weight() for layer in layers]
    assert before
    attack(
        shared, session.views[1].view.image, attack_settings(0.1, "mislabel", 1), lambda *_: None
    )
    assert all(layer._ready_weight() is kept for layer, kept in zip(layers, before, strict=True))


@pytest.mark.parametrize(
    ("epsilon", "steps", "sentence"),
    [(0.0, 5, "above 0"), (1.5, 5, "up to 1"), (0.1, 0, "1 and 100"), (0.1, 101, "1 and 100")],
)
def test_attacks_that_make_no_sense_are_refused(epsilon: float, steps: int, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        attack_settings(epsilon, "multibox", steps)


def test_sessions_without_picture_or_detector(exhibits: dict[str, Exhibit], sample: Path) -> None:
    with pytest.raises(InputError, match="Choose a picture"):
        open_session(None, ["naive"], True, exhibits)
    with pytest.raises(InputError, match="at least one detector"):
        open_session(sample, [], True, exhibits)


def test_a_new_attack_stops_the_visitors_earlier_one() -> None:
    stops = Stops()
    with stops.running("a") as first, stops.running("b") as other:
        with stops.running("a") as second:
            assert (first.is_set(), second.is_set(), other.is_set()) == (True, False, False)
            assert stops.stop("a")
            assert second.is_set()
        assert not stops.stop("a")
        assert stops.stop("b")


def attacked_session(session: Session) -> Session:
    """An attack at 0.25 whose change is +0.1 in one value, of a detector called naive."""
    view = session.views[0]
    image = view.view.image.clone()
    image[0, 5, 5] = image[0, 5, 5] - 0.1 if image[0, 5, 5] > 0.5 else image[0, 5, 5] + 0.1
    one = Attacked(attack_settings(0.25, "multibox", 1), image, view.view.detections)
    return session._replace(attacked={"naive": one})


class Tags(html.parser.HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def test_markup_shows_all_panels_and_the_same_json(session: Session) -> None:
    now = attacked_session(session)
    page = Tags(show(now, 0.25))
    images = [values for tag, values in page.found if tag == "img"]
    assert len(images) == 4  # naive clean, attacked, perturbation; certified-small clean
    assert all(values["alt"] for values in images)
    [png, text] = [values for tag, values in page.found if tag == "a"]
    assert [png["download"], text["download"]] == ["lipdet.png", "lipdet.json"]
    data = base64.b64decode(str(text["href"]).split(",")[1])
    assert json.loads(data) == json.loads(json.dumps(as_dict(now, 0.25)))
    Image.open(io.BytesIO(base64.b64decode(str(png["href"]).split(",")[1]))).load()


def test_what_visitors_name_is_escaped() -> None:
    assert "<b>" not in status("<b>photo.png cannot be read", problem=True)


def test_sigterm_leaves_nothing_behind(tmp_path: Path) -> None:
    """Slow, because it starts the program: only a process of its own can be ended."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    command = [sys.executable, "-m", "lipdet", "app", "naive", "--port", "0"]
    folder = {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **folder}
    ) as app:
        assert app.stdout
        assert app.stdout.readline().startswith("The page is at http://127.0.0.1:")
        assert list(tmp_path.glob("lipdet-app-*"))
        app.terminate()
        assert app.wait(60) == 143  # 128 + SIGTERM
    assert list(tmp_path.iterdir()) == []


class Stripping(BaseHTTPRequestHandler):
    """Serves under /lipdet what another server has at its root, as nginx does with a slash."""

    behind = ""

    def do_GET(self) -> None:
        if not self.path.startswith("/lipdet/"):
            self.send_error(404)
            return
        with urlopen(self.behind + self.path.removeprefix("/lipdet/")) as answer:
            content = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def test_the_page_works_behind_a_proxy_that_strips_its_path(tmp_path: Path) -> None:
    """`--root_path` names the sub-path. Slow, as it starts the program."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    command = [sys.executable, "-m", "lipdet", "app", "naive", "--port", "0"]
    with (
        subprocess.Popen(
            [*command, "--root_path", "/lipdet"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        ) as app,
        ThreadingHTTPServer(("127.0.0.1", 0), Stripping) as proxy,
    ):
        assert app.stdout
        [port] = re.findall(r"http://127.0.0.1:(\d+)", app.stdout.readline())
        Stripping.behind = f"http://127.0.0.1:{port}/"
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        outside = f"http://127.0.0.1:{proxy.server_port}/lipdet/"
        with urlopen(outside) as answer:
            page = answer.read().decode()
        with urlopen(f"{outside}config") as answer:
            # What the page's own scripts ask for begins with its root, so it passes the proxy.
            assert json.load(answer)["root"].endswith("/lipdet")
        scripts = [urljoin(outside, at) for at in re.findall(r'src="([^"]+\.js)"', page)]
        assert scripts
        for script in scripts:
            assert script.startswith(outside)
            with urlopen(script) as answer:
                assert answer.status == 200
        proxy.shutdown()
        app.terminate()


def test_bounds_are_made_once_for_all_visitors(
    exhibits: dict[str, Exhibit], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    ready = exhibits["naive"].verifier()

    def slow(*_: object) -> object:
        made.append(1)
        threading.Event().wait(0.05)
        return ready

    monkeypatch.setattr("lipdet.app.exhibits.verifier_of", slow)
    fresh = Exhibit("mine", exhibits["naive"].detector)
    visitors = [threading.Thread(target=fresh.verifier) for _ in range(3)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert made == [1]


def test_certified_detections_survive_an_attack_inside_their_radius(
    session: Session, exhibits: dict[str, Exhibit]
) -> None:
    # The promise itself, falsifiable: same class, IoU ≥ 0.5, above the floor.
    from torchvision.ops import box_iou

    [_, view] = session.views
    best = max(view.view.detections, key=lambda one: one.radius or 0.0)
    found = attack(
        exhibits["certified-small"],
        view.view.image,
        attack_settings(best.radius or 0.0, "vanish", 10),
        lambda done, total: None,
    ).found
    same = torch.tensor([one.box for one in found if one.label == best.label])
    assert bool((box_iou(torch.tensor([best.box]), same) >= 0.5).any())


def test_a_picture_of_16_bits_is_read_as_the_command_line_does(tmp_path: Path) -> None:
    """One reader for all fronts."""
    grey = np.random.default_rng(0).integers(0, 65_536, (20, 30), dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    expected = np.asarray(load_rgb(tmp_path / "deep.png"))
    assert np.array_equal(np.asarray(read_picture(tmp_path / "deep.png")), expected)
