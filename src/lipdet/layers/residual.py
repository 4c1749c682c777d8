"""1-Lipschitz residual blocks: x − 2 Vᵀ σ(V x + b) with a convolution V of norm at most 1.

Both published blocks have this form. With ReLU, the SDP-based layer x − 2 W T⁻¹ σ(Wᵀx + b) (Araujo
et al. 2023) is this with V = T^(-1/2) Wᵀ and its bias divided by √T, and the convex potential layer
x − 2 W σ(Wᵀx + b) / N² (Meunier et al. 2022) is this with V = Wᵀ / N. At a point where σ has slopes
D, 0 ≤ D ≤ 1, the Jacobian I − 2 VᵀDV is symmetric with eigenvalues in [−1, 1].

Notable choices:
- σ is ReLU and no argument: MaxMin is not elementwise and reaches 2.29 in this form.
- The bias enters after the scaling. The functions are the same, and tiny raw weights cannot blow
  the offset up.
- Vᵀ is applied as an ordinary convolution with the flipped kernel, so folding changes no bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipdet.layers.base import ConstructedWeight
from lipdet.layers.conv import centred_orthogonal_, plain_conv
from lipdet.layers.normalised import gram_row_sums, inverse_root
from lipdet.norms import conv_norm_bound

_LOG_Q_LIMIT = 10.0


class ResidualBlock(ConstructedWeight):
    """x − 2 Vᵀ relu(V x + b): same channels and size, zero padding.

    Args:
        channels: channels of the input and the output.
        hidden_channels: channels of V's output; as many as `channels` if absent.
        kernel_size: height and width of V, an odd number.
        bias: whether the hidden units have a learned offset; it starts at 0.

    Raises:
        ValueError: an even kernel_size, which would move the picture, or a number below 1.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        hidden_channels: int | None = None,
        kernel_size: int = 3,
        bias: bool = True,
    ) -> None:
        super().__init__()
        hidden = channels if hidden_channels is None else hidden_channels
        if channels < 1 or hidden < 1 or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"{type(self).__name__}: channels={channels}, hidden_channels={hidden} and "
                f"kernel_size={kernel_size} must be at least 1, and kernel_size odd."
            )
        self.channels = channels
        self.hidden_channels = hidden
        self.kernel_size = kernel_size
        self.raw = nn.Parameter(torch.empty(hidden, channels, kernel_size, kernel_size))
        self.register_parameter("bias", nn.Parameter(torch.zeros(hidden)) if bias else None)
        self.orthogonal_()

    def orthogonal_(self) -> None:
        """Start with an orthogonal V: wherever the units switch, the block is then a reflection.

        Hidden units beyond the number of channels start small, so as not to spoil that.
        """
        nn.init.normal_(self.raw, std=0.001 / self.raw[0].numel() ** 0.5)
        centred_orthogonal_(self.raw[: self.channels])

    def dirac_(self) -> None:
        """Start orthogonal all the same: an identity V leaves the next block's units dead."""
        self.orthogonal_()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        weight = self._ready_weight()
        padding = self.kernel_size // 2
        hidden = functional.conv2d(x, weight, self.bias, padding=padding).relu()
        return x - functional.conv2d(hidden, _twice_transposed(weight), padding=padding)

    def lipschitz_bound(self) -> float:
        """Bound the block's constant: ||V|| ≤ 1 + r after rounding gives 2(1 + r)² − 1."""
        return 2 * super().lipschitz_bound() ** 2 - 1

    @torch.no_grad()
    def folded(self) -> FoldedResidual:
        """Return the block with two plain convolutions."""
        weight = self._ready_weight()
        return FoldedResidual(weight, _twice_transposed(weight), self.bias).train(self.training)

    def extra_repr(self) -> str:
        """Return the sizes."""
        text = f"{self.channels}, {self.hidden_channels}, kernel_size={self.kernel_size}"
        return text + (", bias=False" if self.bias is None else "")


class SLLBlock(ResidualBlock):
    """SDP-based Lipschitz layer (Araujo et al. 2023, theorem 3), convolutional.

    Hidden channel i of the kernel is divided by √T_ii, T_ii = Σ_j |WᵀW|_ij q_j/q_i over all lags
    and with learned q > 0: T − WᵀW is diagonally dominant after scaling by q, hence ||V|| ≤ 1. Zero
    padding leaves out pixels, which only lowers WᵀW.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log_q = nn.Parameter(torch.zeros(self.hidden_channels))

    def construct(self) -> Tensor:
        """Return V (hidden, channels, k, k) in float64."""
        kernel = self.raw.double()
        q = self.log_q.double().clamp(-_LOG_Q_LIMIT, _LOG_Q_LIMIT).exp()
        scale = inverse_root(gram_row_sums(kernel.transpose(0, 1), q))
        return kernel * scale[:, None, None, None]


class CPLBlock(ResidualBlock):
    """Convex potential layer (Meunier et al. 2022, eq. 4) with a certified norm N of W.

    The published layer takes N from a power iteration, a lower bound; here it is
    `conv_norm_bound`, at most about 1.2 times too large and exact at the start. Dividing by N
    instead of N² would not do (6.4 measured).
    """

    def construct(self) -> Tensor:
        """Return V (hidden, channels, k, k) in float64."""
        kernel = self.raw.double()
        return kernel / conv_norm_bound(kernel, squarings=5)


class FoldedResidual(nn.Module):
    """x − outer(relu(inner(x))) with plain convolutions: what a residual block folds into."""

    def __init__(self, inner: Tensor, outer: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        padding = inner.shape[-1] // 2
        self.inner = plain_conv(inner, bias, padding=padding)
        self.outer = plain_conv(outer, None, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        folded: Tensor = x - self.outer(self.inner(x).relu())
        return folded


def _twice_transposed(weight: Tensor) -> Tensor:
    """Return the kernel of 2 Vᵀ for the kernel of V."""
    return 2 * weight.flip(2, 3).transpose(0, 1).contiguous()
