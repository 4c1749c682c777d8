"""One visitor: a picture that was brought, part of it seen by several detectors, their attacks.

Pictures are read with limits, found out from the header before anything is decoded.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from lipdet.app.exhibits import Attacked, Exhibit, Shown, look
from lipdet.attack import AttackSettings
from lipdet.attack.settings import single_attacks
from lipdet.errors import InputError
from lipdet.images.crop import Region, full_region
from lipdet.images.render import rendered
from lipdet.images.scenes import rendered_scene
from lipdet.images.source import load_rgb
from lipdet.reading import look as look_at
from lipdet.reading.detections import as_rows, count_certified, distance, radii_told, read_out
from lipdet.reading.marks import (
    Mark,
    captioned,
    certificate_marks,
    contact_sheet,
    draw,
    magnified,
    to_picture,
)
from lipdet.reading.search import searched_regions
from lipdet.types import Framing
from lipdet.versions import versions

MOST_STEPS = 100
LARGEST_EPSILON = 1.0
# Width of a panel in pixels.
SIDE = 370
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
LARGEST_FILE = 20 * 2**20
# More than any phone's default, and 75 MB once decoded.
MOST_PIXELS = 25_000_000
# A larger picture is shrunk: a house number in it is still larger than what networks see.
LONGEST_SIDE = 1_600
SAMPLES, SCENES = range(8), range(4)


def read_picture(path: Path) -> Image.Image:
    """Read a picture as RGB, upright, its longer side at most LONGEST_SIDE.

    Raises:
        InputError: not a picture, damaged, too large, or deleted since it was brought.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise InputError("That picture is no longer here; bring it again.") from None
    if size > LARGEST_FILE:
        raise InputError(
            f"{path.name} has more than {LARGEST_FILE >> 20} MB; choose a smaller one."
        )
    try:
        image = load_rgb(path, FORMATS, MOST_PIXELS)
    except InputError as error:
        # The folder is the server's and tells a visitor nothing.
        raise InputError(str(error).replace(str(path), path.name)) from None
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return image


def samples(framing: Framing) -> list[Image.Image]:
    """Render house numbers, or scenes with some, as networks of this framing see them."""
    canvas = framing.canvas
    if framing.whole:
        scenes = [rendered_scene("test", index, 0, canvas) for index in SCENES]
        return [Image.fromarray(pixels) for pixels, _, _ in scenes]
    return [Image.fromarray(rendered("test", index, size=min(canvas))[0]) for index in SAMPLES]


def region_of(exhibit: Exhibit, image: Image.Image, search: bool) -> Region:
    """Return the part of a picture that networks are shown.

    Args:
        exhibit: looks for numbers.
        image: RGB.
        search: whether to look for numbers and take the square with the best detection, if the
            detector is one of crops. A picture of the network's size is taken as it is, and so is
            one in which nothing is found.
    """
    canvas, whole = exhibit.detector.framing
    if search and not whole and image.size != (canvas.width, canvas.height):
        squares = searched_regions(exhibit.detector, image)
        views = look_at(exhibit.detector, exhibit.class_names, image, squares)
        if views:
            return max(views, key=lambda one: max(one.found["scores"].tolist(), default=0.0)).region
    return full_region(*image.size, canvas)


class Session(NamedTuple):
    """One picture on show.

    Attributes:
        picture: name of the file.
        size: width and height of the picture as `read_picture` returns it.
        views: one for each detector.
        attacked: by name of the detector.
    """

    picture: str
    size: tuple[int, int]
    views: tuple[Shown, ...]
    attacked: Mapping[str, Attacked]

    def attacks_at(self, epsilon: float) -> dict[str, Attacked]:
        """Return the attacks with this ε; one with another says nothing about it."""
        return {name: one for name, one in self.attacked.items() if one.epsilon == epsilon}


def open_session(
    path: Path | None, names: Sequence[str], search: bool, exhibits: Mapping[str, Exhibit]
) -> Session:
    """Show a picture to detectors.

    Args:
        path: the picture file.
        names: which detectors; of each framing the first looks for the number.
        search: whether to look for a number and take the square around it.
        exhibits: all detectors.

    Raises:
        InputError: no picture or detector was chosen, or the file is not a usable picture.
    """
    if path is None:
        raise InputError("Choose a picture: drop a file, or take one of the samples.")
    if not names:
        raise InputError("Choose at least one detector.")
    picture = read_picture(path)
    chosen = [exhibits[name] for name in names]
    # Detectors of one framing look at the same part, so that they can be compared.
    regions: dict[Framing, Region] = {}
    for exhibit in chosen:
        framing = exhibit.detector.framing
        if framing not in regions:
            regions[framing] = region_of(exhibit, picture, search)
    views = tuple(look(exhibit, picture, regions[exhibit.detector.framing]) for exhibit in chosen)
    return Session(path.name, picture.size, views, {})


def attack_settings(epsilon: float, objective: str, steps: float) -> tuple[AttackSettings, ...]:
    """Return the attacks that a visitor asks for.

    Args:
        epsilon: L2 radius.
        objective: one, or `worst` for all.
        steps: gradients per start.

    Raises:
        InputError: nothing may change, or that many steps are too many.
    """
    if not 0 < epsilon <= LARGEST_EPSILON:
        raise InputError(f"Choose an ε above 0 and up to {LARGEST_EPSILON:g} to attack.")
    if not 1 <= steps <= MOST_STEPS:
        raise InputError(f"Choose between 1 and {MOST_STEPS} steps.")
    settings = AttackSettings(epsilon, steps=int(steps))
    if objective == "worst":
        return tuple(single_attacks("worst", settings))
    return tuple(single_attacks("pgd", settings, objective))


