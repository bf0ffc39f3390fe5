"""The body of the linear family: projections, one chunked recurrence, output norm, gate, decode state.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T        o_t = scale * S_t^T q_t        y = W_o (gate(x) * norm(o))

Members of the family differ in the log decay g and in what they put around it; each states only that.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.nn._shapes import check_hidden_states, head_dim, kv_heads, refuse_cache_with_packing
from attensor.nn.cache import StateCache
from attensor.nn.rotary import rotary_embedding, token_positions
from attensor.ops import linear_attention, linear_attention_step

__all__ = ["LinearAttention"]

Norm = Literal["rms", "layer", "rms-all-heads"]
Gate = Literal["swish", "sigmoid"]


class LinearAttention(nn.Module):
    """Attention without softmax: a matrix state of constant size sums up the past (no decay in this class).

    Cost O(T (chunk + K) V) per head; decoding keeps one [K, V] matrix per head. No denominator: the norm after it takes
    that role. Keys of the state_dict: `{q,k,v,o}_proj.weight`, `g_norm.weight`, and `g_proj` where there is a gate.

    A subclass overrides `log_decay` (and `features`, `scale`, `rotary`) and is done.

    Args:
        hidden_size: channels C of input and output.
        num_heads: query heads H.
        num_kv_heads: key/value heads, a divisor of H; H if None.
        key_size: channels of all query heads together, K = key_size / H; C if None.
        value_size: channels of all values together, V = value_size / H; C if None.
        norm: of the output: `"rms"` per head with a weight, `"layer"` per head without one, `"rms-all-heads"` over
            all heads together with a weight.
        output_gate: `"swish"` or `"sigmoid"` of a projection of the input multiplies the normed output; none if None.
        gate_bias: that projection has a bias.
        device: of the parameters.
        dtype: of the parameters.
    Raises:
        ValueError: heads do not divide the channels.
    Source: arXiv:2006.16236, section 3.3 (identity features, norm instead of the denominator: arXiv:2210.10340).
    """

    scale: float | None = None  # of the scores; K ** -0.5 if None
    rotary: bool = False  # turn queries and keys by their positions

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        key_size: int | None = None,
        value_size: int | None = None,
        norm: Norm = "rms",
        output_gate: Gate | None = None,
        gate_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size, self.num_heads = hidden_size, num_heads
        head_dim(self, hidden_size, num_heads)
        self.num_kv_heads = kv_heads(self, num_heads, num_kv_heads)
        key_size = hidden_size if key_size is None else key_size
        value_size = hidden_size if value_size is None else value_size
        self.key_dim = head_dim(self, key_size, num_heads, argument="key_size")
        self.value_dim = head_dim(self, value_size, num_heads, argument="value_size")
        self.norm, self.output_gate = norm, output_gate
        self.q_proj = nn.Linear(hidden_size, key_size, bias=False, device=device, dtype=dtype)
        self.k_proj = nn.Linear(hidden_size, self.num_kv_heads * self.key_dim, bias=False, device=device, dtype=dtype)
        self.v_proj = nn.Linear(hidden_size, self.num_kv_heads * self.value_dim, bias=False, device=device, dtype=dtype)
        self.g_norm = self._new_norm(norm, device=device, dtype=dtype)
        if output_gate is not None:
            self.g_proj = nn.Linear(hidden_size, value_size, bias=gate_bias, device=device, dtype=dtype)
        self.o_proj = nn.Linear(value_size, hidden_size, bias=False, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the projections anew, as `nn.Linear` does, and set norms to one."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.RMSNorm):
                module.reset_parameters()

    def features(self, projected: Tensor) -> Tensor:
        """What is done to projected queries, keys and values before the recurrence: nothing."""
        return projected

    def log_decay(self, hidden_states: Tensor) -> Tensor | None:
        """Natural logarithm of the factor that one step multiplies the state by, <= 0; None for no decay.

        Args:
            hidden_states: [B, T, C].
        Returns:
            [Hd], [B, T, Hd] or [B, T, Hd, K] in at least float32, Hd being all heads or the key/value heads; or None.
        """
        return None

    def forward(
        self, hidden_states: Tensor, *, cache: StateCache | None = None, cu_seqlens: Tensor | None = None
    ) -> Tensor:
        """Mix the tokens.

        Args:
            hidden_states: [B, T, C].
            cache: state of the same sequences; the tokens are added to it.
            cu_seqlens: [N + 1], boundaries of sequences packed into one row (B = 1).
        Returns:
            [B, T, C].
        Raises:
            ShapeError: another rank or width.
            ValueError: cache and cu_seqlens together.
        """
        check_hidden_states(self, hidden_states, self.hidden_size, (3,))
        refuse_cache_with_packing(self, cache, cu_seqlens)
        q, k, v = self._project(hidden_states)
        if self.rotary:
            offset = 0 if cache is None else cache.length
            positions = token_positions(q.shape[1], offset=offset, cu_seqlens=cu_seqlens, device=q.device)
            q, k = rotary_embedding(q, positions), rotary_embedding(k, positions)
        decay = self.log_decay(hidden_states)
        if cache is None:
            out = linear_attention(q, k, v, log_decay=decay, scale=self.scale, cu_seqlens=cu_seqlens)[0]
        else:
            out = self._continue(q, k, v, decay, cache)
        mixed: Tensor = self.o_proj(self._norm_and_gate(out, hidden_states))
        return mixed

    def new_cache(
        self,
        batch_size: int,
        max_length: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> StateCache:
        """A state of zeros for `batch_size` sequences.

        Args:
            batch_size: rows.
            max_length: ignored; the state has one size.
            device: the parameters' if None.
            dtype: the parameters' if None; at least float32.
        """
        weight = self.k_proj.weight
        return StateCache(
            batch_size,
            self.num_heads,
            self.key_dim,
            self.value_dim,
            device=weight.device if device is None else device,
            dtype=weight.dtype if dtype is None else dtype,
        )

    def cost_sizes(self, space: tuple[int, ...]) -> dict[str, int]:
        """Values of the symbols of the card's formulas for an input of that size."""
        tokens = torch.Size(space).numel()
        chunk = min(64, 1 << max(tokens - 1, 0).bit_length())
        return {"T": tokens, "H": self.num_heads, "K": self.key_dim, "V": self.value_dim, "C": chunk}

    def extra_repr(self) -> str:
        """Options, for `print(layer)`."""
        return (
            f"hidden_size={self.hidden_size}, num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, "
            f"key_dim={self.key_dim}, value_dim={self.value_dim}, norm={self.norm!r}, output_gate={self.output_gate!r}"
        )

    def _new_norm(
        self, norm: Norm, *, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> nn.RMSNorm | nn.LayerNorm:
        if norm == "layer":
            return nn.LayerNorm(self.value_dim, elementwise_affine=False)
        if norm not in ("rms", "rms-all-heads"):
            raise ValueError(f"{type(self).__name__}: norm must be 'rms', 'layer' or 'rms-all-heads', got {norm!r}.")
        size = self.value_dim * (self.num_heads if norm == "rms-all-heads" else 1)
        return nn.RMSNorm(size, eps=1e-5, device=device, dtype=dtype)

    def _project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self.features(project(hidden_states)) for project in (self.q_proj, self.k_proj, self.v_proj))
        return (
            torch.unflatten(q, -1, (self.num_heads, self.key_dim)),  # [B, T, H, K]
            torch.unflatten(k, -1, (self.num_kv_heads, self.key_dim)),
            torch.unflatten(v, -1, (self.num_kv_heads, self.value_dim)),
        )

    def _continue(self, q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, cache: StateCache) -> Tensor:
        if q.shape[1] == 1:
            now = decay[:, 0] if decay is not None and decay.dim() > 1 else decay
            out, state = linear_attention_step(q[:, 0], k[:, 0], v[:, 0], cache.state, log_decay=now, scale=self.scale)
            out = out[:, None]
        else:
            out, last = linear_attention(
                q, k, v, log_decay=decay, scale=self.scale, initial_state=cache.state, output_final_state=True
            )
            state = cast("Tensor", last)
        cache.update(state, q.shape[1])
        return out

    def _norm_and_gate(self, out: Tensor, hidden_states: Tensor) -> Tensor:
        # autocast leaves norms alone: without this, half-precision states would meet float32 weights
        out = out.to(self.o_proj.weight.dtype)
        normed: Tensor = self.g_norm(out.flatten(-2) if self.norm == "rms-all-heads" else out)
        normed = normed if self.norm == "rms-all-heads" else normed.flatten(-2)  # [B, T, H V]
        if self.output_gate is None:
            return normed
        gate: Tensor = self.g_proj(hidden_states)
        factor = F.silu(gate) if self.output_gate == "swish" else gate.sigmoid()
        return normed * factor
