"""Training: one readable loop, checkpoints that a kill at any moment cannot break.

Importing this package loads none of it: commands read `setups`, which needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attensor.errors import Diverged as Diverged
    from attensor.errors import Stopped as Stopped
    from attensor.train.checkpoint import load_checkpoint as load_checkpoint
    from attensor.train.checkpoint import save_checkpoint as save_checkpoint
    from attensor.train.loop import Point as Point
    from attensor.train.loop import Progress as Progress
    from attensor.train.loop import TrainConfig as TrainConfig
    from attensor.train.loop import Training as Training
    from attensor.train.loop import polynomial_average as polynomial_average
    from attensor.train.loop import run_training as run_training
    from attensor.train.loop import train as train
    from attensor.train.optimizer import learning_rate_factor as learning_rate_factor

_HOMES = {
    "attensor.errors": ("Diverged", "Stopped"),
    "attensor.train.checkpoint": ("load_checkpoint", "save_checkpoint"),
    "attensor.train.loop": (
        *("Point", "Progress", "TrainConfig", "Training", "polynomial_average", "run_training", "train"),
    ),
    "attensor.train.optimizer": ("learning_rate_factor",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'attensor.train' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_HOME_OF)
