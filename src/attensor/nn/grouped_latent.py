"""Grouped latent attention as a layer: several latents a token, each for some of the heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attensor.nn._shapes import check_range
from attensor.nn.latent import EPSILON, LatentAttention
from attensor.nn.rotary import Frequencies, Yarn

__all__ = ["GroupedLatentAttention"]


class GroupedLatentAttention(LatentAttention):
    """Grouped latent attention (GLA): G latents a token, each with a norm of its own and read by H / G heads alone.

    Trained from scratch, it can be cut over G devices without loss; a trained `LatentAttention` cannot become one
    without (`Slicing` is what comes near). Cost and cache as there, for G kv_rank + rotary_dim numbers a token.

    Args:
        hidden_size: channels C of input and output.
        num_heads: heads H, each of C / H channels for keys and for values.
        num_latents: G, a divisor of H; the least above one if None, which is 2 where H is even.
        kv_rank: width of each latent; twice C / H if None.
        q_rank: width of the latent that queries are made of; None for a plain projection.
        rotary_dim: width of the part that turns with the position; half of C / H if None.
        rotary: base of the rotary positions, or how they are stretched.
        device, dtype: of the parameters.
    Raises:
        ValueError: num_latents does not divide the heads, or what `LatentAttention` refuses.
    Source: arXiv:2505.21487, section 3.3.
    """

    shown = ("hidden_size", "num_heads", "num_latents", "kv_rank", "q_rank", "rotary_dim")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        num_latents: int | None = None,
        kv_rank: int | None = None,
        q_rank: int | None = None,
        rotary_dim: int | None = None,
        rotary: float | Frequencies | Yarn | Mapping[str, Any] = 10_000.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_range("GroupedLatentAttention", 1, num_heads=num_heads, num_latents=num_latents)
        if num_latents is None:
            num_latents = next((n for n in range(2, num_heads) if num_heads % n == 0), num_heads)
        if num_heads % num_latents:
            raise ValueError(
                f"GroupedLatentAttention: num_latents must divide num_heads {num_heads}, got {num_latents}; each "
                "latent serves the same number of heads."
            )
        rank = max(2 * hidden_size // num_heads, 1) if kv_rank is None else kv_rank
        self.num_latents = num_latents  # before the projections, whose sizes it decides
        super().__init__(
            hidden_size,
            num_heads,
            kv_rank=rank,
            q_rank=q_rank,
            rotary_dim=rotary_dim,
            rotary=rotary,
            device=device,
            dtype=dtype,
        )
        self.kv_a_layernorm = _Norms(num_latents, rank, device=device, dtype=dtype)


class _Norms(nn.Module):
    """A norm of each of some vectors laid one after the other, with weights of their own."""

    def __init__(self, count: int, width: int, *, device: Any, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(count, width, device=device, dtype=dtype))

    def reset_own_parameters(self) -> None:
        """Fill the weights anew: with ones."""
        nn.init.ones_(self.weight)

    reset_parameters = reset_own_parameters

    def forward(self, x: Tensor) -> Tensor:
        count, width = self.weight.shape
        dtype = torch.promote_types(x.dtype, torch.float32)
        vectors = torch.unflatten(x.to(dtype), -1, (count, width))
        normed: Tensor = nn.functional.rms_norm(vectors, (width,), None, EPSILON) * self.weight.to(dtype)
        return normed.flatten(-2)
