"""Decode caches of `attensor.nn` inside transformers' `Cache`: one recurrent state for each layer, no other memory.

transformers asks a cache for its length, and beam search reorders it; what is held stays attensor's own
(`StateCache`: a matrix for each head, constant in size).
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from attensor.models.language._transformers import Cache, CacheLayerMixin
from attensor.nn import Cache as MixerCache

__all__ = ["MixerCacheLayer", "cache_layers", "new_cache"]


class MixerCacheLayer(CacheLayerMixin):
    """One layer of a transformers cache that holds a cache of `attensor.nn`.

    Attributes:
        held: the mixer's cache; None until the first tokens come, because only they tell the batch size.
    """

    is_compileable = False
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.held: MixerCache | None = None

    def open(self, mixer: Any, hidden_states: Tensor) -> MixerCache:
        """The cache that `mixer` continues; an empty one of its own making at first.

        Args:
            mixer: a causal layer of `attensor.nn`.
            hidden_states: [B, T, C], for batch size, device and dtype.
        """
        if self.held is None:
            held: MixerCache = mixer.new_cache(
                hidden_states.shape[0], device=hidden_states.device, dtype=hidden_states.dtype
            )
            self.held, self.is_initialized = held, True
        return self.held

    def get_seq_length(self) -> int:
        """Tokens seen, padding on the left included."""
        return 0 if self.held is None else self.held.length

    def get_max_length(self) -> int:
        """-1: any number of tokens fits."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of a mask over all tokens, the new ones included."""
        return self.get_seq_length() + query_length, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row `beam_idx[i]` was."""
        if self.held is not None:
            self.held.reorder(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times, one after the other."""
        if self.held is not None:
            self.reorder_cache(torch.arange(self._batch_size()).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows only (integers, or a bool for each row)."""
        self.reorder_cache(indices.nonzero().squeeze(1) if indices.dtype == torch.bool else indices)

    def reset(self) -> None:
        """Forget everything."""
        self.held, self.is_initialized = None, False

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse to unwind a recurrent state; removing nothing is allowed.

        Raises:
            ValueError: anything else than 0 tokens.
        """
        if tokens_to_remove:
            raise ValueError(
                f"MixerCacheLayer.crop: a recurrent state cannot be unwound by {abs(tokens_to_remove)} tokens; start "
                "with a new cache and run the tokens again, or copy the cache before the tokens to be removed."
            )

    def offload(self) -> None:
        """Do nothing: a state has one size, and it is small."""

    def prefetch(self) -> None:
        """Do nothing, see `offload`."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> NoReturn:
        """Refuse: there are no keys and values to hold; layers use `open`."""
        raise NotImplementedError("MixerCacheLayer: a recurrent layer has no keys and values to hold; use open(mixer).")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: there are no keys and values to hold; layers use `open`."""
        self.lazy_initialization(key_states, value_states)

    def _batch_size(self) -> int:
        held = {} if self.held is None else self.held.state_dict()
        return next(tensor.shape[0] for name, tensor in held.items() if name != "length")


def new_cache(num_layers: int) -> Cache:
    """An empty cache for a model of that many layers."""
    return Cache(layers=[MixerCacheLayer() for _ in range(num_layers)])


def cache_layers(cache: Cache, num_layers: int) -> list[MixerCacheLayer]:
    """The layers of a cache that a model of that many layers can continue.

    Raises:
        TypeError: another kind of cache.
    """
    layers = [layer for layer in cache.layers if isinstance(layer, MixerCacheLayer)]
    if len(layers) != num_layers or len(cache.layers) != num_layers:
        kinds = ", ".join(sorted({type(layer).__name__ for layer in cache.layers})) or "no layers"
        raise TypeError(
            f"past_key_values must hold {num_layers} MixerCacheLayer, got {len(cache.layers)} ({kinds}); "
            "make one with model.new_cache(), or leave it out."
        )
    return layers
