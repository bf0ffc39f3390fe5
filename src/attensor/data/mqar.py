"""Multi-query associative recall: a row of key-value pairs, then some of the keys again; which value was it?

    k1 v1 k2 v2 .. kP vP   . . k7 . . . . k2 . ..      at each repeated key the value it came with is to be predicted

A model whose state forgets what it was not told to forget fails here, however good it is on average text.

Source: arXiv:2312.04927, section 3 and appendix E (the task; distances between pair and query by a power law).
"""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.data.files import generator

__all__ = ["IGNORED", "mqar_batch"]

IGNORED = -100


def mqar_batch(
    step: int, *, seed: int, batch_size: int, length: int, num_pairs: int, vocab_size: int, power: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Rows of the task: a pure function of its arguments, so that resuming needs no state.

    Token 0 is blank, keys are distinct other tokens of the lower half of the vocabulary, values tokens of the upper
    half. Every pair is asked for once, by its key at an even place; unused places are blank.

    Args:
        step: number of the batch; negative ones never meet those of a training.
        seed: of the run.
        batch_size: rows B.
        length: tokens T in a row, at least `4 * num_pairs`.
        num_pairs: pairs P of a row.
        vocab_size: tokens that exist; its half exceeds `num_pairs`.
        power: the chance that a query stands at distance x falls as x^(power - 1): small means near the pairs.
    Returns:
        tokens [B, T] and targets [B, T], int64: the value at each query, `IGNORED` elsewhere (as cross_entropy has it).
    Raises:
        ValueError: too short a row or too few tokens.
    """
    _check(length, num_pairs, vocab_size)
    random, half = generator(seed, step), vocab_size // 2
    rows = torch.arange(batch_size)[:, None]
    draws = torch.rand(batch_size, half - 1, generator=random)
    keys = 1 + draws.topk(num_pairs, largest=False).indices  # [B, P], distinct in a row
    values = torch.randint(half, vocab_size, (batch_size, num_pairs), generator=random)
    tokens = torch.zeros(batch_size, length, dtype=torch.int64)
    tokens[:, : 2 * num_pairs : 2], tokens[:, 1 : 2 * num_pairs : 2] = keys, values

    gaps = (length - 2 * num_pairs) // 2
    chances = torch.arange(1, gaps + 1, dtype=torch.float64).pow(power - 1).expand(batch_size, -1)
    places = 2 * num_pairs + 2 * torch.multinomial(chances, num_pairs, generator=random)  # [B, P], distinct in a row
    targets = torch.full_like(tokens, IGNORED)
    tokens[rows, places], targets[rows, places] = keys, values
    return tokens, targets


def _check(length: int, num_pairs: int, vocab_size: int) -> None:
    if length < 4 * num_pairs:
        raise ValueError(f"mqar_batch: length must be at least 4 x num_pairs = {4 * num_pairs}, got {length}.")
    if vocab_size // 2 <= num_pairs:
        raise ValueError(
            f"mqar_batch: vocab_size must be at least {2 * num_pairs + 2} for {num_pairs} pairs, got {vocab_size}."
        )
