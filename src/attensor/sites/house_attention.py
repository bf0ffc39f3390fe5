"""A layer of attensor in the place of transformers' attention modules: called as they are.

The mask becomes a number of padding tokens in front or packed rows, and the layer of transformers' cache becomes one
that holds the layer's own (`MixerCacheLayer`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attensor.nn import Heads, SequenceMixer
from attensor.nn.linear_attention import LinearAttention
from attensor.nn.softmax_attention import SoftmaxAttention

__all__ = ["HouseAttention", "projection_of", "real_tokens", "turned", "turns_whole_heads"]


class HouseAttention(nn.Module):
    """A layer of attensor under the call of transformers' attention modules.

    Args:
        layer: [B, T, C] to the same.
        layer_index: which layer of the model's cache is this one's.
        kind: of the attention that was there, `"llama"`, `"gpt2"` or `"bert"`.
        after: what transformers does to the output of the projection, a dropout.
    """

    def __init__(self, layer: nn.Module, layer_index: int | None, kind: str, *, after: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.layer_idx, self.kind = layer, layer_index, kind
        self.after = nn.Identity() if after is None else after

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """The output, and None for the weights.

        Args:
            hidden_states: [B, T, C].
            position_embeddings: cosines and sines [B or 1, T, width] that a layer with rotary positions turns by; one
                with positions of another kind counts them itself, from each row's first real token.
            attention_mask: [B, 1, T, keys], bool or added to scores, or [B, tokens] true for real ones.
            past_key_values: the model's cache; its layer becomes a `MixerCacheLayer`.
            kwargs: further arguments; of these `encoder_hidden_states` must be None.
        Raises:
            ValueError: cross-attention, a cache of a layer without states, or a mask that is none of padding.
        """
        from attensor.models.language._padding import arrange

        if kwargs.get("encoder_hidden_states") is not None:
            raise ValueError(f"{type(self.layer).__name__}: encoder_hidden_states: cross-attention cannot be swapped.")
        rows, tokens = hidden_states.shape[:2]
        real = real_tokens(attention_mask, tokens)
        if not isinstance(self.layer, SequenceMixer):
            return self.after(_row_by_row(self.layer, hidden_states, real)), None
        cache = None if past_key_values is None else self._cache(past_key_values, hidden_states)
        layout = arrange((rows, tokens), real, None, None if cache is None else [cache])
        packing = {} if layout.cu_seqlens is None else {"cu_seqlens": layout.cu_seqlens}
        inputs = layout.enter(hidden_states)
        if position_embeddings is not None and turns_whole_heads(self.layer):
            tables = [layout.enter(table.expand(rows, -1, -1)) for table in position_embeddings]
            heads = turned(self.layer.project(inputs), *tables)
            out = self.layer.merge(self.layer.attend(heads, cache=cache, **packing), heads)
        else:
            out = self.layer(inputs, cache=cache, **packing)
        return self.after(layout.restore(out)), None

    def _cache(self, past_key_values: Any, hidden_states: Tensor) -> Any:
        from attensor.models.language._hf_cache import MixerCacheLayer, ModelCache, opened

        past = getattr(past_key_values, "self_attention_cache", past_key_values)
        if self.layer_idx is None:
            raise ValueError(f"{type(self.layer).__name__}: the module has no layer_idx, so that its cache is unknown.")
        while len(past.layers) <= self.layer_idx:
            past.layers.append(past.layer_class_to_replicate())
        held = past.layers[self.layer_idx]
        if not isinstance(held, MixerCacheLayer):
            if held.get_seq_length() > 0:
                raise ValueError(
                    f"{type(self.layer).__name__}: past_key_values already holds {held.get_seq_length()} tokens of "
                    "another attention; begin with an empty cache after a swap."
                )
            past.layers[self.layer_idx] = held = MixerCacheLayer()
        view = ModelCache(0)
        view.layers = [held]
        return opened(view, [self.layer], hidden_states)[0]


def turns_whole_heads(layer: SequenceMixer) -> bool:
    """Whether a layer's positions are rotary ones of queries and keys, so that the model's own tables do as well.

    They may be stretched for long contexts, which the layer does not know.
    """
    own = not isinstance(layer, LinearAttention) or type(layer).embed_positions is LinearAttention.embed_positions
    return isinstance(layer, SoftmaxAttention | LinearAttention) and layer.uses_positions and own


def turned(heads: Heads, cos: Tensor, sin: Tensor) -> Heads:
    """Queries and keys [B, T, H, K] turned by tables [B, T, width], width <= K; the rest of a head stays."""
    cos, sin = cos[:, :, None], sin[:, :, None]

    def turn(x: Tensor) -> Tensor:
        turning, still = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
        first, second = turning.chunk(2, -1)
        turned = turning * cos + torch.cat([-second, first], -1) * sin
        return torch.cat([turned, still], -1) if still.shape[-1] else turned

    return heads._replace(q=turn(heads.q), k=turn(heads.k))


def real_tokens(mask: Tensor | None, tokens: int) -> Tensor | None:
    """Which of the new tokens are real, [B, T], from the masks that transformers hands to attention.

    A token that is not padding sees itself: its own entry of the mask says so.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        raise ValueError(
            f"attention_mask: a layer of attensor needs [B, tokens] or [B, 1, T, keys], got {type(mask).__name__}; use "
            'attn_implementation="sdpa" or "eager".'
        )
    if mask.dim() == 2:
        return mask[:, -tokens:].bool()
    own = mask[:, 0, :, -tokens:].diagonal(dim1=-2, dim2=-1)
    return own if own.dtype == torch.bool else own >= 0


def _row_by_row(layer: nn.Module, hidden_states: Tensor, real: Tensor | None) -> Tensor:
    """A layer that knows no padding: rows with padding one by one, without it."""
    if real is None or bool(real.all()):
        whole: Tensor = layer(hidden_states)
        return whole
    out = torch.zeros_like(hidden_states)
    for row, kept in enumerate(real):
        out[row, kept] = layer(hidden_states[row : row + 1, kept])[0].to(out.dtype)
    return out


def projection_of(layer: nn.Module) -> nn.Module | None:
    """The output projection of a layer of attensor, by either of its names."""
    return getattr(layer, "o_proj", None) or getattr(layer, "proj", None)
