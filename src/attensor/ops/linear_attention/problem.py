"""One call of `linear_attention`, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._checks import check_cu_seqlens, check_float, check_integers, check_qkv, check_same_space
from attensor.ops._precision import working_dtype

__all__ = ["Inputs", "LinearAttentionProblem", "StepProblem"]


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
        return self.q.new_empty(rows, batch, heads, key_dim, self.v.shape[3], dtype=working_dtype(self.q, self.v))


@dataclass(frozen=True)
class LinearAttentionProblem:
    """The arguments of `linear_attention`, with the scale filled in."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    scale: float
    is_causal: bool
    initial_state: Tensor | None
    cu_seqlens: Tensor | None
    chunk_size: int | None

    @property
    def inputs(self) -> Inputs:
        """The tensors as kernels take them."""
        state, decay = self.initial_state, self.log_decay
        if state is not None:
            state = state.unsqueeze(self.batch_dim)
        if decay is not None and decay.ndim == 1:
            decay = decay.unsqueeze(0)
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
        check_qkv(name, self.q, self.k, self.v)
        check_same_space(name, self.q, self.k)
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
                "pass the state that an earlier call returned."
            )
        check_float(name, "initial_state", state, self.q)


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
            raise ShapeError(f"{name}: state must be [B, H, K, V] = {list(expected)}, got {list(self.state.shape)}.")
        if slots is not None and (self.state.shape[1:] != expected[1:] or not len(self.state)):
            raise ShapeError(
                f"{name}: state must be a pool [S, *{list(expected[1:])}] of S >= 1, got {list(self.state.shape)}."
            )
        check_float(name, "state", self.state, self.q)
        if slots is not None:
            check_integers(name, "state_slots", slots, self.q)
            if slots.shape != self.q.shape[:1]:
                raise ShapeError(f"{name}: state_slots must be [B] = [{len(self.q)}], got {list(slots.shape)}.")
        if self.log_decay is not None:
            check_decay(name, self.q, self.k, self.log_decay)

    def decays(self) -> Tensor | None:
        """log_decay as [B, H, K or 1] in the working precision."""
        x = self.log_decay
        if x is None:
            return None
        batch, heads, _ = self.q.shape
        x = x.to(working_dtype(self.q, self.v))
        x = x.expand(batch, -1).unsqueeze(-1) if x.ndim == 1 else x.unsqueeze(-1) if x.ndim == 2 else x
        return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def check_decay(name: str, q: Tensor, k: Tensor, log_decay: Tensor) -> None:
    """Refuse decays that are not [Hd], [.., Hd] or [.., Hd, K] for q [.., H, K] and k [.., Hkv, K], Hd = H or Hkv."""
    *tokens, heads, key_dim = q.shape
    shape = list(log_decay.shape)
    for decays in (heads, k.shape[-2]):
        if shape in ([decays], [*tokens, decays], [*tokens, decays, key_dim]):
            return check_float(name, "log_decay", log_decay, q)
    place = "B, T" if len(tokens) == 2 else "B"
    raise ShapeError(
        f"{name}: log_decay {shape} is none of [H], [{place}, H] and [{place}, H, K] for q {list(q.shape)}, with H or "
        f"the {k.shape[-2]} key heads. Tensors laid out as [B, H, T, D]? Call .transpose(1, 2) first."
    )
