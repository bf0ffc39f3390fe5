"""The C++ kernels of linear attention as operators of PyTorch's library: a compiler takes a call as it is."""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import torch
from torch import Tensor

from attensor.ops.cpp import linear_attention as kernels
from attensor.ops.linear_attention.chunk import Gradients
from attensor.ops.linear_attention.plan import Inputs

__all__ = ["linear_attention", "linear_attention_backward"]

_LIBRARY = torch.library.Library("attensor", "FRAGMENT")
_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? log_decay, Tensor? initial_state, Tensor? cu_seqlens"
_LIBRARY.define(
    f"cpp_linear_attention({_INPUTS}, float scale, int chunk_size, bool keep_states) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    f"cpp_linear_attention_backward({_INPUTS}, Tensor kept, Tensor grad_out, Tensor grad_final, float scale, "
    "int chunk_size, bool decay_gradient) -> (Tensor, Tensor, Tensor, Tensor?, Tensor)"
)


def linear_attention(
    inputs: Inputs, scale: float, chunk_size: int, *, keep_states: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `attensor.ops.cpp.linear_attention.forward`."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.attensor.cpp_linear_attention(
        *inputs, scale, chunk_size, keep_states
    )
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
    """See `attensor.ops.cpp.linear_attention.backward`."""
    run = torch.ops.attensor.cpp_linear_attention_backward
    return Gradients(*run(*inputs, kept, grad_out, grad_final, scale, chunk_size, decay_gradient))


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    chunk_size: int,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = Inputs(q, k, v, log_decay, initial_state, cu_seqlens)
    return kernels.forward(inputs, scale, chunk_size, keep_states=keep_states)


def _forward_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    chunk_size: int,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = Inputs(q, k, v, log_decay, initial_state, cu_seqlens)
    final, kept = kernels.new_states(inputs, chunk_size, keep_states=keep_states)
    return v.new_empty(*q.shape[:3], v.shape[3]), final, kept


def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    kept: Tensor,
    grad_out: Tensor,
    grad_final: Tensor,
    scale: float,
    chunk_size: int,
    decay_gradient: bool,
) -> Gradients:
    inputs = Inputs(q, k, v, log_decay, initial_state, cu_seqlens)
    return kernels.backward(inputs, kept, grad_out, grad_final, scale, chunk_size, decay_gradient=decay_gradient)


def _backward_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    kept: Tensor,
    grad_out: Tensor,
    grad_final: Tensor,
    scale: float,
    chunk_size: int,
    decay_gradient: bool,
) -> Gradients:
    inputs = Inputs(q, k, v, log_decay, initial_state, cu_seqlens)
    grad_initial, _ = kernels.new_states(inputs, chunk_size, keep_states=False)
    grad_decay = log_decay.new_empty(log_decay.shape) if decay_gradient and log_decay is not None else None
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
    return Gradients(grad_q, grad_k, grad_v, grad_decay, grad_initial)


_LIBRARY.impl("cpp_linear_attention", _forward, "CPU")
_LIBRARY.impl("cpp_linear_attention_backward", _backward, "CPU")
torch.library.register_fake("attensor::cpp_linear_attention", _forward_fake, lib=_LIBRARY)
torch.library.register_fake("attensor::cpp_linear_attention_backward", _backward_fake, lib=_LIBRARY)
