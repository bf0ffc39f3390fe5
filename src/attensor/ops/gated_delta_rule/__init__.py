r"""The gated delta rule: a linear recurrence that corrects what its state says of a key, instead of adding to it.

    S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - k_t^T exp(g_t) S_{t-1})        o_t = scale q_t S_t

With beta = 1, g = 0 and keys of length 1 the state then holds v_t under k_t exactly. Without g this is the delta rule
(DeltaNet), with it Gated DeltaNet; with beta up to 2 a correction can also reflect.

Sizes: B batch, T tokens, H heads, Hkv key/value heads, K key and V value channels, N packed sequences.
Source: arXiv:2412.06464, section 3; without a gate arXiv:2406.06484; beta up to 2: arXiv:2411.12537.
"""

from __future__ import annotations

from torch import Tensor

from attensor.ops._checks import checked
from attensor.ops._operator import Implementation, Operator, reference_of
from attensor.ops.gated_delta_rule import chunked
from attensor.ops.gated_delta_rule.definition import define
from attensor.ops.gated_delta_rule.problem import DeltaProblem

__all__ = ["OPERATOR", "gated_delta_rule", "gated_delta_rule_reference"]


@checked
def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    log_decay: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The delta rule with a gate, causal: O(T (C (K + V + C) + K V)) a head and O(T) memory.

    Args:
        q: [B, T, H, K], any float dtype, any strides.
        k: [B, T, Hkv, K]; H is a multiple of Hkv. Of length 1, or less, for a recurrence that does not grow.
        v: [B, T, Hkv, V].
        beta: [B, T, Hd], Hd = H or Hkv: how far the state is corrected, 0 not at all, 1 whole; up to 2 reflects.
        log_decay: [B, T, Hd], natural log of what a token keeps of the state before it corrects it; none if None. It
            must be <= 0, which is not checked, because that would wait for the device; `-inf` forgets everything.
        scale: multiplies the output; if None `K ** -0.5`.
        initial_state: [B, H, K, V], as returned by an earlier call; zeros if None. With cu_seqlens [N, H, K, V].
        output_final_state: also return the state after the last token.
        cu_seqlens: [N + 1], integers from 0 to T: B is 1 and sequence n is tokens `cu_seqlens[n]` up to the next.
        chunk_size: tokens C handled by one matrix product; changes the speed, not the result. 32 if None.
        backend: `"reference"` (token by token) or `"torch"`; None: the context's or the best available.
    Returns:
        out [B, T, H, V] in v's dtype; state [B, H, K, V] (packed [N, H, K, V]) in float32, of float64 in float64, or
        None. Both are differentiable; second and forward derivatives are those of the definition.
    Raises:
        ShapeError, TypeError, ValueError, BackendError: as `linear_attention`; chunk_size below 1.
    Cost: B H T 6 K V floating-point operations; in chunks B H T (6 K V + C (4 K + 4 V + C)) are carried out.
    """
    problem = DeltaProblem(q, k, v, beta, log_decay, scale, initial_state, cu_seqlens, chunk_size)
    problem.check("gated_delta_rule")
    out, state = OPERATOR(problem, backend)
    return out, state if output_final_state else None


gated_delta_rule_reference = reference_of(
    gated_delta_rule, "The definition, token by token; `chunk_size` has no effect."
)


def _reference(problem: DeltaProblem) -> tuple[Tensor, Tensor]:
    out, state = define(problem.inputs, problem.factor)
    return out, state.squeeze(problem.batch_dim)


OPERATOR: Operator[DeltaProblem, tuple[Tensor, Tensor]] = Operator(
    "gated_delta_rule", {"reference": Implementation(_reference), "torch": Implementation(chunked.run)}
)
