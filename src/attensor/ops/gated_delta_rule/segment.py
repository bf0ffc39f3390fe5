r"""A segment of chunks of C tokens under the gated delta rule, by matrix products; its gradients are written out.

With S the state before a chunk, G_i the sum of the chunk's log decays up to token i and D_ij = exp(G_i - G_j):

    N = (I + L)^-1 diag(beta) (V - diag(exp(G)) K S)         L_ij = beta_i D_ij k_i . k_j for j < i, else 0
    O = scale (diag(exp(G)) Q S + P N)                       P_ij = D_ij q_i . k_j for j <= i, else 0
    S <- exp(G_C) S + (diag(exp(G_C - G)) K)^T N

Only products with S wait for the chunk before.

Sizes: n = chunks of a segment, N = batch entries x heads, C tokens of a chunk.
Source: arXiv:2412.06464, section 3.3; arXiv:2406.06484, section 3 (without a gate).
"""

# mypy: disable-error-code="no-untyped-call, no-any-return"

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Segment", "differentiate", "run_segment"]

_NOTHING = -1e3  # a log decay below this keeps nothing in any floating dtype, and adds up with others as this does


class Segment(NamedTuple):
    """What a segment reads: [n, N, C, D], D = 1 of beta and gates; [N, K, V]; and of packed chunks two more."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    gates: Tensor | None
    state: Tensor
    begins: Tensor | None  # [n, N, K, V], the states that sequences begin with
    starts: Tensor | None  # [n, 1, 1, 1], whether a chunk is a sequence's first


class _Decays(NamedTuple):
    """What tokens keep: from j to i [n, N, C, C], 0 for j > i; from the start, to the end [n, N, C, 1]; in all."""

    between: Tensor
    since_start: Tensor
    until_end: Tensor
    total: Tensor  # [n, N, 1, 1]


class _System(NamedTuple):
    """What a segment's chunks do to their states, whatever those are; keys stand above queries."""

    both: Tensor  # [n, N, 2 C, K], K over Q
    products: Tensor  # [n, N, 2, C, C], D_ij k_i . k_j and D_ij q_i . k_j for j <= i
    inverse: Tensor  # [n, N, C, C], (I + L)^-1
    weights: Tensor  # the same times diag(beta)
    reading: Tensor  # [n, N, 2 C, K], decayed since the start
    writing: Tensor  # [n, N, C, K], decayed until the end
    decays: _Decays | None

    @property
    def scores(self) -> Tensor:
        """P, [n, N, C, C]."""
        return self.products[:, :, 1]


def _decays(gates: Tensor) -> _Decays:
    sums = gates.clamp_min(_NOTHING).double().cumsum(2)  # in double, as differences follow
    # above the diagonal exponents are positive and may overflow: they are cut off, not multiplied
    between = (sums - sums.mT).to(gates.dtype).exp_().tril_()
    since, until, total = (x.to(gates.dtype).exp() for x in (sums, sums[:, :, -1:] - sums, sums[:, :, -1:]))
    return _Decays(between, since, until, total)


def _system(part: Segment) -> _System:
    k, size = part.k, part.k.shape[2]
    both = torch.cat([k, part.q], 2)
    products = torch.unflatten(both @ k.mT, 2, (2, size))
    reading, writing, decays = both, k, None
    if part.gates is None:
        products = products.tril()
    else:
        decays = _decays(part.gates)
        products = products * decays.between.unsqueeze(2)
        reading = both * decays.since_start.repeat(1, 1, 2, 1)
        writing = k * decays.until_end
    identity = torch.eye(size, dtype=k.dtype, device=k.device).expand_as(products[:, :, 0])
    inverse = torch.linalg.solve_triangular(part.beta * products[:, :, 0], identity, upper=False, unitriangular=True)
    return _System(both, products, inverse, inverse * part.beta.mT, reading, writing, decays)


def _before(part: Segment, c: int, state: Tensor) -> Tensor:
    """The state that chunk c reads: a sequence's own, if it is the first of one."""
    if part.starts is None or part.begins is None:
        return state
    return torch.where(part.starts[c], part.begins[c], state)


def _decayed(x: _System, c: int, state: Tensor) -> Tensor:
    return state if x.decays is None else state * x.decays.total[c]


def run_segment(part: Segment, scale: float) -> tuple[Tensor, Tensor]:
    """Output [n, N, C, V], and the states after each chunk [n, N, K, V] (not packed: after the last, [1, N, K, V])."""
    x, size = _system(part), part.v.shape[2]
    state, outs, after = part.state, torch.empty_like(part.v), []
    for c, values in enumerate(part.v.unbind()):
        state = _before(part, c, state)
        read = torch.bmm(x.reading[c], state)
        new = torch.bmm(x.weights[c], values - read[:, :size])
        torch.baddbmm(read[:, size:], x.scores[c], new, beta=scale, alpha=scale, out=outs[c])
        state = torch.baddbmm(_decayed(x, c, state), x.writing[c].mT, new)
        after.append(state)
    return outs, torch.stack(after if part.starts is not None else after[-1:])


