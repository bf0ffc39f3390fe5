"""The residual block of all vision models, and its parts.

    x = x + cpe1(x)                              positions by convolution, if any
    x = x + drop_path(dropout(ls1(mixer(norm1(x)))))
    x = x + drop_path(local_mp(norm3(x)))        what follows the mixer, if anything
    x = x + cpe2(x)
    x = x + drop_path(dropout(ls2(mlp(norm2(x)))))

Names are those of timm: `norm1`, `attn`, `ls1`, `norm2`, `mlp.{fc1,fc2}`, `ls2`; parts that are absent have no keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.nn.cache import Cache

__all__ = ["ACTIVATIONS", "MLP", "ConvolutionalPosition", "DropPath", "LayerScale", "ResidualBlock", "drop_path_rates"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_sigmoid": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
}


class MLP(nn.Module):
    """`fc2(activation(fc1(x)))`, or with a gate `fc2(activation(a) * b)` where `a, b` are the halves of `fc1(x)`.

    Args:
        hidden_size: channels C of input and output.
        mlp_hidden_size: channels inside; the gate's come on top.
        activation: a name of `ACTIVATIONS`.
        gated: multiply by a second projection.
    Raises:
        ValueError: an unknown activation.
    """

    def __init__(
        self, hidden_size: int, mlp_hidden_size: int, *, activation: str = "gelu", gated: bool = False
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"MLP: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
        self.activation, self.gated = activation, gated
        self.fc1 = nn.Linear(hidden_size, mlp_hidden_size * (2 if gated else 1))
        self.fc2 = nn.Linear(mlp_hidden_size, hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        inside, activation = self.fc1(hidden_states), ACTIVATIONS[self.activation]
        if self.gated:
            opened, inside = inside.chunk(2, -1)
            return self.fc2(activation(opened) * inside)  # type: ignore[no-any-return]
        return self.fc2(activation(inside))  # type: ignore[no-any-return]


class DropPath(nn.Module):
    """Stochastic depth: in training, what a branch adds is zero for a share `rate` of the images, larger for the rest.

    Source: arXiv:1603.09382, equation (5), scaled in training instead of at inference.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"DropPath: rate must be at least 0 and below 1, got {rate}.")
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """[B, ...] to the same."""
        if not self.training or self.rate == 0.0:
            return branch
        kept = branch.new_empty(branch.shape[0], *(1,) * (branch.dim() - 1)).bernoulli_(1.0 - self.rate)
        return branch * (kept / (1.0 - self.rate))

    def extra_repr(self) -> str:
        """The rate, for `print(model)`."""
        return f"rate={self.rate:g}"


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Rates of `depth` blocks, rising linearly from 0 to `rate` at the last."""
    return [rate * i / max(1, depth - 1) for i in range(depth)]


class LayerScale(nn.Module):
    """A learned factor for each channel, `gamma`, that begins at `initial` (arXiv:2103.17239, section 2)."""

    def __init__(self, hidden_size: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((hidden_size,), initial))

    def forward(self, branch: Tensor) -> Tensor:
        """[..., C] to the same."""
        return branch * self.gamma


class ConvolutionalPosition(nn.Module):
    """What tells a cell where it is: a depthwise convolution that sees the zeros around the map, key `proj`."""

    def __init__(self, hidden_size: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.proj = nn.Conv2d(hidden_size, hidden_size, kernel_size, padding=kernel_size // 2, groups=hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, rows, columns, C] to the same."""
        out: Tensor = self.proj(hidden_states.movedim(-1, 1))
        return out.movedim(1, -1)


class ResidualBlock(nn.Module):
    """Pre-norm block of a mixer and an MLP, with all that vision models put around them.

    Args:
        mixer: maps [B, *space, C] to the same; key `attn`.
        mlp: maps [..., C] to the same; key `mlp`.
        norm: builds one norm over C; called for each that is needed.
        cpe: modules whose output is added before the mixer and, if there are two, before the MLP.
        after_mixer: a further branch on the main stream with a norm of its own; keys `norm3`, `local_mp`.
        layer_scale: builds the factors of the two branches, for instance `partial(LayerScale, C, 1e-5)`.
        dropout: share of what the two branches add that is zeroed in training, number by number.
        drop_path: rate of stochastic depth.
    Raises:
        ValueError: more than two `cpe`, or a rate outside of its range.
    """

    def __init__(
        self,
        mixer: nn.Module,
        mlp: nn.Module,
        *,
        norm: Callable[[], nn.Module],
        cpe: Sequence[nn.Module] = (),
        after_mixer: nn.Module | None = None,
        layer_scale: Callable[[], nn.Module] | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if len(cpe) > 2:
            raise ValueError(f"ResidualBlock: cpe has {len(cpe)} modules; give one for the mixer and one for the MLP.")
        self.cpe1, self.cpe2 = (*cpe, None, None)[:2]
        self.norm1, self.attn = norm(), mixer
        self.norm3 = None if after_mixer is None else norm()
        self.local_mp = after_mixer
        self.norm2, self.mlp = norm(), mlp
        self.ls1 = nn.Identity() if layer_scale is None else layer_scale()
        self.ls2 = nn.Identity() if layer_scale is None else layer_scale()
        self.dropout, self.drop_path = nn.Dropout(dropout), DropPath(drop_path)

    def forward(self, hidden_states: Tensor, *, cache: Cache | None = None) -> Tensor:
        """[B, *space, C] to the same; `cache` is the mixer's, with the past of the same rows."""
        x = hidden_states if self.cpe1 is None else hidden_states + self.cpe1(hidden_states)
        mixed = self.attn(self.norm1(x)) if cache is None else self.attn(self.norm1(x), cache=cache)
        x = x + self.drop_path(self.dropout(self.ls1(mixed)))
        if self.local_mp is not None and self.norm3 is not None:
            x = x + self.drop_path(self.local_mp(self.norm3(x)))
        if self.cpe2 is not None:
            x = x + self.cpe2(x)
        out: Tensor = x + self.drop_path(self.dropout(self.ls2(self.mlp(self.norm2(x)))))
        return out
