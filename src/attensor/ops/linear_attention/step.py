"""One token of `linear_attention`, for decoding."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from attensor.ops._checks import checked, scale_of
from attensor.ops._operator import Implementation, Operator, reference_of
from attensor.ops._precision import full_precision, working_dtype
from attensor.ops.linear_attention.cpp import step as cpp
from attensor.ops.linear_attention.definition import define_step
from attensor.ops.linear_attention.problem import StepProblem

__all__ = ["linear_attention_step", "linear_attention_step_reference"]


@checked
def linear_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    *,
    log_decay: Tensor | None = None,
    scale: float | None = None,
    state_slots: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence of `linear_attention` for one token: O(K V) per head, whatever came before.

    Args:
        q: [B, H, K], any float dtype.
        k: [B, Hkv, K]; H is a multiple of Hkv.
        v: [B, Hkv, V].
        state: [B, H, K, V], as returned by an earlier step or by `linear_attention`; not changed. With state_slots a
            pool [S, H, K, V], memory of its own without gradients, that is changed in place.
        log_decay: None, [Hd], [B, Hd] or [B, Hd, K] with Hd = H or Hkv and B or 1 rows; natural log of the factor on
            the state, <= 0 (not checked: that would wait for the device).
        scale: multiplies the output; if None `K ** -0.5`.
        state_slots: [B], integers: the place in the pool of each row's state, all different; a row with -1 is skipped
            and gives zeros. Not differentiable.
        backend: `"reference"`, `"torch"`, `"cpp"` (without slots), `"triton"`; None: the context's or the best.
    Returns:
        out [B, H, V] in v's dtype, and the new state [B, H, K, V] in at least float32 (with state_slots the pool).
    Raises:
        ShapeError: sizes disagree.
        TypeError: dtypes are not floating point or differ; state_slots are no integers.
        BackendError: `backend` cannot compute this.
    Source: arXiv:2312.06635, equation 3 (recurrent form).
    """
    problem = StepProblem(q, k, v, state, log_decay, scale_of(q, scale), state_slots)
    problem.check("linear_attention_step")
    return STEP(problem, backend)


linear_attention_step_reference = reference_of(
    linear_attention_step, "The definition: S' = exp(log_decay) S + k v^T, out = scale q S'."
)


def _define(x: StepProblem) -> tuple[Tensor, Tensor]:
    decays = x.decays()
    if x.state_slots is None:
        return define_step(x.q, x.k, x.v, decays, x.state, x.scale)
    out = x.v.new_zeros(*x.q.shape[:2], x.v.shape[2])
    for row, slot in enumerate(x.state_slots.tolist()):
        if slot >= 0:
            own, old = slice(row, row + 1), x.state[slot : slot + 1]
            decay = None if decays is None else decays[own]
            out[own], x.state[slot : slot + 1] = define_step(x.q[own], x.k[own], x.v[own], decay, old, x.scale)
    return out, x.state


def _torch(x: StepProblem) -> tuple[Tensor, Tensor]:
    """Products of whole batches; with slots states are gathered and written back."""
    if x.state_slots is not None:
        return _torch_slots(x, x.state_slots.long())
    dtype, groups = working_dtype(x.q, x.v), x.q.shape[1] // x.k.shape[1]
    q, k, v, old = (t.to(dtype) for t in (x.q, x.k, x.v, x.state))
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    decays = x.decays()
    if decays is not None:
        old = old * decays.exp().unsqueeze(-1)
    with full_precision(q):
        new = torch.baddbmm(old.flatten(0, 1), k.flatten(0, 1).unsqueeze(-1), v.flatten(0, 1).unsqueeze(-2))
        new = new.view(old.shape)
        out = torch.matmul((q * x.scale).unsqueeze(-2), new).squeeze(-2)
    return out.to(x.v.dtype), new


def _torch_slots(x: StepProblem, slots: Tensor) -> tuple[Tensor, Tensor]:
    if not len(slots):
        return x.v.new_zeros(*x.q.shape[:2], x.v.shape[2]), x.state
    used = slots >= 0
    # a skipped row repeats what the first used one does, so that the device need not be asked how many there are
    row = torch.where(used, torch.arange(len(slots), device=slots.device), used.int().argmax())
    places = slots[row].clamp_min(0)
    old = x.state[places]
    out, new = _torch(replace(x, state=old, state_slots=None))
    x.state.index_copy_(0, places, torch.where(used.any(), new.to(old.dtype)[row], old))
    return torch.where(used[:, None, None], out, 0.0), x.state


def _cpp(x: StepProblem) -> tuple[Tensor, Tensor]:
    out, state = cpp.step((x.q, x.k, x.v, x.state, x.decays()), (x.scale,))
    return out, state


def _triton(x: StepProblem) -> tuple[Tensor, Tensor]:
    # imported here: triton is an optional library
    from attensor.ops.linear_attention.triton import step

    return step(x)


def _why_not_triton(x: StepProblem) -> str | None:
    is_double = torch.float64 in (x.q.dtype, x.v.dtype, x.state.dtype)
    return "the kernels compute in float32, not float64" if is_double else None


STEP: Operator[StepProblem, tuple[Tensor, Tensor]] = Operator(
    "linear_attention_step",
    {
        "reference": Implementation(_define),
        "torch": Implementation(_torch),
        "cpp": Implementation(_cpp, lambda x: None if x.state_slots is None else "no state_slots"),
        "triton": Implementation(_triton, _why_not_triton),
    },
)
