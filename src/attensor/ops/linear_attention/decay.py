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

__all__ = ["ChannelDecay", "Decay", "MaskedDecay", "Scores", "repeated"]


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
    """

    def __init__(self, log_decay: Tensor | None) -> None:
        self.mask: Tensor | None = None
        if log_decay is None:
            return
        decay = log_decay.exp()
        ones = torch.ones_like(decay)
        # the mask is the decayed score of queries and keys that are all 1
        answers = halving_forward(ones, ones, decay, keep_levels=False)
        self.mask, self.since_start, self.until_end, self.total, _ = answers

    def forward(self, q: Tensor, k: Tensor) -> Scores:
        """The answers for q, k [n, C, K]."""
        products = torch.bmm(q, k.mT)
        if self.mask is None:
            return Scores(products.tril_(), q, k, None)
        reading, writing = repeated(q, self.since_start), repeated(k, self.until_end)
        return Scores(_repeated_(products, self.mask), reading, writing, self.total)

    def backward(
        self, q: Tensor, k: Tensor, grad_scores: Tensor, grad_reading: Tensor, grad_writing: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of q and k."""
        if self.mask is None:
            grad_products = grad_scores.tril_()
        else:
            grad_products = _repeated_(grad_scores, self.mask)
            _repeated_(grad_reading, self.since_start)
            _repeated_(grad_writing, self.until_end)
        return grad_reading.add_(torch.bmm(grad_products, k)), grad_writing.add_(torch.bmm(grad_products.mT, q))


class ChannelDecay:
    """One decay for each key channel.

    Args:
        log_decay: [n, C, K].
        keep_levels: whether `backward` will be called.
    """

    def __init__(self, log_decay: Tensor, *, keep_levels: bool) -> None:
        self.decay = log_decay.exp()
        self.keep_levels = keep_levels
        self.levels: list[Level] = []

    def forward(self, q: Tensor, k: Tensor) -> Scores:
        """The answers for q, k [n, C, K]."""
        *answers, self.levels = halving_forward(q, k, self.decay, keep_levels=self.keep_levels)
        return Scores(*answers)

    def backward(
        self, q: Tensor, k: Tensor, grad_scores: Tensor, grad_reading: Tensor, grad_writing: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of q and k."""
        return halving_backward(grad_scores, grad_reading, grad_writing, q, k, self.decay, self.levels)


def repeated(x: Tensor, factor: Tensor) -> Tensor:
    """x [n, C, D] times factor [m, C or 1, D or 1], which repeats with period m."""
    return (x.view(-1, factor.shape[0], *x.shape[1:]) * factor).view(x.shape)


def _repeated_(x: Tensor, factor: Tensor) -> Tensor:
    """`repeated` in place."""
    x.view(-1, factor.shape[0], *x.shape[1:]).mul_(factor)
    return x