def panels(session: Session, epsilon: float) -> list[tuple[Shown, list[Panel]]]:
    """Return what each detector shows at ε: clean and, once attacked, two panels more."""
    attacked = session.attacks_at(epsilon)
    rows = []
    for view in session.views:
        row = [clean_panel(view, epsilon)]
        if view.name in attacked:
            one = attacked[view.name]
            row += [attacked_panel(view, one), perturbation_panel(view, one)]
        rows.append((view, row))
    return rows


class Panel(NamedTuple):
    """A picture with what it shows in words.

    Attributes:
        picture: SIDE wide.
        caption: one line.
        alternative: for those who cannot see it.
    """

    picture: Image.Image
    caption: str
    alternative: str


def clean_panel(shown: Shown, epsilon: float) -> Panel:
    """Return what the network sees as it is, with boxes, radii, and where boxes can be at ε."""
    found = shown.at(epsilon)
    caption = f"clean: {read_out(found)}"
    count = f"{count_certified(found)} of {len(found)} certified at ε = {epsilon:g}."
    alternative = f"{shown.name}, {caption}. {count}{radii_told(found)}"
    return _panel(
        Image.fromarray(shown.view.pixels), certificate_marks(found), caption, alternative
    )


def attacked_panel(shown: Shown, attacked: Attacked) -> Panel:
    """Return what is left after an attack, with boxes; about that nothing is proven."""
    caption = f"attacked, ε = {attacked.epsilon:g}: {read_out(attacked.found)}"
    marks = certificate_marks(attacked.found)
    return _panel(to_picture(attacked.image), marks, caption, f"{shown.name}, {caption}")


def perturbation_panel(shown: Shown, attacked: Attacked) -> Panel:
    """Return what the attack added, magnified to the full range of colours."""
    picture, gain = magnified(attacked.image - shown.view.image)
    norm = distance(shown.view.image, attacked.image)["l2"]
    caption = f"perturbation × {gain:g}, L2 {norm:.3f}"
    return _panel(picture, (), caption, f"{shown.name}, {caption}")


def sheet(rows: Sequence[tuple[str, Sequence[Panel]]]) -> Image.Image:
    """Put panels of several detectors together: a row for each, with its name and captions.

    Args:
        rows: name and panels of each detector, at least one.
    """
    columns = max(len(panels) for _, panels in rows)
    drawn = []
    for name, panels in rows:
        pictures = [captioned(one.picture, one.caption) for one in panels]
        pictures += [Image.new("RGB", pictures[0].size, "white")] * (columns - len(pictures))
        drawn.append(captioned(contact_sheet(pictures, columns), name))
    return contact_sheet(drawn, 1)


def as_dict(session: Session, epsilon: float) -> dict[str, Any]:
    """Return all on show as plain values; boxes in pixels of each network's input."""
    attacked = session.attacks_at(epsilon)
    return {
        "picture": session.picture,
        "width": session.size[0],
        "height": session.size[1],
        "epsilon": epsilon,
        "versions": versions(),
        "detectors": [_detector(one, attacked.get(one.name), epsilon) for one in session.views],
    }


def _detector(shown: Shown, attacked: Attacked | None, epsilon: float) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "weights": shown.name,
        "canvas": list(shown.view.canvas),
        "region": list(shown.view.region),
        "largest_constant": shown.largest_constant,
        "uncertified_because": shown.reason or None,
        "clean": as_rows(shown.at(epsilon), radius="radius", region="reach"),
        "attacked": None,
    }
    if attacked:
        entry["attacked"] = {
            "objectives": [one.objective for one in attacked.settings],
            "steps": attacked.settings[0].steps,
            "seed": attacked.settings[0].seed,
            "distance": distance(shown.view.image, attacked.image),
            "detections": as_rows(attacked.found),
        }
    return entry


def _panel(picture: Image.Image, marks: Sequence[Mark], caption: str, alternative: str) -> Panel:
    return Panel(draw(picture, marks, SIDE / picture.width), caption, alternative)


class Stopped(Exception):  # noqa: N818 - it is a visitor's wish, not an error
    """An attack was interrupted."""


class Stops:
    """One signal for each visitor whose attack is running; safe between threads.

    It is set at a button, at a new attack, or when the visitor leaves.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, threading.Event] = {}

    @contextmanager
    def running(self, visitor: str) -> Iterator[threading.Event]:
        """Yield a signal that is set when the attack has to stop; stop an earlier attack."""
        signal = threading.Event()
        with self._lock:
            earlier = self._running.get(visitor)
            self._running[visitor] = signal
        if earlier:
            earlier.set()
        try:
            yield signal
        finally:
            with self._lock:
                if self._running.get(visitor) is signal:
                    del self._running[visitor]

    def stop(self, visitor: str) -> bool:
        """Set the signal of a visitor; return whether an attack was running."""
        with self._lock:
            signal = self._running.get(visitor)
        if signal:
            signal.set()
        return signal is not None
