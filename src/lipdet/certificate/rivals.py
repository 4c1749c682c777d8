"""What a certifier and a rival of its class can do under the same perturbation (theory §6).

Their log-odds each have an interval, but one perturbation moves both, and the rival's box too:
- their difference moves less than both together (tightening 2);
- a perturbation that lifts the rival above the certifier has less left to move its box with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipdet.certificate.candidates import Balls, Candidates
from lipdet.certificate.head_norms import PairwiseLogits
from lipdet.certificate.segments import take

# Of a ball's radius and middle, for what is known of directions only up to 1e-6.
_SLACK = 1e-5


@dataclass(frozen=True)
class Rivals:
    """Pairs of candidates of one image and class.

    Attributes:
        candidates: all.
        constants: of differences.
        epsilon: (B,) of each image.
        temperature: what logits are multiplied by to give log-odds.
    """

    candidates: Candidates
    constants: PairwiseLogits
    epsilon: Tensor
    temperature: float

    def reach(self, own: Tensor, rival: Tensor) -> Tensor:
        """Return how far the difference of the log-odds of two candidates, (P,) each, can move."""
        pairs = self._pairs(own, rival)
        return self.temperature * self._epsilon(own) * self.constants.constants(*pairs)

    def lag(self, own: Tensor, rival: Tensor) -> Tensor:
        """By how much the rival's features must lift it for it to pass the certifier, in logits."""
        behind = self.candidates.log_odds[own] - self.candidates.log_odds[rival]
        behind = behind - self.candidates.slack[own] - self.candidates.slack[rival]
        free = self.constants.yielding(*self._pairs(own, rival))
        fallen = torch.where(free.isinf(), torch.inf, free * self._epsilon(own))
        return (behind / self.temperature - fallen).clamp(min=0)

    def balls(self, own: Tensor, rival: Tensor) -> Balls:
        """Where the rival's offsets lie if it has at least the certifier's log-odds, (P,) each.

        *Proof.* For the rival to catch up, the change of the features x, of length r at most, must
        have ⟨x, û⟩ ≥ t for a unit vector û. What is left of the ball is inside the ball around t·û
        of radius √(r² − t²), as ‖x − tû‖² = ‖x‖² − 2t⟨x, û⟩ + t² ≤ r² − t². The offsets W₄·x are in
        the image of that: around t·W₄û, within ‖W₄‖·√(r² − t²).
        """
        epsilon, lift = self._epsilon(own), self.constants.lifts(*self._pairs(own, rival))
        lag = torch.minimum(self.lag(own, rival), epsilon * lift.constant)
        balls = self.candidates.balls.at(rival)
        spent = torch.where(epsilon > 0, lag / lift.constant / epsilon, 0)
        middle = lag.unsqueeze(1) * lift.push
        # The second part is more than what rounding adds to the radius of any ball.
        slack = _SLACK * (balls.radius + middle.norm(dim=1))
        slack = slack + 2 * self.candidates.slack[rival] / self.temperature
        left = (1 - spent.square()).clamp(min=0).sqrt()
        return balls._replace(offsets=balls.offsets + middle, radius=balls.radius * left + slack)

    def _epsilon(self, own: Tensor) -> Tensor:
        return take(self.epsilon, take(self.candidates.group, own) // self.candidates.classes)

    def _pairs(self, own: Tensor, rival: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Default boxes and the class, as `PairwiseLogits` takes them."""
        anchor = self.candidates.anchor
        label = take(self.candidates.group, own) % self.candidates.classes
        return take(anchor, own), take(anchor, rival), label
