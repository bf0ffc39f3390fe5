"""Run the replication of pointer networks: `python -m tests.golden.record_pointer REPOSITORY` (a checkout of it).

Everything is float64. Lightning and torchmetrics, which only train and count, have stand-ins.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import rnn

from tests.golden.drawn import HERE, summaries, uniform, weights

HIDDEN, COUNTS = 12, (5, 8, 4)
TARGETS = ((1, 3, 5, 4, 1, 0), (2, 8, 1, 5, 7, 2, 0), (1, 2, 4, 1, 0))


class Lightning(nn.Module):
    """A module that is on the CPU and remembers no options."""

    device = torch.device("cpu")

    def save_hyperparameters(self, *names: Any, **options: Any) -> None:
        """Nothing."""


class Metrics(dict[str, Any]):
    """A collection that counts nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()

    def clone(self, **options: Any) -> Metrics:
        """Itself."""
        return self


def points() -> list[Tensor]:
    """Three sets in the unit square, of several sizes."""
    return [(uniform(f"points.{i}", count, 2) + 1) / 2 for i, count in enumerate(COUNTS)]


def main(repository: str) -> None:
    """Write `pointer.safetensors`."""
    theirs = _module(Path(repository) / "ptrnets" / "model.py")
    numbers: dict[str, Tensor] = {}
    for task, kind in (("hull", theirs.PointerNetworkForConvexHull), ("tsp", theirs.PointerNetworkForTSP)):
        model = kind(2, HIDDEN, 1e-3, (-0.1, 0.1)).double()
        model.load_state_dict(weights({name: x.shape for name, x in model.state_dict().items()}))
        packed = rnn.pack_sequence(points(), enforce_sorted=False)
        for width in (1, 3):
            found, lengths = rnn.pad_packed_sequence(model.decode(packed, width), True)
            numbers[f"{task}.{width}"], numbers[f"{task}.{width}.lengths"] = found, lengths
    numbers |= _forced(model)
    save_file({name: x.detach().contiguous() for name, x in numbers.items()}, HERE / "pointer.safetensors")


def _forced(model: Any) -> dict[str, Tensor]:
    """Logits, loss and gradients with the right choices before each."""
    inputs = [x.requires_grad_() for x in points()]
    before = [x[torch.tensor(row[:-1]) - 1] for x, row in zip(inputs, TARGETS)]
    packed, given, wanted = (
        rnn.pack_sequence(x, enforce_sorted=False) for x in (inputs, before, [torch.tensor(row) for row in TARGETS])
    )
    scores = model(packed, given)
    loss = model._get_loss(scores, wanted)
    loss.backward()
    logits, _ = rnn.pad_packed_sequence(scores, True)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {
        "logits": logits,
        "loss": loss,
        "dp": summaries(gradients),
        "dx": torch.cat([x.grad for x in inputs]),
    }


def _module(path: Path) -> Any:
    made: dict[str, dict[str, Any]] = {
        "pytorch_lightning": {"LightningModule": Lightning},
        "torchmetrics": {"MetricCollection": Metrics},
        "ptrnets.metrics": dict.fromkeys(
            ("TokenAccuracy", "SequenceAccuracy", "PolygonAccuracy", "AverageAreaCoverage", "TourDistance"), Metrics
        ),
        "ptrnets.data": {"_Batch": tuple},
        "ptrnets": {},
    }
    for name, members in made.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(members)
    vars(sys.modules["ptrnets"]).update(metrics=sys.modules["ptrnets.metrics"], data=sys.modules["ptrnets.data"])
    module = ModuleType(path.stem)
    exec(compile(path.read_text(), str(path), "exec"), vars(module))
    return module


if __name__ == "__main__":
    main(*sys.argv[1:])
