"""The problems of linear attention, and what its forms share: their inputs, and how a pair of kernels becomes one.

Sizes: B batch, T tokens, H query heads, Hkv key/value heads, K key and V value channels, R rows of states, S kept
states of the forward pass.
"""
# mypy: disable-error-code="no-untyped-call, no-any-return"

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._checks import check_cu_seqlens, check_decay, check_float, check_integers, check_qkv, is_readable
from attensor.ops._kernel import differentiable, register
from attensor.ops._precision import WORKING, working_dtype

__all__ = ["Inputs", "LinearAttentionProblem", "StepProblem", "bind", "causal_only", "products", "recur", "sum_heads"]


class Inputs(NamedTuple):
    """Tensors as the kernels take them; R rows of states, one a packed sequence, or 1. `torch.vmap` adds to B."""

    q: Tensor  # [B, T, H, K]
    k: Tensor  # [B, T, Hkv, K]
    v: Tensor  # [B, T, Hkv, V]
    log_decay: Tensor | None  # [B or 1, Hd], [B, T, Hd] or [B, T, Hd, K], Hd = H or Hkv
    initial_state: Tensor | None  # [R, B, H, K, V]
    cu_seqlens: Tensor | None  # [R + 1]; None: R = 1

    @property
    def rows(self) -> int:
        """R."""
        return 1 if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    def new_output(self) -> Tensor:
        """[B, T, H, V] in v's dtype, to be filled."""
        return self.v.new_empty(*self.q.shape[:3], self.v.shape[3])

    def new_states(self, rows: int) -> Tensor:
        """[rows, B, H, K, V] in the working precision, to be filled."""
        batch, _, heads, key_dim = self.q.shape
        return self.q.new_empty(rows, batch, heads, key_dim, self.v.shape[3], dtype=WORKING[self.q.dtype, self.v.dtype])


