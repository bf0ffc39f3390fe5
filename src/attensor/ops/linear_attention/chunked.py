r"""The recurrence in chunks of C tokens, by matrix products of torch: the portable form.

With S the state before a chunk and G_i the sum of the chunk's log decays up to token i:

    out = A v + reading S          S_next = total S + writing^T v
    A_ij = sum_c q_ic k_jc exp(G_ic - G_jc) for j <= i      reading_i = q_i exp(G_i)
    writing_j = k_j exp(G_last - G_j)                       total = exp(G_last)

Chunks are worked through in segments that fit a cache; the forward pass keeps the state before each, the backward pass
computes a segment anew and leaves its derivatives to autograd. Differences G_i - G_j are never taken: a decay of
exp(-30) at one token would cost all others their digits.

Sizes: n = chunks of a segment, N = batch entries x query heads, S segments.
Source: arXiv:2312.06635, section 4; halving is its secondary chunking (4.3), carried down to single tokens.
"""

# mypy: disable-error-code="no-untyped-call, no-any-return"

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attensor.ops._packing import chunks_of
from attensor.ops._precision import WORKING, full_precision
from attensor.ops.linear_attention.bidirectional import bidirectional
from attensor.ops.linear_attention.definition import define
from attensor.ops.linear_attention.problem import Inputs, LinearAttentionProblem, bind, recur

__all__ = ["run"]

# numbers in one [n, N, C, D] tensor of a segment: a core's cache, or enough to fill a GPU
_CPU_SEGMENT, _GPU_SEGMENT = 2**18, 2**24


class _Segment(NamedTuple):
    """What a segment reads: [n, B, Hx, C, D]; [n or 1, B, Hd, C, K or 1]; [N, K, V]; and of packed chunks two more."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor | None
    state: Tensor
    begins: Tensor | None  # [n, N, K, V], the states that sequences begin with
    starts: Tensor | None  # [n, 1, 1, 1], whether a chunk is a sequence's first


def run(problem: LinearAttentionProblem) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, V] and states; not causal, two products of whole sequences."""
    if not problem.is_causal:
        return bidirectional(problem)
    return recur(recurrence, (64, 64), problem)  # chunks as measured, forward and backward


