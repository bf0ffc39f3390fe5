"""What `linear_attention` refuses, before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops.linear_attention.forms import Form

__all__ = [
    "check_chunk_size",
    "check_decay",
    "check_inputs",
    "check_options",
    "check_packing",
    "check_state",
    "check_step",
]

_NAME = "linear_attention"
_LAYOUT_HINT = " The tensors look like [B, H, T, D]: pass q.transpose(1, 2) and the same for k, v and log_decay."


def check_inputs(q: Tensor, k: Tensor, v: Tensor) -> None:
    """q [B, T, H, K], k [B, T, Hkv, K], v [B, T, Hkv, V] of one float dtype and device, H a multiple of Hkv.

    Raises:
        ShapeError: sizes disagree.
        TypeError: not floating point, or different dtypes (which only autocast may bring about).
        ValueError: different devices.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ShapeError(f"{_NAME}: {name} must be [B, T, heads, dim], got {_sizes(x)}; unsqueeze what is missing.")
    hint = _LAYOUT_HINT if q.shape[1] != k.shape[1] and q.shape[2] == k.shape[2] else ""
    if k.shape[:2] != q.shape[:2]:
        raise ShapeError(f"{_NAME}: k {_sizes(k)} must have the batch and tokens of q {_sizes(q)}.{hint}")
    if v.shape[:3] != k.shape[:3]:
        raise ShapeError(f"{_NAME}: v {_sizes(v)} must have the batch, tokens and heads of k {_sizes(k)}.")
    _check_heads_and_types(q, k, v, _NAME)


def check_step(q: Tensor, k: Tensor, v: Tensor, state: Tensor, state_slots: Tensor | None) -> None:
    """q [B, H, K], k [B, Hkv, K], v [B, Hkv, V], state [B, H, K, V], slots [B] or None; raises as `check_inputs`."""
    name = "linear_attention_step"
    for argument, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 3:
            raise ShapeError(f"{name}: {argument} must be one token, [B, heads, dim], got {_sizes(x)}; take x[:, t].")
    if k.shape[0] != q.shape[0] or v.shape[:2] != k.shape[:2]:
        raise ShapeError(
            f"{name}: q {_sizes(q)}, k {_sizes(k)}, v {_sizes(v)} must be [B, H, K], [B, Hkv, K], [B, Hkv, V]."
        )
    _check_heads_and_types(q, k, v, name)
    expected = (*q.shape, v.shape[-1])
    if state_slots is None and tuple(state.shape) != expected:
        raise ShapeError(f"{name}: state must be [B, H, K, V] = {list(expected)}, got {_sizes(state)}.")
    if state_slots is None:
        return
    if tuple(state.shape[1:]) != expected[1:] or not len(state):
        raise ShapeError(f"{name}: state must be a pool [S, *{list(expected[1:])}] of S >= 1, got {_sizes(state)}.")
    if _sizes(state_slots) != [q.shape[0]]:
        raise ShapeError(f"{name}: state_slots must be [B] = [{q.shape[0]}], got {_sizes(state_slots)}.")
    if state_slots.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: state_slots must be int32 or int64, got {state_slots.dtype}.")


def _check_heads_and_types(q: Tensor, k: Tensor, v: Tensor, name: str) -> None:
    heads, key_heads = q.shape[-2], k.shape[-2]
    if q.shape[-1] != k.shape[-1]:
        raise ShapeError(f"{name}: q {_sizes(q)} and k {_sizes(k)} must have the same last size K.")
    if key_heads == 0 or heads % key_heads:
        raise ShapeError(f"{name}: the {heads} heads of q must be a multiple of the {key_heads} heads of k and v.")
    for argument, x in (("q", q), ("k", k), ("v", v)):
        if not x.is_floating_point():
            raise TypeError(f"{name}: {argument} must be floating point, got {x.dtype}; convert it with .float().")
        if x.device != q.device:
            raise ValueError(f"{name}: {argument} is on {x.device}, q on {q.device}; move them to one device.")
    if not q.dtype == k.dtype == v.dtype and not _is_autocast(q.device.type):
        raise TypeError(
            f"{name}: q, k, v must have one dtype, got {q.dtype}, {k.dtype}, {v.dtype}; convert with .to(q.dtype)."
        )


