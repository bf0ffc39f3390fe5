"""How often the label is among the first answers of a classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["top_hits"]


def top_hits(logits: Tensor, labels: Tensor, counts: Sequence[int] = (1, 5)) -> Tensor:
    """For each count k, how many of the labels are among the k largest logits.

    A label counts as behind every class with the same logit, so that a model that says nothing hits nothing.

    Args:
        logits: [B, K]; what is not a number counts as largest, and hits nothing.
        labels: int64 [B].
        counts: numbers of answers; more than K - 1 hit always, of finite logits.
    Returns:
        int64 [len(counts)].
    """
    own = logits.gather(1, labels[:, None])
    ahead = (~(logits < own)).sum(1) - 1  # others that are not below
    is_hit = own[:, 0].isfinite()
    return torch.stack([((ahead < count) & is_hit).sum() for count in counts])
