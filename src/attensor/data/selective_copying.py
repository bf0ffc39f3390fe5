"""Selective copying: some tokens lie among blanks, and at the end each is asked for, in the order they came.

    . . c . a . . . c . ? ? ?       at the marks: c, a, c

A model whose dynamics do not depend on what it reads cannot leave out the blanks, whose numbers differ from row to row.

Source: arXiv:2312.00752, section 3.1 and appendix E.1 (there 4096 tokens, 16 of them to be copied, 16 kinds of token).
"""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.data.files import generator
from attensor.data.mqar import IGNORED

__all__ = ["BLANK", "FIRST_VALUE", "MARK", "selective_copying_batch"]

BLANK, MARK, FIRST_VALUE = 0, 1, 2


def selective_copying_batch(
    step: int, *, seed: int, batch_size: int, length: int, num_values: int, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Rows of the task: a pure function of its arguments, so that resuming needs no state.

    Args:
        step: number of the batch; negative ones never meet those of a training.
        seed: of the run.
        batch_size: rows B.
        length: tokens T in a row, the marks at its end included; at least `2 * num_values`.
        num_values: tokens to be copied; each is any of the values, so that one may come twice.
        vocab_size: tokens that exist: the blank 0, the mark 1 and at least two values.
    Returns:
        tokens [B, T] and targets [B, T], int64: the value at each mark, `IGNORED` elsewhere.
    Raises:
        ValueError: too short a row or too few tokens.
    """
    if not 1 <= num_values <= length // 2:
        raise ValueError(
            f"selective_copying_batch: length must be at least 2 x num_values = {2 * num_values}, got {length}, and "
            "num_values at least 1."
        )
    if vocab_size < FIRST_VALUE + 2:
        raise ValueError(f"selective_copying_batch: vocab_size must be at least {FIRST_VALUE + 2}, got {vocab_size}.")
    random = generator(seed, step)
    values = torch.randint(FIRST_VALUE, vocab_size, (batch_size, num_values), generator=random)
    draws = torch.rand(batch_size, length - num_values, generator=random)
    places = draws.topk(num_values).indices.sort(1).values  # [B, num_values], ascending
    tokens = torch.full((batch_size, length), BLANK)
    tokens.scatter_(1, places, values)
    tokens[:, -num_values:] = MARK
    targets = torch.full_like(tokens, IGNORED)
    targets[:, -num_values:] = values
    return tokens, targets
