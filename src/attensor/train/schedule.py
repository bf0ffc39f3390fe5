"""The learning rate over a run: linear warm-up, then half a cosine."""

from __future__ import annotations

import math

__all__ = ["learning_rate_factor"]


def learning_rate_factor(step: int, steps: int, *, warmup_steps: int, final_factor: float = 0.1) -> float:
    """What the peak learning rate is multiplied by at `step`.

    It rises linearly to 1 at `warmup_steps - 1`, then falls along a half cosine to `final_factor` at the last step.

    Args:
        step: 0 for the first step.
        steps: steps of the whole run.
        warmup_steps: steps of the rise; 0 starts at the peak.
        final_factor: value at step `steps - 1`.
    Source: cosine without restarts, arXiv:1608.03983, equation (5).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    fraction = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))
