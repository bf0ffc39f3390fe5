r"""The recurrence in chunks of C tokens, by matrix products of torch: the portable form.

With S the state before a chunk and G_i the sum of the chunk's log decays up to token i:

    out = A v + reading S          S_next = total S + writing^T v
    A_ij = sum_c q_ic k_jc exp(G_ic - G_jc) for j <= i      reading_i = q_i exp(G_i)
    writing_j = k_j exp(G_last - G_j)                       total = exp(G_last)

Chunks are worked through in segments that fit a cache; the forward pass keeps the state before each, the backward pass
computes a segment anew. Differences G_i - G_j are never taken: a decay of exp(-30) at one token would cost all others
their digits.

Sizes: n = chunks of a segment, N = batch entries x query heads, S segments.
Source: arXiv:2312.06635, section 4; halving is its secondary chunking (4.3), carried down to single tokens.
"""

# mypy: disable-error-code="no-untyped-call, no-any-return"

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from attensor.ops._confine import visible_product
from attensor.ops._packing import chunks_of
from attensor.ops._precision import WORKING, full_precision
from attensor.ops.linear_attention.bidirectional import bidirectional
from attensor.ops.linear_attention.definition import define
from attensor.ops.linear_attention.halving import Answers, Gradients, halving
from attensor.ops.linear_attention.problem import Inputs, LinearAttentionProblem, bind, recur, sum_heads

__all__ = ["Chunks", "count_segments", "run", "states_unread"]

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


class Sequences(Protocol):
    """The tensors of a call that are cut into chunks, as `Inputs` names them."""

    @property
    def q(self) -> Tensor: ...
    @property
    def k(self) -> Tensor: ...
    @property
    def v(self) -> Tensor: ...
    @property
    def log_decay(self) -> Tensor | None: ...
    @property
    def initial_state(self) -> Tensor | None: ...
    @property
    def cu_seqlens(self) -> Tensor | None: ...
    @property
    def rows(self) -> int: ...
    def new_states(self, rows: int) -> Tensor: ...


