"""A fixed sequence that runs beside the tokens, through the same blocks: what queries and keys are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attensor.nn.cache import TokenCache
from attensor.nn.softmax_attention import SoftmaxAttention
from attensor.ops import softmax_attention

__all__ = ["BesideAttention", "SideStream"]


class BesideAttention(SoftmaxAttention):
    """Softmax attention whose queries and keys are of the sequence beside: a cache holds the values of its rows alone.

    The keys of the stream are the same for all rows; outside training the layer keeps them once, as long as the stream
    is the same tensor: (B + 1) L C numbers for B rows of L tokens, as the paper's table has them.
    """

    reads_in_any_order = False  # the keys lie in the order of the places
    _kept: tuple[Tensor, Tensor] | None = None

    def forward(
        self,
        hidden_states: Tensor,
        *,
        cache: Any = None,
        cu_seqlens: Tensor | None = None,
        qk_source: Tensor | None = None,
        stream: Tensor | None = None,
    ) -> Tensor:
        """As `SoftmaxAttention`; with a cache the stream [places, C] too, of which qk_source is what is read now."""
        if cache is None or qk_source is None or stream is None:
            return super().forward(hidden_states, cache=cache, cu_seqlens=cu_seqlens, qk_source=qk_source)
        positions = self._accepted(hidden_states, cache, cu_seqlens)
        heads = self._project_apart(hidden_states, qk_source, positions)
        values = cache.append(values=heads.v)["values"]
        heads = heads._replace(v=values[:, -cache.length :])  # a static cache begins with slots that hold no token yet
        k = self._keys(stream)[:, : cache.length]
        real = cache.real(0, cache.length)
        if real is None:
            if hidden_states.shape[1] == 1:  # a view of the keys costs less than values side by side
                k = k.expand(len(heads.v), -1, -1, -1)
                heads = heads._replace(q=heads.q.expand(len(heads.v), -1, -1, -1))
            out = self.attend(heads._replace(k=k))
        else:  # each row has its own positions
            places = torch.arange(cache.length, device=k.device) - cache.first[:, None]
            options: dict[str, Any] = {"is_causal": self.is_causal, "attn_mask": real[:, None, None]}
            options["dropout_p"] = self.dropout_p if self.training else 0.0
            out = softmax_attention(
                heads.q.expand(len(places), -1, -1, -1), k[0][places.clamp(min=0)], heads.v, **options
            )
        return self.merge(out, heads).view(hidden_states.shape)

    def _keys(self, stream: Tensor) -> Tensor:
        """Of all places of the stream, [1, places, H, K]."""
        if self._kept is not None and self._kept[0] is stream:
            return self._kept[1]
        places = torch.arange(len(stream), device=stream.device)
        keys = self.project(stream[None], places if self.uses_positions else None).k
        may_keep = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        self._kept = (stream, keys) if may_keep else None
        return keys

    def _new_cache(
        self, batch_size: int, max_length: int | None, device: torch.device, dtype: torch.dtype | None
    ) -> TokenCache:
        sizes = {"values": (self.num_kv_heads, self.head_dim)}
        return TokenCache(batch_size, sizes, max_length=max_length, device=device, dtype=dtype)


class SideStream(nn.Module):
    """Normed inputs of every block for one sequence of fixed tokens, or of fixed random vectors.

    Run once a step in training, with gradients into the shared weights; outside training it is kept until a weight
    changes (in-place changes through `.data` are not seen).

    Args:
        config: a `DeconstructedConfig`.
    """

    tokens: Tensor
    vectors: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.length, self.std, self.vocab_size = config.stream_length, config.initializer_range, config.vocab_size
        self.given, self.is_text = config.fixed_tokens, config.variant == "fixed-sequence"
        self._kept: tuple[Any, list[Tensor]] | None = None
        if self.is_text:
            self.register_buffer("tokens", torch.zeros(self.length, dtype=torch.int64))
        else:
            self.register_buffer("vectors", torch.zeros(self.length, config.hidden_size))
        self.reset_own_parameters()

    def reset_own_parameters(self) -> None:
        """Take the tokens that the configuration gives, or draw the sequence."""
        for name, buffer in self.named_buffers():
            if buffer.is_meta:
                continue
            if name == "vectors":
                nn.init.normal_(buffer, std=self.std)
            else:
                same = torch.Generator().manual_seed(0)  # as buffers that a model makes are the same each time
                drawn = self.given or torch.randint(self.vocab_size, (self.length,), generator=same)
                buffer.copy_(torch.as_tensor(drawn))

    def forward(self, body: Any, positions: Tensor, blocks: int) -> list[Tensor]:
        """Of the first blocks the normed input at all places up to the last of `positions`: [places, C] each.

        Args:
            body: with `embed_tokens` and `layers`.
            blocks: how many.
            positions: [T] or [B, T], that will be read.
        Raises:
            ValueError: a position beyond the sequence.
        """
        needed = self.length
        if not torch.compiler.is_compiling() and not positions.is_meta:
            needed = int(positions.max()) + 1 if positions.numel() else 0
        if needed > self.length:
            raise ValueError(
                f"{type(body).__name__}: sequences must have at most {self.length} tokens, as stream_length has, got "
                f"{needed}; nothing is defined beyond the sequence beside. Make the model with a longer one."
            )
        may_keep = not (body.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
        if not may_keep:
            self._kept = None
            return self._run(body, needed, blocks)
        weights = [*body.parameters(), *self.buffers()]
        if any(x.is_inference() or x.is_meta for x in weights):
            return self._run(body, needed, blocks)
        key = [(id(x), x._version, x.data_ptr(), x.dtype) for x in weights]
        if self._kept is None or self._kept[0] != key or len(self._kept[1][0]) < needed:
            # twice what is needed, so that decoding does not run it for every token
            self._kept = key, self._run(body, min(max(2 * needed, 64), self.length), blocks)
        return self._kept[1]

    def _run(self, body: Any, places: int, blocks: int) -> list[Tensor]:
        found = []
        if self.is_text:
            tokens = self.tokens[:places].remainder(body.embed_tokens.num_embeddings)  # which may have become fewer
            hidden_states = body.embed_tokens(tokens)[None]
        else:
            hidden_states = self.vectors[:places].to(body.embed_tokens.weight.dtype)[None]
        for index, layer in enumerate(body.layers[:blocks]):
            hidden_states = body.layers[index - 1](hidden_states) if index else hidden_states
            found.append(layer.input_layernorm(hidden_states)[0])
        return found
