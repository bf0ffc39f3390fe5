"""A causal language model around any mixer: tokens in, logits of the next token out.

    x = x + mixer(norm(x));   x = x + mlp(norm(x))        RMSNorm, SwiGLU, no biases

Sizes: B sequences, T tokens, C channels. Names are those of Llama's checkpoints, the mixer being `attn`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from attensor.errors import ShapeError
from attensor.nn import Cache, pad, unpad

__all__ = ["Decoder", "DecoderConfig"]


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder.

    Attributes:
        vocab_size: tokens that exist.
        hidden_size: channels C.
        num_layers: blocks.
        num_heads: heads of the mixers, for whoever builds them.
        mlp_hidden_size: channels inside the MLP.
        tie_embeddings: the output projection is the embedding table.
        norm_eps: added to the mean square in the norms.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_hidden_size: int
    tie_embeddings: bool = True
    norm_eps: float = 1e-6


class GatedMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))`, arXiv:2002.05202 (SwiGLU)."""

    def __init__(self, hidden_size: int, mlp_hidden_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, mlp_hidden_size, bias=False)
        self.down_proj = nn.Linear(mlp_hidden_size, hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))
        return out


class DecoderLayer(nn.Module):
    """Pre-norm residual block of a mixer and a gated MLP."""

    def __init__(self, config: DecoderConfig, mixer: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attn = mixer
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.mlp_hidden_size)

    def forward(self, hidden_states: Tensor, **mixer_arguments: Cache | Tensor) -> Tensor:
        """[B, T, C] to [B, T, C]; the keyword arguments go to the mixer."""
        hidden_states = hidden_states + self.attn(self.input_layernorm(hidden_states), **mixer_arguments)
        out: Tensor = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return out


class Decoder(nn.Module):
    """Embedding, a stack of `DecoderLayer`s, norm and output projection.

    Can be built on the meta device (`with torch.device("meta")`) to count parameters.

    Args:
        config: sizes.
        mixer: layer index -> module that maps [B, T, C] to [B, T, C] and must be causal. With `cache` and `cu_seqlens`
            arguments and a `new_cache` method it can also decode and read packed rows.
    """

    def __init__(self, config: DecoderConfig, mixer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, mixer(i)) for i in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the embedding and output tables, normal with variance 1 / C: first logits then have variance 1.

        The other parts have been drawn by their constructors, and a mixer's own choice is left alone.
        """
        # a fixed 0.02, usual at C = 1024, costs a 64 channels wide model about 0.4 bits per byte after 300 steps
        std = self.config.hidden_size**-0.5
        nn.init.normal_(self.embed_tokens.weight, std=std)
        if not self.config.tie_embeddings:
            nn.init.normal_(self.lm_head.weight, std=std)

    @property
    def can_decode(self) -> bool:
        """Whether every mixer has a cache to decode with."""
        return all(hasattr(mixer, "new_cache") for mixer in self._mixers())

    def new_caches(self, batch_size: int, max_length: int | None = None) -> list[Cache]:
        """One empty cache for each layer.

        Args:
            batch_size: sequences.
            max_length: tokens to reserve room for.
        Raises:
            ValueError: a mixer has no `new_cache`; `generate` then computes everything anew for each token.
        """
        if not self.can_decode:
            without = sorted({type(mixer).__name__ for mixer in self._mixers() if not hasattr(mixer, "new_cache")})
            raise ValueError(
                f"Decoder.new_caches: {', '.join(without)} has no new_cache; call the decoder without caches."
            )
        return [mixer.new_cache(batch_size, max_length) for mixer in self._mixers()]

    def forward(
        self,
        tokens: Tensor,
        *,
        caches: Sequence[Cache] | None = None,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """Logits of the token after each token.

        Args:
            tokens: [B, T], integers.
            caches: one for each layer, from `new_caches`; the tokens continue what they hold.
            attention_mask: [B, T], true or 1 for real tokens; padding anywhere is left out of the computation.
            cu_seqlens: [N + 1], boundaries of sequences packed into one row (B = 1).
        Returns:
            [B, T, vocab_size]; zeros at padding.
        Raises:
            ShapeError: tokens are not [B, T], the mask has another shape, or there is not one cache for each layer.
            ValueError: more than one of caches, attention_mask and cu_seqlens.
        """
        self._check(tokens, caches, attention_mask, cu_seqlens)
        if attention_mask is not None:
            packed, cu_seqlens, index = unpad(tokens, attention_mask)
            return pad(self._logits(packed, None, cu_seqlens), index, *tokens.shape)
        return self._logits(tokens, caches, cu_seqlens)

    def _logits(self, tokens: Tensor, caches: Sequence[Cache] | None, cu_seqlens: Tensor | None) -> Tensor:
        hidden_states = self.embed_tokens(tokens)
        packing = {} if cu_seqlens is None else {"cu_seqlens": cu_seqlens}
        for i, layer in enumerate(self.layers):
            past = {} if caches is None else {"cache": caches[i]}
            hidden_states = layer(hidden_states, **past, **packing)
        table = self.embed_tokens.weight if self.config.tie_embeddings else self.lm_head.weight
        return F.linear(self.norm(hidden_states), table)

    def _check(self, tokens: Tensor, caches: Sequence[Cache] | None, *alternatives: Tensor | None) -> None:
        if tokens.dim() != 2:
            raise ShapeError(f"Decoder: tokens must be [B, T], got {list(tokens.shape)}.")
        if sum(given is not None for given in (caches, *alternatives)) > 1:
            raise ValueError("Decoder: caches, attention_mask and cu_seqlens exclude each other; give one of them.")
        if caches is not None and len(caches) != len(self.layers):
            raise ShapeError(f"Decoder: caches must be one for each of {len(self.layers)} layers, got {len(caches)}.")

    def _mixers(self) -> list[Any]:
        return [layer.attn for layer in self.layers]
