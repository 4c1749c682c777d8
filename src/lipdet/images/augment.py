"""Changes of a whole batch that leave its objects what they are, seeded per step.

Notable choices:
- What leaves an object what it is depends on the objects: a mirrored 7 is none, an inverted cell is
  none. So each change has a name and is asked for.
- Every change draws its random numbers whether it is asked for or not: none alters another's.
- A reduced picture has others of the batch around it, so that what is not an object is learnt from
  real surroundings, and a step sees more objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lipdet.config import Change
from lipdet.types import Objects, Target, ignored_of

BRIGHTNESS = 0.2
CONTRAST = (0.6, 1.4)
INVERTED = 0.3
PERMUTED = 0.3
# Objects of which less than this share is left inside are no longer objects.
LEAST_LEFT = 0.5


def augment(
    images: Tensor,
    targets: Sequence[Target],
    changes: Collection[Change],
    generator: torch.Generator,
    scales: tuple[float, float],
) -> tuple[Tensor, list[Target]]:
    """Change pictures and their objects, each picture independently.

    Args:
        images: (B, 3, H, W) float in [0, 1].
        targets: the objects of the B images, in pixels.
        changes: which changes may be made.
        generator: of the random choices, on the CPU.
        scales: smallest and largest factor of a side for `scale`.

    Returns:
        New images of the same shape in [0, 1], and their objects.
    """
    images = _recoloured(images, changes, generator)
    return _moved(images, targets, changes, generator, scales)


def _recoloured(images: Tensor, changes: Collection[Change], generator: torch.Generator) -> Tensor:
    count, device = len(images), images.device

    def uniform(low: float, high: float) -> Tensor:
        values = torch.rand(count, 1, 1, 1, generator=generator) * (high - low) + low
        return values.to(device)

    contrast, brightness = uniform(*CONTRAST), uniform(-BRIGHTNESS, BRIGHTNESS)
    if "light" in changes:
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = torch.addcmul(mean * (1 - contrast) + brightness, images, contrast).clamp_(0, 1)
    inverted = uniform(0, 1) < INVERTED
    if "inversion" in changes:
        images = torch.where(inverted, 1 - images, images)
    order = torch.rand(count, 3, generator=generator).argsort(dim=1)
    order[torch.rand(count, generator=generator) >= PERMUTED] = torch.arange(3)
    return images[torch.arange(count)[:, None], order] if "channels" in changes else images


def _moved(
    images: Tensor,
    targets: Sequence[Target],
    changes: Collection[Change],
    generator: torch.Generator,
    scales: tuple[float, float],
) -> tuple[Tensor, list[Target]]:
    """Turn, mirror, enlarge, reduce and place."""
    count, square = len(images), images.shape[2] == images.shape[3]
    low, high = (math.log(factor) for factor in scales)
    scale = torch.exp(low + (high - low) * torch.rand(count, generator=generator))
    place = torch.rand(count, 2, generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    quarters = torch.randint(4, (count,), generator=generator)
    objects = list(targets)
    if "turn" in changes:
        turns = (quarters if square else 2 * (quarters // 2)).tolist()
        images = torch.stack(
            [image.rot90(turn, (1, 2)) for image, turn in zip(images, turns, strict=True)]
        )
        objects = [
            _turned(target, images.shape[2:], turn)
            for target, turn in zip(objects, turns, strict=True)
        ]
    if "flip" in changes:
        images = torch.where(mirrored.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)
        width = images.shape[3]
        objects = [
            _mirrored(target, width) if flip else target
            for target, flip in zip(objects, mirrored.tolist(), strict=True)
        ]
    if "scale" not in changes:
        return images, objects
    moved = []
    for index, (factor, (x, y)) in enumerate(zip(scale.tolist(), place.tolist(), strict=True)):
        if factor < 1:
            moved.append(_reduced(images, objects, index, factor, (x, y)))
        else:
            moved.append(_enlarged(images[index], objects[index], factor, (x, y)))
    return torch.stack([image for image, _ in moved]) if moved else images, [
        target for _, target in moved
    ]


def _enlarged(
    image: Tensor, target: Target, scale: float, place: tuple[float, float]
) -> tuple[Tensor, Target]:
    """Return a part of a picture at the size of the whole."""
    height, width = image.shape[1:]
    rows, columns = round(height / scale), round(width / scale)
    left, top = round(place[0] * (width - columns)), round(place[1] * (height - rows))
    part = image[:, top : top + rows, left : left + columns]
    sides = torch.tensor([width / columns, height / rows] * 2)
    origin = torch.tensor([left, top] * 2)
    found = _placed([target], lambda boxes, _: (boxes - origin) * sides, height, width)
    if "mask" in target:
        shown = target["mask"][top : top + rows, left : left + columns]
        found["mask"] = _resized_mask(shown, height, width)
    return _resized(part[None], height, width)[0], found


def _reduced(
    images: Tensor,
    targets: Sequence[Target],
    index: int,
    scale: float,
    place: tuple[float, float],
) -> tuple[Tensor, Target]:
    """Return a picture within others of its batch, all reduced alike.

    What is left of the canvas would otherwise be empty, and nothing in it could be mistaken for an
    object.
    """
    height, width = images.shape[2:]
    rows, columns = max(1, round(scale * height)), max(1, round(scale * width))
    left, top = round(place[0] * (width - columns)), round(place[1] * (height - rows))
    corners = [
        (x, y)
        for y in range(top - math.ceil(top / rows) * rows, height, rows)
        for x in range(left - math.ceil(left / columns) * columns, width, columns)
    ]
    own = corners.index((left, top))
    chosen = [(index + number - own) % len(images) for number in range(len(corners))]
    small = _resized(images[chosen], rows, columns)
    canvas = images.new_empty(images.shape[1:])
    sides = torch.tensor([columns / width, rows / height] * 2)
    mask = torch.empty(height, width, dtype=torch.uint8)
    for (x, y), source, tile in zip(corners, chosen, small, strict=True):
        shown = slice(max(-y, 0), height - y), slice(max(-x, 0), width - x)
        place_of = slice(max(y, 0), y + rows), slice(max(x, 0), x + columns)
        canvas[:, *place_of] = tile[:, *shown]
        if "mask" in targets[source]:
            mask[place_of] = _resized_mask(targets[source]["mask"], rows, columns)[shown]

    def move(boxes: Tensor, number: int) -> Tensor:
        return boxes * sides + torch.tensor(corners[number] * 2)

    found = _placed([targets[source] for source in chosen], move, height, width)
    if "mask" in targets[index]:
        found["mask"] = mask
    return canvas, found


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    resized = functional.interpolate(images, (height, width), mode="bilinear", antialias=True)
    return resized.clamp(0, 1)  # rounding may go a little beyond


def _turned(target: Target, sides: Sequence[int], quarters: int) -> Target:
    """Turn boxes and mask against the clock as often as a picture (height, width)."""

    def turned(of: Objects) -> Objects:
        boxes, (height, width) = of["boxes"], sides
        for _ in range(quarters):
            left, top, right, bottom = boxes.unbind(1)
            boxes = torch.stack([top, width - right, bottom, width - left], dim=1)
            height, width = width, height
        return Objects(boxes=boxes, labels=of["labels"])

    found = _with_ignored(turned(target), turned(ignored_of(target)))
    if "mask" in target:
        found["mask"] = target["mask"].rot90(quarters)
    return found


def _mirrored(target: Target, width: int) -> Target:
    def mirrored(of: Objects) -> Objects:
        left, top, right, bottom = of["boxes"].unbind(1)
        boxes = torch.stack([width - right, top, width - left, bottom], dim=1)
        return Objects(boxes=boxes, labels=of["labels"])

    found = _with_ignored(mirrored(target), mirrored(ignored_of(target)))
    if "mask" in target:
        found["mask"] = target["mask"].flip(1)
    return found


def _with_ignored(objects: Objects, ignored: Objects) -> Target:
    return Target(boxes=objects["boxes"], labels=objects["labels"], ignored=ignored)


def _resized_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """Return a mask (h, w) at another size, with the class of the pixel at each one's centre."""
    return functional.interpolate(mask[None, None], (height, width), mode="nearest-exact")[0, 0]


def _placed(
    targets: Sequence[Target], move: Callable[[Tensor, int], Tensor], height: int, width: int
) -> Target:
    """Return the objects of several pictures on one canvas, where `move` puts the boxes of each."""

    def together(every: Sequence[Objects], least: float) -> Objects:
        boxes = torch.cat([move(one["boxes"], number) for number, one in enumerate(every)])
        return _inside(boxes, torch.cat([one["labels"] for one in every]), height, width, least)

    objects = together(targets, LEAST_LEFT)
    return _with_ignored(objects, together([ignored_of(one) for one in targets], 0))


def _inside(boxes: Tensor, labels: Tensor, height: int, width: int, least: float) -> Objects:
    """Return boxes of which some area, and at least this share, lies inside, clipped."""
    inside = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))
    left = (inside[:, 2:] - inside[:, :2]).clamp(min=0).prod(dim=1)
    kept = (left > 0) & (left >= least * (boxes[:, 2:] - boxes[:, :2]).prod(dim=1))
    return Objects(boxes=inside[kept], labels=labels[kept])
