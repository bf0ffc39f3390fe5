"""Causal language models around any mixer: the one body, and the plain model over it.

    x = x + mixer(norm(x));   x = x + mlp(norm(x))        RMSNorm, SwiGLU, no biases, where a family says nothing else

Sizes: B sequences, T tokens, C channels. Names are those of Llama's checkpoints, the mixer being `attn`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.errors import ShapeError
from attensor.models.language._padding import arrange
from attensor.nn import Cache
from attensor.nn._shapes import check_sizes
from attensor.ops._checks import check_devices, check_integers, check_tensor, checked, checked_fields, is_readable

__all__ = ["Body", "Decoder", "DecoderConfig", "DecoderLayer", "Family", "GatedMLP", "post_norm", "pre_norm"]


@checked_fields
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

    def __post_init__(self) -> None:
        """Refuse what no model can be built of."""
        check_sizes(self)


class GatedMLP(nn.Module):
    """`down(activation(gate(x)) * up(x))`: SwiGLU (arXiv:2002.05202), or without activation SGLU (arXiv:2307.14995)."""

    def __init__(
        self,
        hidden_size: int,
        mlp_hidden_size: int,
        activation: Callable[[Tensor], Tensor] | None = F.silu,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.gate_proj = nn.Linear(hidden_size, mlp_hidden_size, bias=bias)
        self.up_proj = nn.Linear(hidden_size, mlp_hidden_size, bias=bias)
        self.down_proj = nn.Linear(mlp_hidden_size, hidden_size, bias=bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        gate = self.gate_proj(hidden_states)
        gate = gate if self.activation is None else self.activation(gate)
        out: Tensor = self.down_proj(gate * self.up_proj(hidden_states))
        return out


def gated_mlp(config: Any) -> nn.Module:
    """SwiGLU of a configuration's sizes."""
    return GatedMLP(config.hidden_size, config.mlp_hidden_size)


def rms_norm(config: Any) -> nn.Module:
    """RMSNorm of a configuration's sizes."""
    return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)


def pre_norm(layer: DecoderLayer, hidden_states: Tensor, **past: Any) -> Tensor:
    """`x = x + mixer(norm(x))`, `x = x + mlp(norm(x))`."""
    hidden_states = hidden_states + layer.attn(layer.input_layernorm(hidden_states), **past)
    out: Tensor = hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states))
    return out


def post_norm(layer: DecoderLayer, hidden_states: Tensor, **past: Any) -> Tensor:
    """`x = norm(x + mixer(x))`, `x = norm(x + mlp(x))`."""
    hidden_states = layer.input_layernorm(hidden_states + layer.attn(hidden_states, **past))
    out: Tensor = layer.post_attention_layernorm(hidden_states + layer.mlp(hidden_states))
    return out


class Family(NamedTuple):
    """How the parts of a model are made from a configuration.

    Attributes:
        mixer: configuration, layer index -> a causal layer of `attensor.nn`, or any module [B, T, C] to the same.
        mlp: configuration -> module on [..., C].
        norm: configuration -> norm over C.
        block: the order of a layer's parts, `pre_norm`, `post_norm` or a function of the same arguments.
        head_bias: the output projection has a bias.
    """

    mixer: Callable[[Any, int], nn.Module]
    mlp: Callable[[Any], nn.Module] = gated_mlp
    norm: Callable[[Any], nn.Module] = rms_norm
    block: Callable[..., Tensor] = pre_norm
    head_bias: bool = False


class DecoderLayer(nn.Module):
    """Residual block of a mixer and an MLP, in the order that its family states."""

    def __init__(self, config: Any, family: Family, layer_index: int) -> None:
        super().__init__()
        self.input_layernorm = family.norm(config)
        self.attn = family.mixer(config, layer_index)
        self.post_attention_layernorm = family.norm(config)
        self.mlp = family.mlp(config)
        self.block = family.block

    def forward(self, hidden_states: Tensor, **past: Any) -> Tensor:
        """[B, T, C] to [B, T, C]; `cache` and `cu_seqlens` go to the mixer, where they are given."""
        return self.block(self, hidden_states, **past)


