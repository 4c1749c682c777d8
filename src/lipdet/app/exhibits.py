"""Detectors that are ready for the page, and what each sees: clean and attacked.

Notable choices:
- A detector is frozen once and shared by all visitors; nothing that they do changes it.
- Its Lipschitz bounds take seconds and are the same for every picture: they are made once, by
  whoever needs them first. Radii do not depend on the ε that a visitor chooses, either.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from lipdet import reading
from lipdet.attack import AttackSettings, attack_unlabelled
from lipdet.certificate import UnknownLipschitz
from lipdet.certificate.radius import TOLERANCE, Remaining
from lipdet.certificate.verifier import Verifier, verifier_of
from lipdet.checkpoint import load_detector
from lipdet.detector import SSD
from lipdet.evaluate.attacked import prepare
from lipdet.images.crop import Region
from lipdet.reading import Detection
from lipdet.reading.views import any_score_stays


class Exhibit:
    """One detector on show.

    Attributes:
        name: as it was asked for.
        detector: frozen, in eval mode.
        class_names: in the order of the labels.
    """

    def __init__(self, name: str, detector: SSD) -> None:
        self.name = name
        self.detector = prepare(detector)
        self.class_names = detector.config.class_names
        self._lock = threading.Lock()
        self._bounded: Verifier | UnknownLipschitz | None = None
        # Constructed weights are made in the first pass; later ones only read them.
        with torch.no_grad():
            self.detector(torch.zeros(1, 3, *detector.config.canvas))

    def verifier(self) -> Verifier:
        """Return the verifier of the detections that are shown.

        Raises:
            UnknownLipschitz: a layer has no bound; the message names it.
        """
        with self._lock:
            if self._bounded is None:
                try:
                    self._bounded = verifier_of(self.detector, self.detector.display)
                except UnknownLipschitz as unknown:
                    self._bounded = unknown
        if isinstance(self._bounded, UnknownLipschitz):
            raise self._bounded
        return self._bounded


def load_exhibits(specs: list[str]) -> dict[str, Exhibit]:
    """Load detectors by name, each once.

    Raises:
        InputError: one cannot be loaded.
    """
    return {spec: Exhibit(spec, load_detector(spec).detector) for spec in dict.fromkeys(specs)}


@contextmanager
def bounding(exhibits: dict[str, Exhibit]) -> Iterator[None]:
    """Make all bounds while visitors look around, until the block ends."""
    ending = threading.Event()

    def bound() -> None:
        for exhibit in exhibits.values():
            if ending.is_set():
                return
            try:
                exhibit.verifier()
            except UnknownLipschitz:
                continue  # said where the detector is shown

    thread = threading.Thread(target=bound)
    thread.start()
    try:
        yield
    finally:
        # Python would abort if it ended while another thread computes in torch.
        ending.set()
        thread.join()


class Shown(NamedTuple):
    """One part of a picture through the eyes of one detector, whatever ε.

    Attributes:
        name: of the detector.
        view: what it sees, with radii; they are 0 where nothing is proven.
        verifier: what proves it; None if a layer has no bound.
        reason: why nothing can be certified; empty if something could.
    """

    name: str
    view: reading.View
    verifier: Verifier | None
    reason: str

    @property
    def largest_constant(self) -> float | None:
        """The largest Lipschitz constant of a logit; None if unknown."""
        return None if self.verifier is None else float(self.verifier.bounds.logits.max())

    def at(self, epsilon: float) -> tuple[Detection, ...]:
        """Return what is found, with its reach where it is certified up to ε."""
        return self.view.at(epsilon, self.verifier)


class Attacked(NamedTuple):
    """The result of an attack on a picture.

    Attributes:
        settings: of each attack tried; the worst result is shown.
        image: (3, H, W) in [0, 1].
        found: detections in it.
    """

    settings: tuple[AttackSettings, ...]
    image: Tensor
    found: tuple[Detection, ...]

    @property
    def epsilon(self) -> float:
        """Radius of the attack."""
        return self.settings[0].epsilon


def look(exhibit: Exhibit, picture: Image.Image, region: Region) -> Shown:
    """Detect in a part of a picture and certify what is found.

    Args:
        exhibit: the detector.
        picture: RGB.
        region: the part.
    """
    [view] = reading.look(exhibit.detector, exhibit.class_names, picture, [region])
    try:
        verifier = exhibit.verifier()
    except UnknownLipschitz as unknown:
        boxes = view.found["boxes"]
        nothing = replace(view, remaining=Remaining(torch.zeros(len(boxes)), boxes))
        return Shown(exhibit.name, nothing, None, str(unknown))
    [view] = reading.certified([view], verifier)
    shown = Shown(exhibit.name, view, verifier, "")
    if any_score_stays(view, verifier):
        return shown
    return shown._replace(
        reason=f"A change of ε can move a score's logit by {shown.largest_constant:.2g} ε as far "
        f"as is known, and already ε = {TOLERANCE:g} could take every score below the floor."
    )


def attack(
    exhibit: Exhibit,
    image: Tensor,
    settings: tuple[AttackSettings, ...],
    on_progress: Callable[[int, int], None],
) -> Attacked:
    """Change pixels by at most ε so that the detector errs.

    Args:
        exhibit: the detector.
        image: (3, H, W) in [0, 1].
        settings: of each attack to try, all at one ε.
        on_progress: told how many steps of how many are done; may raise to stop the attack.
    """
    total = sum(one.restarts * (one.steps + 1) for one in settings)
    done = 0

    def on_step(step: int, places: Tensor, values: Tensor) -> None:
        nonlocal done
        done += 1
        on_progress(done, total)

    _, outcome = attack_unlabelled(exhibit.detector, image[None], settings, on_step=on_step)
    found = reading.named(outcome.detections[0], exhibit.class_names)
    return Attacked(settings, outcome.images[0].cpu(), found)
