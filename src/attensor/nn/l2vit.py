r"""Global linear attention with ReLU features, and what L2ViT puts after it: local concentration, two convolutions per
channel that gather what linear attention has spread over the map.

    y_i = tau sum_j (relu(q_i) . relu(k_j)) v_j / max(sum_j relu(q_i) . relu(k_j), 100)        tau: one for each head

Source: arXiv:2501.16182 and its code.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.nn._shapes import check_hidden_states, check_range
from attensor.nn.grid_attention import GridMixer
from attensor.nn.mixer import Heads
from attensor.ops import Denominator, kernel_attention
from attensor.ops._checks import checked

__all__ = ["GlobalLinearAttention", "LocalConcentration"]


class GlobalLinearAttention(GridMixer):
    """Every cell of a grid of one to three axes sees all cells at linear cost, O(cells * C^2 / heads); no positions.

    The denominator is raised to at least `denominator_minimum`. A row whose weights sum up to less is therefore not
    normalised; on maps of few cells that can be all of them, so that a small model wants a small minimum.

    Keys of the state_dict, as published: `qkv.*` (rows q, k, v, each by head), `proj.*`, `temperature [H, 1, 1]`; with
    `local_concentration` also `norm3.*` and `local_mp.*`, which the published checkpoints keep in the block.

    Args:
        hidden_size: channels C of input and output.
        num_heads: heads H, each of C / H channels.
        denominator_minimum: what the sum of the weights is raised to, > 0; no gradient flows where that happens.
        local_concentration: let a `LocalConcentration` with its own residual follow: with y the attention of x, the
            output is `y + lcm(norm(x + y))`. In a residual block that is L2ViT's order, but for the stream that the
            second norm sees: x is the normed input here. Its batch norm makes images of a training batch see each
            other, and the grid must have two axes.
        device, dtype: of the parameters.
    Raises:
        ValueError: heads do not divide the channels, or a minimum that is not positive.
    Source: arXiv:2501.16182, section 3.
    """

    uses_space = False
    shown = (*GridMixer.shown, "denominator_minimum")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        denominator_minimum: float = 100.0,
        local_concentration: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, num_heads, device=device, dtype=dtype)
        check_range(self, above=0, denominator_minimum=denominator_minimum)
        self.denominator_minimum = denominator_minimum
        self.temperature = nn.Parameter(torch.empty(num_heads, 1, 1, device=device, dtype=dtype))
        self.local_mp: LocalConcentration | None = None
        if local_concentration:
            self.ranks = (4,)
            self.norm3 = nn.LayerNorm(hidden_size, device=device, dtype=dtype)
            self.local_mp = LocalConcentration(hidden_size, device=device, dtype=dtype)
        self.reset_own_parameters()

    def reset_own_parameters(self) -> None:
        """Temperatures start at D^-1/2."""
        nn.init.constant_(self.temperature, self.head_dim**-0.5)

    def attend(self, heads: Heads) -> Tensor:
        """Every cell over all cells: [B, *space, H, D]."""
        space = heads.q.shape[1:-2]
        q, k, v = (x.flatten(1, -3) for x in heads[:3])
        divide = Denominator(minimum=self.denominator_minimum)
        out, _ = kernel_attention(q, k, v, is_causal=False, feature_map="relu", denominator=divide)
        return torch.unflatten(out * self.temperature.squeeze(-1), 1, space)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, *space, C] to the same, see `Mixer.forward`."""
        mixed = super().forward(hidden_states)
        if self.local_mp is None:
            return mixed
        concentrated: Tensor = self.local_mp(self.norm3(hidden_states + mixed))
        return mixed + concentrated


class LocalConcentration(nn.Module):
    """`conv2(batch_norm(gelu(conv1(x))))` with convolutions of one channel each: the LCM of L2ViT.

    The residual and the norm before it belong to the block around it: `x + lcm(norm(x))`, after the attention's own
    residual. Cost O(cells * kernel_size^2 * C). In training the batch norm takes its statistics over the batch, so that
    images of a batch see each other; in evaluation they do not.
    Keys of the state_dict: `conv1.*`, `bn.*`, `conv2.*`.

    Args:
        hidden_size: channels C.
        kernel_size: side of the convolutions in cells, odd.
        device, dtype: of the parameters.
    Raises:
        ValueError: an even kernel, which would shift the map.
    Source: arXiv:2501.16182, section 3 (local concentration module).
    """

    @checked
    def __init__(
        self,
        hidden_size: int,
        *,
        kernel_size: int = 7,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_range(self, 1, hidden_size=hidden_size)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"LocalConcentration: kernel_size must be odd, got {kernel_size}; use {kernel_size + 1}.")
        self.hidden_size = hidden_size
        depthwise = partial(nn.Conv2d, hidden_size, hidden_size, kernel_size, padding="same", groups=hidden_size)
        self.conv1 = depthwise(device=device, dtype=dtype)
        self.bn = nn.BatchNorm2d(hidden_size, device=device, dtype=dtype)
        self.conv2 = depthwise(device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the convolutions anew and forget the statistics."""
        for module in (self.conv1, self.bn, self.conv2):
            module.reset_parameters()

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Gather what is near each cell.

        Args:
            hidden_states: [B, height, width, C].
        Returns:
            [B, height, width, C].
        Raises:
            ShapeError: another rank or width.
        """
        check_hidden_states(self, hidden_states, self.hidden_size, (4,))
        channels_first = hidden_states.movedim(-1, 1)  # a view in the layout that convolutions like best on a CPU
        out: Tensor = self.conv2(self.bn(F.gelu(self.conv1(channels_first)))).movedim(1, -1)
        return out
