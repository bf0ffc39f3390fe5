"""Training: one readable loop, checkpoints that a kill at any moment cannot break."""

from __future__ import annotations

from attensor.errors import Diverged as Diverged
from attensor.errors import Stopped as Stopped
from attensor.train.checkpoint import load_checkpoint as load_checkpoint
from attensor.train.checkpoint import save_checkpoint as save_checkpoint
from attensor.train.loop import Point as Point
from attensor.train.loop import Progress as Progress
from attensor.train.loop import TrainConfig as TrainConfig
from attensor.train.loop import polynomial_average as polynomial_average
from attensor.train.loop import train as train
from attensor.train.optimizer import learning_rate_factor as learning_rate_factor
