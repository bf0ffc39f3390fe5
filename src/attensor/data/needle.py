"""A needle in a haystack: a pass key somewhere in text that says nothing, asked for at the end. Tokens are bytes.

    The grass is green. The sky is blue. .. The pass key is 73915. .. Here we go. .. The pass key is 73915

Source: arXiv:2305.16300 (the sentences; there in tokens of a large model, and with an instruction in front).
"""

from __future__ import annotations

import torch
from torch import Tensor

from attensor.data.files import generator
from attensor.data.mqar import IGNORED

__all__ = ["DIGITS", "QUESTION", "SHORTEST", "needle_batch"]

HAY = b"The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
QUESTION = b"The pass key is "
DIGITS = 5
_NEEDLE = QUESTION + b"0" * DIGITS + b". "
# bytes of the needle, the question and all digits but the last, which is only answered
SHORTEST = len(_NEEDLE) + len(QUESTION) + DIGITS - 1


def needle_batch(step: int, *, seed: int, batch_size: int, length: int) -> tuple[Tensor, Tensor]:
    """Rows of the task: a pure function of its arguments, so that resuming needs no state.

    The hay begins anywhere in its circle of sentences; the needle lies at any depth, in the middle of a word too.

    Args:
        step: number of the batch; negative ones never meet those of a training.
        seed: of the run.
        batch_size: rows B.
        length: bytes T in a row, at least `SHORTEST`.
    Returns:
        tokens [B, T] in [0, 256) and targets [B, T], int64: each digit of the key at the byte before it, at the end of
        the row, `IGNORED` elsewhere.
    Raises:
        ValueError: too short a row.
    """
    hay_length = length - SHORTEST
    if hay_length < 0:
        raise ValueError(f"needle_batch: length must be at least {SHORTEST}, got {length}.")
    random = generator(seed, step)
    keys = torch.randint(ord("0"), ord("9") + 1, (batch_size, DIGITS), generator=random)
    starts = torch.randint(0, len(HAY), (batch_size, 1), generator=random)
    depths = torch.randint(0, hay_length + 1, (batch_size,), generator=random).tolist()
    hay = torch.tensor(list(HAY))[(starts + torch.arange(hay_length)) % len(HAY)]  # [B, hay_length]
    needles = torch.tensor(list(_NEEDLE)).repeat(batch_size, 1)
    needles[:, len(QUESTION) : len(QUESTION) + DIGITS] = keys
    context = [
        torch.cat((row[:depth], needle, row[depth:])) for row, needle, depth in zip(hay, needles, depths, strict=True)
    ]
    question = torch.tensor(list(QUESTION)).expand(batch_size, -1)
    tokens = torch.cat((torch.stack(context), question, keys[:, :-1]), 1)
    targets = torch.full_like(tokens, IGNORED)
    targets[:, -DIGITS:] = keys
    return tokens, targets
