"""Decode caches of `attensor.nn` inside transformers' `Cache`, one for each layer.

transformers asks a cache for its length, and generation reorders and crops it; what is held stays the mixer's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from attensor.models.language._transformers import Cache, CacheLayerMixin
from attensor.nn import Cache as MixerCache

__all__ = ["MixerCacheLayer", "ModelCache", "opened"]


class MixerCacheLayer(CacheLayerMixin):
    """One layer of a transformers cache that holds a cache of `attensor.nn`.

    Attributes:
        held: the mixer's cache; None until the first tokens come, because only they tell the batch size.
    """

    is_compileable = False
    supports_early_init = False
    held: MixerCache | None = None

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        """Whether any number of tokens may be removed again."""
        return self.held is None or self.held.can_crop

    def get_seq_length(self) -> int:
        """Tokens seen, padding at the beginning included."""
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
            self.reorder_cache(torch.arange(self.held.batch_size).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows only (integers, or a bool for each row)."""
        self.reorder_cache(indices.nonzero().squeeze(1) if indices.dtype == torch.bool else indices)

    def reset(self) -> None:
        """Forget everything."""
        self.held, self.is_initialized = None, False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; transformers counts them below zero.

        Raises:
            ValueError: the held cache refuses, as a recurrent state does.
        """
        if self.held is not None:
            self.held.crop(self.held.length + tokens_to_remove)

    def offload(self) -> None:
        """Do nothing: what is held stays where the mixer put it."""

    def prefetch(self) -> None:
        """Do nothing, see `offload`."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> NoReturn:
        """Refuse: what is held is the mixer's own; see `opened`."""
        raise NotImplementedError("MixerCacheLayer: what is held is the mixer's own; use opened(cache, mixers, ..).")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse, see `lazy_initialization`."""
        self.lazy_initialization(key_states, value_states)


class ModelCache(Cache):
    """The caches of so many layers, cropped together or not at all."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[MixerCacheLayer() for _ in range(num_layers)])

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens in every layer.

        Raises:
            ValueError: a layer refuses; then none has forgotten anything.
        """
        for layer in self.layers:
            if isinstance(layer, MixerCacheLayer) and layer.held is not None:
                layer.held.check_crop(layer.held.length + tokens_to_remove)
        super().crop(tokens_to_remove)


def opened(cache: Cache, mixers: Sequence[Any], hidden_states: Tensor) -> list[MixerCache]:
    """The caches that the mixers of a model continue; empty ones of their own making at first.

    Args:
        cache: from `ModelCache`.
        mixers: causal layers of `attensor.nn`.
        hidden_states: [B, T, C], for batch size and dtype.
    Raises:
        TypeError: another kind of cache, or one of another number of layers.
    """
    layers = [layer for layer in cache.layers if isinstance(layer, MixerCacheLayer)]
    if not len(layers) == len(cache.layers) == len(mixers):
        kinds = ", ".join(sorted({type(layer).__name__ for layer in cache.layers})) or "no layers"
        raise TypeError(
            f"past_key_values must hold {len(mixers)} MixerCacheLayer, got {len(cache.layers)} ({kinds}); "
            "make one with model.new_cache(), or leave it out."
        )
    for layer, mixer in zip(layers, mixers):
        if layer.held is None:
            device = next(mixer.parameters()).device
            # offloaded parameters are nowhere until the layer runs, and then where its input is
            device = hidden_states.device if device.type == "meta" else device
            layer.held = mixer.new_cache(hidden_states.shape[0], device=device, dtype=hidden_states.dtype)
            layer.is_initialized = True
    return [layer.held for layer in layers if layer.held is not None]
