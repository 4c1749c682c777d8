"""Balls around an image: what a perturbation may be, and which way is steepest in each.

Every function works per image: the first dimension is the batch, all others belong to one image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Float32 additions round; a radius this much smaller keeps what is returned inside the true ball.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Ball(ABC):
    """All perturbations of norm at most `epsilon`, in [0, 1] pixel units at the network's input."""

    epsilon: float

    @abstractmethod
    def norm(self, perturbations: Tensor) -> Tensor:
        """Return the norm (B,) of each perturbation (B, …)."""

    @abstractmethod
    def shrink(self, perturbations: Tensor) -> Tensor:
        """Return the nearest perturbations (B, …) inside the ball."""

    @abstractmethod
    def direction(self, gradients: Tensor) -> Tensor:
        """Return the perturbations (B, …) of norm 1 that raise a linear function most.

        A gradient of zero gives zero.
        """

    @abstractmethod
    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return a point drawn uniformly from the ball."""

    def project(self, images: Tensor, centres: Tensor) -> Tensor:
        """Move into the ball around `centres`, then into [0, 1], which never leaves the ball."""
        return (centres + self.shrink(images - centres)).clamp(0, 1)


class L2Ball(Ball):
    """Perturbations by their Euclidean norm over all values of an image."""

    def norm(self, perturbations: Tensor) -> Tensor:
        """Return the Euclidean norm."""
        norms: Tensor = torch.linalg.vector_norm(perturbations.flatten(1), dim=1)
        return norms

    def shrink(self, perturbations: Tensor) -> Tensor:
        """Scale those outside down to the radius."""
        radius = self.epsilon * (1 - ROUNDING)
        norms = self.norm(perturbations).clamp(min=torch.finfo(perturbations.dtype).tiny)
        return perturbations * per_image((radius / norms).clamp(max=1), perturbations)

    def direction(self, gradients: Tensor) -> Tensor:
        """Divide by the norm; scale first, since squares of 1e-25 vanish in float32."""
        largest = gradients.flatten(1).abs().amax(dim=1)
        scaled = gradients / per_image(torch.where(largest > 0, largest, 1), gradients)
        return scaled / per_image(self.norm(scaled).clamp(min=1), scaled)

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return a normal direction; the radius to the power of the dimension is uniform."""
        normal = rng.standard_normal(shape, np.float32)
        radius = self.epsilon * rng.random() ** (1 / normal.size)
        return normal * np.float32(radius / np.linalg.norm(normal))


class LinfBall(Ball):
    """Perturbations by their largest absolute value."""

    def norm(self, perturbations: Tensor) -> Tensor:
        """Return the largest absolute value."""
        return perturbations.flatten(1).abs().amax(dim=1)

    def shrink(self, perturbations: Tensor) -> Tensor:
        """Clamp each value."""
        radius = self.epsilon * (1 - ROUNDING)
        return perturbations.clamp(-radius, radius)

    def direction(self, gradients: Tensor) -> Tensor:
        """Return the signs."""
        return gradients.sign()

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return each value uniform on its own."""
        return rng.uniform(-self.epsilon, self.epsilon, shape).astype(np.float32)


BALLS: dict[str, type[Ball]] = {"l2": L2Ball, "linf": LinfBall}


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Shape values (B,) so that they broadcast against (B, …)."""
    return values.view(-1, *[1] * (like.dim() - 1))
