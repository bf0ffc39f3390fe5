r"""Linear attention with decay: causal attention whose memory is one K x V matrix per head.

    S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T          o_t = scale q_t S_t          S_0 = initial_state or 0

Without decay this is linear attention; with one per head, lightning attention and retention; with one per head and
token, scalar gates; with one per head, token and key channel, gated linear attention. All are one chunked algorithm
(`chunk`). Feature maps, denominators and weights on the keys stand around it (`forms`).

Sizes: B batch, T tokens, H query heads, Hkv key/value heads, K key and V value channels, N packed sequences.
Source: arXiv:2312.06635 (GLA), arXiv:2401.04658 (Lightning Attention-2), arXiv:2307.08621 (retention).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from attensor.ops._dispatch import Operator
from attensor.ops.linear_attention.backends import (
    Algorithm,
    Call,
    cpp_backend,
    reference_backend,
    torch_backend,
    triton_backend,
)
from attensor.ops.linear_attention.checks import (
    check_chunk_size,
    check_decay,
    check_inputs,
    check_options,
    check_packing,
    check_state,
)
from attensor.ops.linear_attention.forms import Denominator, FeatureMap, Form, KeyWeighting
from attensor.ops.linear_attention.step import linear_attention_step

__all__ = ["Denominator", "linear_attention", "linear_attention_reference", "linear_attention_step"]


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    scale: float | None = None,
    is_causal: bool = True,
    feature_map: FeatureMap | None = None,
    position_map: Callable[[Tensor], Tensor] | None = None,
    denominator: Denominator | None = None,
    kv_weighting: KeyWeighting | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    algorithm: Algorithm = "la2",
    chunk_size: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Linear attention, O(T (C (K + V) + K V)) per head and O(T) memory; causal, with decay, unless asked otherwise.

    Args:
        q: [B, T, H, K], any float dtype, any strides.
        k: [B, T, Hkv, K]; H is a multiple of Hkv. A new key is not decayed in its own step.
        v: [B, T, Hkv, V].
        log_decay: None (no decay), [Hd] (constant), [B, T, Hd], or [B, T, Hd, K] (per key channel), with Hd = H or Hkv:
            natural log of the factor on the state at each token. It must be <= 0, which is not checked, because that
            would wait for the device; `-inf` forgets everything.
        scale: multiplies the output; if None `K ** -0.5`, or 1 with a denominator.
        is_causal: False lets every query see every key of its sequence, O(T K V); then there is no log_decay.
        feature_map: `"elu+1"`, `"relu"`, `"silu"`, or a function or module [B, T, heads, K] -> [B, T, heads, M], such
            as `ops.feature_maps.PositiveRandomFeatures`; for queries and keys, in float32 at least. M takes K's place
            in log_decay and the states.
        position_map: function of the features [B, T, heads, M] used in the numerator only (rotary embedding, RALA).
        denominator: divides each output by the sum of its weights; see `Denominator`. The state has one more value
            column then, [B, H, M, V + 1]: the decayed sum of the keys.
        kv_weighting: `"global-query"` weights the keys of a sequence by their softmax against its mean query, times
            its length (RALA); needs `is_causal=False`.
        initial_state: [B, H, K, V], as returned by an earlier call; zeros if None. With cu_seqlens [N, H, K, V].
        output_final_state: also return the state after the last token.
        cu_seqlens: [N + 1], int32 or int64, ascending from 0 to T: B is 1 and sequence n is tokens `cu_seqlens[n]` up
            to `cu_seqlens[n + 1]`; sequences may be empty. Never read back to the host.
        algorithm: `"la2"`, chunks and a state, or `"la1"`, the left product in tiles, O(T^2 (K + V)), for no or a
            constant decay. They differ in speed, not in the result.
        chunk_size: tokens C handled by one matrix product, a power of two; changes the speed, not the result. None:
            automatic.
        backend: `"reference"` (the recurrence token by token), `"torch"`, `"cpp"` (a CPU with a C++ compiler, which is
            called once on a machine), `"triton"`; None: the context's or the best available.
    Returns:
        out [B, T, H, V] in v's dtype; state [B, H, K, V] (packed: [N, H, K, V]; one per query head) in float32, or
        float64 for float64 inputs, or None. Both are differentiable, once (`"reference"`: any number of times).
    Raises:
        ShapeError: sizes disagree, tensors look like [B, H, T, D], or B != 1 with cu_seqlens.
        TypeError: not floating point; q, k, v of different dtypes outside autocast; cu_seqlens not int32 or int64.
        ValueError: chunk_size is no power of two; options that exclude each other; tensors on different devices.
    Cost: with T' = T rounded up to chunks, B H T' (2 C K + 2 C V + 4 K V) floating-point operations in matrix products;
        per key channel B H T' ((C - 1) K + 2 C V + 4 K V); not causal B H T 4 K V.
    Source: arXiv:2312.06635, sections 4.1 to 4.3; arXiv:2006.16236, equations 4 to 12.
    """
    form = Form(feature_map, position_map, denominator, kv_weighting)
    check_inputs(q, k, v)
    check_options(form, algorithm, is_causal, log_decay, initial_state, output_final_state)
    check_packing(q, cu_seqlens)
    check_chunk_size(chunk_size)
    if scale is None:
        scale = q.shape[-1] ** -0.5 if denominator is None else 1.0
    run = _OPERATOR.choose(backend, q.device)
    kind = algorithm if is_causal else "bidirectional"

    def core(q: Tensor, k: Tensor, v: Tensor, initial_state: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        check_decay(q, k, log_decay)
        check_state(q, v, initial_state, cu_seqlens)
        result: tuple[Tensor, Tensor] = run(
            Call(q, k, v, log_decay, initial_state, cu_seqlens, scale, chunk_size, kind)
        )
        return result

    if form.is_plain:
        out, state = core(q, k, v, initial_state, scale)
    else:
        out, state = form.around(core, q, k, v, initial_state, cu_seqlens, scale)
    return out, state if output_final_state else None


def linear_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    scale: float | None = None,
    is_causal: bool = True,
    feature_map: FeatureMap | None = None,
    position_map: Callable[[Tensor], Tensor] | None = None,
    denominator: Denominator | None = None,
    kv_weighting: KeyWeighting | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    algorithm: Algorithm = "la2",
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The definition of `linear_attention`, token by token (not causal: by the T x T weights).

    Same arguments and results; `algorithm` and `chunk_size` have no effect.
    """
    return linear_attention(
        q,
        k,
        v,
        log_decay=log_decay,
        scale=scale,
        is_causal=is_causal,
        feature_map=feature_map,
        position_map=position_map,
        denominator=denominator,
        kv_weighting=kv_weighting,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        algorithm=algorithm,
        chunk_size=chunk_size,
        backend="reference",
    )


_OPERATOR = Operator(
    "linear_attention",
    {"triton": triton_backend, "cpp": cpp_backend, "torch": torch_backend, "reference": reference_backend},
)
