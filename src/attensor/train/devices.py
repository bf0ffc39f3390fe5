"""Where a training runs, from what was asked for."""

from __future__ import annotations

import torch

__all__ = ["training_device"]


def training_device(asked: str) -> torch.device:
    """The device of `--device`.

    Args:
        asked: `"cpu"`, `"cuda"`, or `"auto"` for a GPU where there is one.
    Raises:
        ValueError: there is no GPU, and one was asked for.
    """
    has_gpu = torch.cuda.is_available()
    if asked == "cuda" and not has_gpu:
        raise ValueError("--device cuda: this PyTorch sees no GPU. Use --device cpu, or see `attensor doctor`.")
    return torch.device("cuda" if has_gpu and asked != "cpu" else "cpu")
