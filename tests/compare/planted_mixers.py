"""A planted pair, the same mechanism under two names, and one that is worse by construction."""

from __future__ import annotations

import torch
from torch import nn


class Planted(nn.Module):
    """Means over the last 8 tokens and the last 2, side by side: causal."""

    widths = (8, 2)

    def __init__(self, hidden_size, num_heads):
        super().__init__()
        self.value = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states):
        parts = self.value(hidden_states).chunk(2, -1)
        return self.out(torch.cat([mean(x, width) for x, width in zip(parts, self.widths, strict=True)], -1))


class Again(Planted):
    """The same, with other initial weights."""

    def __init__(self, hidden_size, num_heads):
        torch.rand(7)
        super().__init__(hidden_size, num_heads)


class Worse(Planted):
    """Sees nothing but the token itself."""

    widths = (1, 1)


def mean(x, width):
    """The causal mean over `width` tokens, with zeros before the first."""
    total = x.cumsum(1)
    before = torch.nn.functional.pad(total, (0, 0, width, 0))[:, : x.shape[1]]
    return (total - before) / width
