"""Pointer networks in files: weights with what a reader must know, and the small ones that come with attensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from attensor.files import atomic_path
from attensor.models.pointing.pointer_network import PointerNetwork, Seq2SeqBaselines
from attensor.models.pointing.pointing import Pointing

__all__ = ["load_pointing", "save_pointing", "shipped_model"]


def save_pointing(model: Pointing, path: Path, facts: Mapping[str, Any]) -> None:
    """Write weights and facts into one safetensors file.

    Args:
        model: a `PointerNetwork` or `Seq2SeqBaselines`.
        path: the file; its folder must exist.
        facts: anything JSON can hold: the task, the sizes it was trained on.
    """
    options: dict[str, Any] = {"hidden_size": model.hidden_size, "input_size": model.input_size}
    if isinstance(model, PointerNetwork):
        options |= {"end_starts_encoder": model.end_starts_encoder, "logit_clip": model.logit_clip}
    elif isinstance(model, Seq2SeqBaselines):
        options |= {"max_points": model.max_points, "attention": model.attention}
    described = {"class": type(model).__name__, "options": options, "facts": dict(facts)}
    weights = {name: x.detach().cpu().contiguous() for name, x in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(weights, temporary, metadata={"attensor": json.dumps(described)})


def load_pointing(path: str | Path) -> tuple[Pointing, dict[str, Any]]:
    """A model in evaluation mode, and the facts beside it.

    Args:
        path: a file that `save_pointing` wrote, or a folder with `model.safetensors`.
    Raises:
        FileNotFoundError: there is none. ValueError: the file is of another program.
    """
    file = Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"load_pointing: there is no model at {str(path)!r}; attensor train points makes one.")
    try:
        with safe_open(file, framework="pt") as opened:
            described = json.loads((opened.metadata() or {})["attensor"])
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
        kinds: dict[str, type[Pointing]] = {"PointerNetwork": PointerNetwork, "Seq2SeqBaselines": Seq2SeqBaselines}
        kind = kinds[described["class"]]
    except Exception as error:  # safetensors raises a type of its own, and metadata may be anything
        raise ValueError(f"load_pointing: {str(file)!r} is no pointer network of attensor: {error}.") from error
    with torch.device("meta"):
        model = kind(**described["options"])
    model.load_state_dict({name: x.float() for name, x in weights.items()}, assign=True)
    return model.eval(), described["facts"]


def shipped_model(task: str) -> Path:
    """The file of the small trained model for a task that comes with attensor.

    Raises:
        FileNotFoundError: there is none for this task.
    """
    path = Path(str(resources.files("attensor.models.pointing") / "weights" / f"{task}.safetensors"))
    if not path.is_file():
        raise FileNotFoundError(f"shipped_model: no model for {task!r} comes with attensor; train one.")
    return path