def run(problem: LinearAttentionProblem) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, V] and states; not causal, two products of whole sequences."""
    if not problem.is_causal:
        return bidirectional(problem)
    return recur(recurrence, (64, 64), problem)  # chunks as measured, forward and backward


def count_segments(inputs: Sequences, size: int) -> int:
    """Segments that so many chunks of `size` tokens make, each small enough for a cache."""
    batch, tokens, heads, key_dim = inputs.q.shape
    count = -(-tokens // size) if inputs.cu_seqlens is None else tokens // size + inputs.rows
    budget = _CPU_SEGMENT if inputs.q.device.type == "cpu" else _GPU_SEGMENT
    numbers = batch * heads * size * max(key_dim, inputs.v.shape[3])
    return -(-count // max(1, budget // max(1, numbers)))


class Chunks:
    """How tokens lie in chunks: [B, T, Hx, D] for users, [chunks, B, Hx, C, D] here; packed sequences start new ones.

    Args:
        inputs: the call.
        size: C.
        segments: their number, 0 if it is free.
    """

    def __init__(self, inputs: Sequences, size: int, segments: int) -> None:
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
        self.step = max(1, -(-self.count // (segments or max(1, count_segments(inputs, size)))))

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
        q, k, v = (self.cut(x, own) for x in (self.inputs.q, self.inputs.k, self.inputs.v))
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
    q, k, v, gates = _repeated(part)
    answers = _answers(q, k, gates)
    before, after = _states(part, answers, v)
    read = answers.reading.flatten(0, 1) @ torch.stack(before).flatten(0, 1)
    # a GPU would have to be waited for
    if v.device.type != "cpu" or math.isfinite(v.sum()):
        out = torch.baddbmm(read, answers.scores.flatten(0, 1), v.flatten(0, 1), beta=scale, alpha=scale).view(v.shape)
    else:
        visible = torch.ones_like(answers.scores[0, 0], dtype=torch.bool).tril()
        out = scale * (read.view(v.shape) + visible_product(answers.scores, v, visible))
    return out, torch.stack(after if part.starts is not None else after[-1:])


def _repeated(part: _Segment) -> list[Any]:
    """q, k, v and gates of all query heads: [n, B, Hx, C, D] as [n, N, C, D]."""
    heads, four = part.q.shape[2], part[:4]
    whole = (x if x is None or x.shape[2] == heads else x.repeat_interleave(heads // x.shape[2], 2) for x in four)
    return [None if x is None else x.flatten(1, 2) for x in whole]


def _states(part: _Segment, answers: Answers, v: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """States [N, K, V] before each chunk, and after it."""
    increments = (answers.writing.mT @ v).unbind()
    totals = None if answers.total is None else answers.total.mT.unbind() * (len(increments) // len(answers.total))
    state, before, after = part.state, [], []
    for c, increment in enumerate(increments):
        if part.starts is not None and part.begins is not None:
            state = torch.where(part.starts[c], part.begins[c], state)
        before.append(state)
        state = state + increment if totals is None else torch.addcmul(increment, totals[c], state)
        after.append(state)
    return before, after


def _answers(q: Tensor, k: Tensor, gates: Tensor | None, keep: bool = False) -> Answers:
    """Those of q, k [n, N, C, K] and log decays [n or 1, N, C, K or 1]; `back` works if they were kept."""
    if gates is None:
        scores = (q @ k.mT).tril()

        def back(of_scores: Tensor, of_reading: Tensor, of_writing: Tensor, _: Tensor | None) -> Gradients:
            of_scores = of_scores.tril()
            return of_scores @ k + of_reading, of_scores.mT @ q + of_writing, None

        return Answers(scores, q, k, None, back)
    return halving(q, k, gates.exp(), keep) if gates.shape[-1] > 1 else _scalar(q, k, gates)


def _scalar(q: Tensor, k: Tensor, gates: Tensor) -> Answers:
    """The answers for one decay a token. [i, j]: the sum over j < t <= i, each summed for itself."""
    between = gates.expand(-1, -1, -1, gates.shape[2]).tril(-1).cumsum(2)
    since_start = gates.cumsum(2).exp()
    until_end = between[:, :, -1, :, None].exp()
    between = between.exp().tril()
    scores, total = (q @ k.mT).tril() * between, since_start[:, :, -1:]
    reading, writing = q * since_start, k * until_end

    def back(of_scores: Tensor, of_reading: Tensor, of_writing: Tensor, of_total: Tensor | None) -> Gradients:
        of_products = of_scores * between
        of_q, of_k = of_products @ k + of_reading * since_start, of_products.mT @ q + of_writing * until_end
        if of_total is None:
            return of_q, of_k, None
        pairs = ((of_scores, scores), (of_reading, reading), (of_writing, writing), (of_total, total))
        crossing, *others = ((x * y).sum_to_size(len(gates), *y.shape[1:]) for x, y in pairs)
        read, written, ended = (x.sum(-1, keepdim=True) for x in others)
        # a decay at t acts on what is read at t or later and was written before: sums, no differences
        of_gates = _from_end(crossing).tril(-1).sum(-1, keepdim=True) + _from_end(read) + ended
        of_gates[:, :, 1:] += written.cumsum(2)[:, :, :-1]
        return of_q, of_k, of_gates

    return Answers(scores, reading, writing, total, back)


def _from_end(x: Tensor) -> Tensor:
    """Sums over this token and all later ones, [n, N, C, D]."""
    return x.flip(2).cumsum(2).flip(2)


def _forward(inputs: Inputs, scale: float, size: int, _: str, kept_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    with full_precision(inputs.q), torch.no_grad():  # an exporter comes here with gradients on
        chunks = Chunks(inputs, size, kept_rows)
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
    with full_precision(inputs.q), torch.no_grad():  # an exporter comes here with gradients on
        chunks = Chunks(inputs, size, len(kept))
        initial, grad_final = chunks.initial(), grad_final.to(chunks.dtype).flatten(1, 2)
        make = torch.empty_like if chunks.token is None else torch.zeros_like
        grads = [make(x, memory_format=torch.contiguous_format) for x in inputs[:3]]
        gates = inputs.log_decay if decay else None
        of_gates = None if gates is None else gates.new_zeros(gates.shape, dtype=chunks.dtype)
        after = grad_final if chunks.token is None else torch.cat([grad_final, torch.zeros_like(initial[:1])])
        state = after[-1]
        of_initial = states_unread(inputs, grad_final)
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


def states_unread(inputs: Sequences, grad_final: Tensor) -> Tensor:
    """Gradients [R, N, K, V] of the states of packed sequences without tokens, which pass through; others 0."""
    if inputs.cu_seqlens is None:
        return grad_final
    is_empty = inputs.cu_seqlens.diff() == 0
    return torch.where(is_empty[:, None, None, None], grad_final, 0.0)


def _differentiate(part: _Segment, grad_out: Tensor, ends: Tensor, scale: float, decay: bool) -> list[Any]:
    """Gradients of a segment's tensors, in their order; that of the gates only if it is wanted."""
    q, k, v, gates = _repeated(part)
    answers = _answers(q, k, gates, keep=True)
    before = torch.stack(_states(part, answers, v)[0])
    grad_out = grad_out.flatten(1, 2) * scale
    of_before = (answers.reading.mT @ grad_out).unbind()
    totals = None if answers.total is None else answers.total.mT.unbind() * (len(before) // len(answers.total))
    state, of_states, of_begins = ends[-1], [], []
    for c in reversed(range(len(before))):
        of_states.append(state)
        state = of_before[c] + state if totals is None else torch.addcmul(of_before[c], totals[c], state)
        if part.starts is not None:
            of_begins.append(torch.where(part.starts[c], state, 0.0))
            state = torch.where(part.starts[c], 0.0, state)
            state = state + ends[c - 1] if c else state
    of_after = torch.stack(of_states[::-1])
    of_v = (answers.scores.mT @ grad_out).add_(answers.writing @ of_after)
    of_total = (before * of_after).sum(-1).unsqueeze(-2) if decay and gates is not None else None
    of_q, of_k, of_gates = answers.back(grad_out @ v.mT, grad_out @ before.mT, v @ of_after.mT, of_total)
    found = zip((of_q, of_k, of_v, of_gates), part[:4])
    sizes = part.q.shape[1:3]
    grads = [None if x is None or y is None else sum_heads(x.unflatten(1, sizes), y) for x, y in found]
    return [*grads, state, torch.stack(of_begins[::-1]) if of_begins else None]


recurrence = bind("torch_linear_attention", _forward, _backward, count_segments, define, ("CompositeExplicitAutograd",))
