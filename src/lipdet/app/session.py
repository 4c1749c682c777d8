"""What one visitor sees: one square of one picture, several detectors, and their attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lipdet.app.drawing import Panel, attacked_panel, clean_panel, perturbation_panel
from lipdet.app.exhibits import Exhibit
from lipdet.app.pictures import read_picture, square_of
from lipdet.app.views import Attacked, View, look, regions
from lipdet.attack import AttackSettings
from lipdet.attack.settings import DEFAULT_OBJECTIVE, AttackName, single_attacks
from lipdet.errors import InputError
from lipdet.images.crop import Region
from lipdet.types import Detections
from lipdet.versions import versions

MOST_STEPS = 100
LARGEST_EPSILON = 1.0


class Session(NamedTuple):
    """One picture on show.

    Attributes:
        picture: name of the file.
        size: width and height of the picture.
        region: the square that networks see.
        views: one for each detector.
        attacked: by name of the detector.
    """

    picture: str
    size: tuple[int, int]
    region: Region
    views: tuple[View, ...]
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
        names: which detectors; the first looks for the number.
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
    region = square_of(chosen[0].detector, picture, search)
    views = tuple(look(exhibit, picture, region) for exhibit in chosen)
    return Session(path.name, picture.size, region, views, {})


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
    name: AttackName = "worst" if objective == "worst" else "pgd"
    first = DEFAULT_OBJECTIVE if objective == "worst" else objective
    return tuple(single_attacks(name, AttackSettings(epsilon, first, steps=int(steps))))


def panels(
    session: Session, epsilon: float, exhibits: Mapping[str, Exhibit]
) -> list[tuple[View, list[Panel]]]:
    """For each detector what is to be seen at ε: clean and, once attacked, two panels more."""
    attacked = session.attacks_at(epsilon)
    rows = []
    for view in session.views:
        exhibit = exhibits[view.name]
        row = [clean_panel(view, exhibit, epsilon)]
        if view.name in attacked:
            one = attacked[view.name]
            row += [attacked_panel(view, one, exhibit), perturbation_panel(view, one)]
        rows.append((view, row))
    return rows


def as_dict(session: Session, epsilon: float, exhibits: Mapping[str, Exhibit]) -> dict[str, Any]:
    """Everything on show as plain values; boxes in pixels of each network's input."""
    attacked = session.attacks_at(epsilon)
    return {
        "picture": session.picture,
        "width": session.size[0],
        "height": session.size[1],
        "square": list(session.region),
        "epsilon": epsilon,
        "versions": versions(),
        "detectors": [
            _detector(view, attacked.get(view.name), exhibits[view.name], epsilon)
            for view in session.views
        ],
    }


def _detector(
    view: View, attacked: Attacked | None, exhibit: Exhibit, epsilon: float
) -> dict[str, Any]:
    clean = _rows(view.found, exhibit)
    for row, radius, region in zip(clean, view.radii, regions(view, exhibit, epsilon), strict=True):
        row |= {"radius": radius, "region": region and list(region)}
    entry: dict[str, Any] = {
        "weights": view.name,
        "image_size": exhibit.size,
        "largest_constant": view.largest_constant,
        "uncertified_because": view.reason or None,
        "clean": clean,
        "attacked": None,
    }
    if attacked:
        change = (attacked.image - view.image).double()
        entry["attacked"] = {
            "objectives": [one.objective for one in attacked.settings],
            "steps": attacked.settings[0].steps,
            "seed": attacked.settings[0].seed,
            "distance": {"l2": float(change.norm()), "linf": float(change.abs().max())},
            "detections": _rows(attacked.found, exhibit),
        }
    return entry


def _rows(found: Detections, exhibit: Exhibit) -> list[dict[str, Any]]:
    rows = zip(
        found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True
    )
    return [
        {"box": box, "label": exhibit.class_names[label], "score": score}
        for box, label, score in rows
    ]
