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
from attensor.nn._shapes import check_range

__all__ = ["MixerCacheLayer", "ModelCache", "opened", "settled"]


class MixerCacheLayer(CacheLayerMixin):
    """One layer of a transformers cache that holds a cache of `attensor.nn`.

    Args:
        max_length: tokens in all, for a static cache; None for one that grows.

    Attributes:
        held: the mixer's cache; None until the first tokens come, because only they tell the batch size.
    """

    supports_early_init = False
    held: MixerCache | None = None

    def __init__(self, max_length: int | None = None) -> None:
        super().__init__()
        self.max_length = max_length

    @property
    def is_compileable(self) -> bool:  # type: ignore[override]
        """Whether a compiled step serves every length."""
        return self.max_length is not None

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        """Whether any number of tokens may be removed again."""
        return self.held is None or self.held.can_crop

    def get_seq_length(self) -> int:
        """Tokens seen, padding at the beginning included."""
        return 0 if self.held is None else self.held.length

    def get_max_length(self) -> int:
        """Tokens that fit; -1 for any number."""
        return -1 if self.max_length is None else self.max_length

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
    """The caches of so many layers, cropped together or not at all.

    Args:
        num_layers: how many.
        max_length: tokens in all, for static caches; None for those that grow.
    """

    def __init__(self, num_layers: int, max_length: int | None = None) -> None:
        check_range("ModelCache", 1, max_length=max_length)
        super().__init__(layers=[MixerCacheLayer(max_length) for _ in range(num_layers)])

    def make_static(self, max_length: int) -> None:
        """From now on hold room for `max_length` tokens, for compiled steps; see `attensor.nn.Cache.make_static`.

        Raises:
            ValueError: fewer than are held, or than one.
        """
        for layer in self.layers:
            if isinstance(layer, MixerCacheLayer):
                layer.max_length = max_length
                if layer.held is not None:
                    layer.held.make_static(max_length)

    @property
    def nbytes(self) -> int:
        """Bytes of what the next token needs, of all layers."""
        caches = [layer.held for layer in self.layers if isinstance(layer, MixerCacheLayer)]
        return sum(cache.nbytes for cache in caches if cache is not None)

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
        ValueError: a prompt for which a static cache has no room.
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
        room = layer.max_length
        if room is not None and not layer.held.is_static and layer.held.length + hidden_states.shape[1] > room:
            raise ValueError(
                f"past_key_values has room for max_length {room} tokens, got a prompt of {hidden_states.shape[1]}; "
                "make a larger one with model.new_cache(max_length=..)."
            )
    return [layer.held for layer in layers if layer.held is not None]


def settled(cache: Cache | None) -> None:
    """Make static what shall be after its first tokens, which were read at the cost of their own number."""
    for layer in () if cache is None else cache.layers:
        if not isinstance(layer, MixerCacheLayer) or layer.held is None or layer.max_length is None:
            continue
        if not layer.held.is_static:
            layer.held.make_static(layer.max_length)
