"""A layer in attention's place that mixes no tokens, with as many parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.nn._shapes import check_range
from attensor.nn.cache import TokenCache
from attensor.nn.mixer import Heads, SequenceMixer

__all__ = ["NoMixing"]


class NoMixing(SequenceMixer):
    """`o(down(silu(gate(x)) * up(x)))` of each token by itself: four C x C matrices, as attention has.

    What a model with it can do needs no attention. Cost 8 T C^2; nothing is kept to decode.

    Args:
        hidden_size: channels C.
        bias: add a learned number to each channel but those of the output, as attention with `qkv_bias` does.
        device, dtype: of the parameters.
    Source: arXiv:2510.11602, equation 5 (the width inside follows from its table of costs).
    """

    num_heads = 1
    shown = ("hidden_size",)

    def __init__(
        self,
        hidden_size: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_range(self, 1, hidden_size=hidden_size)
        self.hidden_size = self.head_dim = hidden_size
        self.gate_proj, self.up_proj, self.down_proj, self.o_proj = (
            nn.Linear(hidden_size, hidden_size, bias=biased, device=device, dtype=dtype)
            for biased in (bias, bias, bias, False)
        )

    def project(self, hidden_states: Tensor, positions: Tensor | None = None) -> Heads:
        """[B, T, C] to gates and what they multiply, [B, T, 1, C]."""
        gate, up = (p(hidden_states)[..., None, :] for p in (self.gate_proj, self.up_proj))
        return Heads(gate, up, up)

    def attend(self, heads: Heads, *, cache: TokenCache | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """The product, token by token: [B, T, 1, C]."""
        if cache is not None:
            cache.append(nothing=heads.v[:, :, 0, :0])
        return F.silu(heads.q) * heads.v

    def merge(self, out: Tensor, heads: Heads) -> Tensor:
        """Both projections: [B, T, 1, C] to [B, T, C]."""
        mixed: Tensor = self.o_proj(self.down_proj(out.flatten(-2)))
        return mixed

    def _new_cache(
        self, batch_size: int, max_length: int | None, device: torch.device, dtype: torch.dtype | None
    ) -> TokenCache:
        return TokenCache(batch_size, {"nothing": (0,)}, max_length=max_length, device=device, dtype=dtype)
