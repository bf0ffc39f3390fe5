"""`attensor train triples` from the options to the folder: read, train with a bar, rank, keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from attensor.data.scenes import SceneData
from attensor.data.triples import Graph, open_graph
from attensor.models.knowledge.saved import save_knowledge
from attensor.models.knowledge.scorers import KINDS, Scorer, ScorerConfig
from attensor.models.knowledge.tensor_brain import TensorBrain, TensorBrainConfig
from attensor.train.brain import BrainTraining, perception, recalled, train_brain
from attensor.train.triples import ScorerTraining, filtered_ranks, ranking, train_scorer

if TYPE_CHECKING:
    from attensor.commands.train_triples import TrainTriples

__all__ = ["train_triples"]

CLASSES = 8  # of the generated labels of a brain


def train_triples(options: TrainTriples) -> int:
    """See `TrainTriples`; 0."""
    console, graph = Console(), open_graph(options.data, held_out=options.held_out, seed=options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    counted = f"{len(graph.entities)} entities, {len(graph.relations)} predicates"
    times = f", {len(graph.times)} times" if graph.times else ""
    parts = f"{len(graph.train)} / {len(graph.valid)} / {len(graph.test)} triples"
    console.print(f"{options.data}: {counted}{times}, {parts}", highlight=False, markup=False, soft_wrap=True)
    torch.manual_seed(options.seed)
    model, found, names = (_brain if options.model == "brain" else _scorer)(options, graph, console)
    notes = {"data": options.data, "seed": options.seed, **found}
    save_knowledge(options.out, model, names, notes)
    said = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    console.print(f"{said}. Written: {options.out}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _scorer(options: TrainTriples, graph: Graph, console: Console) -> tuple[Scorer, dict[str, float], Any]:
    dim = options.dim or (32 if options.model in ("rescal", "tucker") else 64)
    config = ScorerConfig(len(graph.entities), len(graph.relations), dim=dim, num_times=len(graph.times))
    model = KINDS[options.model](config)
    how = ScorerTraining(
        epochs=options.epochs or 30, batch_size=options.batch_size, learning_rate=options.learning_rate,
        label_smoothing=options.label_smoothing, l2=options.l2, n3=options.n3, seed=options.seed,
    )  # fmt: skip
    with _bar(console, how.epochs * -(-len(graph.train) // how.batch_size)) as on_step:
        train_scorer(model, graph, how, on_step=on_step)
    judged = graph.test if len(graph.test) else graph.train
    found = ranking(filtered_ranks(model, judged, graph.known))
    names = {"entities": graph.entities, "relations": graph.relations, "times": graph.times}
    return model, {f"{'test' if len(graph.test) else 'training'} {name}": x for name, x in found.items()}, names


def _brain(options: TrainTriples, graph: Graph, console: Console) -> tuple[TensorBrain, dict[str, float], Any]:
    triples = graph.train[:, :3]
    episodes = triples[: options.episodes]
    scenes = SceneData(len(graph.entities), num_classes=min(CLASSES, len(graph.entities)), seed=options.seed)
    config = TensorBrainConfig(
        len(graph.entities), len(graph.relations), {"class": scenes.num_classes}, len(episodes),
        input_size=scenes.input_size, dim=options.dim or 96,
    )  # fmt: skip
    model = TensorBrain(config)
    steps = (options.epochs or 120) * -(-len(triples) // options.batch_size)
    how = BrainTraining(steps, options.batch_size, options.learning_rate, remember=True, seed=options.seed)
    judged = next(part for part in (graph.valid, graph.train[:500]) if len(part))
    with _bar(console, steps) as on_step:
        past = episodes if len(episodes) else None
        train_brain(model, triples, scenes, how, held_out=judged, episodes=past, on_step=on_step)
    tested = graph.test if len(graph.test) else graph.train
    found = {f"scenes, {name}": x for name, x in perception(model, tested, scenes).items()}
    found |= {f"episodes, {name}": x for name, x in recalled(model, episodes).items()} if len(episodes) else {}
    moments = [" ".join(_named(graph, row)) for row in episodes.tolist()]
    names = {"entities": graph.entities, "relations": graph.relations, "class": _classes(scenes)}
    return model.eval(), found, names | {"times": [f"{i}: {text}" for i, text in enumerate(moments)]}


def _named(graph: Graph, row: list[int]) -> tuple[str, str, str]:
    return graph.entities[row[0]], graph.relations[row[1]], graph.entities[row[2]]


def _classes(scenes: SceneData) -> list[str]:
    return [f"class {number}" for number in range(scenes.num_classes)]


class _bar:
    """A bar of steps, with the last validation score."""

    def __init__(self, console: Console, steps: int) -> None:
        columns = (TextColumn("training"), BarColumn(), TextColumn("{task.completed}/{task.total} steps{task.fields[score]}"))  # noqa: E501  # fmt: skip
        self._progress = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
        self._task = self._progress.add_task("", total=steps, score="")

    def __enter__(self) -> Callable[[Any], bool]:
        self._progress.start()
        return self._step

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def _step(self, progress: Any) -> bool:
        score = f", score {progress.curve[-1].score:.3f}" if progress.curve else ""
        self._progress.update(self._task, completed=progress.step, score=score)
        return True
