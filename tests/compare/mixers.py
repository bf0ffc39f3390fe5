"""Mixers as users write them: one that keeps the laws, and one for each way to break them."""

from __future__ import annotations

import torch
from torch import nn


class Mean(nn.Module):
    """Causal mean over the past: lawful."""

    def __init__(self, hidden_size, num_heads):
        super().__init__()
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states):
        count = torch.arange(1, hidden_states.shape[1] + 1, device=hidden_states.device)
        return self.proj(hidden_states.cumsum(1) / count[:, None])


class Future(Mean):
    """Sees one token ahead, and only at the border of a chunk of 64."""

    def forward(self, hidden_states):
        out = super().forward(hidden_states)
        peek = torch.zeros_like(out)
        peek[:, 63] = hidden_states[:, 64]
        return out + 0.1 * peek


class Shape(Mean):
    def forward(self, hidden_states):
        return super().forward(hidden_states)[:, 1:]


class Dtype(Mean):
    def forward(self, hidden_states):
        return super().forward(hidden_states).double()


class Tuple(Mean):
    def forward(self, hidden_states):
        return super().forward(hidden_states), None


class NotFinite(Mean):
    def forward(self, hidden_states):
        return super().forward(hidden_states).log()


class Gradient(Mean):
    """Finite forward, but the square root has no gradient at zero."""

    def forward(self, hidden_states):
        return super().forward(hidden_states) + (hidden_states - hidden_states).sqrt()


class Detached(Mean):
    def forward(self, hidden_states):
        return super().forward(hidden_states).detach()


class Memory(Mean):
    def __init__(self, hidden_size, num_heads):
        super().__init__(hidden_size, num_heads)
        self.calls = 0

    def forward(self, hidden_states):
        self.calls += 1
        return super().forward(hidden_states) * self.calls


class Batch(Mean):
    def forward(self, hidden_states):
        return super().forward(hidden_states - hidden_states.mean(0))


class Precision(Mean):
    """Changes what comes after it."""

    def forward(self, hidden_states):
        torch.set_default_dtype(torch.float64)
        return super().forward(hidden_states)


class Raises(Mean):
    def forward(self, hidden_states):
        raise IndexError("list index out of range")


class Huge(Mean):
    """Ten times the parameters of the mixer it stands beside."""

    def __init__(self, hidden_size, num_heads):
        super().__init__(hidden_size, num_heads)
        self.more = nn.Linear(100 * hidden_size, hidden_size)