def _errors(part: Segment, x: _System) -> tuple[Tensor, Tensor, Tensor]:
    """V - diag(exp(G)) K S and N, [n, N, C, V], and the states before each chunk [n, N, K, V]."""
    state, size, found = part.state, part.v.shape[2], []
    for c, values in enumerate(part.v.unbind()):
        state = _before(part, c, state)
        error = torch.baddbmm(values, x.reading[c, :, :size], state, alpha=-1)
        new = torch.bmm(x.weights[c], error)
        found.append((error, new, state))
        state = torch.baddbmm(_decayed(x, c, state), x.writing[c].mT, new)
    error, new, before = map(torch.stack, zip(*found))
    return error, new, before


def differentiate(part: Segment, grad_out: Tensor, ends: Tensor) -> tuple[list[Tensor | None], Tensor, Tensor | None]:
    """Gradients [n, N, C, D] of q, k, v, beta and gates; of the state before, and those that sequences begin with.

    Args:
        part: the segment.
        grad_out: [n, N, C, V], of the output before its scale.
        ends: gradients of the states after each chunk from elsewhere than later chunks; not packed: after the last.
    """
    x, state, walked, of_begins = _system(part), ends[-1], [], []
    for c in reversed(range(len(grad_out))):
        of_after = state
        of_new = torch.baddbmm(x.writing[c] @ of_after, x.scores[c].mT, grad_out[c])
        back = torch.cat([-(x.weights[c].mT @ of_new), grad_out[c]], 1)  # of what was read by keys, by queries
        state = torch.baddbmm(_decayed(x, c, of_after), x.reading[c].mT, back)
        walked.append((of_new, back, of_after))
        if part.starts is not None:
            of_begins.append(torch.where(part.starts[c], state, 0.0))
            state = torch.where(part.starts[c], 0.0, state)
            state = state + ends[c - 1] if c else state
    of_new, back, of_after = map(torch.stack, zip(*reversed(walked)))
    grads = _of_tokens(part, x, (of_new, back, of_after))
    return grads, state, torch.stack(of_begins[::-1]) if of_begins else None


def _of_tokens(part: Segment, x: _System, of: tuple[Tensor, Tensor, Tensor]) -> list[Tensor | None]:
    """Gradients of q, k, v, beta and gates from those of N, of what was read, and of the states after each chunk."""
    (of_new, back, of_after), size = of, part.k.shape[2]
    error, new, before = _errors(part, x)
    of_right = x.inverse.mT @ of_new  # of diag(beta) error
    of_reading, of_writing = back @ before.mT, new @ of_after.mT
    both = torch.cat([-of_right, back[:, :, size:]], 2) @ new.mT
    of_system, of_scores = torch.unflatten(both, 2, (2, size)).unbind(2)
    of_system = of_system.tril(-1)
    of_beta = (of_right * error).sum(-1, keepdim=True)
    of_beta = of_beta + (of_system * x.products[:, :, 0]).sum(-1, keepdim=True)
    of_products = torch.stack([of_system * part.beta, of_scores.tril()], 2)
    of_gates = None
    if x.decays is not None and part.gates is not None:
        crossing = (of_products * x.products).sum(2).tril(-1)
        of_total = x.decays.total * (before * of_after).sum((-2, -1), keepdim=True)
        of_gates = _of_gates(crossing, of_reading * x.reading, of_writing * x.writing, of_total)
        of_gates = torch.where(part.gates < _NOTHING, 0.0, of_gates)
        of_products = of_products * x.decays.between.unsqueeze(2)
        of_reading = of_reading * x.decays.since_start.repeat(1, 1, 2, 1)
        of_writing = of_writing * x.decays.until_end
    pairs = of_products.flatten(2, 3)
    of_k, of_q = torch.split(pairs @ part.k + of_reading, size, 2)
    return [of_q, of_k + pairs.mT @ x.both + of_writing, -back[:, :, :size], of_beta, of_gates]


def _of_gates(crossing: Tensor, reading: Tensor, writing: Tensor, total: Tensor) -> Tensor:
    """Gradients [n, N, C, 1] of log decays from those of the logarithms of all that decays.

    Args:
        crossing: [n, N, C, C], of D_ij for j < i.
        reading, writing: [n, N, 2 C or C, K], of what has decayed since the start and until the end.
        total: [n, N, 1, 1].
    """
    read = torch.unflatten(reading.sum(-1, keepdim=True), 2, (2, -1)).sum(2)
    written = writing.sum(-1, keepdim=True)
    of_sums = crossing.sum(-1, keepdim=True) - crossing.sum(-2).unsqueeze(-1) + read - written
    of_sums[:, :, -1:] += written.sum(2, keepdim=True) + total
    return of_sums.flip(2).cumsum(2).flip(2)
