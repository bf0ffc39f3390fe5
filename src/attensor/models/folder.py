"""A model in a folder: model.safetensors, and config.json, which says what it is a model of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from attensor.files import atomic_path, read_json, write_json
from attensor.models.convert import load_weights, read_weights

__all__ = ["configured", "load_model", "read_config", "save_model"]

Model = TypeVar("Model", bound=nn.Module)
Config = TypeVar("Config")

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


def save_model(folder: Path, model: nn.Module, described: Mapping[str, Any]) -> None:
    """Write both files, each whole or not at all, config.json last.

    Args:
        folder: made when it is not there.
        model: parameters and buffers that persist are kept.
        described: anything JSON can hold; the name of the class is put before it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / _WEIGHTS) as temporary:
        save_file({name: x.detach().cpu().contiguous() for name, x in model.state_dict().items()}, temporary)
    write_json(folder / _CONFIG, {"model": type(model).__name__, **described})


def read_config(folder: Path, names: Collection[str], *, writer: str | None = None) -> dict[str, Any]:
    """What `save_model` was told, with the name of the class as `model`.

    Args:
        folder: of the model.
        names: classes of which it may be.
        writer: the command that makes such folders.
    Raises:
        FileNotFoundError: there is no config.json. ValueError: another class, or no JSON.
    """
    found = read_json(folder / _CONFIG) if folder.is_dir() else None
    if found is None:
        repair = f"; `{writer}` writes one" if writer else ""
        raise FileNotFoundError(f"{folder} holds no model: there is no {_CONFIG} in it{repair}.")
    if not isinstance(found, dict) or found.get("model") not in names:
        raise ValueError(f"{folder} holds another model than {', '.join(names)}; see its {_CONFIG}.")
    return found


def configured(make: Callable[[], Config], folder: Path, name: str) -> Config:
    """The configuration that `make` reads out of config.json.

    Raises:
        ValueError: an option is missing, or one too many; the message has the class's `name`.
    """
    try:
        return make()
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / _CONFIG} is no configuration of {name}: {error}.") from error


def load_model(build: Callable[[], Model], folder: Path) -> Model:
    """What `build` makes, with the weights of the folder in their precision, on the CPU in evaluation mode.

    Args:
        build: called on the meta device.
        folder: of the model.
    Raises:
        FileNotFoundError: there are no weights. ValueError: those of another model.
    """
    with torch.device("meta"):
        model = build()
    weights = read_weights(folder)
    model = model.to_empty(device="cpu").to(next(iter(weights.values())).dtype)
    load_weights(model, weights, source=str(folder))
    return model.eval()
