r"""Kernelised attention: `linear_attention` of features, with denominators and positions.

    out_i = sum_j <P f(q_i), P f(k_j)> v_j / (max(sum_j <f(q_i), f(k_j)>, minimum) + eps)

with f the feature map, P the position map and the sums over the keys that a query sees, decayed.
Sizes: as in `linear_attention`; M features.
Source: arXiv:2006.16236, equations 4 to 7 (features, denominator); arXiv:2104.09864, section 3.3 (positions in the
numerator only).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.errors import ShapeError
from attensor.ops._checks import check_cu_seqlens, check_qkv, checked
from attensor.ops._operator import reference_of
from attensor.ops._precision import working_dtype
from attensor.ops.feature_maps import check_mapped, resolve_feature_map
from attensor.ops.linear_attention import OPERATOR
from attensor.ops.linear_attention.problem import LinearAttentionProblem, StepProblem
from attensor.ops.linear_attention.step import STEP

__all__ = [
    "Denominator",
    "kernel_attention",
    "kernel_attention_reference",
    "kernel_attention_step",
    "kernel_attention_step_reference",
]

FeatureMap = str | Callable[[Tensor], Tensor]


class _Bounds(NamedTuple):
    minimum: float
    eps: float
    keep_sign: bool


class Denominator(_Bounds):
    """Divide each output by the sum of its weights, `max(sum, minimum) + eps`; by 1 where that is 0.

    Attributes:
        minimum: smaller sums are raised to it, and no gradient flows there; L2ViT takes 100. 0 is for features that
            are not negative; signed ones, whose sums may be, need `-inf`: no minimum.
        eps: added to the sum, at least 0; RALA takes 1e-6.
        keep_sign: signed features, whose sums may be negative: sums nearer to 0 than the minimum are moved to it on
            their own side.
    """

    def __new__(cls, minimum: float = 0.0, eps: float = 0.0, keep_sign: bool = False) -> Self:
        """The same, looked at.

        Raises:
            ValueError: a minimum of infinity or NaN, an eps that is negative or not finite, or no numbers; a minimum
                below 0, or an eps, with keep_sign.
        """
        if not torch.compiler.is_compiling():
            are_numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (minimum, eps))
            if not are_numbers or not (minimum < math.inf and 0 <= eps < math.inf):
                raise ValueError(
                    "Denominator: minimum must be a finite number or -inf, and eps finite and at least 0, got "
                    f"{minimum!r} and {eps!r}; Denominator() divides by the sum alone."
                )
            if keep_sign is not False and (keep_sign is not True or minimum < 0 or eps):
                raise ValueError(
                    "Denominator: keep_sign must be True or False, and True with a minimum of at least 0 and eps 0, "
                    f"got {keep_sign!r} with {minimum!r} and {eps!r}; Denominator(1e-6, keep_sign=True) is usual."
                )
        return super().__new__(cls, minimum, eps, keep_sign)

    @property
    def is_relative(self) -> bool:
        """Whether a factor of all weights of a query cancels."""
        return self.minimum <= 0 and not self.eps

    def of(self, sums: Tensor) -> Tensor:
        """The divisors for sums of weights of any shape."""
        raised = sums if self.minimum == -math.inf else sums.clamp_min(self.minimum)
        if self.keep_sign:
            raised = torch.where(sums < 0, sums.clamp_max(-self.minimum), raised)
        if self.eps:
            raised = raised + self.eps
        return torch.where(raised == 0, 1.0, raised) if self.minimum <= 0 else raised


@checked
def kernel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: FeatureMap | None = None,
    position_map: Callable[[Tensor], Tensor] | None = None,
    denominator: Denominator | None = None,
    log_decay: Tensor | None = None,
    is_causal: bool = True,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Linear attention of features, unscaled; the form is the context's (`attensor.backend`) or the best.

    Args:
        q, k, v: [B, T, H, K], [B, T, Hkv, K] and [B, T, Hkv, V], any float dtype and strides; H a multiple of Hkv.
        feature_map: `"elu+1"`, `"relu"`, `"silu"`, or a function or module [B, T, heads, K] -> [B, T, heads, M], such
            as `ops.feature_maps.PositiveRandomFeatures`; in float32 at least. M takes K's place in the states.
        position_map: function of the features used in the numerator only (rotary embedding, RALA).
        denominator: see `Denominator`. The state has one more value column then, the decayed sum of the keys. Where it
            has neither minimum nor eps, each query's features are taken relative to their largest (`queries` of the
            feature map), so that far queries do not underflow; keys may, beyond `|k|^2 / (2 sqrt(K))` = 87.
        log_decay, is_causal, initial_state, output_final_state, cu_seqlens: as in `linear_attention`, M for K.
    Returns:
        out [B, T, H, V] in v's dtype, and the state or None, as `linear_attention`.
    Raises:
        ShapeError, TypeError, ValueError: as `linear_attention`; unknown features; a state asked of positions with a
            denominator.
    Cost: as `linear_attention`, with M for K and, with a denominator, V + 1 for V.
    """
    name, is_apart = "kernel_attention", position_map is not None and denominator is not None
    check_qkv(name, q, k, v, same_space=True)
    if cu_seqlens is not None:
        check_cu_seqlens(name, cu_seqlens, q)
    if is_apart and (initial_state is not None or output_final_state):
        raise ValueError(
            f"{name}: with a position_map the denominator has features of its own, so that no single state sums up "
            "the past; leave initial_state and output_final_state out."
        )
    queries, keys, values = _features(name, q, k, v, feature_map, None if is_apart else denominator)
    reading, writing = _positioned(name, queries, keys, position_map)
    _check_channels(name, log_decay, q, reading)
    # the sum of the weights is what a value of 1 comes out as
    columns = values if denominator is None or is_apart else F.pad(values, (0, 1), value=1.0)
    options = (log_decay, 1.0, is_causal, initial_state, cu_seqlens, None)
    problem = LinearAttentionProblem(reading, writing, columns, *options)
    problem.check(name)
    out, state = OPERATOR(problem)
    if denominator is not None:
        if is_apart:
            sums, _ = OPERATOR(LinearAttentionProblem(queries, keys, torch.ones_like(values[..., :1]), *options))
        else:
            out, sums = out[..., :-1], out[..., -1:]
        out = out / denominator.of(sums)
    return out.to(v.dtype), state if output_final_state else None


