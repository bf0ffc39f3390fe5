"""How often the label is among the first answers of a classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._checks import check_float, check_integers, checked, is_readable

__all__ = ["top_hits"]


@checked
def top_hits(logits: Tensor, labels: Tensor, counts: Sequence[int] = (1, 5)) -> Tensor:
    """For each count k, how many of the labels are among the k largest logits.

    A label counts as behind every class with the same logit, so that a model that says nothing hits nothing.

    Args:
        logits: [B, K]; what is not a number counts as largest, and hits nothing.
        labels: int64 [B].
        counts: numbers of answers; more than K - 1 hit always, of finite logits.
    Returns:
        int64 [len(counts)].
    Raises:
        ShapeError, TypeError, ValueError: sizes or dtypes are others, or (on a CPU) a label is of no class.
    """
    name = "top_hits"
    check_float(name, "logits", logits, logits, "logits")
    check_integers(name, "labels", labels, logits, "logits")
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ShapeError(
            f"{name}: logits and labels must be [B, K] and [B], got {list(logits.shape)} and {list(labels.shape)}."
        )
    if labels.numel() and is_readable(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise ValueError(f"{name}: labels must be 0 .. {logits.shape[1] - 1}, as logits has classes; got others.")
    if not counts:
        return labels.new_zeros(0, dtype=torch.int64)
    own = logits.gather(1, labels.long()[:, None])
    ahead = (~(logits < own)).sum(1) - 1  # others that are not below
    is_hit = own[:, 0].isfinite()
    return torch.stack([((ahead < count) & is_hit).sum() for count in counts])