def check_decay(q: Tensor, k: Tensor, log_decay: Tensor | None) -> None:
    """log_decay is None, [Hd], [B, T, Hd] or [B, T, Hd, K] with Hd = H or Hkv, floating point, on q's device.

    Raises:
        ShapeError, TypeError, ValueError: it is not.
    """
    if log_decay is None:
        return
    batch, tokens, heads, key_dim = q.shape
    allowed = [
        list(shape)
        for decays in dict.fromkeys((heads, k.shape[2]))
        for shape in ((decays,), (batch, tokens, decays), (batch, tokens, decays, key_dim))
    ]
    if _sizes(log_decay) not in allowed:
        mirrored = log_decay.shape[:1] == (tokens,) if log_decay.ndim == 1 else log_decay.shape[1:3] == (heads, tokens)
        raise ShapeError(
            f"{_NAME}: log_decay {_sizes(log_decay)} fits none of {', '.join(map(str, allowed))} "
            f"([H], [B, T, H] or [B, T, H, K]).{_LAYOUT_HINT if mirrored and heads != tokens else ''}"
        )
    _check_float(log_decay, "log_decay", q)


def check_packing(q: Tensor, cu_seqlens: Tensor | None) -> None:
    """cu_seqlens is None, or [N + 1] integers on q's device, and then B is 1.

    Raises:
        ShapeError, TypeError, ValueError: it is not.
    """
    if cu_seqlens is None:
        return
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1:
        raise ShapeError(f"{_NAME}: cu_seqlens must be [N + 1], starting with 0, got {_sizes(cu_seqlens)}.")
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{_NAME}: cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}.")
    if cu_seqlens.device != q.device:
        raise ValueError(f"{_NAME}: cu_seqlens is on {cu_seqlens.device}, q on {q.device}; move it there.")
    if q.shape[0] != 1:
        raise ShapeError(
            f"{_NAME}: with cu_seqlens the sequences are packed one after the other and q must be [1, T, H, K], "
            f"got {_sizes(q)}; flatten batch and tokens."
        )


def check_state(q: Tensor, v: Tensor, initial_state: Tensor | None, cu_seqlens: Tensor | None) -> None:
    """initial_state is None, [B, H, K, V], or [N, H, K, V] for N packed sequences.

    Raises:
        ShapeError, TypeError, ValueError: it is not.
    """
    if initial_state is None:
        return
    rows, name = (q.shape[0], "B") if cu_seqlens is None else (cu_seqlens.shape[0] - 1, "N")
    expected = [rows, q.shape[2], q.shape[3], v.shape[3]]
    if _sizes(initial_state) != expected:
        mirrored = _sizes(initial_state) == [rows, q.shape[1], *expected[2:]]
        raise ShapeError(
            f"{_NAME}: initial_state must be [{name}, H, K, V] = {expected}, got {_sizes(initial_state)}."
            f"{_LAYOUT_HINT if mirrored else ''}"
        )
    _check_float(initial_state, "initial_state", q)


def check_options(
    form: Form,
    algorithm: str,
    is_causal: bool,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    output_final_state: bool,
) -> None:
    """Options that are unknown or exclude each other.

    Raises:
        ValueError: there are such.
    """
    if algorithm not in ("la1", "la2"):
        raise ValueError(f"{_NAME}: algorithm must be 'la1' or 'la2', got {algorithm!r}.")
    if form.kv_weighting not in (None, "global-query"):
        raise ValueError(f"{_NAME}: kv_weighting must be None or 'global-query', got {form.kv_weighting!r}.")
    if log_decay is not None and not is_causal:
        raise ValueError(f"{_NAME}: is_causal=False has no direction to decay in; leave log_decay out.")
    if log_decay is not None and algorithm == "la1" and log_decay.ndim != 1:
        raise ValueError(
            f"{_NAME}: algorithm 'la1' takes no decay or one per head, [H], got log_decay {_sizes(log_decay)}; "
            "use algorithm='la2'."
        )
    if form.kv_weighting is not None and is_causal:
        raise ValueError(
            f"{_NAME}: kv_weighting {form.kv_weighting!r} looks at the whole sequence; it needs is_causal=False."
        )
    two_states = form.denominator is not None and form.position_map is not None
    if two_states and (initial_state is not None or output_final_state):
        raise ValueError(
            f"{_NAME}: with a position_map the denominator has features of its own, so that no single state sums up "
            "the past; leave initial_state and output_final_state out."
        )


def check_chunk_size(chunk_size: int | None) -> None:
    """chunk_size is None or a power of two.

    Raises:
        ValueError: it is not.
    """
    if chunk_size is not None and (chunk_size < 1 or chunk_size & (chunk_size - 1)):
        raise ValueError(f"{_NAME}: chunk_size must be a power of two or None (automatic), got {chunk_size}.")


def _check_float(x: Tensor, argument: str, q: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{_NAME}: {argument} must be floating point, got {x.dtype}; convert it with .float().")
    if x.device != q.device:
        raise ValueError(f"{_NAME}: {argument} is on {x.device}, q on {q.device}; move it there.")


def _is_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _sizes(x: Tensor) -> list[int]:
    return list(x.shape)
