"""Folders with a swapped model of transformers: the original's configuration, what was swapped, and all weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from attensor.edit.swap import swap
from attensor.errors import require
from attensor.files import write_text
from attensor.models.convert import load_weights, read_weights
from attensor.ops._checks import checked

__all__ = ["load_original", "load_swapped", "save_swapped"]

SWAPS, WEIGHTS = "swap.json", "model.safetensors"
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "merges.txt",
    "vocab.json",
)


@checked
def load_original(folder: str | os.PathLike[str]) -> Any:
    """A model in transformers' format, a causal one where its configuration says so, on the CPU in evaluation.

    Raises:
        FileNotFoundError: no folder with a config.json.
        MissingExtraError: transformers is not installed.
    """
    transformers = require("transformers", purpose="a model in transformers' format")
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path}: there is no config.json; give a folder that save_pretrained wrote.")
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    return _kind(transformers, config).from_pretrained(path, local_files_only=True).eval()


@checked
def save_swapped(
    model: Any, folder: str | os.PathLike[str], swaps: Sequence[Mapping[str, Any]], *, source: str | os.PathLike[str]
) -> None:
    """Write a swapped model.

    Args:
        model: of transformers, swapped.
        folder: where to; made if it is not there.
        swaps: arguments of `edit.swap` that were used, in order, as JSON can hold them.
        source: the original's folder, whose tokenizer is copied.
    Raises:
        TypeError: a model of another library, or swaps that JSON cannot hold.
        FileNotFoundError: there is no source. OSError: the folder cannot be written.
    """
    if not hasattr(model, "config"):
        raise TypeError(
            f"save_swapped: model must be one of transformers, got {type(model).__name__} without a config."
        )
    path = Path(folder)
    if not Path(source).is_dir():
        raise FileNotFoundError(f"save_swapped: source must be the original's folder, there is none at {source}.")
    try:
        described = json.dumps(list(swaps), indent=2) + "\n"
    except TypeError as error:
        raise TypeError(f"save_swapped: swaps must be what JSON can hold: {error}; use names and numbers.") from error
    path.mkdir(parents=True, exist_ok=True)
    if not getattr(model.config, "architectures", None):  # of a model that was never saved; it says what to build
        model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(path)
    state = model.state_dict()
    shared = {name: tensor.clone().contiguous() for name, tensor in state.items()}
    save_file(shared, path / WEIGHTS, metadata={"format": "pt"})
    write_text(path / SWAPS, described)
    for name in _TOKENIZER:
        if (Path(source) / name).is_file() and Path(source).resolve() != path.resolve():
            shutil.copy(Path(source) / name, path / name)


@checked
def load_swapped(folder: str | os.PathLike[str]) -> Any:
    """A model that `save_swapped` wrote, in evaluation.

    transformers' own `from_pretrained` cannot read the folder, since it would build the original attention.

    Raises:
        FileNotFoundError: no such folder, or one without swaps. ValueError: weights of another model, or damaged ones.
        MissingExtraError: transformers is not installed.
    """
    transformers = require("transformers", purpose="a model in transformers' format")
    path = Path(folder)
    if not (path / SWAPS).is_file():
        raise FileNotFoundError(f"{path}: there is no {SWAPS}; give a folder that `attensor edit swap` wrote.")
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    model: nn.Module = _kind(transformers, config).from_config(config)
    for arguments in json.loads((path / SWAPS).read_text(encoding="utf-8")):
        swap(model, **arguments)
    load_weights(model, read_weights(path / WEIGHTS), source=str(path))
    return model.eval()


def _kind(transformers: Any, config: Any) -> Any:
    names = getattr(config, "architectures", None) or [""]
    is_causal = names[0].endswith(("ForCausalLM", "LMHeadModel"))
    return transformers.AutoModelForCausalLM if is_causal else transformers.AutoModel
