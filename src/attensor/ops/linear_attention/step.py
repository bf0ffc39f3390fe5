"""One token of `linear_attention`, for decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops.linear_attention.checks import check_step

__all__ = ["linear_attention_step"]


def linear_attention_step(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, *, log_decay: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrence of `linear_attention` for one token: O(K V) per head, whatever came before.

    Args:
        q: [B, H, K], any float dtype.
        k: [B, Hkv, K]; H is a multiple of Hkv.
        v: [B, Hkv, V].
        state: [B, H, K, V], as returned by an earlier step or by `linear_attention`; not changed.
        log_decay: None, [Hd], [B, Hd] or [B, Hd, K] with Hd = H or Hkv; natural log of the factor on the state, <= 0
            (not checked: that would wait for the device).
        scale: multiplies q; `K ** -0.5` if None.
    Returns:
        out [B, H, V] in v's dtype, and the new state [B, H, K, V] in at least float32.
    Raises:
        ShapeError: sizes disagree.
        TypeError: dtypes are not floating point or differ.
    Source: arXiv:2312.06635, equation 3 (recurrent form).
    """
    check_step(q, k, v, state)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dtype = torch.promote_types(torch.promote_types(q.dtype, v.dtype), torch.float32)
    groups = q.shape[1] // k.shape[1]
    keys = k.to(dtype).repeat_interleave(groups, 1).unsqueeze(-1)
    values = v.to(dtype).repeat_interleave(groups, 1).unsqueeze(-2)
    old = state.to(dtype)
    if log_decay is not None:
        old = old * _per_head(log_decay, q, k).to(dtype).exp()
    new = torch.addcmul(old, keys, values)
    # a product and a sum, not a matrix product: autocast leaves those in the working dtype
    out = ((q.to(dtype) * scale).unsqueeze(-1) * new).sum(-2)
    return out.to(v.dtype), new


def _per_head(log_decay: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """log_decay as [B or 1, H, K or 1, 1]."""
    batch, heads, key_dim = q.shape
    allowed = [
        list(shape)
        for decays in dict.fromkeys((heads, k.shape[1]))
        for shape in ((decays,), (batch, decays), (batch, decays, key_dim))
    ]
    if list(log_decay.shape) not in allowed:
        raise ShapeError(
            f"linear_attention_step: log_decay {list(log_decay.shape)} fits none of {', '.join(map(str, allowed))} "
            "([H], [B, H] or [B, H, K])."
        )
    full = log_decay[(None,) * (log_decay.ndim == 1) + (...,) + (None,) * (4 - max(log_decay.ndim, 2))]
    return full.repeat_interleave(heads // full.shape[1], 1)
