"""Kernels of the recurrence as one differentiable function, the same for every back-end.

Sizes: as in `problem`; S kept states of the forward pass.
"""
# mypy: disable-error-code="no-untyped-call, no-any-return"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from attensor.ops._kernel import differentiable, register
from attensor.ops.linear_attention.definition import define
from attensor.ops.linear_attention.problem import Inputs, LinearAttentionProblem

__all__ = ["bind", "products", "recur", "sum_heads"]

_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? log_decay, Tensor? initial_state, Tensor? cu_seqlens"
_OPTIONS = "float scale, int chunk_size, str schedule"

Recurrence = Callable[[tuple[Tensor | None, ...], tuple[float, int, str]], tuple[Tensor, ...]]


def bind(
    name: str,
    forward: Callable[..., tuple[Tensor, Tensor, Tensor]],
    backward: Callable[..., tuple[Tensor | None, ...]],
    kept_rows: Callable[[Inputs, int], int],
    devices: Sequence[str] = ("CPU",),
) -> Recurrence:
    """The function (inputs, (scale, chunk size, schedule)) -> output [B, T, H, V] and final states [R, B, H, K, V].

    Args:
        name: of the operators in torch's library.
        forward: (inputs, scale, chunk size, schedule, S) -> output, final states, kept states [S, B, H, K, V].
        backward: (inputs, kept, gradients of output and final states, scale, chunk size, schedule, whether that of
            log_decay is wanted) -> gradients of q, k, v, log_decay (or None) and the initial state, shaped as they are.
        kept_rows: (inputs, chunk size) -> S, if a backward pass may come.
        devices: dispatch keys that the kernels run on.
    """

    def run(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        return forward(Inputs(*arguments[:6]), *arguments[6:])

    def run_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        inputs = Inputs(*arguments[:6])
        return inputs.new_output(), inputs.new_states(inputs.rows), inputs.new_states(arguments[-1])

    def run_back(*arguments: Any) -> tuple[Tensor | None, ...]:
        return backward(Inputs(*arguments[:6]), *arguments[6:])

    def run_back_fake(*arguments: Any) -> tuple[Tensor | None, ...]:
        inputs = Inputs(*arguments[:6])
        grads = [None if x is None else x.new_empty(x.shape) for x in inputs[:4]]
        return (*grads[:3], grads[3] if arguments[-1] else None, inputs.new_states(inputs.rows))

    forward_kernel = register(
        f"{name}({_INPUTS}, {_OPTIONS}, int kept_rows) -> (Tensor, Tensor, Tensor)",
        run, run_fake, flops=lambda q, k, v, *_: products(q, v), devices=devices,
    )  # fmt: skip
    backward_kernel = register(
        f"{name}_backward({_INPUTS}, Tensor kept, Tensor grad_out, Tensor grad_final, {_OPTIONS}, bool decay) "
        "-> (Tensor, Tensor, Tensor, Tensor?, Tensor)",
        run_back, run_back_fake, flops=lambda q, k, v, *_: 2 * products(q, v), devices=devices,
    )  # fmt: skip

    def passed(tensors: Any, options: Any, keep: bool) -> tuple[Tensor, ...]:
        rows = kept_rows(Inputs(*tensors), options[1]) if keep else 0
        return tuple(forward_kernel(*tensors, *options, rows))

    def returned(
        tensors: Any, kept: Any, grads: tuple[Tensor | None, ...], options: Any, needs: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        inputs = Inputs(*tensors)
        grad_out = inputs.new_output().zero_() if grads[0] is None else grads[0]
        grad_final = inputs.new_states(inputs.rows).zero_() if grads[1] is None else grads[1]
        found = backward_kernel(*inputs, kept[0], grad_out, grad_final, *options, needs[3])
        state = inputs.initial_state
        of_state = found[4].to(state.dtype) if state is not None else None
        return tuple(g if n else None for g, n in zip((*found[:4], of_state, None), needs))

    def definition(tensors: Any, options: Any) -> tuple[Tensor, Tensor]:
        return define(Inputs(*tensors), options[0], True)

    # where the batch stands in the inputs, the outputs and the kept states
    dims = (0, 0, 0, 0, 1, None)
    return differentiable(passed, returned, definition, batch_dims=dims, out_dims=(0, 1), kept_dims=(1,))


def recur(
    recurrence: Recurrence, problem: LinearAttentionProblem, chunk_size: int, schedule: str = ""
) -> tuple[Tensor, Tensor]:
    """Output and state as users see them; chunks are no longer than a short sequence."""
    size = 1
    while size < chunk_size and size < problem.q.shape[1]:
        size *= 2
    out, state = recurrence(problem.inputs, (problem.scale, size, schedule))
    return out, state.squeeze(0 if problem.cu_seqlens is None else 1)


def products(q: Sequence[int], v: Sequence[int]) -> int:
    """Useful floating-point operations of a pass: writing and reading K x V states, for each token and query head."""
    return 4 * q[0] * q[1] * q[2] * q[3] * v[3]


def sum_heads(x: Tensor, like: Tensor, dim: int = 2) -> Tensor:
    """x with H heads in `dim`, summed over the query heads that share one of `like`'s, in its dtype."""
    heads = like.shape[dim]
    if x.shape[dim] != heads:
        x = x.unflatten(dim, (heads, x.shape[dim] // heads)).sum(dim + 1)
    return x.to(like.dtype)
