"""The problem of the gated delta rule, and its tensors as the kernels take them.

Sizes: B batch, T tokens, H heads, Hkv key/value heads, Hd = H or Hkv, K key and V value channels, R rows of states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._checks import check_cu_seqlens, check_float, check_qkv, scale_of
from attensor.ops._precision import WORKING

__all__ = ["DeltaInputs", "DeltaProblem", "repeated"]


class DeltaInputs(NamedTuple):
    """Tensors as the kernels take them; R rows of states, one a packed sequence, or 1. `torch.vmap` adds to B."""

    q: Tensor  # [B, T, H, K]
    k: Tensor  # [B, T, Hkv, K]
    v: Tensor  # [B, T, Hkv, V]
    beta: Tensor  # [B, T, Hd]
    log_decay: Tensor | None  # [B, T, Hd]
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
class DeltaProblem:
    """The arguments of `gated_delta_rule`, by the same names."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    log_decay: Tensor | None
    scale: float | None
    initial_state: Tensor | None
    cu_seqlens: Tensor | None
    chunk_size: int | None

    @property
    def factor(self) -> float:
        """What multiplies the output."""
        return scale_of(self.q, self.scale)

    @property
    def inputs(self) -> DeltaInputs:
        """The tensors as kernels take them."""
        state = self.initial_state
        state = None if state is None else state.unsqueeze(self.batch_dim)
        return DeltaInputs(self.q, self.k, self.v, self.beta, self.log_decay, state, self.cu_seqlens)

    @property
    def batch_dim(self) -> int:
        """Where states [R, B, H, K, V] have the dimension of 1 that users do not see."""
        return 0 if self.cu_seqlens is None else 1

    @property
    def tokens_per_chunk(self) -> int:
        """C; of few tokens no chunk is much longer than they are, unless a compiler would make a graph for each."""
        size = 32 if self.chunk_size is None else self.chunk_size
        if torch.compiler.is_compiling():
            return size
        return min(size, 1 << max(self.q.shape[1] - 1, 0).bit_length())

    def check(self, name: str) -> None:
        """Refuse what does not fit together; `name` is the public function.

        Raises:
            ShapeError: sizes disagree.
            TypeError: wrong dtypes.
            ValueError: different devices, or chunk_size below 1.
        """
        check_qkv(name, self.q, self.k, self.v, same_space=True)
        if self.cu_seqlens is not None:
            check_cu_seqlens(name, self.cu_seqlens, self.q)
        for label, tensor in (("beta", self.beta), ("log_decay", self.log_decay)):
            if tensor is not None:
                self._check_rates(name, label, tensor)
        if self.initial_state is not None:
            self._check_state(name, self.initial_state)
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"{name}: chunk_size must be at least 1 or None (32), got {self.chunk_size}.")

    def _check_rates(self, name: str, label: str, tensor: Tensor) -> None:
        place, heads, kv_heads = list(self.q.shape[:2]), self.q.shape[2], self.k.shape[2]
        if list(tensor.shape) not in ([*place, heads], [*place, kv_heads]):
            raise ShapeError(
                f"{name}: {label} must be [B, T, H] = {[*place, heads]}, or have the {kv_heads} key heads, got "
                f"{list(tensor.shape)}; it has one number a head and token."
            )
        check_float(name, label, tensor, self.q)

    def _check_state(self, name: str, state: Tensor) -> None:
        rows, label = (self.q.shape[0], "B") if self.cu_seqlens is None else (self.cu_seqlens.shape[0] - 1, "N")
        expected = (rows, *self.q.shape[2:], self.v.shape[3])
        if state.shape != expected:
            raise ShapeError(
                f"{name}: initial_state must be [{label}, H, K, V] = {list(expected)}, got {list(state.shape)}; "
                "pass the state that an earlier call returned."
            )
        check_float(name, "initial_state", state, self.q)


def repeated(x: Tensor, heads: int, dim: int) -> Tensor:
    """Heads in `dim` that serve several query heads, once for each of these."""
    return x if x.shape[dim] == heads else x.repeat_interleave(heads // x.shape[dim], dim)
