r"""Linear attention with decay: causal attention whose memory is one K x V matrix per head.

    S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T          o_t = scale q_t S_t          S_0 = initial_state or 0

Without decay this is linear attention; with one per head, lightning attention and retention; with one per head and
token, scalar gates; with one per head, token and key channel, gated linear attention. Features, denominators and
positions stand around it: `kernel_attention`.

Sizes: B batch, T tokens, H query heads, Hkv key/value heads, K key and V value channels, N packed sequences.
Source: arXiv:2312.06635 (GLA), arXiv:2401.04658 (Lightning Attention-2), arXiv:2307.08621 (retention).
"""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.ops._checks import checked
from attensor.ops._operator import Implementation, Operator, reference_of
from attensor.ops.linear_attention import chunked
from attensor.ops.linear_attention.cpp import recurrence as cpp
from attensor.ops.linear_attention.definition import define
from attensor.ops.linear_attention.problem import LinearAttentionProblem, causal_only
from attensor.ops.linear_attention.step import linear_attention_step as linear_attention_step
from attensor.ops.linear_attention.step import linear_attention_step_reference as linear_attention_step_reference

__all__ = [
    "OPERATOR",
    "linear_attention",
    "linear_attention_reference",
    "linear_attention_step",
    "linear_attention_step_reference",
]


@checked
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    scale: float | None = None,
    is_causal: bool = True,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Linear attention, O(T (C (K + V) + K V)) per head and O(T) memory; causal, with decay, unless asked otherwise.

    Args:
        q: [B, T, H, K], any float dtype, any strides.
        k: [B, T, Hkv, K]; H is a multiple of Hkv. A new key is not decayed in its own step.
        v: [B, T, Hkv, V].
        log_decay: None (no decay), [Hd] (constant), [B, T, Hd], or [B, T, Hd, K] (per key channel), with Hd = H or Hkv
            and B or 1 rows: natural log of the factor on the state at each token. It must be <= 0, which is not
            checked, because that would wait for the device; `-inf` forgets everything.
        scale: multiplies the output; if None `K ** -0.5`.
        is_causal: False lets every query see every key of its sequence, O(T K V); then there is no log_decay.
        initial_state: [B, H, K, V], as returned by an earlier call; zeros if None. With cu_seqlens [N, H, K, V].
        output_final_state: also return the state after the last token.
        cu_seqlens: [N + 1], int32 or int64, ascending from 0 to T: B is 1 and sequence n is tokens `cu_seqlens[n]` up
            to `cu_seqlens[n + 1]`; sequences may be empty. Never read back to the host.
        chunk_size: tokens C handled by one matrix product, a power of two; changes the speed, not the result. None:
            automatic.
        backend: `"reference"` (the recurrence token by token), `"torch"`, `"cpp"` (causal, on a CPU), `"triton"`
            (causal, on a GPU); None: the context's or the best available.
    Returns:
        out [B, T, H, V] in v's dtype; state [B, H, K, V] (packed: [N, H, K, V]; one per query head) in float32, or
        float64 for float64 inputs, or None. Both are differentiable; second and forward derivatives are those of the
        definition, token by token.
    Raises:
        ShapeError: sizes disagree, tensors look like [B, H, T, D], or B != 1 with cu_seqlens.
        TypeError: not floating point; q, k, v of different dtypes outside autocast; cu_seqlens not int32 or int64.
        ValueError: chunk_size is no power of two; a decay that is not causal; tensors on different devices.
        BackendError: `backend` cannot compute this.
    Cost: B H T 4 K V floating-point operations; with C >> 1 as many as B H T (2 C K + 2 C V + 4 K V) are carried out.
    Source: arXiv:2312.06635, sections 4.1 to 4.3.
    """
    problem = LinearAttentionProblem(q, k, v, log_decay, scale, is_causal, initial_state, cu_seqlens, chunk_size)
    problem.check("linear_attention")
    out, state = OPERATOR(problem, backend)
    return out, state if output_final_state else None


linear_attention_reference = reference_of(
    linear_attention, "The definition, token by token (not causal: by all pairs); `chunk_size` has no effect."
)


def _reference(problem: LinearAttentionProblem) -> tuple[Tensor, Tensor]:
    out, state = define(problem.inputs, problem.factor, problem.is_causal)
    return out, state.squeeze(problem.batch_dim)


def _triton(problem: LinearAttentionProblem) -> tuple[Tensor, Tensor]:
    # imported here: triton is an optional library
    from attensor.ops.linear_attention import triton

    return triton.chunked(problem)


def _why_not_triton(problem: LinearAttentionProblem) -> str | None:
    if torch.float64 in (problem.q.dtype, problem.v.dtype):
        return "the kernels compute in float32, not float64"
    return causal_only(problem)


OPERATOR: Operator[LinearAttentionProblem, tuple[Tensor, Tensor]] = Operator(
    "linear_attention",
    {
        "reference": Implementation(_reference),
        "torch": Implementation(chunked.run),
        "cpp": Implementation(cpp.run, causal_only),
        "triton": Implementation(_triton, _why_not_triton),
    },
)
