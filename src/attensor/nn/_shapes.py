"""Checks that every layer makes on its sizes, with one wording."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from attensor.errors import ShapeError

__all__ = ["check_hidden_states", "head_dim", "kv_heads", "refuse_cache_with_packing"]


def head_dim(layer: nn.Module, size: int, num_heads: int, *, argument: str = "hidden_size") -> int:
    """Width of one head when `size` channels are shared among `num_heads`.

    Raises:
        ValueError: `size` is not a multiple of `num_heads`.
    """
    if num_heads < 1 or size < 1 or size % num_heads:
        raise ValueError(
            f"{type(layer).__name__}: {argument} {size} is not a multiple of num_heads {num_heads}; "
            f"change {argument} or num_heads."
        )
    return size // num_heads


def kv_heads(layer: nn.Module, num_heads: int, num_kv_heads: int | None) -> int:
    """Number of key/value heads: `num_heads` unless given, and a divisor of it.

    Raises:
        ValueError: it does not divide `num_heads`.
    """
    num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(
            f"{type(layer).__name__}: num_kv_heads {num_kv_heads} does not divide num_heads {num_heads}; "
            "each key/value head serves the same number of query heads."
        )
    return num_kv_heads


def check_hidden_states(layer: nn.Module, hidden_states: Tensor, hidden_size: int, ranks: Sequence[int]) -> None:
    """Refuse input that is not `[B, *space, hidden_size]` with one of the allowed numbers of dimensions.

    Args:
        layer: for the message.
        hidden_states: what came.
        hidden_size: channels that the layer was built for.
        ranks: allowed numbers of dimensions, batch and channels included.
    Raises:
        ShapeError: another rank or width.
    """
    shape = list(hidden_states.shape)
    if hidden_states.dim() not in ranks:
        layouts = {3: "[B, T, C]", 4: "[B, height, width, C]", 5: "[B, depth, height, width, C]"}
        expected = " or ".join(layouts[rank] for rank in ranks)
        raise ShapeError(f"{type(layer).__name__}: hidden_states must be {expected}, got {shape}.")
    if shape[-1] != hidden_size:
        hint = " Channels first? Move them to the end with .movedim(1, -1)." if shape[1] == hidden_size else ""
        raise ShapeError(
            f"{type(layer).__name__}: hidden_states must end in hidden_size = {hidden_size} channels, "
            f"got {shape}.{hint}"
        )


def refuse_cache_with_packing(layer: nn.Module, cache: object | None, cu_seqlens: Tensor | None) -> None:
    """A cache continues the sequences of a batch; packed sequences have no rows to continue.

    Raises:
        ValueError: both are given.
    """
    if cache is not None and cu_seqlens is not None:
        raise ValueError(
            f"{type(layer).__name__}: cache and cu_seqlens exclude each other; decode sequences as rows of a batch."
        )
