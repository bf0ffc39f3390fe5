r"""How a chunk decays: one decay for all key channels (a mask on the scores) or one for each (halving).

Both answer the same questions about n chunks of C tokens, with G the running sum of log decays inside a chunk:

    scores   A_ij = sum_c q_ic k_jc exp(G_ic - G_jc)   for j <= i, else 0
    reading  q_i exp(G_i)              what a query sees of the state before the chunk
    writing  k_j exp(G_last - G_j)     what is left of a key in the state after the chunk
    total    exp(G_last)               what is left of the state before the chunk

and turn gradients of the first three into gradients of q and k.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from attensor.ops.linear_attention.halving import Level, halving_backward, halving_forward
from attensor.ops.linear_attention.scratch import Scratch

__all__ = ["ChannelDecay", "Decay", "MaskedDecay", "Scores", "repeated_"]


class Scores(NamedTuple):
    """The answers, see above."""

    scores: Tensor  # [n, C, C]
    reading: Tensor  # [n, C, K]
    writing: Tensor  # [n, C, K]
    total: Tensor | None  # [n or 1 repeated, 1, K or 1]; None is 1


class Decay(Protocol):
    """One kind of decay, for the chunks of one segment."""

    def forward(self, q: Tensor, k: Tensor) -> Scores:
        """The answers for q, k [n, C, K]."""
        ...

    def backward(
        self, q: Tensor, k: Tensor, grad_scores: Tensor, grad_reading: Tensor, grad_writing: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of q and k, after `forward`; the incoming gradients may be overwritten."""
        ...


class MaskedDecay:
    """One decay for all key channels: scores are a matrix product times a mask of decays.

    Args:
        log_decay: [m, C, 1], the decays of n = r m chunks, which repeat with period m; None: no decay.
        scratch: where the answers are written.
    """

    def __init__(self, log_decay: Tensor | None, scratch: Scratch) -> None:
        self.scratch = scratch
        self.mask: Tensor | None = None
        if log_decay is None:
            return
        decay = log_decay.exp()
        ones = torch.ones_like(decay)
        # the mask is the decayed score of queries and keys that are all 1
        answers = halving_forward(ones, ones, decay, Scratch(ones), keep_levels=False)
        self.mask, self.since_start, self.until_end, self.total, _ = answers

    @classmethod
    def constant(cls, log_decay: Tensor, chunk_size: int, scratch: Scratch) -> MaskedDecay:
        """The same at every token: log_decay [m]."""
        decay = cls(None, scratch)
        age = torch.arange(chunk_size + 1, device=log_decay.device)
        # what no token has followed yet has not decayed, not even by -inf
        powers = torch.where(age > 0, age * log_decay[:, None], 0.0).exp()
        decay.mask = powers[:, (age[:-1, None] - age[:-1]).clamp_min(0)].tril()
        decay.since_start, decay.until_end = powers[:, 1:, None], powers[:, :-1, None].flip(1)
        decay.total = powers[:, -1:, None]
        return decay

    def forward(self, q: Tensor, k: Tensor) -> Scores:
        """The answers for q, k [n, C, K]."""
        products = torch.bmm(q, k.mT, out=self.scratch.take("scores", *q.shape[:2], q.shape[1]))
        if self.mask is None:
            return Scores(products.tril_(), q, k, None)
        reading = self._times("reading", q, self.since_start)
        writing = self._times("writing", k, self.until_end)
        return Scores(repeated_(products, self.mask), reading, writing, self.total)

    def backward(
        self, q: Tensor, k: Tensor, grad_scores: Tensor, grad_reading: Tensor, grad_writing: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of q and k."""
        if self.mask is None:
            grad_scores.tril_()
        else:
            repeated_(grad_scores, self.mask)
            repeated_(grad_reading, self.since_start)
            repeated_(grad_writing, self.until_end)
        torch.baddbmm(grad_reading, grad_scores, k, out=grad_reading)
        torch.baddbmm(grad_writing, grad_scores.mT, q, out=grad_writing)
        return grad_reading, grad_writing

    def _times(self, name: str, x: Tensor, factor: Tensor) -> Tensor:
        out = self.scratch.take(name, *x.shape)
        periods = (-1, factor.shape[0], *x.shape[1:])
        torch.mul(x.view(periods), factor, out=out.view(periods))
        return out


class ChannelDecay:
    """One decay for each key channel.

    Args:
        log_decay: [n, C, K]; overwritten.
        scratch: where the answers are written.
        keep_levels: whether `backward` will be called.
    """

    def __init__(self, log_decay: Tensor, scratch: Scratch, *, keep_levels: bool) -> None:
        self.decay = log_decay.exp_()
        self.scratch = scratch
        self.keep_levels = keep_levels
        self.levels: list[Level] = []

    def forward(self, q: Tensor, k: Tensor) -> Scores:
        """The answers for q, k [n, C, K]."""
        *answers, self.levels = halving_forward(q, k, self.decay, self.scratch, keep_levels=self.keep_levels)
        return Scores(*answers)

    def backward(
        self, q: Tensor, k: Tensor, grad_scores: Tensor, grad_reading: Tensor, grad_writing: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of q and k."""
        return halving_backward(grad_scores, grad_reading, grad_writing, q, k, self.decay, self.levels)


def repeated_(x: Tensor, factor: Tensor) -> Tensor:
    """x [n, C, D], multiplied in place by factor [m, C or 1, D or 1], which repeats with period m."""
    x.view(-1, factor.shape[0], *x.shape[1:]).mul_(factor)
    return x
