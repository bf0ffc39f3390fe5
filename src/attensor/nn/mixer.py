"""The protocol of every mixer, in three steps: what happens between attention and output projection has a place.

    heads = mixer.project(hidden_states)     queries, keys, values by head, and what else depends on the input
    out = mixer.attend(heads)                one output for each head
    y = mixer.merge(out, heads)              norm, gate, output projection

A swap replaces `attend`; routing or pruning of heads and every lens act on what `attend` returns.
Sizes: B sequences, T tokens, C channels, H heads, V value width.
"""

from __future__ import annotations

import inspect
import itertools
import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attensor.errors import ShapeError
from attensor.nn._shapes import check_hidden_states, check_range, refuse_cache_with_packing
from attensor.nn.cache import Cache
from attensor.nn.rotary import token_positions
from attensor.ops._checks import check_cu_seqlens, check_tensor, checked, explained

__all__ = ["DecodingMixer", "Heads", "Mixer", "SequenceMixer"]


class Heads(NamedTuple):
    """The input of a mixer, projected.

    Attributes:
        q, k, v: [B, T, heads, width], or [B, *space, heads, width] on grids.
        log_decay: of a recurrent state at each token, see `LinearAttention.log_decay`; None without one.
        gate: what multiplies the merged output, before its activation; None without one.
        beta: how far a state is corrected at each token, [B, T, heads]; None where it is added to.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None = None
    gate: Tensor | None = None
    beta: Tensor | None = None


class Mixer(nn.Module, ABC):
    """A layer `[B, *space, C]` to the same in the three steps above.

    Attributes:
        hidden_size: channels C.
        num_heads: query heads H.
        head_dim: width of a head, where keys and values have the same.
        ranks: allowed numbers of dimensions of the input, batch and channels included.
        shown: names of the options that `print(layer)` shows.
    """

    hidden_size: int
    num_heads: int
    head_dim: int
    ranks: tuple[int, ...] = (3,)
    shown: tuple[str, ...] = ("hidden_size", "num_heads")

    def __init_subclass__(cls, **options: Any) -> None:
        """Let what users call, but for the hot path, refuse arguments of another kind than annotated."""
        super().__init_subclass__(**options)
        for name in ("__init__", "cost_sizes", "from_attention"):
            own = vars(cls).get(name)
            if inspect.isfunction(own):
                setattr(cls, name, checked(own))
            elif isinstance(own, classmethod):
                setattr(cls, name, classmethod(checked(own.__func__)))
        for name in ("project", "attend", "merge"):
            if inspect.isfunction(own := vars(cls).get(name)):
                setattr(cls, name, explained(own))

    @abstractmethod
    def project(self, hidden_states: Tensor) -> Heads:
        """The first step: [B, *space, C] to heads."""

    @abstractmethod
    def attend(self, heads: Heads) -> Tensor:
        """The second step: heads to [B, *space, H, V]."""

    @abstractmethod
    def merge(self, out: Tensor, heads: Heads) -> Tensor:
        """The third step: [B, *space, H, V] to [B, *space, C]."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Mix the cells of the grid.

        Args:
            hidden_states: [B, *space, C].
        Returns:
            [B, *space, C].
        Raises:
            ShapeError: another rank or width.
        """
        check_hidden_states(self, hidden_states, self.hidden_size, self.ranks)
        heads = self.project(hidden_states)
        return self.merge(self.attend(heads), heads)

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as when the layer was made."""
        for child in self.children():
            _reset(child)
        self.reset_own_parameters()

    def reset_own_parameters(self) -> None:
        """Draw what is in no sub-module anew (loaders fill sub-modules by themselves): nothing."""

    @property
    def _device(self) -> torch.device:
        """Of the parameters; quantised layers may hold everything in buffers, or in neither."""
        own = next(itertools.chain(self.parameters(), self.buffers()), None)
        return torch.get_default_device() if own is None else own.device

    def cost_sizes(self, space: tuple[int, ...]) -> dict[str, int]:
        """Values of the symbols of the card's formulas for an input of that size."""
        return {"T": torch.Size(space).numel(), "H": self.num_heads, "K": self.head_dim, "V": self.head_dim}

    def extra_repr(self) -> str:
        """Options, for `print(layer)`."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.shown)


def _reset(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if reset is not None:
        reset()
    else:
        for child in module.children():
            _reset(child)


class DecodingMixer(Mixer):
    """A mixer that, when causal, has a cache to decode with.

    Attributes:
        is_causal: a token sees itself and what comes before it.
        reads_in_any_order: `attend` gives the same for one token in whatever order the cache returns what it holds, so
            that a static cache is read where it lies.
    """

    is_causal: bool = True
    reads_in_any_order: bool = False

    @abstractmethod
    def _new_cache(
        self, batch_size: int, max_length: int | None, device: torch.device, dtype: torch.dtype | None
    ) -> Cache:
        """The cache that `attend` takes; without a dtype it holds what comes as it comes."""

    @checked
    def new_cache(
        self,
        batch_size: int,
        max_length: int | None = None,
        *,
        static: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Any:
        """An empty cache for `batch_size` sequences.

        Args:
            batch_size: rows.
            max_length: tokens to reserve room for.
            static: room for `max_length` tokens and no more, for compiled steps, see `Cache.make_static`.
            device: the parameters' if None.
            dtype: of what is kept; that of the tokens if None. Recurrent states and features: at least float32.
        Raises:
            ValueError: the layer is not causal, a number is negative, or a static cache has no max_length.
            TypeError: an argument of another kind.
        """
        check_range(self, 0, batch_size=batch_size, max_length=max_length)
        if not self.is_causal:
            raise ValueError(
                f"{type(self).__name__}: with is_causal=False every token changes all outputs: there is no cache."
            )
        if static and not max_length:
            raise ValueError(
                f"{type(self).__name__}.new_cache: static=True needs max_length, the tokens of the longest sequence, "
                f"got {max_length}; give it, or call cache.make_static(max_length) after the prompt."
            )
        device = self._device if device is None else torch.device(device)
        cache = self._new_cache(batch_size, None if static else max_length, device, dtype)
        cache.in_any_order = self.reads_in_any_order
        if static and max_length is not None:
            cache.make_static(max_length)
        return cache

    def _check_cache(self, hidden_states: Tensor, cache: object, rows: int) -> None:
        """Refuse, before anything is added to it, a cache that `new_cache` would not have made for these rows."""
        name = type(self).__name__
        if not isinstance(cache, Cache):
            raise TypeError(f"{name}: cache must be what new_cache() of the layer returns, got {type(cache).__name__}.")
        if cache.fits != id(self):
            if not self.is_causal or not cache.is_like(self._new_cache(0, None, torch.device("meta"), None)):
                raise TypeError(
                    f"{name}: cache must be what new_cache() of the layer returns, got a {type(cache).__name__} of "
                    "another layer; make one for each layer."
                )
            cache.fits = id(self)
        if cache.batch_size != rows:
            raise ShapeError(
                f"{name}: cache must have the {rows} rows of hidden_states, got {cache.batch_size}; "
                f"use new_cache(batch_size={rows})."
            )
        if cache.device != hidden_states.device:
            raise ValueError(
                f"{name}: cache is on {cache.device}, hidden_states on {hidden_states.device}; use "
                f'new_cache(device="{hidden_states.device}").'
            )


class SequenceMixer(DecodingMixer):
    """A mixer of tokens in a row, with packed sequences and, when causal, a cache to decode with.

    Attributes:
        is_causal: a token sees itself and what comes before it.
        uses_positions: `project` wants the positions of the tokens.
    """

    uses_positions: bool = False

    @abstractmethod
    def project(self, hidden_states: Tensor, positions: Tensor | None = None) -> Heads:
        """The first step: [B, *space, C] to heads [B, T, heads, width]; positions are [T] or [B, T]."""

    @abstractmethod
    def attend(self, heads: Heads, *, cache: Any = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """The second step: heads to [B, T, H, V]; the tokens continue what the cache holds, and are added to it."""

    def forward(self, hidden_states: Tensor, *, cache: Any = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """Mix the tokens.

        Args:
            hidden_states: [B, T, C], or [B, *space, C] in layers that read space as one row of T tokens.
            cache: past of the same sequences; the tokens are added to it. Padding at the beginning of rows, which
                `cache.first` counts, is seen by no token.
            cu_seqlens: [N + 1], boundaries of sequences packed into one row (B = 1).
        Returns:
            As `hidden_states`.
        Raises:
            ShapeError: another rank or width.
            ValueError: cache and cu_seqlens together; a cache for other rows, or on another device.
            TypeError: a cache of another layer.
        """
        heads = self.project(hidden_states, self._accepted(hidden_states, cache, cu_seqlens))
        return self.merge(self.attend(heads, cache=cache, cu_seqlens=cu_seqlens), heads).view(hidden_states.shape)

    def _accepted(self, hidden_states: Tensor, cache: Any, cu_seqlens: Tensor | None) -> Tensor | None:
        """Refuse what `forward` refuses; the positions of the tokens, where `project` wants them."""
        check_hidden_states(self, hidden_states, self.hidden_size, self.ranks)
        refuse_cache_with_packing(self, cache, cu_seqlens)
        if cu_seqlens is not None:
            self._check_packing(hidden_states, cu_seqlens)
        if cache is not None and not torch.compiler.is_compiling():
            self._check_cache(hidden_states, cache, hidden_states.shape[0])
        if not self.uses_positions:
            return None
        # not Size.numel(), which makes a constant of a free length
        tokens, offset = math.prod(hidden_states.shape[1:-1]), 0 if cache is None else cache.length
        padded = cache is not None and cache.real(0, 1) is not None
        return token_positions(
            tokens,
            offset=offset,
            first=cache.first if padded else None,
            cu_seqlens=cu_seqlens,
            device=hidden_states.device,
        )

    def _check_packing(self, hidden_states: Tensor, cu_seqlens: Tensor) -> None:
        name = type(self).__name__
        check_tensor(name, "cu_seqlens", cu_seqlens)
        check_cu_seqlens(name, cu_seqlens, hidden_states.flatten(1, -2), label="hidden_states")
