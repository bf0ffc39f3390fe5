"""One token of `linear_attention`, for decoding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.nn import functional as F

from attensor.errors import ShapeError
from attensor.ops._dispatch import Operator
from attensor.ops._precision import full_precision
from attensor.ops.feature_maps import resolve_feature_map
from attensor.ops.linear_attention.checks import check_step
from attensor.ops.linear_attention.cpp import library as cpp
from attensor.ops.linear_attention.forms import Denominator, FeatureMap

__all__ = ["linear_attention_step"]


def linear_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    *,
    log_decay: Tensor | None = None,
    scale: float | None = None,
    feature_map: FeatureMap | None = None,
    denominator: Denominator | None = None,
    state_slots: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence of `linear_attention` for one token: O(K V) per head, whatever came before.

    Args:
        q: [B, H, K], any float dtype.
        k: [B, Hkv, K]; H is a multiple of Hkv.
        v: [B, Hkv, V].
        state: [B, H, K, V], as returned by an earlier step or by `linear_attention`; not changed. One more value
            column with a denominator. With state_slots a pool [S, H, K, V] that is changed in place.
        log_decay: None, [Hd], [B, Hd] or [B, Hd, K] with Hd = H or Hkv; natural log of the factor on the state, <= 0
            (not checked: that would wait for the device).
        scale: multiplies the output; if None `K ** -0.5`, or 1 with a denominator.
        feature_map, denominator: as in `linear_attention`.
        state_slots: [B], integers: the place in the pool of each row's state, all different; a row with -1 is skipped
            and gives zeros. Not differentiable.
        backend: `"torch"`, `"cpp"`, `"triton"`; None: the context's or the best available.
    Returns:
        out [B, H, V] in v's dtype, and the new state [B, H, K, V] in at least float32 (with state_slots the pool).
    Raises:
        ShapeError: sizes disagree.
        TypeError: dtypes are not floating point or differ; state_slots are no integers.
    Source: arXiv:2312.06635, equation 3 (recurrent form).
    """
    if scale is None:
        scale = q.shape[-1] ** -0.5 if denominator is None else 1.0
    if feature_map is not None:
        features = resolve_feature_map(feature_map)
        dtype = torch.promote_types(torch.promote_types(q.dtype, v.dtype), torch.float32)
        q, k = (features(x.to(dtype)[:, None])[:, 0] for x in (q, k))
        values = v.to(dtype)
    else:
        values = v
    if denominator is not None:
        values = F.pad(values, (0, 1), value=1.0)
    check_step(q, k, values, state, state_slots)
    run = _OPERATOR.choose(backend, q.device)
    out, state = run(Step(q, k, values, state, log_decay, scale if denominator is None else 1.0, state_slots))
    if denominator is not None:
        out = scale * out[..., :-1] / denominator.of(out[..., -1:])
    return out.to(v.dtype), state


class Step(NamedTuple):
    """The public function's arguments after its checks."""

    q: Tensor
    k: Tensor
    v: Tensor
    state: Tensor
    log_decay: Tensor | None
    scale: float
    state_slots: Tensor | None


def torch_step(x: Step) -> tuple[Tensor, Tensor]:
    """Products of whole batches; with slots states are gathered and changes are scattered."""
    if x.state_slots is None:
        return _advance(x)
    used = x.state_slots >= 0
    places = x.state_slots.clamp_min(0).long()
    old = x.state[places]
    out, new = _advance(x._replace(state=old))
    # a skipped row writes nothing: its change is zero, added to slot 0
    change = torch.where(used[:, None, None, None], new.to(old.dtype) - old, 0.0)
    x.state.index_add_(0, places, change)
    return torch.where(used[:, None, None], out, 0.0), x.state


def _cpp_step(x: Step) -> tuple[Tensor, Tensor]:
    if x.state_slots is not None or _is_differentiated(*x[:5]):
        return torch_step(x)
    q, k, v, state, log_decay, scale, _ = x
    decays = None if log_decay is None else _per_head(log_decay, q, k).squeeze(-1).expand(len(q), -1, -1)
    return cpp.linear_attention_step(q, k, v, state, decays, scale)


def _is_differentiated(*tensors: Tensor | None) -> bool:
    """Whether any derivative may be asked for: C++ has none of a single token."""
    given = [x for x in tensors if x is not None]
    if torch.is_grad_enabled() and any(x.requires_grad for x in given):
        return True
    return any(unpack_dual(x).tangent is not None for x in given)  # type: ignore[no-untyped-call]


def _triton_step(x: Step) -> tuple[Tensor, Tensor]:
    # imported here: triton is an optional library
    from attensor.ops.triton.linear_attention import step

    return step(*x[:4], log_decay=x.log_decay, scale=x.scale, state_slots=x.state_slots)


def _advance(x: Step) -> tuple[Tensor, Tensor]:
    q, k, v, state, log_decay, scale, _ = x
    dtype = torch.promote_types(torch.promote_types(q.dtype, v.dtype), torch.float32)
    old = state.to(dtype)
    if log_decay is not None:
        old = old * _per_head(log_decay, q, k).to(dtype).exp()
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    new = torch.addcmul(old, k.to(dtype).unsqueeze(-1), v.to(dtype).unsqueeze(-2))
    with full_precision(q):
        out = torch.matmul((q.to(dtype) * scale).unsqueeze(-2), new).squeeze(-2)
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
    return full if full.shape[1] == heads else full.repeat_interleave(heads // full.shape[1], 1)


_OPERATOR = Operator(
    "linear_attention_step", {"triton": _triton_step, "cpp": _cpp_step, "torch": torch_step, "reference": torch_step}
)
