"""Checkpoints of a run: every tensor as safetensors, the counters and the history as JSON in the same file.

One file, replaced atomically: after a kill at any moment it holds one whole earlier state, never half of two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from attensor.files import atomic_path
from attensor.train.optimizer import named_trainable

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Write the model, the optimizer and the random generators to `path`, atomically.

    Args:
        path: a `.safetensors` file; its folder must exist.
        model: parameters and buffers are kept, those that do not persist too.
        optimizer: its state for the trainable parameters of `model`.
        state: anything JSON can hold: step, history, seconds.
    Raises:
        OSError: the disk is full; an earlier checkpoint at `path` is then untouched.
    """
    tensors = {f"model.{name}": tensor for name, tensor in _model_tensors(model).items()}
    for name, parameter in named_trainable(model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    with atomic_path(path) as temporary:
        # copies: safetensors refuses views and shared memory
        copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(copies, temporary, metadata={"state": json.dumps(state)})


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore what `save_checkpoint` wrote, in place, and return its `state`.

    Raises:
        ValueError: the file belongs to another model; the first missing tensor is named.
    """
    with safe_open(path, framework="pt") as file:
        saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        state: dict[str, Any] = json.loads((file.metadata() or {})["state"])
    with torch.no_grad():
        for name, tensor in _model_tensors(model).items():
            if f"model.{name}" not in saved:
                raise ValueError(f"load_checkpoint: {path} has no tensor {name!r}; it belongs to another model.")
            tensor.copy_(saved[f"model.{name}"])
    _restore_optimizer(model, optimizer, saved)
    torch.set_rng_state(saved["random.cpu"].clone())
    if "random.cuda" in saved and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["random.cuda"].clone())
    return state


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    for name, parameter in named_trainable(model).items():
        for full_name, tensor in saved.items():
            kind, _, rest = full_name.partition(".")
            key, _, owner = rest.partition(".")
            if kind == "optimizer" and owner == name:
                # cloned: a mapped file has another alignment, and alignment can change the last bit of a sum
                optimizer.state[parameter][key] = tensor.to(parameter.device).clone()
