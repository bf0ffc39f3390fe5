"""`linear_attention` for autograd, `torch.func` and `torch.compile`.

Forward and backward are each one `autograd.Function`, over plain tensor code or over C++. Both see a vmapped dimension
as more batch, so the code below them never meets batched tensors and may work in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from attensor.ops._precision import full_precision
from attensor.ops.linear_attention.chunk import chunk_backward, chunk_forward
from attensor.ops.linear_attention.cpp import library as cpp
from attensor.ops.linear_attention.fold import fold_batch
from attensor.ops.linear_attention.plan import Inputs

__all__ = ["ChunkedRecurrence", "Engine"]

Engine = Literal["torch", "cpp"]

# where the batch dimension stands in q, k, v, log_decay, initial_state, cu_seqlens (states: [R, B, H, K, V])
_INPUT_BATCH = (0, 0, 0, 0, 1, None)


class ChunkedRecurrence(torch.autograd.Function):
    """Output [B, T, H, V], final states [R, B, H, K, V] and, for backward, states before segments [S, B, H, K, V]."""

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
        engine: Engine,
        keep_states: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `chunk_forward`; `keep_states` says whether a backward pass may come."""
        inputs = Inputs(q, k, v, log_decay, initial_state, cu_seqlens)
        if engine == "cpp":
            return cpp.linear_attention(inputs, scale, chunk_size, keep_states=keep_states)
        with full_precision(q):
            return chunk_forward(inputs, scale, chunk_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        """Keep the inputs and the states before segments."""
        *tensors, ctx.scale, ctx.chunk_size, ctx.engine, _ = inputs
        ctx.mark_non_differentiable(output[2])
        # else autograd makes zeros for what has no gradient, the states among it: as much memory as a result
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[2])

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_final: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """See `chunk_backward`."""
        saved = ctx.saved_tensors  # once: checkpointing computes them anew at each reading
        q, _k, v, _gates, initial_state, cu_seqlens, kept = saved
        if grad_out is None:
            grad_out = v.new_zeros(*q.shape[:3], v.shape[3])
        if grad_final is None:
            rows = 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1
            grad_final = kept.new_zeros(rows, *kept.shape[1:])
        options = (ctx.scale, ctx.chunk_size, ctx.engine, ctx.needs_input_grad[3])
        grads = _Backward.apply(*saved, grad_out, grad_final, options)  # type: ignore[no-untyped-call]
        grad_decay = grads[4] if len(grads) > 4 else None
        of_state = None if initial_state is None else grads[3]
        return *grads[:3], grad_decay, of_state, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Fold the vmapped dimension into the batch."""
        return fold_batch(ChunkedRecurrence.apply, info.batch_size, in_dims, arguments, _INPUT_BATCH, (0, 1, 1))


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
        checkpoints: Tensor,
        grad_out: Tensor,
        grad_final: Tensor,
        options: tuple[float, int, Engine, bool],
    ) -> tuple[Tensor, ...]:
        """See `chunk_backward`; options are scale, chunk_size, engine and whether log_decay's gradient is wanted."""
        inputs = Inputs(q, k, v, log_decay, initial_state, cu_seqlens)
        scale, chunk_size, engine, wanted = options
        run = cpp.linear_attention_backward if engine == "cpp" else chunk_backward
        with full_precision(q):
            found = run(inputs, checkpoints, grad_out, grad_final, scale, chunk_size, decay_gradient=wanted)
        grads = (found.q, found.k, found.v, found.initial_state)
        return grads if found.log_decay is None else (*grads, found.log_decay)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        """Second derivatives are left to the reference."""
        raise NotImplementedError(
            "linear_attention: the torch and cpp back-ends have no second derivatives; for them use "
            'backend="reference".'
        )

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Fold the vmapped dimension into the batch."""
        return fold_batch(
            _Backward.apply, info.batch_size, in_dims, arguments, (*_INPUT_BATCH, 1, 0, 1), (0, 0, 0, 1, 0)
        )
