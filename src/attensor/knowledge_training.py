"""What `attensor train triples` trains: a scorer or a Tensor Brain for a graph, with its names and its figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from attensor.data.scenes import SceneData
from attensor.data.triples import Graph
from attensor.models.knowledge.saved import Vocabulary
from attensor.models.knowledge.tensor_brain import TensorBrain, TensorBrainConfig
from attensor.train.brain import BrainSetup, BrainTraining, perception, recalled
from attensor.train.loop import TrainConfig, Training
from attensor.train.setups import TripleSetup
from attensor.train.triples import ScorerTraining, filtered_ranks, ranking

__all__ = ["Lesson", "prepare"]

CLASSES = 8  # of the generated labels of a brain
EPOCHS = 120  # of a brain, where the setup says none

_SHARES = "@k: share where the right one is among the first k"
_RANKS = f"hits{_SHARES}; MRR: mean of 1 / its place; other right answers are left out of a ranking"


@dataclass(frozen=True)
class Lesson:
    """A training and what belongs to it.

    Attributes:
        training: what is trained.
        config: how.
        score: what its curve is called.
        vocabulary: names of the model's rows or columns.
        figures: scores of the trained model by what they are of and their names, on the test part, or on the training
            where there is none.
        reading: what the figures mean.
    """

    training: Training[Any, Any]
    config: TrainConfig
    score: str
    vocabulary: Vocabulary
    figures: Callable[[], dict[str, dict[str, float]]]
    reading: str


def prepare(setup: TripleSetup, graph: Graph, device: torch.device) -> Lesson:
    """The lesson of a graph for a scorer or a brain, whose weights are drawn here.

    Raises:
        ValueError: a graph with times, and a scorer that takes none.
    """
    if graph.times and setup.model == "rescal":
        raise ValueError(
            f"--model rescal: takes no times, of which the graph has {len(graph.times)}; take --model tucker, or leave "
            "out the fourth column."
        )
    return (_of_brain if setup.model == "brain" else _of_scorer)(setup, graph, device)


def _of_scorer(setup: TripleSetup, graph: Graph, device: torch.device) -> Lesson:
    training = ScorerTraining(setup, graph, device=device)
    part, judged = _judged(graph)

    def figures() -> dict[str, dict[str, float]]:
        found = ranking(filtered_ranks(training.model, judged, graph.known))
        return {
            f"{part} triples, both sides": {"MRR" if name == "mrr" else name: value for name, value in found.items()}
        }

    names = {"entities": graph.entities, "relations": graph.relations, "times": graph.times}
    return Lesson(training, training.config, "MRR", names, figures, _RANKS)


def _of_brain(setup: TripleSetup, graph: Graph, device: torch.device) -> Lesson:
    triples = graph.train[:, :3]
    episodes = triples[: setup.episodes]
    scenes = SceneData(len(graph.entities), num_classes=min(CLASSES, len(graph.entities)), seed=setup.seed)
    steps = (setup.epochs or EPOCHS) * -(-len(triples) // setup.batch_size)
    how = BrainSetup(steps, setup.batch_size, setup.learning_rate, remember=True, seed=setup.seed)
    judged = next(part for part in (graph.valid, graph.train[:500]) if len(part))
    model = _brain(setup, graph, scenes, len(episodes)).to(device)
    training = BrainTraining(model, triples, scenes, how, judged, episodes if len(episodes) else None)
    part, tested = _judged(graph)

    def figures() -> dict[str, dict[str, float]]:
        found = perception(model, tested, scenes)
        seen = {name: value for name, value in found.items() if "@" in name}
        past = {f"{name}@1": value for name, value in recalled(model, episodes).items()} if len(episodes) else {}
        return {f"Scenes of {part.lower()} triples": seen} | ({"Episodes from their times": past} if past else {})

    return Lesson(training, how.config, "predicate@1", _names(graph, episodes), figures, _SHARES)


def _judged(graph: Graph) -> tuple[str, torch.Tensor]:
    return ("Test", graph.test) if len(graph.test) else ("Training", graph.train)


def _brain(setup: TripleSetup, graph: Graph, scenes: SceneData, num_times: int) -> TensorBrain:
    torch.manual_seed(setup.seed)
    sizes: dict[str, Any] = {"input_size": scenes.input_size, "dim": setup.dim or 96, "num_times": num_times}
    unary = {"class": scenes.num_classes}
    return TensorBrain(TensorBrainConfig(len(graph.entities), len(graph.relations), unary, **sizes))


def _names(graph: Graph, episodes: torch.Tensor) -> Vocabulary:
    """Of a brain; its times are called by their number and what was then."""
    moments = [(graph.entities[s], graph.relations[p], graph.entities[o]) for s, p, o in episodes.tolist()]
    times = [f"{number}: {' '.join(words)}" for number, words in enumerate(moments)]
    classes = [f"class {number}" for number in range(min(CLASSES, len(graph.entities)))]
    return {"entities": graph.entities, "relations": graph.relations, "class": classes, "times": times}
