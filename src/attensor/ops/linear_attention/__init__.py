r"""Linear attention with decay: causal attention whose memory is one K x V matrix per head.

    S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T          o_t = scale q_t S_t          S_0 = initial_state or 0

Without decay this is linear attention; with one per head, lightning attention and retention; with one per head and
token, scalar gates; with one per head, token and key channel, gated linear attention. All are one chunked algorithm
(`chunk`).

Sizes: B batch, T tokens, H query heads, Hkv key/value heads, K key and V value channels, N packed sequences.
Source: arXiv:2312.06635 (GLA), arXiv:2401.04658 (Lightning Attention-2), arXiv:2307.08621 (retention).
"""

from __future__ import annotations

from torch import Tensor

from attensor.ops._dispatch import Operator
from attensor.ops.linear_attention.checks import check_chunk_size, check_decay, check_inputs, check_state
from attensor.ops.linear_attention.function import ChunkedRecurrence
from attensor.ops.linear_attention.reference import reference
from attensor.ops.linear_attention.step import linear_attention_step

__all__ = ["linear_attention", "linear_attention_reference", "linear_attention_step"]

# measured on a CPU, forward and backward, for K = V = 32 to 128
_CHUNK_SIZE = 64


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Causal linear attention with decay, O(T (C (K + V) + K V)) per head and O(T) memory.

    Args:
        q: [B, T, H, K], any float dtype, any strides.
        k: [B, T, Hkv, K]; H is a multiple of Hkv. A new key is not decayed in its own step.
        v: [B, T, Hkv, V].
        log_decay: None (no decay), [Hd] (constant), [B, T, Hd], or [B, T, Hd, K] (per key channel), with Hd = H or Hkv:
            natural log of the factor on the state at each token. It must be <= 0, which is not checked, because that
            would wait for the device; `-inf` forgets everything.
        scale: multiplies q; `K ** -0.5` if None.
        initial_state: [B, H, K, V], as returned by an earlier call; zeros if None. With cu_seqlens [N, H, K, V].
        output_final_state: also return the state after the last token.
        cu_seqlens: [N + 1], int32 or int64, ascending from 0 to T: B is 1 and sequence n is tokens `cu_seqlens[n]` up
            to `cu_seqlens[n + 1]`; sequences may be empty. Never read back to the host.
        chunk_size: tokens C handled by one matrix product, a power of two; changes the speed, not the result. None:
            automatic.
        backend: `"reference"` (the recurrence token by token), `"torch"`; None: the context's or the best available.
    Returns:
        out [B, T, H, V] in v's dtype; state [B, H, K, V] (packed: [N, H, K, V]; one per query head) in float32, or
        float64 for float64 inputs, or None. Both are differentiable, once (`"reference"`: any number of times).
    Raises:
        ShapeError: sizes disagree, tensors look like [B, H, T, D], or B != 1 with cu_seqlens.
        TypeError: not floating point; q, k, v of different dtypes outside autocast; cu_seqlens not int32 or int64.
        ValueError: chunk_size is no power of two; tensors on different devices.
    Cost: with T' = T rounded up to chunks, B H T' (2 C K + 2 C V + 4 K V) floating-point operations in matrix products;
        per key channel B H T' ((C - 1) K + 2 C V + 4 K V).
    Source: arXiv:2312.06635, sections 4.1 to 4.3.
    """
    check_inputs(q, k, v)
    check_decay(q, k, log_decay)
    check_state(q, v, initial_state, cu_seqlens)
    check_chunk_size(chunk_size)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    run = _OPERATOR.choose(backend, q.device)
    out, state = run(q, k, v, log_decay, initial_state, cu_seqlens, scale, chunk_size)
    return out, state if output_final_state else None


def linear_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The definition of `linear_attention`, token by token: same arguments and results, `chunk_size` has no effect."""
    return linear_attention(
        q,
        k,
        v,
        log_decay=log_decay,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
        chunk_size=chunk_size,
        backend="reference",
    )


def _chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """The `torch` back-end; states go in and out as [rows, B, H, K, V], rows being the packed sequences or 1."""
    size, limit = 1, chunk_size or _CHUNK_SIZE
    while size < limit and size < q.shape[1]:
        size *= 2
    batch_dim = 0 if cu_seqlens is None else 1
    if initial_state is not None:
        initial_state = initial_state.unsqueeze(batch_dim)
    if log_decay is not None and log_decay.ndim == 1:
        log_decay = log_decay.unsqueeze(0)
    arguments = (q, k, v, log_decay, initial_state, cu_seqlens, scale, size)
    out, state, _ = ChunkedRecurrence.apply(*arguments)  # type: ignore[no-untyped-call]
    return out, state.squeeze(batch_dim)


_OPERATOR = Operator("linear_attention", {"torch": _chunked, "reference": reference})
