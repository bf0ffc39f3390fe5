"""State tracking: each token changes a hidden state, which is to be named; parity of bits, products of permutations.

    parity   1 0 1 1 ..  ->  1 1 0 1 ..            s_t = s_{t-1} xor x_t
    S5       a b c   ..  ->  a  b.a  c.b.a ..      s_t = x_t after s_{t-1}, each one of the 120 orders of five things

Every position up to t matters, and no summary but the state itself is short: what was learned as a shortcut for the
training length fails beyond it. The word problem of S5 is complete for NC1, which is thought to be more than constant
depth can do in one pass over the tokens.

Source: arXiv:2404.08819, section 5 (word problem of S5, a state named at each token); arXiv:2411.12537, section 5
(parity, read at six times the training length).
"""

from __future__ import annotations

from functools import cache
from itertools import permutations

import torch
from torch import Tensor

from attensor.data.files import generator
from attensor.data.mqar import IGNORED

__all__ = ["ORDERS", "parity_batch", "s5_batch"]

ORDERS = tuple(permutations(range(5)))  # token or state -> where each of five things goes


def parity_batch(
    step: int, *, seed: int, batch_size: int, length: int, num_asked: int | None = None
) -> tuple[Tensor, Tensor]:
    """Rows of random bits and the parity of all bits so far: a pure function of its arguments.

    Args:
        step: number of the batch; negative ones never meet those of a training.
        seed: of the run.
        batch_size: rows B.
        length: bits T in a row.
        num_asked: the state is asked for at this many last tokens; at all if None.
    Returns:
        tokens [B, T] and targets [B, T], int64: 0 or 1 where it is asked for, `IGNORED` elsewhere.
    Raises:
        ValueError: no bits, or more asked for than there are.
    """
    _check("parity_batch", length, num_asked)
    tokens = torch.randint(0, 2, (batch_size, length), generator=generator(seed, step))
    return tokens, _asked(tokens.cumsum(1) % 2, num_asked)


def s5_batch(
    step: int, *, seed: int, batch_size: int, length: int, num_asked: int | None = None
) -> tuple[Tensor, Tensor]:
    """Rows of random permutations of five things, by their numbers in `ORDERS`, and the product of all so far.

    Args:
        step, seed, batch_size, num_asked: as of `parity_batch`.
        length: permutations T in a row.
    Returns:
        tokens [B, T] and targets [B, T], int64 in [0, 120); `IGNORED` where nothing is asked for.
    Raises:
        ValueError: no permutations, or more asked for than there are.
    """
    _check("s5_batch", length, num_asked)
    tokens = torch.randint(0, len(ORDERS), (batch_size, length), generator=generator(seed, step))
    states, products = [tokens[:, 0]], _products()
    for token in tokens.unbind(1)[1:]:
        states.append(products[token, states[-1]])
    return tokens, _asked(torch.stack(states, 1), num_asked)


@cache
def _products() -> Tensor:
    """[120, 120]: the number of "first the second, then the first"."""
    number = {order: index for index, order in enumerate(ORDERS)}
    return torch.tensor([[number[tuple(later[i] for i in first)] for first in ORDERS] for later in ORDERS])


def _asked(states: Tensor, num_asked: int | None) -> Tensor:
    if num_asked is not None:
        states = states.clone()
        states[:, : states.shape[1] - num_asked] = IGNORED
    return states


def _check(name: str, length: int, num_asked: int | None) -> None:
    if length < 1:
        raise ValueError(f"{name}: length must be at least 1, got {length}.")
    if num_asked is not None and not 1 <= num_asked <= length:
        raise ValueError(f"{name}: num_asked must be 1 to length = {length}, or None for all, got {num_asked}.")
