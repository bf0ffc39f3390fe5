"""The body of the grid layers: one joint projection to queries, keys and values, one back."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from attensor.errors import ShapeError
from attensor.nn._carried import carry, given
from attensor.nn._shapes import head_dim
from attensor.nn.attention_weights import AttentionWeights
from attensor.nn.mixer import Heads, Mixer

__all__ = ["GridMixer"]


class GridMixer(Mixer):
    """Projections around an attention over `[B, *space, C]`; a subclass says in `attend` who sees whom.

    Keys of the state_dict, as in vision checkpoints: `qkv.*` (rows q, k, v, each by head), `proj.*`.

    Args:
        hidden_size: channels C of input and output.
        num_heads: heads H, each of C / H channels.
        device, dtype: of the parameters.
    Raises:
        ValueError: heads do not divide the channels.
    """

    ranks: tuple[int, ...] = (3, 4, 5)
    uses_space: bool = True  # which cells are neighbours matters

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size, self.num_heads = hidden_size, num_heads
        self.head_dim = head_dim(self, hidden_size, num_heads)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, device=device, dtype=dtype)
        self.proj = nn.Linear(hidden_size, hidden_size, device=device, dtype=dtype)

    @classmethod
    def from_attention(cls, weights: AttentionWeights, **options: Any) -> Self:
        """A layer with the projections of a trained attention, for another choice of who sees whom.

        Args:
            weights: of attention that sees both sides, with a key/value head for each query head.
            options: of the constructor.
        Raises:
            ShapeError, ValueError: grouped heads, heads of another width, rotary positions, or causal attention.
        """
        who, (rows, channels) = f"{cls.__name__}.from_attention", weights.q.shape
        if weights.is_causal or weights.rotary_base is not None:
            raise ValueError(
                f"{who}: weights must be of attention that sees both sides, without rotary positions, got is_causal="
                f'{weights.is_causal} and rotary_base={weights.rotary_base}; take "sliding-window" for sequences.'
            )
        if weights.num_kv_heads != weights.num_heads or rows != channels:
            raise ShapeError(
                f"{who}: weights must have as many key/value heads as heads, which share the {channels} channels, got "
                f"{weights.num_heads} heads, {weights.num_kv_heads} key/value heads of width {weights.head_dim}."
            )
        made = {"device": weights.q.device, "dtype": weights.q.dtype}
        layer = cls(channels, weights.num_heads, **{**made, **options})
        parts = [(weights.q, weights.q_bias), (weights.k, weights.k_bias), (weights.v, weights.v_bias)]
        biases = [torch.zeros_like(weight[:, 0]) if bias is None else bias for weight, bias in parts]
        carry(layer, "qkv", layer.qkv, torch.cat([weight for weight, _ in parts]), torch.cat(biases))
        carry(layer, "proj", layer.proj, weights.out, weights.out_bias)
        return layer

    def to_attention(self) -> AttentionWeights:
        """The projections, for another attention; they share this layer's memory, absent biases are zeros."""
        out: dict[str, Any] = given(out=self.proj)
        q, k, v = self.qkv.weight.detach().chunk(3)
        q_bias, k_bias, v_bias = self.qkv.bias.detach().chunk(3)
        return AttentionWeights(
            q=q,
            k=k,
            v=v,
            **out,
            q_bias=q_bias,
            k_bias=k_bias,
            v_bias=v_bias,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=self.head_dim,
            rotary_base=None,
            is_causal=False,
        )

    def project(self, hidden_states: Tensor) -> Heads:
        """[B, *space, C] to queries, keys and values [B, *space, H, D]."""
        return Heads(*self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3))

    def merge(self, out: Tensor, heads: Heads) -> Tensor:
        """Output projection: [B, *space, H, D] to [B, *space, C]."""
        mixed: Tensor = self.proj(out.flatten(-2))
        return mixed