def _count_segments(inputs: Inputs, size: int) -> int:
    batch, tokens, heads, key_dim = inputs.q.shape
    count = -(-tokens // size) if inputs.cu_seqlens is None else tokens // size + inputs.rows
    budget = _CPU_SEGMENT if inputs.q.device.type == "cpu" else _GPU_SEGMENT
    numbers = batch * heads * size * max(key_dim, inputs.v.shape[3])
    return -(-count // max(1, budget // max(1, numbers)))


class _Chunks:
    """How tokens lie in chunks: [B, T, Hx, D] for users, [chunks, B, Hx, C, D] here; packed sequences start new ones.

    Args:
        inputs: the call.
        size: C.
        segments: their number, 0 if it is free.
    """

    def __init__(self, inputs: Inputs, size: int, segments: int) -> None:
        self.inputs, self.size = inputs, size
        self.batch, tokens, self.heads, _ = inputs.q.shape
        self.dtype = WORKING[inputs.q.dtype, inputs.v.dtype]
        self.count, self.token = -(-tokens // size), None
        if inputs.cu_seqlens is not None:
            self.token, self.sequence = chunks_of(inputs.cu_seqlens, tokens, size)
            self.count = len(self.token)
            around = torch.nn.functional.pad(self.sequence, (1, 1), value=-1)
            self.starts = (self.sequence != around[:-2])[:, None, None, None]
            # the row of the final states that a chunk writes, R if none
            self.writes = torch.where(self.sequence != around[2:], self.sequence, inputs.rows)
        self.step = max(1, -(-self.count // (segments or max(1, _count_segments(inputs, size)))))

    def slices(self) -> Iterator[slice]:
        """The chunks of each segment."""
        return (slice(a, min(a + self.step, self.count)) for a in range(0, self.count, self.step) if self.batch)

    def cut(self, x: Tensor, own: slice) -> Tensor:
        """Chunks of x [B, T, Hx, D], 0 where a chunk has no token: [n, B, Hx, C, D], contiguous."""
        size = self.size
        if self.token is None:
            x = x[:, own.start * size : own.stop * size]
            if x.shape[1] < (own.stop - own.start) * size:
                x = torch.cat([x, x.new_zeros(len(x), -x.shape[1] % size, *x.shape[2:])], 1)
        else:
            places = self.token[own].flatten()
            x = x.index_select(1, places.clamp_min(0)).masked_fill((places < 0)[:, None, None], 0)
        return x.unflatten(1, (-1, size)).permute(1, 0, 3, 2, 4).to(self.dtype).contiguous()

    def join(self, y: Tensor, out: Tensor, own: slice) -> None:
        """Write chunks [n, B, Hx, C, D] to their tokens in out [B, T, Hx, D]."""
        x = y.permute(1, 0, 3, 2, 4).flatten(1, 2)
        if self.token is None:
            into = out[:, own.start * self.size : own.stop * self.size]
            into.copy_(x[:, : into.shape[1]])
            return
        places = self.token[own].flatten()
        x = x.masked_fill((places < 0)[:, None, None], 0).to(out.dtype)
        out.index_add_(1, places.clamp_min(0), x)

    def gates(self, own: slice) -> Tensor | None:
        """Log decays of chunks; slots without a token do not decay."""
        x = self.inputs.log_decay
        if x is None:
            return None
        if x.ndim > 2:
            return self.cut(x if x.ndim == 4 else x.unsqueeze(-1), own)
        x = x.to(self.dtype).expand(self.batch, -1)[None, :, :, None, None]
        is_token = self.is_token(own)
        return x.expand(-1, -1, -1, self.size, -1) if is_token is None else torch.where(is_token, x, 0.0)

    def is_token(self, own: slice) -> Tensor | None:
        """Whether a slot holds a token, [n, 1, 1, C, 1]; None: all do, which is known without looking at data."""
        if self.token is None and own.stop * self.size <= self.inputs.q.shape[1]:
            return None
        return self.cut(self.inputs.q.new_ones(1, self.inputs.q.shape[1], 1, 1), own) > 0

    def read(self, own: slice, state: Tensor, initial: Tensor) -> _Segment:
        """Everything that a segment needs."""
        begins = starts = None
        if self.token is not None:
            starts = self.starts[own]
            begins = initial[self.sequence[own].clamp(max=len(initial) - 1)]
        q, k, v = (self.cut(x, own) for x in self.inputs[:3])
        return _Segment(q, k, v, self.gates(own), state, begins, starts)

    def add_gates(self, grad: Tensor, out: Tensor, own: slice) -> None:
        """Account the gradients of `gates` in out, shaped as log_decay."""
        if out.ndim > 2:
            self.join(grad, out if out.ndim == 4 else out.unsqueeze(-1), own)
            return
        is_token = self.is_token(own)
        grad = grad if is_token is None else torch.where(is_token, grad, 0.0)
        out.add_(grad.sum((0, 3, 4)).sum_to_size(out.shape))

    def initial(self) -> Tensor:
        """States to begin with, [R, N, K, V]."""
        states = self.inputs.initial_state
        if states is None:
            states = self.inputs.new_states(self.inputs.rows).zero_()
        return states.to(self.dtype).flatten(1, 2)


def _run(part: _Segment, scale: float) -> tuple[Tensor, Tensor]:
    """Output [n, N, C, V], and the states after each chunk [n, N, K, V] (not packed: after the last, [1, N, K, V])."""
    heads = part.q.shape[2]
    q, k, v = (_repeat(x, heads) for x in part[:3])
    scores, reading, writing, total = _answers(q, k, None if part.gates is None else _repeat(part.gates, heads))
    increments = (writing.mT @ v).unbind()
    totals = None if total is None else total.mT.unbind() * (len(increments) // len(total))
    state, before, after = part.state, [], []
    for c, increment in enumerate(increments):
        if part.starts is not None and part.begins is not None:
            state = torch.where(part.starts[c], part.begins[c], state)
        before.append(state)
        state = state + increment if totals is None else torch.addcmul(increment, totals[c], state)
        after.append(state)
    read = reading.flatten(0, 1) @ torch.stack(before).flatten(0, 1)
    out = torch.baddbmm(read, scores.flatten(0, 1), v.flatten(0, 1), beta=scale, alpha=scale).view(v.shape)
    return out, torch.stack(after if part.starts is not None else after[-1:])


def _repeat(x: Tensor, heads: int) -> Tensor:
    """[n, B, Hx, C, D] as [n, N, C, D]."""
    return (x if x.shape[2] == heads else x.repeat_interleave(heads // x.shape[2], 2)).flatten(1, 2)


def _answers(q: Tensor, k: Tensor, gates: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """A [n, N, C, C], reading and writing [n, N, C, K], total [n or 1, N, 1, K or 1] (None: 1)."""
    if gates is None:
        return (q @ k.mT).tril(), q, k, None
    if gates.shape[-1] > 1:
        return _halving(q, k, gates.exp())
    # [i, j]: the sum over j < t <= i, each summed for itself
    between = gates.expand(-1, -1, -1, gates.shape[2]).tril(-1).cumsum(2)
    since_start = gates.cumsum(2)
    until_end = between[:, :, -1, :, None]
    scores = (q @ k.mT) * between.exp().tril()
    return scores, q * since_start.exp(), k * until_end.exp(), since_start[:, :, -1:].exp()


def _halving(q: Tensor, k: Tensor, decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The answers for a decay of each key channel, from blocks of one token to blocks of C.

    Of a block of 2h tokens, a row i of the right half and a column j of the left have exp(G_i - G_j) = [decay from the
    middle to i] [decay from j to the middle], two factors <= 1: one product of decayed queries and decayed keys.
    Cost: C (C - 1) K operations a chunk and log2(C) passes over q and k.
    """
    n, heads, size, channels = q.shape
    shape = (n * heads, size, 1, channels)  # blocks [n N, blocks, h, K]
    reading, writing, total = (q * decay).view(shape), k.view(shape), decay.view(shape)
    scores = (q * k).sum(-1).view(n * heads, size, 1, 1)
    half = 1
    while half < size:
        (before, rows), (columns, after) = _pairs(reading), _pairs(writing)
        left, right = _pairs(total)
        above, below = _pairs(scores)
        reading = torch.cat([before, rows * left], 2)
        writing = torch.cat([columns * right, after], 2)
        total = left * right
        # a batch of products of such small matrices takes several times longer
        is_small = half <= 2
        lower = (rows.unsqueeze(3) * columns.unsqueeze(2)).sum(-1) if is_small else rows @ columns.mT
        upper = torch.cat([above, torch.zeros_like(lower)], 3)
        scores = torch.cat([upper, torch.cat([lower, below], 3)], 2)
        half *= 2
    whole = (n, heads, size, -1)
    return scores.view(whole), reading.view(whole), writing.view(whole), total.view(n, heads, 1, channels)


def _pairs(x: Tensor) -> tuple[Tensor, ...]:
    """Left and right blocks of x [.., blocks, h, D]."""
    return x.unflatten(1, (-1, 2)).unbind(2)


def _forward(inputs: Inputs, scale: float, size: int, _: str, kept_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    with full_precision(inputs.q):
        chunks = _Chunks(inputs, size, kept_rows)
        initial = chunks.initial()
        out = inputs.new_output() if chunks.token is None else inputs.new_output().zero_()
        kept = initial.new_empty(kept_rows, *initial.shape[1:])
        final = torch.cat([initial, initial.new_zeros(1, *initial.shape[1:])])
        state = final[0]
        for number, own in enumerate(chunks.slices()):
            if kept_rows:
                kept[number] = state
            found, after = _run(chunks.read(own, state, initial), scale)
            state = after[-1]
            chunks.join(found.unflatten(1, (chunks.batch, -1)), out, own)
            final.index_copy_(0, chunks.writes[own], after) if chunks.token is not None else final[0].copy_(state)
    sizes = (chunks.batch, chunks.heads)
    return out, final[: inputs.rows].unflatten(1, sizes).contiguous(), kept.unflatten(1, sizes)


def _backward(
    inputs: Inputs, kept: Tensor, grad_out: Tensor, grad_final: Tensor, scale: float, size: int, _: str, decay: bool
) -> tuple[Tensor | None, ...]:
    with full_precision(inputs.q):
        chunks = _Chunks(inputs, size, len(kept))
        initial, grad_final = chunks.initial(), grad_final.to(chunks.dtype).flatten(1, 2)
        make = torch.empty_like if chunks.token is None else torch.zeros_like
        grads = [make(x, memory_format=torch.contiguous_format) for x in inputs[:3]]
        gates = inputs.log_decay if decay else None
        of_gates = None if gates is None else gates.new_zeros(gates.shape, dtype=chunks.dtype)
        after = grad_final if chunks.token is None else torch.cat([grad_final, torch.zeros_like(initial[:1])])
        state = after[-1]
        of_initial = _states_unread(inputs, grad_final)
        for number, own in reversed(list(enumerate(chunks.slices()))):
            ends = state[None]
            if chunks.token is not None:
                ends = after[chunks.writes[own]]
                ends[-1] += state
            found = _differentiate(
                chunks.read(own, kept[number].flatten(0, 1), initial), chunks.cut(grad_out, own), ends, scale, decay
            )
            for x, out in zip(found[:3], grads):
                chunks.join(x, out, own)
            if of_gates is not None and found[3] is not None:
                chunks.add_gates(found[3], of_gates, own)
            state = found[4]
            if found[5] is not None:
                of_initial.index_add_(0, chunks.sequence[own].clamp(max=inputs.rows - 1), found[5])
    if chunks.token is None:
        of_initial = state[None].clone()
    of_gates = None if of_gates is None or gates is None else of_gates.to(gates.dtype)
    return (*grads, of_gates, of_initial.unflatten(1, (chunks.batch, chunks.heads)))


def _states_unread(inputs: Inputs, grad_final: Tensor) -> Tensor:
    """Gradients [R, N, K, V] of the states of packed sequences without tokens, which pass through; others 0."""
    if inputs.cu_seqlens is None:
        return grad_final
    is_empty = inputs.cu_seqlens.diff() == 0
    return torch.where(is_empty[:, None, None, None], grad_final, 0.0)


def _differentiate(part: _Segment, grad_out: Tensor, ends: Tensor, scale: float, decay: bool) -> list[Any]:
    """Gradients of a segment's tensors, in their order; that of the gates only if it is wanted."""
    # the library's operators run where autograd has done its part already, and it is needed once more
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in (torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.ADInplaceOrView):
        excluded = excluded.remove(key)
    included = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        leaves = [None if x is None else x.detach().requires_grad_() for x in part[:6]]
        if part.gates is not None and not decay:
            leaves[3] = part.gates.detach()
        outs = _run(_Segment(*leaves, part.starts), scale)  # type: ignore[arg-type, call-arg]
        given = [x for x in leaves if x is not None and x.requires_grad]
        found = iter(torch.autograd.grad(outs, given, (grad_out.flatten(1, 2), ends)))
    return [None if x is None or not x.requires_grad else next(found) for x in leaves]


recurrence = bind(
    "torch_linear_attention", _forward, _backward, _count_segments, define, ("CompositeExplicitAutograd",)
)
