"""The C++ kernels of linear attention as operators of PyTorch's library: a compiler takes a call as it is."""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attensor.ops.linear_attention.chunk import Gradients
from attensor.ops.linear_attention.cpp import recurrence as kernels
from attensor.ops.linear_attention.cpp.step import advance
from attensor.ops.linear_attention.fold import fold_batch
from attensor.ops.linear_attention.plan import Inputs

__all__ = ["linear_attention", "linear_attention_backward", "linear_attention_step"]

_LIBRARY = torch.library.Library("attensor", "FRAGMENT")
_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? log_decay, Tensor? initial_state, Tensor? cu_seqlens"
_LIBRARY.define(
    f"cpp_linear_attention({_INPUTS}, float scale, int chunk_size, int segment) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    f"cpp_linear_attention_backward({_INPUTS}, Tensor kept, Tensor grad_out, Tensor grad_final, float scale, "
    "int chunk_size, int segment, bool decay_gradient) -> (Tensor, Tensor, Tensor, Tensor?, Tensor)"
)
_LIBRARY.define(
    "cpp_linear_attention_step(Tensor q, Tensor k, Tensor v, Tensor state, Tensor? log_decay, float scale) "
    "-> (Tensor, Tensor)"
)


def linear_attention(
    inputs: Inputs, scale: float, chunk_size: int, *, keep_states: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `attensor.ops.linear_attention.cpp.recurrence.forward`."""
    segment = kernels.segment_size(inputs, chunk_size) if keep_states else 0
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.attensor.cpp_linear_attention(*inputs, scale, chunk_size, segment)
    return found


def linear_attention_backward(
    inputs: Inputs,
    kept: Tensor,
    grad_out: Tensor,
    grad_final: Tensor,
    scale: float,
    chunk_size: int,
    *,
    decay_gradient: bool,
) -> Gradients:
    """See `attensor.ops.linear_attention.cpp.recurrence.backward`."""
    run = torch.ops.attensor.cpp_linear_attention_backward
    segment = kernels.segment_size(inputs, chunk_size)
    return Gradients(*run(*inputs, kept, grad_out, grad_final, scale, chunk_size, segment, decay_gradient))


def linear_attention_step(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, log_decay: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """See `attensor.ops.linear_attention.cpp.step.advance`."""
    found: tuple[Tensor, Tensor] = torch.ops.attensor.cpp_linear_attention_step(q, k, v, state, log_decay, scale)
    return found


# The schemas above name and type what these take. How many states are kept is an argument, because compilers keep the
# sizes of results on disk, for later versions too.


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *inputs, scale, chunk_size, segment = arguments
    return kernels.forward(Inputs(*inputs), scale, chunk_size, segment)


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, _, chunk_size, segment = arguments
    inputs = Inputs(*tensors)
    final, kept = kernels.new_states(inputs, chunk_size, segment)
    return inputs.v.new_empty(*inputs.q.shape[:3], inputs.v.shape[3]), final, kept


def _backward(*arguments: Any) -> Gradients:
    *inputs, kept, grad_out, grad_final, scale, chunk_size, segment, decay_gradient = arguments
    return kernels.backward(
        Inputs(*inputs), kept, grad_out, grad_final, scale, chunk_size, segment, decay_gradient=decay_gradient
    )


def _backward_fake(*arguments: Any) -> Gradients:
    *tensors, _, _, _, _, chunk_size, _, decay_gradient = arguments
    inputs = Inputs(*tensors)
    grad_initial, _ = kernels.new_states(inputs, chunk_size, 0)
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in inputs[:3])
    gates = inputs.log_decay
    grad_decay = gates.new_empty(gates.shape) if decay_gradient and gates is not None else None
    return Gradients(grad_q, grad_k, grad_v, grad_decay, grad_initial)


def _step_fake(q: Tensor, k: Tensor, v: Tensor, state: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(q.dtype, v.dtype), torch.float32)
    return v.new_empty(*q.shape[:2], v.shape[2]), state.new_empty(state.shape, dtype=dtype)


def _step_vmap(
    info: Any, in_dims: tuple[int | None, ...], *arguments: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    run = torch.ops.attensor.cpp_linear_attention_step
    return fold_batch(run, info.batch_size, in_dims, arguments, (0, 0, 0, 0, 0), (0, 0))


_LIBRARY.impl("cpp_linear_attention", _forward, "CPU")
_LIBRARY.impl("cpp_linear_attention_backward", _backward, "CPU")
_LIBRARY.impl("cpp_linear_attention_step", advance, "CPU")
torch.library.register_fake("attensor::cpp_linear_attention", _forward_fake, lib=_LIBRARY)
torch.library.register_fake("attensor::cpp_linear_attention_backward", _backward_fake, lib=_LIBRARY)
torch.library.register_fake("attensor::cpp_linear_attention_step", _step_fake, lib=_LIBRARY)
torch.library.register_vmap("attensor::cpp_linear_attention_step", _step_vmap, lib=_LIBRARY)