kernel_attention_reference = reference_of(kernel_attention, "The equation over `linear_attention_reference`.")


@checked
def kernel_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    *,
    feature_map: FeatureMap | None = None,
    denominator: Denominator | None = None,
    log_decay: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token of `kernel_attention`: O(M V) per head.

    Args:
        q, k, v: [B, H, K], [B, Hkv, K], [B, Hkv, V].
        state: [B, H, M, V], or [B, H, M, V + 1] with a denominator, as returned before; not changed.
        feature_map, denominator: as in `kernel_attention`.
        log_decay: None, [Hd], [B, Hd] or [B, Hd, M].
    Returns:
        out [B, H, V] in v's dtype, and the new state in at least float32.
    Raises:
        ShapeError, TypeError, ValueError: as `linear_attention_step`.
    """
    name = "kernel_attention_step"
    check_qkv(name, q, k, v, space_dims=(0,))
    token = _features(name, q[:, None], k[:, None], v[:, None], feature_map, denominator)
    queries, keys, values = (x.squeeze(1) for x in token)
    if denominator is not None:
        values = F.pad(values, (0, 1), value=1.0)
    problem = StepProblem(queries, keys, values, state, log_decay, 1.0, None)
    problem.check(name)
    out, state = STEP(problem)
    if denominator is not None:
        out = out[..., :-1] / denominator.of(out[..., -1:])
    return out.to(v.dtype), state


kernel_attention_step_reference = reference_of(
    kernel_attention_step, "The equation over `linear_attention_step_reference`."
)


def _features(
    name: str, q: Tensor, k: Tensor, v: Tensor, feature_map: FeatureMap | None, denominator: Denominator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of queries (relative ones, where the denominator lets their factor cancel) and keys, with the values."""
    dtype = working_dtype(q, v)
    if feature_map is None:
        return q.to(dtype), k.to(dtype), v.to(dtype)
    features = resolve_feature_map(feature_map, name)
    relative = getattr(features, "queries", None) if denominator is not None and denominator.is_relative else None
    queries, keys = (relative or features)(q.to(dtype)), features(k.to(dtype))
    for x, like in ((queries, q), (keys, k)):
        check_mapped(name, "feature_map", x, like)
    return queries, keys, v.to(working_dtype(queries, keys))


def _positioned(
    name: str, queries: Tensor, keys: Tensor, position_map: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Features as the numerator takes them."""
    if position_map is None:
        return queries, keys
    reading, writing = position_map(queries), position_map(keys)
    for x, like in ((reading, queries), (writing, keys)):
        check_mapped(name, "position_map", x, like)
    return reading, writing


def _check_channels(name: str, log_decay: Tensor | None, q: Tensor, reading: Tensor) -> None:
    """Refuse one decay for each channel of q where features have other channels."""
    width = reading.shape[-1]
    if isinstance(log_decay, Tensor) and log_decay.ndim == 4 and q.shape[-1] != width != log_decay.shape[-1]:
        raise ShapeError(
            f"{name}: log_decay has {log_decay.shape[-1]} channels, but feature_map and position_map make {width} of "
            f"the {q.shape[-1]} of q; give one decay for each of those, or one a head [B, T, H]."
        )
