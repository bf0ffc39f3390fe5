"""The kernels of `linear_attention` for autograd, `torch.func` and `torch.compile`, and the back-end's two entries."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attensor.ops.linear_attention.backends import Call, torch_backend
from attensor.ops.linear_attention.checks import check_decay
from attensor.ops.linear_attention.fold import fold_batch
from attensor.ops.linear_attention.step import Step, torch_step
from attensor.ops.triton.linear_attention import library
from attensor.ops.triton.linear_attention.passes import SCHEDULES

__all__ = ["chunked", "step"]

_CHUNK_SIZE = 64
# where the batch dimension stands in q, k, v, log_decay, initial_state, cu_seqlens (states: [R, B, H, K, V])
_INPUT_BATCH = (0, 0, 0, 0, 1, None)


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    chunk_size: int | None,
    *,
    schedule: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence of `linear_attention`, differentiable; arguments as the public function's after its checks.

    Args:
        q, k, v, log_decay, initial_state, cu_seqlens, scale: as in `linear_attention`. float64 runs in the torch
            back-end, with a warning: the kernels compute in float32.
        chunk_size: at least 16 tokens are taken; None: 64.
        schedule: `"parallel"` (states at the borders of chunks go through memory), `"on_chip"` (they do not), or
            `"recurrent"` (token by token, forward only; the gradient is taken by chunks); None: by the sizes.
    Returns:
        out [B, T, H, V] in v's dtype, states [B, H, K, V] (packed: [N, H, K, V]) in float32.
    Raises:
        ValueError: unknown schedule.
    """
    if schedule is not None and schedule not in SCHEDULES:
        raise ValueError(
            f"linear_attention: unknown schedule {schedule!r}; choose one of {', '.join(map(repr, SCHEDULES))} or None."
        )
    if _is_double(q, k, v):
        return torch_backend(Call(q, k, v, log_decay, initial_state, cu_seqlens, scale, chunk_size, "la2"))
    batch_dim = 0 if cu_seqlens is None else 1
    if initial_state is not None:
        initial_state = initial_state.unsqueeze(batch_dim)
    if log_decay is not None and log_decay.ndim == 1:
        log_decay = log_decay.unsqueeze(0)
    size = chunk_size or min(_CHUNK_SIZE, max(16, 1 << (max(q.shape[1], 1) - 1).bit_length()))
    tensors = (q, k, v, log_decay, initial_state, cu_seqlens)
    out, state = _Forward.apply(*tensors, scale, size, schedule)  # type: ignore[no-untyped-call]
    return out, state.squeeze(batch_dim)


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    *,
    log_decay: Tensor | None,
    scale: float,
    state_slots: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token of the recurrence in one kernel.

    Args:
        q, k, v: [B, H, K], [B, Hkv, K], [B, Hkv, V].
        state: [B, H, K, V]; with state_slots a pool [S, H, K, V], changed in place. float64 runs in the torch
            back-end, with a warning.
        log_decay: None, [Hd], [B, Hd] or [B, Hd, K].
        scale: multiplies q.
        state_slots: [B], integers: the place in the pool of each row's state, all different. A row with -1 is skipped
            and gives zeros. Not differentiable.
    Returns:
        out [B, H, V] in v's dtype, and the new state in float32, differentiable; with state_slots the pool itself.
    """
    if _is_double(q, k, v, state):
        return torch_step(Step(q, k, v, state, log_decay, scale, state_slots))
    q, k, v = (x.unsqueeze(1) for x in (q, k, v))
    if log_decay is not None and log_decay.ndim > 1:
        log_decay = log_decay.unsqueeze(1)
    check_decay(q, k, log_decay)
    if state_slots is None:
        out, new = chunked(q, k, v, log_decay, state, None, scale, 1, schedule="recurrent")
        return out.squeeze(1), new
    if log_decay is not None and log_decay.ndim == 1:
        log_decay = log_decay.unsqueeze(0)
    out = library.decode(q, k, v, log_decay, state, state_slots, scale)
    return out.squeeze(1), state


def _is_double(*tensors: Tensor) -> bool:
    if not any(x.dtype == torch.float64 for x in tensors):
        return False
    if not torch.compiler.is_compiling():  # no compiler can trace a warning
        warnings.warn(
            'linear_attention: the triton kernels compute in float32; float64 tensors run in the "torch" back-end. '
            'Pass backend="torch" to choose that, or tensors of float32, bfloat16 or float16.',
            stacklevel=3,
        )
    return True


class _Forward(torch.autograd.Function):
    """Output [B, T, H, V] and final states [R, B, H, K, V]."""

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor | None,
        initial_state: Tensor | None,
        cu_seqlens: Tensor | None,
        scale: float,
        chunk_size: int,
        schedule: str | None,
    ) -> tuple[Tensor, Tensor]:
        """See `library.forward`."""
        out, state = library.forward(q, k, v, log_decay, initial_state, cu_seqlens, scale, chunk_size, schedule)
        return out, state

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep the inputs: states are computed again."""
        *tensors, ctx.scale, ctx.chunk_size, ctx.schedule = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_final: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v, log_decay and initial_state."""
        saved = ctx.saved_tensors  # once: checkpointing computes them anew at each reading
        log_decay, initial_state = saved[3:5]
        wanted = log_decay is not None and ctx.needs_input_grad[3]
        options = (ctx.scale, ctx.chunk_size, ctx.schedule, wanted)
        # an expanded gradient (of a sum) has strides that no kernel reads
        incoming = (grad_out.contiguous(), grad_final.contiguous())
        grads = _Backward.apply(*saved, *incoming, options)  # type: ignore[no-untyped-call]
        grad_state = None if initial_state is None else grads[3]
        return *grads[:3], grads[4] if wanted else None, grad_state, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Fold the vmapped dimension into the batch."""
        return fold_batch(_Forward.apply, info.batch_size, in_dims, arguments, _INPUT_BATCH, (0, 1))


class _Backward(torch.autograd.Function):
    """Gradients of q, k, v, initial_state and, when wanted, log_decay."""

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor | None,
        initial_state: Tensor | None,
        cu_seqlens: Tensor | None,
        grad_out: Tensor,
        grad_final: Tensor,
        options: tuple[float, int, str | None, bool],
    ) -> tuple[Tensor, ...]:
        """See `library.backward`; options: scale, chunk_size, schedule, whether log_decay's gradient is wanted."""
        inputs = (q, k, v, log_decay, initial_state, cu_seqlens)
        grads: tuple[Tensor, ...] = library.backward(*inputs, grad_out, grad_final, *options)
        return tuple(grads) if options[3] else tuple(grads[:4])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        """Second derivatives are left to the reference."""
        raise NotImplementedError(
            'linear_attention: the triton back-end has no second derivatives; use backend="reference" for them.'
        )

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Fold the vmapped dimension into the batch."""
        return fold_batch(_Backward.apply, info.batch_size, in_dims, arguments, (*_INPUT_BATCH, 0, 1), (0, 0, 0, 1, 0))
