"""`attensor train triples`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

__all__ = ["TrainTriples"]


@dataclass(frozen=True)
class TrainTriples:
    """Train a scorer of triples, or a Tensor Brain, on a knowledge graph.

    Scorers are ranked on the test triples, filtered, both sides. A Tensor Brain learns scenes made from the triples,
    what holds of each subject, and episodes; where lines have a fourth column, scorers learn the times as well.
    """

    data: Positional[str]
    """Lines of subject, predicate, object and maybe a time with tabs between; N-Triples (.nt); a folder with train.txt,
    valid.txt and test.txt; or umls, kinships or nations, as PyKEEN's wheel has them."""
    out: Path
    """Folder to write: config.json, model.safetensors, vocabulary.json."""
    model: Literal["distmult", "cp", "complex", "rescal", "tucker", "brain"] = "complex"
    """Kind of model."""
    dim: int | None = None
    """Width of embeddings; of a Tensor Brain its state. Left out: 64, 32 for rescal and tucker, 96 for a brain."""
    epochs: int | None = None
    """Times that every triple is seen. Left out: 30 for scorers, 120 for a brain."""
    batch_size: int = 512
    """Triples of a step."""
    learning_rate: float = 0.01
    """Peak, of Adam."""
    label_smoothing: float = 0.0
    """Share of the target that all entities have; of scorers."""
    l2: float = 3e-3
    """Weight of the mean squared size of used rows; of scorers."""
    n3: float = 0.0
    """Weight of the mean cubed size of used rows; of scorers."""
    episodes: int = 200
    """Triples that a brain keeps as episodes, each at a time of its own, the first of the training."""
    held_out: float = 0.1
    """Share of a single file for validation, and as much for the test."""
    seed: int = 0
    """Of random weights, the split and the order."""

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            ValueError: the message names the option, its value and the repair.
        """
        for option, least in (("dim", 1), ("epochs", 1), ("batch_size", 1), ("episodes", 0), ("l2", 0), ("n3", 0)):
            value = getattr(self, option)
            if value is not None and not least <= value < float("inf"):
                raise ValueError(f"--{option.replace('_', '-')} {value}: must be at least {least}.")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"--learning-rate {self.learning_rate}: must be above 0.")
        for option in ("label_smoothing", "held_out"):
            if not 0 <= getattr(self, option) < (1 if option == "label_smoothing" else 0.5):
                most = "1" if option == "label_smoothing" else "0.5"
                raise ValueError(f"--{option.replace('_', '-')} {getattr(self, option)}: must be 0 to below {most}.")

    def run(self) -> int:
        """Train, show how it goes, rank, and keep the model.

        Raises:
            DataError, ValueError, OSError: found before the training: data, options, the folder.
        """
        from attensor.knowledge_training import train_triples

        return train_triples(self)
