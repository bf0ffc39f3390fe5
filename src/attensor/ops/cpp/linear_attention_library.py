"""The C++ kernels of linear attention as operators of PyTorch's library: a compiler takes a call as it is."""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

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


# the schemas above name and type what these take


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *inputs, scale, chunk_size, keep_states = arguments
    return kernels.forward(Inputs(*inputs), scale, chunk_size, keep_states=keep_states)


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, _, chunk_size, keep_states = arguments
    inputs = Inputs(*tensors)
    final, kept = kernels.new_states(inputs, chunk_size, keep_states=keep_states)
    return inputs.v.new_empty(*inputs.q.shape[:3], inputs.v.shape[3]), final, kept


def _backward(*arguments: Any) -> Gradients:
    *inputs, kept, grad_out, grad_final, scale, chunk_size, decay_gradient = arguments
    return kernels.backward(
        Inputs(*inputs), kept, grad_out, grad_final, scale, chunk_size, decay_gradient=decay_gradient
    )


def _backward_fake(*arguments: Any) -> Gradients:
    *tensors, _, _, _, _, chunk_size, decay_gradient = arguments
    inputs = Inputs(*tensors)
    grad_initial, _ = kernels.new_states(inputs, chunk_size, keep_states=False)
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in inputs[:3])
    gates = inputs.log_decay
    grad_decay = gates.new_empty(gates.shape) if decay_gradient and gates is not None else None
    return Gradients(grad_q, grad_k, grad_v, grad_decay, grad_initial)


_LIBRARY.impl("cpp_linear_attention", _forward, "CPU")
_LIBRARY.impl("cpp_linear_attention_backward", _backward, "CPU")
torch.library.register_fake("attensor::cpp_linear_attention", _forward_fake, lib=_LIBRARY)
torch.library.register_fake("attensor::cpp_linear_attention_backward", _backward_fake, lib=_LIBRARY)