class Body(nn.Module):
    """Embedding, blocks and final norm of every language model here; it knows padding, packing and caches."""

    embed_tokens: nn.Embedding
    layers: nn.ModuleList
    norm: nn.Module

    def assemble(
        self, config: Any, family: Family, *, layer: type[DecoderLayer] = DecoderLayer, pad_token_id: int | None = None
    ) -> None:
        """Make the parts."""
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, pad_token_id)
        self.layers = nn.ModuleList(layer(config, family, index) for index in range(config.num_layers))
        self.norm = family.norm(config)

    def embedded(self, tokens: Any, argument: str) -> Tensor:
        """Rows of the embedding table, [B, T, C].

        Args:
            tokens: [B, T], integers.
            argument: what they are called, for messages.
        Raises:
            ShapeError, TypeError: others than these. ValueError: a number that is not in the vocabulary (on a CPU).
        """
        if torch.compiler.is_compiling():
            return self.embed_tokens(tokens)  # type: ignore[no-any-return]
        check_tensor(name := type(self).__name__, argument, tokens)
        if tokens.dim() != 2:
            raise ShapeError(f"{name}: {argument} must be [B, T], got {list(tokens.shape)}; give one row a sequence.")
        # of any device with numbers: weights that are moved in when they are needed wait elsewhere
        table = self.embed_tokens.weight if tokens.is_meta else tokens
        check_integers(name, argument, tokens, table, "the embedding")
        try:
            found: Tensor = self.embed_tokens(tokens)
        except IndexError as error:  # looked at only now, since this runs for every token
            raise ValueError(
                f"{name}: {argument} must be 0 .. {self.embed_tokens.num_embeddings - 1}, those of the vocabulary, got "
                f"{int(tokens.min())} .. {int(tokens.max())}; use the tokenizer of this model."
            ) from error
        return found

    def run(
        self,
        hidden_states: Tensor,
        *,
        caches: Sequence[Cache] | None = None,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        seen: list[Tensor] | None = None,
    ) -> Tensor:
        """Normed hidden states of every token.

        Args:
            hidden_states: [B, T, C], embedded tokens.
            caches: one for each layer; the tokens continue what they hold.
            attention_mask: [B, T] (with caches also [B, tokens before + T]), true or 1 for real tokens. Padding
                anywhere is left out; of what caches hold, only the beginning of a row may be padding.
            cu_seqlens: [N + 1], boundaries of sequences packed into one row (B = 1).
            seen: receives the input of every block.
        Returns:
            [B, T, C]; zeros at padding.
        Raises:
            ShapeError, ValueError: see `_padding.arrange`.
        """
        if not torch.compiler.is_compiling():
            self._check_tensors(hidden_states, attention_mask=attention_mask, cu_seqlens=cu_seqlens)
        layout = arrange((hidden_states.shape[0], hidden_states.shape[1]), attention_mask, cu_seqlens, caches)
        hidden_states = layout.enter(hidden_states)
        packing = {} if layout.cu_seqlens is None else {"cu_seqlens": layout.cu_seqlens}
        beside: Mapping[int, dict[str, Tensor]] = {}
        for index, layer in enumerate(self.layers):
            if seen is not None:
                seen.append(layout.restore(hidden_states))
                hidden_states = layout.enter(seen[-1])  # so that gradients pass through what is seen
            if index == 0:
                beside = self.beside(hidden_states, caches, layout.cu_seqlens)
            # only what is given: a mixer need not know both
            past = {} if caches is None else {"cache": caches[index]}
            hidden_states = layer(hidden_states, **past, **packing, **beside.get(index, {}))
        return layout.restore(self.norm(hidden_states))

    def _check_tensors(self, hidden_states: Tensor, **side: Tensor | None) -> None:
        for argument, x in side.items():
            if x is not None:
                check_tensor(type(self).__name__, argument, x)
                if x.is_meta:
                    check_devices(type(self).__name__, hidden_states, "the tokens", **{argument: x})

    def beside(
        self, hidden_states: Tensor, caches: Sequence[Cache] | None, cu_seqlens: Tensor | None
    ) -> Mapping[int, dict[str, Tensor]]:
        """Number of a layer -> further arguments of its mixer: none.

        Args:
            hidden_states: [B, T, C], embedded tokens as the layers see them.
            caches, cu_seqlens: see `run`.
        """
        return {}


class Decoder(Body):
    """Embedding, blocks of one mixer each, final norm, output projection.

    Can be built on the meta device (`with torch.device("meta")`) to count parameters.

    Args:
        config: sizes.
        mixer: layer index -> module that maps [B, T, C] to [B, T, C] and must be causal. With `cache` and `cu_seqlens`
            arguments and a `new_cache` method it can also decode and read packed rows.
        block: the order of a layer's parts, see `Family`.
    """

    @checked
    def __init__(
        self, config: DecoderConfig, mixer: Callable[[int], nn.Module], *, block: Callable[..., Tensor] = pre_norm
    ) -> None:
        super().__init__()
        self.config = config
        self.assemble(config, Family(mixer=lambda _, index: mixer(index), block=block))
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

    @checked
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

    @checked
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
            caches: from `new_caches`.
            attention_mask, cu_seqlens: see `Body.run`.
        Returns:
            [B, T, vocab_size]; zeros at padding.
        Raises:
            ShapeError: tokens are not [B, T], the mask has another shape, or there is not one cache for each layer.
            ValueError: cu_seqlens and one of the others, or padding after tokens that a cache holds.
        """
        if not torch.compiler.is_compiling():
            self._check_tokens(tokens)
        if caches is not None and len(caches) != len(self.layers):
            raise ShapeError(f"Decoder: caches must be one for each of {len(self.layers)} layers, got {len(caches)}.")
        hidden_states = self.run(
            self.embed_tokens(tokens), caches=caches, attention_mask=attention_mask, cu_seqlens=cu_seqlens
        )
        table = self.embed_tokens.weight if self.config.tie_embeddings else self.lm_head.weight
        return F.linear(hidden_states, table)

    def _check_tokens(self, tokens: Tensor) -> None:
        check_tensor(name := "Decoder", "tokens", tokens)
        if tokens.dim() != 2:
            raise ShapeError(f"{name}: tokens must be [B, T], got {list(tokens.shape)}.")
        check_integers(name, "tokens", tokens, self.embed_tokens.weight, "the embedding")
        count = self.embed_tokens.num_embeddings
        if tokens.numel() and is_readable(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < count:
            raise ValueError(f"{name}: tokens must be 0 .. {count - 1}, those of the vocabulary, got others.")

    def _mixers(self) -> list[Any]:
        return [layer.attn for layer in self.layers]
