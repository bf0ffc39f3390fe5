"""A planted pair, the same mechanism under two names, and one that is worse by construction."""

from __future__ import annotations

import torch
from torch import nn

# of the run: each has other initial weights for the same seeds, or all runs would repeat the luck of three draws
RUN = 0


class Planted(nn.Module):
    """Means over the last 8 tokens and the last 2, side by side: causal."""

    widths, draws = (8, 2), 1

    def __init__(self, hidden_size, num_heads):
        super().__init__()
        torch.rand(2 * RUN + self.draws)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states):
        parts = self.value(hidden_states).chunk(2, -1)
        return self.out(torch.cat([mean(x, width) for x, width in zip(parts, self.widths, strict=True)], -1))


class Again(Planted):
    """The same, with other initial weights."""

    draws = 2


class Worse(Planted):
    """Sees nothing but the token itself."""

    widths = (1, 1)


def mean(x, width):
    """The causal mean over `width` tokens, with zeros before the first."""
    total = x.cumsum(1)
    before = torch.nn.functional.pad(total, (0, 0, width, 0))[:, : x.shape[1]]
    return (total - before) / width
