r"""Global linear attention with ReLU features, and the local concentration that L2ViT puts after it.

    y_i = tau sum_j (relu(q_i) . relu(k_j)) v_j / max(sum_j relu(q_i) . relu(k_j), 100)        tau: one for each head

Source: arXiv:2501.16182 and its code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attensor.nn.grid_attention import GridMixer
from attensor.nn.local_concentration import LocalConcentration
from attensor.nn.mixer import Heads
from attensor.ops import Denominator, kernel_attention

__all__ = ["GlobalLinearAttention"]


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
        if denominator_minimum <= 0:
            raise ValueError(
                f"GlobalLinearAttention: denominator_minimum must be positive, got {denominator_minimum}; "
                "a row of zero weights would be divided by zero."
            )
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
