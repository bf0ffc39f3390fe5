"""Checkpoints of other projects: names by rules, tensors cut where they must be; weights read and checked by name.

A family lists its rules and calls `convert`: a pure function on state dicts. No model code of the other project runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from attensor.ops._checks import checked

__all__ = ["Rule", "convert", "join", "kept_options", "load_weights", "need_options", "read_weights", "require_options"]


class Rule(NamedTuple):
    """Old names (a pattern for the whole name), their new names, and how one tensor becomes those."""

    old: str
    new: tuple[str, ...]
    cut: Callable[[Tensor], Sequence[Tensor]] = lambda tensor: (tensor,)


@checked
def convert(name: str, state_dict: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Every tensor under its new names, by the first rule that fits the old one; memory is shared where nothing is cut.

    Args:
        name: the converter, for the message.
        state_dict: of the other project.
        rules: one for each kind of name.
    Raises:
        ValueError: no rule fits a name.
    """
    converted: dict[str, Tensor] = {}
    unknown = []
    for old, tensor in state_dict.items():
        for rule in rules:
            if match := re.fullmatch(rule.old, old):
                converted.update(zip((match.expand(new) for new in rule.new), rule.cut(tensor), strict=True))
                break
        else:
            unknown.append(old)
    if unknown:
        raise ValueError(
            f"{name}: {len(unknown)} of {len(state_dict)} names are not of this layout, the first is {unknown[0]!r}; "
            "is it a checkpoint of another family or of an unpublished variant? Use its own converter."
        )
    return converted


@checked
def join(weights: Mapping[str, Tensor], parts: Sequence[str], whole: str) -> dict[str, Tensor]:
    """Tensors that are one here and several there: `x.part.y` of all parts, in this order, become `x.whole.y`.

    Args:
        weights: by name; those without a part are kept.
        parts: the last name but one of what is joined, along the first axis.
        whole: what takes their place.
    Raises:
        ValueError: one part without another.
    """
    joined = dict(weights)
    pattern = re.compile(rf"(.*\.)({'|'.join(parts)})(\.\w+)")
    for before, _, behind in (match.groups() for match in map(pattern.fullmatch, weights) if match):
        names = [f"{before}{part}{behind}" for part in parts]
        if absent := [name for name in names if name not in weights]:
            raise ValueError(
                f"join: weights must have {absent[0]}: {before}{whole}{behind} is made of {', '.join(names)}; give all "
                "parts."
            )
        if names[0] in joined:
            joined[f"{before}{whole}{behind}"] = torch.cat([joined.pop(name) for name in names])
    return joined


@checked
def require_options(name: str, config: Mapping[str, Any], published: Mapping[str, Any]) -> None:
    """Refuse a configuration with other values of options than the published models have.

    Raises:
        ValueError: another value; an absent option is fine.
    """
    for option, only in published.items():
        if config.get(option, only) != only:
            raise ValueError(
                f"{name}: {option} must be {only!r}, the published models' choice, got {config[option]!r}."
            )


def need_options(name: str, config: Mapping[str, Any], *options: str) -> None:
    """Refuse a configuration without an option that has no default.

    Raises:
        ValueError: names those that are missing.
    """
    if absent := [option for option in options if option not in config]:
        raise ValueError(f"{name}: config must have {', '.join(absent)}; is it that of another family?")


@checked
def kept_options(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The options that both sides call the same, where the configuration has them."""
    return {name: config[name] for name in names if name in config}


@checked
def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of `model.safetensors` in a folder, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file of another format.
    """
    file = Path(path)
    file = file / "model.safetensors" if file.is_dir() else file
    if not file.exists():
        raise FileNotFoundError(f"{file}: there is no such file; give a safetensors file or a folder that has one.")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(
            f"{file} is not a safetensors file ({error}); write one with safetensors.torch.save_file."
        ) from error


@checked
def load_weights(model: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Copy `weights` into `model` if all names and shapes agree; otherwise nothing is changed.

    Args:
        model: takes its values in place.
        weights: by the names of its state_dict.
        source: where they come from, for the message.
    Raises:
        ValueError: names the missing and unexpected tensors and those of another shape.
    """
    own = model.state_dict()
    shapes = {name: (list(weights[name].shape), list(own[name].shape)) for name in own if name in weights}
    faults = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": [f"{name} {old} instead of {new}" for name, (old, new) in shapes.items() if old != new],
    }
    found = [f"{len(names)} {kind} ({_some(names)})" for kind, names in faults.items() if names]
    if found:
        raise ValueError(f"{source} does not fit this {type(model).__name__}: {'; '.join(found)}.")
    model.load_state_dict(dict(weights))


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", .." if len(names) > most else "")
