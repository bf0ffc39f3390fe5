r"""Neighbourhood attention: every query attends to a window of the grid around it.

    out_i = sum_j softmax_j(scale * q_i . k_j + bias_(j - i)) v_j   over the keys j in the window of i

At borders the window is shifted inwards, so every query has the same number of keys. Along one axis, inside the
dilation group of the query (i' its place there, n_g the size of the group, w window, s stride):

    leader = min(floor(i' / s) s + floor(s / 2), n_g - 1),  first key = clamp(leader - floor(w / 2), 0, n_g - w), w keys
    causal: leader = min(floor(i' / s) s + s - 1, n_g - 1),  first key = max(leader - w + 1, 0),  last key = i'
    truncated: first key = floor(i' / s) s + floor(s / 2) - floor(w / 2), w keys, of which those on the grid are seen

Sizes: B batch, X1..Xr space (r = 1, 2, 3), H query heads, Hkv key/value heads, K key dim, V value dim, E additional
keys.
Source: arXiv:2204.07143 (definition), 2209.15001 (dilation), 2403.04690 (tiling), 2504.16922 (stride).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._checks import check_cu_seqlens, check_devices, check_float, check_qkv, checked
from attensor.ops._operator import Implementation, Operator, reference_of
from attensor.ops.neighborhood_attention.cpp import window as cpp
from attensor.ops.neighborhood_attention.neighborhood import Axis
from attensor.ops.neighborhood_attention.reference import Problem, define
from attensor.ops.neighborhood_attention.torch import neighborhood_attention_torch
from attensor.ops.softmax_attention.reference import Attended

__all__ = ["neighborhood_attention", "neighborhood_attention_reference"]

_NAME = "neighborhood_attention"
_OPERATOR: Operator[Problem, Attended] = Operator(
    _NAME,
    {
        "reference": Implementation(define),
        "torch": Implementation(neighborhood_attention_torch),
        "cpp": Implementation(cpp.run, cpp.why_not),
    },
)


@checked
def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window_size: int | tuple[int, ...],
    dilation: int | tuple[int, ...] = 1,
    stride: int | tuple[int, ...] = 1,
    is_causal: bool | tuple[bool, ...] = False,
    border: Literal["shift", "truncate"] = "shift",
    scale: float | None = None,
    relative_bias: Tensor | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    return_lse: bool = False,
    cu_seqlens: Tensor | None = None,
    backend: str | None = None,
) -> Attended:
    """Neighbourhood attention in O(n prod(w) (K + V)) a head for n tokens; memory O(n), whatever the window.

    `window_size`, `dilation`, `stride` and `is_causal` are one value for all axes or one for each.

    Args:
        q: [B, *space, H, K], one to three space axes, any floating dtype.
        k: [B, *space, Hkv, K]; Hkv divides H.
        v: [B, *space, Hkv, V].
        window_size: keys that a query sees along an axis, even or odd (2m: m before it, itself, m - 1 after it).
        dilation: distance of neighbouring keys in the window; window_size * dilation must not exceed an axis along
            which windows are shifted.
        stride: this many neighbouring queries share one window; at most window_size.
        is_causal: no key after the query along this axis; windows are cut at the start instead of shifted.
        border: `"shift"`: at a border the window moves inwards, so that all queries see as many keys; `"truncate"`: it
            stays around its query and loses the keys beyond. Causal axes know no difference.
        scale: multiplies q k; `K ** -0.5` if None.
        relative_bias: [H, 2 w1 - 1, .., 2 wr - 1], added to the scaled scores at entry key - query + w - 1, counted in
            dilated steps; differentiable.
        additional_keys, additional_values: [B, E, Hkv, K] and [B, E, Hkv, V], seen by every query in the same softmax.
        return_lse: also return the log-sum-exp of the scores; differentiable.
        cu_seqlens: [N + 1] int32 or int64: bounds of packed sequences on one causal axis without dilation and stride,
            B = 1. A query sees its own sequence only.
        backend: `"reference"`, `"torch"` or `"cpp"` (on a CPU, without additional keys and packed sequences); the best
            available if None.
    Returns:
        out [B, *space, H, V] in v's dtype; with `return_lse` also lse [B, *space, H], natural logarithm, in at least
        float32.
    Raises:
        ShapeError: sizes disagree, the tensors look heads-first, or a dilated window that is shifted is larger than
            its axis.
        ValueError: a parameter below 1, a stride larger than its window, an option that does not go with cu_seqlens.
    Source: arXiv:2403.04690, section 3. Derivatives of any order and in forward mode; beyond the first with all scores
        in memory.
    """
    check_qkv(_NAME, q, k, v, space_dims=(1, 2, 3), same_space=True)
    side = {"additional_keys": additional_keys, "additional_values": additional_values, "cu_seqlens": cu_seqlens}
    check_devices(_NAME, q, relative_bias=relative_bias, **side)
    window, more = (window_size, dilation, stride, is_causal, border), (additional_keys, additional_values)
    problem = Problem(q, k, v, *window, scale, relative_bias, *more, return_lse, cu_seqlens)
    axes = problem.axes
    if relative_bias is not None:
        _check_bias(relative_bias, q, axes)
    if additional_keys is not None or additional_values is not None:
        _check_additional(additional_keys, additional_values, k, v)
    if cu_seqlens is not None:
        check_cu_seqlens(_NAME, cu_seqlens, q)
        if len(axes) != 1 or not axes[0].is_causal or axes[0].dilation != 1 or axes[0].stride != 1:
            raise ValueError(
                f"{_NAME}: cu_seqlens needs one causal axis with dilation 1 and stride 1, got {axes}; "
                "call it once for each sequence."
            )
    return _OPERATOR(problem, backend)


neighborhood_attention_reference = reference_of(
    neighborhood_attention, "Softmax over the keys that every axis allows: all scores in memory."
)


def _check_bias(bias: Tensor, q: Tensor, axes: tuple[Axis, ...]) -> None:
    expected = [q.shape[-2], *(2 * axis.window - 1 for axis in axes)]
    if list(bias.shape) != expected:
        raise ShapeError(
            f"{_NAME}: relative_bias must be [H, 2 window_size - 1 for each axis] = {expected}, got {list(bias.shape)}."
        )
    check_float(_NAME, "relative_bias", bias, q)


def _check_additional(keys: Tensor | None, values: Tensor | None, k: Tensor, v: Tensor) -> None:
    if keys is None or values is None:
        raise ValueError(f"{_NAME}: additional_keys and additional_values come together; pass both or neither.")
    for name, tensor, like in (("additional_keys", keys, k), ("additional_values", values, v)):
        fits = tensor.ndim == 4 and tensor.shape[0] == like.shape[0] and tensor.shape[2:] == like.shape[-2:]
        if not fits or (tensor is values and keys.shape[1] != values.shape[1]):
            raise ShapeError(
                f"{_NAME}: {name} must be [B, E, Hkv, size] = [{like.shape[0]}, E, {like.shape[-2]}, "
                f"{like.shape[-1]}] with one E for both, got {list(tensor.shape)}."
            )
        if tensor.dtype != like.dtype:
            raise TypeError(f"{_NAME}: {name} must have the dtype {like.dtype} of q, k, v, got {tensor.dtype}.")
