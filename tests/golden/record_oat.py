"""Run the authors' model of OAT: `python -m tests.golden.record_oat REPOSITORY` (a checkout of theirs), in float64."""

from __future__ import annotations

import importlib
import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from attensor.models.pointing.places import gaussian_positions
from tests.golden.drawn import HERE, summaries, uniform, weights

ROWS, COLUMNS, LONGEST = 2, 3, 5
TARGETS, PATHS = torch.tensor([4, 1]), torch.tensor([[1, 4, 4, -1], [0, 5, 2, 1]])
WIDTH, TABLE = 32, 6  # half of the channels are the place's: three codes, cut to 16 numbers
KINDS = {"crops": ((150, 93), 0), "pyramid": ((31, 26), 2)}


def main(repository: str) -> None:
    """Write `oat.safetensors`."""
    model = _module(repository)
    numbers: dict[str, Tensor] = {}
    for name, (size, levels) in KINDS.items():
        numbers |= {f"{name}.{key}": value for key, value in _run(model, size, levels).items()}
    save_file({name: x.detach().contiguous() for name, x in numbers.items()}, HERE / "oat.safetensors")


def _module(repository: str) -> Any:
    torch.set_default_dtype(torch.float64)
    pictures = ModuleType("matplotlib")
    pictures.pyplot = ModuleType("matplotlib.pyplot")  # type: ignore[attr-defined]
    sys.modules |= {"matplotlib": pictures, "matplotlib.pyplot": pictures.pyplot}
    sys.path.append(str(Path(repository) / "src"))
    return importlib.import_module("model.models")


def drawn(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by name; of looks so large, and of the scene in the decoder so small, that steps of a path differ."""
    found = weights({name: x.shape for name, x in state_dict.items()})
    sizes = {
        "cnn_embedding.fc": 8,
        "multihead_attn.out_proj": 0.3,
        "linear2": 4,
        "norm3.bias": 0.1,
        "decode_fc.bias": 0.1,
    }
    return {name: x * math.prod(size for part, size in sizes.items() if part in name) for name, x in found.items()}


def _run(module: Any, size: tuple[int, int], levels: int) -> dict[str, Tensor]:
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file.name, gaussian_positions(5, width=TABLE, norm=4.0).numpy())
        model = module.Seq2SeqTransformer(
            2, 2, WIDTH, 2, ROWS * COLUMNS + 2, 3, 20, "learned", 0, "", 3, 2, WIDTH, levels, file.name
        ).eval()
    table = {name: x for name, x in model.state_dict().items() if name.endswith("pos_embedding")}
    model.load_state_dict(drawn(model.state_dict()) | table)
    logits = _logits(module, model, size, PATHS)
    ends = ROWS * COLUMNS
    labels = F.pad(PATHS, (0, 1), value=-1)
    first = labels.eq(-1).int().cumsum(1).eq(1)
    labels = labels.masked_fill(labels < 0, ends + 1).masked_fill(first, ends)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=ends + 1)
    loss.backward()
    used = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    paths = torch.cat([_greedy(module, model, size, scene) for scene in range(2)])
    return {"logits": logits, "loss": loss, "dp": summaries(used), "paths": paths}


def _logits(module: Any, model: Any, size: tuple[int, int], paths: Tensor, scenes: slice = slice(None)) -> Tensor:
    """[B, M + 1, N + 2] after each beginning of the paths, as their `processData3d` prepares them."""
    number, targets = ROWS * COLUMNS, TARGETS[scenes]
    crops = (uniform("crops", 2, number, *size, 3)[scenes] + 1) / 2
    rows = torch.arange(len(targets))
    source = torch.cat([torch.arange(number).expand(len(targets), -1), targets[:, None]], 1).T
    given = F.pad(paths, (1, 0), value=number + 2).masked_fill(F.pad(paths, (1, 0), value=0) < 0, number + 1).T
    images = torch.cat([crops, crops[rows, targets][:, None]], 1)
    seen = torch.cat([crops.new_ones(len(targets), 1, *size, 3), crops[rows[:, None], paths.clamp(min=0)]], 1)
    places = torch.stack([source // COLUMNS, source % COLUMNS, torch.zeros_like(source)], -1).double()
    places[-1, :, 2] = 1
    steps = torch.stack([given // COLUMNS, given % COLUMNS, given == targets], -1).double()
    steps[0, :, 0], steps[0, :, 1] = ROWS / 2, COLUMNS / 2
    masks = module.create_mask(source, given, number + 1)
    found: Tensor = model(places, steps, images, seen, masks[0], masks[1].double(), *masks[2:], masks[2])
    return found.transpose(0, 1)


@torch.no_grad()
def _greedy(module: Any, model: Any, size: tuple[int, int], scene: int) -> Tensor:
    """Their loop of single steps: the first has no end, none has the padding."""
    path = torch.empty(1, 0, dtype=torch.int64)
    for step in range(LONGEST):
        logits = _logits(module, model, size, path, slice(scene, scene + 1))[0, -1]
        chosen = int(logits[: -2 if step == 0 else -1].argmax())
        if chosen == ROWS * COLUMNS:
            break
        path = F.pad(path, (0, 1), value=chosen)
    return F.pad(path, (0, LONGEST - path.shape[1]), value=-1)


if __name__ == "__main__":
    main(sys.argv[1])
