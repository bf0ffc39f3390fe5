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
from attensor.ops._checks import checked
from attensor.train.optimizer import named_trainable

__all__ = ["load_checkpoint", "save_checkpoint"]


_NAMES = ("params", "param_names")


@checked
def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    *,
    average: nn.Module | None = None,
) -> None:
    """Write the model, the optimizer and the random generators to `path`, atomically.

    Args:
        path: a `.safetensors` file; its folder must exist.
        model: parameters and buffers are kept, those that do not persist too.
        optimizer: its state for the trainable parameters of `model`, and the plain values of its groups.
        state: anything JSON can hold: step, history, seconds.
        average: a second model, such as a moving average.
    Raises:
        OSError: the disk is full; an earlier checkpoint at `path` is then untouched.
    """
    tensors = _model_tensors(model, average)
    plain: dict[str, dict[str, Any]] = {}
    for name, parameter in named_trainable(model).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{key}.{name}"] = value
            else:
                plain.setdefault(name, {})[key] = value
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    groups = [{key: value for key, value in group.items() if key not in _NAMES} for group in optimizer.param_groups]
    described = {"state": json.dumps(state), "optimizer": json.dumps({"plain": plain, "groups": groups})}
    with atomic_path(path) as temporary:
        # copies: safetensors refuses views and shared memory
        copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(copies, temporary, metadata=described)


@checked
def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, average: nn.Module | None = None
) -> dict[str, Any]:
    """Restore what `save_checkpoint` wrote, in place, and return its `state`.

    Raises:
        ValueError: the file belongs to another model or optimizer; the first missing tensor is named.
    """
    with safe_open(path, framework="pt") as file:
        saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        described = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    if not {"state", "optimizer"} <= described.keys():
        raise ValueError(f"load_checkpoint: {path} is of an earlier version, or of another program; start anew.")
    with torch.no_grad():
        for name, tensor in _model_tensors(model, average).items():
            if name not in saved:
                kind, _, own = name.partition(".")
                raise ValueError(f"load_checkpoint: {path} has no tensor {own!r} of the {kind}; it belongs to another.")
            tensor.copy_(saved[name])
    _restore_optimizer(model, optimizer, saved, described["optimizer"])
    torch.set_rng_state(saved["random.cpu"].clone())
    if "random.cuda" in saved and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["random.cuda"].clone())
    state: dict[str, Any] = described["state"]
    return state


def _model_tensors(model: nn.Module, average: nn.Module | None) -> dict[str, Tensor]:
    kinds = {"model": model} if average is None else {"model": model, "average": average}
    return {
        f"{kind}.{name}": tensor
        for kind, module in kinds.items()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }


def _restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Tensor], described: dict[str, Any]
) -> None:
    if len(described["groups"]) != len(optimizer.param_groups):
        raise ValueError(
            f"load_checkpoint: the saved optimizer has {len(described['groups'])} groups of parameters, this one "
            f"{len(optimizer.param_groups)}; resume with the optimizer that the run began with."
        )
    for group, values in zip(optimizer.param_groups, described["groups"]):
        # JSON has no tuples; Adam's betas are compared and unpacked as one
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    parameters = named_trainable(model)
    for full_name, tensor in saved.items():
        kind, _, rest = full_name.partition(".")
        key, _, owner = rest.partition(".")
        if kind == "optimizer" and owner in parameters:
            parameter = parameters[owner]
            # cloned: a mapped file has another alignment, and alignment can change the last bit of a sum
            optimizer.state[parameter][key] = tensor.to(parameter.device).clone()
    for name, values in described["plain"].items():
        optimizer.state[parameters[name]].update(values)
