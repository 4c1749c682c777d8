"""`lipdet.Detector`: load a detector, use it on pictures, save it, share it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar, overload

from lipdet import hub
from lipdet.boxes import Selection
from lipdet.certificate.verifier import Verifier, verifier_of
from lipdet.checkpoint import LoadedDetector, load_detector, packaged_names
from lipdet.detector import SSD
from lipdet.detector.forward import BATCH_SIZE
from lipdet.errors import InputError
from lipdet.evaluate.chunks import weights_hash
from lipdet.images.crop import Region
from lipdet.images.source import Picture, as_rgb
from lipdet.lipschitz.same_function import is_as_defined
from lipdet.lipschitz.state import kept_by
from lipdet.reading import (
    Detection,
    Reading,
    Tally,
    certified_reading,
    read_all,
    shown_above,
    tallied,
)
from lipdet.results import EvaluationResult, read_results
from lipdet.types import Framing

P = TypeVar("P", bound=Picture)
Several = list[P] | tuple[P, ...]
Files = Path | str | Sequence[Path | str]
# Class names that a representation spells out.
NAMES_SHOWN = 5


class Detector:
    """A trained detector, as `Detector.from_pretrained` loads it.

    Attributes:
        loaded: the network, its name, and what its file says about it.

    Raises:
        InputError: it is given something else, such as a name.
    """

    def __init__(self, loaded: LoadedDetector) -> None:
        if not isinstance(loaded, LoadedDetector):
            raise InputError(
                f"A Detector is not made of {loaded!r:.100}: names, files and folders are loaded "
                "by Detector.from_pretrained."
            )
        self.loaded = loaded
        # Of what a file speaks; code of the user's has none.
        self._described = weights_hash(loaded.detector) if loaded.info else None
        self._bounded: tuple[object, Verifier] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what certificates keep, since code cannot be pickled."""
        return {**vars(self), "_bounded": None}

    @classmethod
    def from_pretrained(cls, source: Path | str, revision: str | None = None) -> Detector:
        """Load a detector.

        Args:
            source: the name of packaged weights, a run folder, a weights file, a folder that
                `save_pretrained` wrote, `package.module:callable` that returns an `SSD`, or the
                id `owner/name` of a repository on the Hub. What exists here comes first.
            revision: branch, tag or commit of the repository.

        Raises:
            InputError: there is no such detector, or its file is damaged.
        """
        name = str(source)
        here = Path(source).exists() or name in packaged_names()
        if here or not hub.is_repository(name):
            return cls(load_detector(name))
        fetched = load_detector(str(hub.fetch(name, revision)))
        return cls(replace(fetched, name=name))

    @property
    def network(self) -> SSD:
        """The network: images (B, 3, H, W) in [0, 1] to raw output."""
        return self.loaded.detector

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the network's labels."""
        return self.network.config.class_names

    @property
    def framing(self) -> Framing:
        """Height and width of what the network sees, and whether that is a whole picture."""
        return self.loaded.framing

    def __repr__(self) -> str:
        """Return what the detector is, in one line."""
        names = list(self.class_names[:NAMES_SHOWN])
        if len(self.class_names) > NAMES_SHOWN:
            names.append(f"… ({len(self.class_names)})")
        made = self.network.config.architecture if self.loaded.info else "code of yours"
        count = sum(parameter.numel() for parameter in self.network.parameters())
        return (
            f"Detector({self.loaded.name!r}: {made}, classes {', '.join(names)}, {self.framing}, "
            f"{count:,} parameters)"
        )

    @overload
    def detect(
        self, picture: Picture, crop: Sequence[float] | None = None, score: float | None = None
    ) -> list[Detection]: ...

    @overload
    def detect(
        self, picture: Several[P], crop: Sequence[float] | None = None, score: float | None = None
    ) -> list[list[Detection]]: ...

    def detect(
        self,
        picture: Picture | Several[P],
        crop: Sequence[float] | None = None,
        score: float | None = None,
    ) -> list[Detection] | list[list[Detection]]:
        """Find objects in a picture, best first; in each of several, if given a list.

        Args:
            picture: of any size: its file, an image of Pillow's, an array (H, W, 3) of uint8, or
                a tensor (3, H, W) in [0, 1], which is rounded to 8 bits; or a list of such, of
                which `BATCH_SIZE` regions pass the network at a time.
            crop: left, top, right, bottom in pixels: look only there, in one pass. Without it a
                detector of crops searches the picture for rows of small objects, as house
                numbers are.
            score: what a detection's score exceeds, by default the threshold of the detector; of
                each region at most as many are shown as the detector says, 20 unless trained on
                more crowded pictures.

        Raises:
            InputError: it is no picture, the crop reaches outside it, or the score is not between
                0 and 1.
        """
        found = [
            list(reading.detections)
            for readings in self._read(picture, crop, shown_above(self.network, score))
            for reading in readings
        ]
        return found if isinstance(picture, list | tuple) else found[0]

    @overload
    def certify(
        self, picture: Picture, crop: Sequence[float] | None = None, score: float | None = None
    ) -> list[Detection]: ...

    @overload
    def certify(
        self, picture: Several[P], crop: Sequence[float] | None = None, score: float | None = None
    ) -> list[list[Detection]]: ...

    def certify(
        self,
        picture: Picture | Several[P],
        crop: Sequence[float] | None = None,
        score: float | None = None,
    ) -> list[Detection] | list[list[Detection]]:
        """Detect, and say how much perturbation leaves each detection what is shown.

        What remains has a score above `score`, too: the higher, the more is promised, and the
        smaller are the radii.

        Raises:
            UnknownLipschitz: a layer of the network has no bound.
            InputError: as in `detect`.
        """
        selection = shown_above(self.network, score)
        found: list[list[Detection]] = []
        for readings in self._read(picture, crop, selection):
            if any(reading.views for reading in readings):
                verifier = replace(self._verifier, selection=selection)
                readings = [certified_reading(reading, verifier) for reading in readings]
            found += [list(reading.detections) for reading in readings]
        return found if isinstance(picture, list | tuple) else found[0]

    def tally(self, picture: Picture, epsilon: float, crop: Sequence[float] | None = None) -> Tally:
        """Read and count what is shown, with what of that no perturbation can change.

        Left edges are those at the network's input, which may show more than the picture.

        Args:
            picture: of any size, or its file.
            epsilon: L2 radius of the perturbations under which the counts are bounded.
            crop: as in `detect`. A detector of crops needs one: of what a search finds in several
                squares of a photograph, no count is certified.

        Raises:
            UnknownLipschitz: a layer of the network has no bound.
            InputError: as in `detect`; there is no crop; or ε is no radius.
        """
        if crop is None and not self.framing.whole:
            raise InputError(
                f"{self.loaded.name} searches photographs in squares, and what is read in several "
                "of them is not certified: give crop=(left, top, right, bottom)."
            )
        if not isinstance(epsilon, Real):
            raise InputError(f"epsilon must be a number of at least 0, not {epsilon!r}.")
        [[reading]] = self._read(picture, crop, self.network.display)
        [tally] = tallied(reading.views, self._verifier, [epsilon])
        return tally

    def save_pretrained(self, folder: Path | str, results: Files = ()) -> None:
        """Write weights (safetensors), config.json and a model card.

        What was measured and said of the weights that were loaded stays away if they have changed.

        Args:
            folder: made if need be.
            results: json files of `lipdet eval` of this detector, or one, whose figures the card
                shows.

        Raises:
            InputError: a file holds no result, or one of another detector.
        """
        hub.write_folder(self._as_it_is(), Path(folder), _results(results))

    def push_to_hub(self, repository: str, results: Files = (), private: bool | None = None) -> str:
        """Upload what `save_pretrained` writes and return the address of the commit.

        Args:
            repository: `owner/name`; made if need be.
            results: as in `save_pretrained`.
            private: of a new repository.

        Raises:
            InputError: huggingface_hub is missing, the Hub refuses, or as in `save_pretrained`.
        """
        return hub.push(self._as_it_is(), repository, _results(results), private)

    def _as_it_is(self) -> LoadedDetector:
        """Return the detector without what its file says, if that was of other weights."""
        if self._described in (None, weights_hash(self.network)):
            return self.loaded
        return replace(self.loaded, info={})

    @property
    def _verifier(self) -> Verifier:
        """Return what certificates need, made anew when the network has changed.

        All that it keeps is looked at: hooks, the code of functions and classes, and the values of
        weights, since `parameter.data` changes without a trace; and what of torch changes what it
        computes. What code of the user's depends on cannot be known: it is bounded at every call.
        """
        if not is_as_defined(self.network):
            return verifier_of(self.network, self.network.display)
        state = kept_by(self.network)
        if self._bounded is None or self._bounded[0] != state:
            self._bounded = state, verifier_of(self.network, self.network.display)
        return self._bounded[1]

    def _read(
        self,
        picture: Picture | Several[P],
        crop: Sequence[float] | None,
        selection: Selection,
    ) -> Iterator[list[Reading]]:
        """Yield readings of as many pictures at a time as pass the network together."""
        region = None if crop is None else _region(crop)
        pictures = picture if isinstance(picture, list | tuple) else [picture]
        for start in range(0, len(pictures), BATCH_SIZE):
            images = [as_rgb(one) for one in pictures[start : start + BATCH_SIZE]]
            yield read_all(self.network, self.class_names, images, region, selection)


def _results(files: Files) -> list[EvaluationResult]:
    several = [files] if isinstance(files, Path | str) else files
    return read_results([Path(one) for one in several])


def _region(crop: Sequence[float]) -> Region:
    try:
        return Region(*map(float, () if isinstance(crop, str) else crop))
    except (TypeError, ValueError):
        raise InputError(
            f"A crop is four numbers, (left, top, right, bottom) in pixels, not {crop!r}."
        ) from None
