"""What the checks of an attack rest on: AP against radius, steps and restarts, and other attacks.

Notable choices:
- Everything is compared at one radius, the first at which AP50 falls to half of its clean value:
  there a stronger attack has most to gain.
- Where no objective is named, the attack is what is tried then: of several results each picture
  takes the one that costs AP50 most. Its loss, and what Square raises, are of the first objective.
- Without another detector, transfer comes from a copy whose weights are a few percent off.
- What each attack left is kept in the state folder: on large canvases all of them take more than
  an hour.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lipdet.attack import AttackSettings, attack_batch, detect, square_attack
from lipdet.attack.attackable import attackable
from lipdet.attack.balls import BALLS
from lipdet.attack.gradient import random_start
from lipdet.attack.settings import WORST, single_attacks
from lipdet.detector import SSD
from lipdet.errors import InputError
from lipdet.evaluate.attacked import prepare, worst
from lipdet.evaluate.average_precision import average_precision
from lipdet.evaluate.chunks import State, Tensors, kept, weights_hash
from lipdet.images.pack import Pack
from lipdet.progress import progress_bar
from lipdet.types import Detections

RADII = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
LARGEST_RADIUS = 64.0
COLLAPSED = 0.05  # of clean AP50; below that, what is right may be so by chance
MORE_RESTARTS = 3
QUERIES = 500
OFF = 0.05
# A seed apart from those of the attacks' own starts.
NOISE = 1_000_000

Tick = Callable[[int], None]


@dataclass(frozen=True)
class Curves:
    """Measurements that the checks rest on; AP50 as fractions.

    Attributes:
        objects: number of objects in the pictures.
        clean: AP50 of the clean pictures.
        epsilon: radius at which attacks are compared.
        attack: AP50 under the attack there.
        noise: under random noise of that radius.
        square: under the Square attack.
        transfer: under the same attack on another detector.
        objectives: under the same attack with each objective of `worst`.
        sweep: radius, AP50 under the attack, AP50 under noise.
        steps: number of steps, AP50.
        restarts: number of restarts, AP50.
        loss: mean over images of the best objective value, at each step.
    """

    objects: int
    clean: float
    epsilon: float
    attack: float
    noise: float
    square: float
    transfer: float
    objectives: dict[str, float]
    sweep: list[tuple[float, float, float]]
    steps: list[tuple[int, float]]
    restarts: list[tuple[int, float]]
    loss: list[float]


class Left(NamedTuple):
    """What an attack left.

    Attributes:
        ap50: as a fraction.
        loss: mean over images of the best value of its first objective, at each step.
    """

    ap50: float
    loss: list[float]


def _to_tensors(left: Left) -> Tensors:
    return {name: torch.tensor(part, dtype=torch.float64) for name, part in left._asdict().items()}


def _from_tensors(tensors: Tensors) -> Left:
    return Left(float(tensors["ap50"]), tensors["loss"].tolist())


class _Bench:
    """A detector with pictures on it, and AP50 under whatever is done to them.

    `tick` is told how many evaluations of an image were made; what attacks left is kept in
    `folder`, if there is one.
    """

    def __init__(
        self,
        detector: SSD,
        source: SSD,
        pack: Pack,
        settings: AttackSettings,
        objective: str | None,
        folder: Path | None,
        tick: Tick,
    ) -> None:
        self.detector, self.source, self.pack, self.settings = detector, source, pack, settings
        self.objective, self.folder, self.tick = objective, folder, tick
        self.images = pack.pixels(range(len(pack))).to(detector.default_boxes)
        self.targets = [pack.target(index) for index in range(len(pack))]

    def singles(self, objective: str | None = None, **changes: Any) -> list[AttackSettings]:
        settings = replace(self.settings, **changes)
        return single_attacks(settings.schedule, settings, objective or self.objective)

    def ap50(self, images: Tensor) -> float:
        return self.ap50_of(detect(self.detector, images))

    def ap50_of(self, found: list[Detections]) -> float:
        return average_precision(self.targets, found, self.pack.class_names)["ap50"]

    def attacked(
        self, source: SSD | None = None, objective: str | None = None, **changes: Any
    ) -> Left:
        singles = self.singles(objective, **changes)
        return self._once(
            f"{'transferred' if source else 'own'} {singles}",
            sum(one.restarts * (one.steps + 1) for one in singles),
            lambda: self._attacked(source or self.source, singles),
        )

    def _once(self, attack: str, evaluations: int, measure: Callable[[], Left]) -> Left:
        file = None
        if self.folder is not None:
            file = self.folder / f"{hashlib.sha256(attack.encode()).hexdigest()[:16]}.safetensors"
            if file.is_file():
                self.tick(evaluations * len(self.images))
        return kept(file, measure, _to_tensors, _from_tensors)

    def _attacked(self, source: SSD, singles: list[AttackSettings]) -> Left:
        losses = [_Losses(len(self.images), single.steps, self.tick) for single in singles]
        found = [
            detect(
                self.detector,
                attack_batch(source, self.images, self.targets, single, on_step=of_single),
            )
            for single, of_single in zip(singles, losses, strict=True)
        ]
        return Left(self.ap50_of(worst(found, self.pack)), losses[0].mean())

    def noise(self, epsilon: float) -> float:
        seeds = [(self.settings.seed, index, NOISE) for index in range(len(self.images))]
        ball = BALLS[self.settings.norm](epsilon)
        return self.ap50(random_start(self.images, ball, seeds))

    def square(self, epsilon: float) -> float:
        first = self.singles(epsilon=epsilon)[0]
        return self._once(f"square {first}", QUERIES, lambda: Left(self._square(first), [])).ap50

    def _square(self, settings: AttackSettings) -> float:
        seeds = [(settings.seed, index) for index in range(len(self.images))]
        with attackable(self.detector).raising(settings.objective) as objective_of:
            value = objective_of(self.targets)

            def objective(images: Tensor, places: Tensor) -> Tensor:
                self.tick(len(places))
                return value(images, places)

            found = square_attack(objective, self.images, settings.epsilon, QUERIES, seeds)
            return self.ap50(found)


class _Losses:
    """The best objective value of each image up to each step of one attack."""

    def __init__(self, images: int, steps: int, tick: Tick) -> None:
        self.best = torch.full((steps + 1, images), -torch.inf)
        self.tick = tick

    def __call__(self, step: int, places: Tensor, values: Tensor) -> None:
        """Record a step of one start; a later start can only raise what is there."""
        self.tick(len(places))
        places = places.cpu()
        self.best[step, places] = torch.maximum(self.best[step, places], values.float().cpu())

    def mean(self) -> list[float]:
        """Return the mean over images at each step; an image that has left keeps its best."""
        curve: list[float] = self.best.cummax(dim=0).values.mean(dim=1).tolist()
        return curve


def measure_attack(
    detector: SSD,
    pack: Pack,
    settings: AttackSettings,
    objective: str | None = None,
    other: SSD | None = None,
    source: SSD | None = None,
    state: State | None = None,
) -> Curves:
    """Measure an attack, and what it must be compared with.

    Args:
        detector: judges the attacked pictures.
        pack: a few dozen annotated pictures, held in memory.
        settings: the attack, in L2; its epsilon and objective are not used.
        objective: that is raised; None for those that are tried where none is named.
        other: a detector to transfer an attack from.
        source: where the attack under test gets its gradients, if not from the detector itself.
        state: of the detector; where what attacks left is kept and looked for.

    Raises:
        InputError: the detector finds nothing on these pictures even when they are clean.
    """
    detector = prepare(detector)
    source, other = source or detector, prepare(other) if other else _off(detector)
    folder = None
    if state is not None:
        attacking = [weights_hash(source), weights_hash(other)]
        folder = state.of_pass("checks", pack, attacking=attacking)
    with progress_bar() as bar:
        # Radii of the sweep, twice the steps, restarts, transfer, objectives, and the queries.
        runs = len(RADII) + 2 + MORE_RESTARTS + 1 + len(WORST)
        evaluations = runs * settings.restarts * (settings.steps + 1) + QUERIES
        task = bar.add_task("Checking", total=evaluations * len(pack))

        def tick(count: int) -> None:
            bar.advance(task, count)

        bench = _Bench(detector, source, pack, settings, objective, folder, tick)
        return _curves(bench, other)


def _curves(bench: _Bench, stranger: SSD) -> Curves:
    clean = bench.ap50(bench.images)
    if clean == 0:
        raise InputError(
            f"The detector finds nothing right on {bench.pack.name}; there is nothing to attack."
        )
    sweep = _sweep(bench, COLLAPSED * clean)
    chosen = next((row for row in sweep if row[1].ap50 <= clean / 2), sweep[-1])
    epsilon, (attack, loss), noise = chosen
    settings = bench.settings = replace(bench.settings, epsilon=epsilon)
    fewer = sorted({1, max(1, settings.steps // 5)} - {settings.steps})
    more = MORE_RESTARTS * settings.restarts
    return Curves(
        objects=sum(len(target["labels"]) for target in bench.targets),
        clean=clean,
        epsilon=epsilon,
        attack=attack,
        noise=noise,
        square=bench.square(epsilon),
        transfer=bench.attacked(source=stranger).ap50,
        objectives={name: bench.attacked(objective=name).ap50 for name in WORST},
        sweep=[(radius, left.ap50, random) for radius, left, random in sweep],
        steps=[
            *((count, bench.attacked(steps=count).ap50) for count in fewer),
            (settings.steps, attack),
            (2 * settings.steps, bench.attacked(steps=2 * settings.steps).ap50),
        ],
        restarts=[(settings.restarts, attack), (more, bench.attacked(restarts=more).ap50)],
        loss=loss,
    )


def _sweep(bench: _Bench, collapsed: float) -> list[tuple[float, Left, float]]:
    """Return radius, what the attack left and AP50 under noise, up to where AP50 has collapsed."""
    rows = []
    radii = list(RADII)
    for radius in radii:
        attacked = bench.attacked(epsilon=radius)
        rows.append((radius, attacked, bench.noise(radius)))
        if radius == radii[-1] < LARGEST_RADIUS and attacked.ap50 >= collapsed:
            radii.append(2 * radius)
    return rows


def _off(detector: SSD) -> SSD:
    """Return a copy whose weights are off by a few percent."""
    other = copy.deepcopy(detector)
    generator = torch.Generator().manual_seed(0)
    for parameter in other.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.mul_(1 + OFF * noise)
    return other