@dataclass(frozen=True)
class LinearAttentionProblem:
    """The arguments of `linear_attention`, by the same names."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    scale: float | None
    is_causal: bool
    initial_state: Tensor | None
    cu_seqlens: Tensor | None
    chunk_size: int | None

    @property
    def factor(self) -> float:
        """What multiplies the output."""
        if self.scale is None:
            return float(max(self.q.shape[-1], 1) ** -0.5)
        return float(self.scale) if isinstance(self.scale, int) else self.scale

    @property
    def inputs(self) -> Inputs:
        """The tensors as kernels take them."""
        state, decay = self.initial_state, self.log_decay
        if state is not None:
            state = state.unsqueeze(self.batch_dim)
        if decay is not None:
            decay = decay.unsqueeze(0) if decay.ndim == 1 else decay.expand(self.q.shape[0], *decay.shape[1:])
        return Inputs(self.q, self.k, self.v, decay, state, self.cu_seqlens)

    @property
    def batch_dim(self) -> int:
        """Where states [R, B, H, K, V] have the dimension of 1 that users do not see."""
        return 0 if self.cu_seqlens is None else 1

    def check(self, name: str) -> None:
        """Refuse what does not fit together; `name` is the public function.

        Raises:
            ShapeError: sizes disagree.
            TypeError: wrong dtypes.
            ValueError: different devices, options that exclude each other.
        """
        check_qkv(name, self.q, self.k, self.v, same_space=True)
        if self.cu_seqlens is not None:
            check_cu_seqlens(name, self.cu_seqlens, self.q)
        if self.log_decay is not None:
            if not self.is_causal:
                raise ValueError(f"{name}: is_causal=False has no direction to decay in; leave log_decay out.")
            check_decay(name, self.q, self.k, self.log_decay)
        if self.initial_state is not None:
            self._check_state(name, self.initial_state)
        size = self.chunk_size
        if size is not None and (size < 1 or size & (size - 1)):
            raise ValueError(f"{name}: chunk_size must be a power of two or None (automatic), got {size}.")

    def _check_state(self, name: str, state: Tensor) -> None:
        rows, label = (self.q.shape[0], "B") if self.cu_seqlens is None else (self.cu_seqlens.shape[0] - 1, "N")
        expected = (rows, *self.q.shape[2:], self.v.shape[3])
        if state.shape != expected:
            raise ShapeError(
                f"{name}: initial_state must be [{label}, H, K, V] = {list(expected)}, got {list(state.shape)}; "
                f"pass the state that an earlier call returned{_same_features(name)}."
            )
        check_float(name, "initial_state", state, self.q)


def _same_features(name: str) -> str:
    """What else decides K, for the operators whose keys are features."""
    return ", with the same feature_map and position_map" if name.startswith("kernel") else ""


@dataclass(frozen=True)
class StepProblem:
    """The arguments of `linear_attention_step`, with the scale filled in."""

    q: Tensor
    k: Tensor
    v: Tensor
    state: Tensor
    log_decay: Tensor | None
    scale: float
    state_slots: Tensor | None

    def check(self, name: str) -> None:
        """Refuse what does not fit together; raises as the public function does."""
        check_qkv(name, self.q, self.k, self.v, space_dims=(0,))
        expected = (*self.q.shape, self.v.shape[-1])
        slots = self.state_slots
        if slots is None and self.state.shape != expected:
            raise ShapeError(
                f"{name}: state must be [B, H, K, V] = {list(expected)}, got {list(self.state.shape)}; pass what the "
                f"last call returned{_same_features(name)}."
            )
        if slots is not None and (self.state.shape[1:] != expected[1:] or not len(self.state)):
            raise ShapeError(
                f"{name}: state must be a pool [S, *{list(expected[1:])}] of S >= 1, got {list(self.state.shape)}."
            )
        check_float(name, "state", self.state, self.q)
        if slots is not None:
            check_integers(name, "state_slots", slots, self.q)
            if (self.state.requires_grad and torch.is_grad_enabled()) or 0 in self.state.stride():
                raise ValueError(
                    f"{name}: state must be memory of its own without gradients, as the pool of state_slots is written "
                    "to, got one that is expanded or requires grad; use .detach().clone()."
                )
            if slots.shape != self.q.shape[:1]:
                raise ShapeError(f"{name}: state_slots must be [B] = [{len(self.q)}], got {list(slots.shape)}.")
            if is_readable(slots):
                self._check_slots(name, slots.tolist())
        if self.log_decay is not None:
            check_decay(name, self.q, self.k, self.log_decay)

    def _check_slots(self, name: str, slots: list[int]) -> None:
        used, count = [slot for slot in slots if slot != -1], len(self.state)
        if any(not 0 <= slot < count for slot in used) or len(set(used)) < len(used):
            raise ValueError(
                f"{name}: state_slots must be different places 0 .. {count - 1} of the pool, or -1 for a row that is "
                f"skipped, got {slots}."
            )

    def decays(self) -> Tensor | None:
        """log_decay as [B, H, K or 1] in the working precision."""
        x = self.log_decay
        if x is None:
            return None
        batch, heads, _ = self.q.shape
        x = x.to(working_dtype(self.q, self.v))
        x = x.expand(batch, *x.shape[1:]) if x.ndim > 1 else x.expand(batch, -1)
        x = x.unsqueeze(-1) if x.ndim == 2 else x
        return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? log_decay, Tensor? initial_state, Tensor? cu_seqlens"
_OPTIONS = "float scale, int chunk_size, str schedule"

Recurrence = Callable[[tuple[Tensor | None, ...], tuple[float, int, str]], tuple[Tensor, ...]]


def bind(
    name: str,
    forward: Callable[..., tuple[Tensor, Tensor, Tensor]],
    backward: Callable[..., tuple[Tensor | None, ...]],
    kept_rows: Callable[[Inputs, int], int],
    definition: Callable[[Inputs, float, bool], tuple[Tensor, Tensor]],
    devices: Sequence[str] = ("CPU",),
) -> Recurrence:
    """The function (inputs, (scale, chunk size, schedule)) -> output [B, T, H, V] and final states [R, B, H, K, V].

    Args:
        name, devices: of the operators in torch's library, and the dispatch keys that they run on.
        forward: (inputs, scale, chunk size, schedule, S) -> output, final states, kept states [S, B, H, K, V].
        backward: (inputs, kept, gradients of output and final states, scale, chunk size, schedule, whether that of
            log_decay is wanted) -> gradients of q, k, v, log_decay (or None) and the initial state, shaped as they are.
        kept_rows: (inputs, chunk size) -> S, if a backward pass may come.
        definition: (inputs, scale, True) -> output and final states, for further derivatives.
    """

    forward_kernel, backward_kernel = _registered(name, forward, backward, devices)

    def passed(tensors: Any, options: Any, keep: bool) -> tuple[Tensor, ...]:
        rows = kept_rows(Inputs(*tensors), options[1]) if keep else 0
        return tuple(forward_kernel(*tensors, *options, rows))

    def returned(tensors: Any, kept: Any, grads: Any, options: Any, needs: Any) -> tuple[Tensor | None, ...]:
        inputs = Inputs(*tensors)
        grad_out = inputs.new_output().zero_() if grads[0] is None else grads[0]
        grad_final = inputs.new_states(inputs.rows).zero_() if grads[1] is None else grads[1]
        found = backward_kernel(*inputs, kept[0], grad_out, grad_final, *options, needs[3])
        of_state = None if inputs.initial_state is None else found[4].to(inputs.initial_state.dtype)
        return tuple(g if n else None for g, n in zip((*found[:4], of_state, None), needs))

    def define(tensors: Any, options: Any) -> tuple[Tensor, Tensor]:
        return definition(Inputs(*tensors), options[0], True)

    # where the batch stands in the inputs, the outputs and the kept states
    dims = (0, 0, 0, 0, 1, None)
    return differentiable(passed, returned, define, batch_dims=dims, out_dims=(0, 1), kept_dims=(1,))


def _registered(
    name: str, forward: Callable[..., Any], backward: Callable[..., Any], devices: Sequence[str]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Both passes as operators of torch's library, with what they compute on fake tensors and cost."""

    def fake(inputs: Inputs, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
        return inputs.new_output(), inputs.new_states(inputs.rows), inputs.new_states(options[-1])

    def fake_back(inputs: Inputs, *options: Any) -> tuple[Tensor | None, ...]:
        grads = [None if x is None else x.new_empty(x.shape) for x in inputs[:4]]
        return (*grads[:3], grads[3] if options[-1] else None, inputs.new_states(inputs.rows))

    shared: dict[str, Any] = {"devices": devices, "gather": Inputs}
    return register(
        f"{name}({_INPUTS}, {_OPTIONS}, SymInt kept_rows) -> (Tensor, Tensor, Tensor)",
        forward, fake, flops=lambda q, k, v, *_: products(q, v), **shared,
    ), register(
        f"{name}_backward({_INPUTS}, Tensor kept, Tensor grad_out, Tensor grad_final, {_OPTIONS}, bool decay) "
        "-> (Tensor, Tensor, Tensor, Tensor?, Tensor)",
        backward, fake_back, flops=lambda q, k, v, *_: 2 * products(q, v), **shared,
    )  # fmt: skip


def causal_only(problem: LinearAttentionProblem) -> str | None:
    """The reason why kernels of the recurrence leave a problem to another form."""
    return None if problem.is_causal else "no is_causal=False: two large matrix products, which torch does as well"


def recur(
    recurrence: Recurrence, chunk_sizes: tuple[int, int], problem: LinearAttentionProblem, schedule: str = ""
) -> tuple[Tensor, Tensor]:
    """Output and state as users see them.

    Args:
        recurrence: from `bind`.
        chunk_sizes: tokens in a chunk if K and V are at most 64, and if one is wider; never many more than there are.
        problem: a causal one.
        schedule: passed on.
    """
    row, inputs = problem.batch_dim, problem.inputs
    narrow, wide = chunk_sizes
    largest = problem.chunk_size or (wide if max(problem.q.shape[3], problem.v.shape[3]) > 64 else narrow)
    size = largest if torch.compiler.is_compiling() else min(largest, _power_of_two(problem.q.shape[1]))
    out, state = recurrence(inputs, (problem.factor, size, schedule))
    return out, state.squeeze(row)


def _power_of_two(tokens: int) -> int:
    """The smallest that is not below `tokens`. Not for a compiler, which would make one graph for each."""
    return 1 << max(tokens - 1, 0).bit_length()


def products(q: Sequence[int], v: Sequence[int]) -> int:
    """Useful floating-point operations of a pass: writing and reading K x V states, for each token and query head."""
    return 4 * q[0] * q[1] * q[2] * q[3] * v[3]


def sum_heads(x: Tensor, like: Tensor, dim: int = 2) -> Tensor:
    """x with H heads in `dim`, summed over the query heads that share one of `like`'s, in its dtype."""
    heads = like.shape[dim]
    if x.shape[dim] != heads:
        x = x.unflatten(dim, (heads, x.shape[dim] // heads)).sum(dim + 1)
    return x.to(like.dtype)
