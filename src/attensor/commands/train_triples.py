"""`attensor train triples`: what it can be asked for."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from tyro.conf import Positional

from attensor.commands.small_training import asked_of, carry_out, check_options, say, unfinished
from attensor.files import user_path
from attensor.train.setups import TripleSetup

if TYPE_CHECKING:
    from attensor.data.triples import Graph
    from attensor.knowledge_training import Lesson
    from attensor.train.run_folder import RunFolder

__all__ = ["TrainTriples"]


@dataclass(frozen=True, kw_only=True)
class TrainTriples(TripleSetup):
    """Train a scorer of triples, or a Tensor Brain, on a knowledge graph.

    Scorers are ranked on the test triples, filtered, both sides. A Tensor Brain learns scenes made from the triples,
    what holds of each subject, and episodes; where lines have a fourth column, scorers learn the times as well. The
    same command goes on with a run that was interrupted, to the same numbers.
    """

    data: Positional[str]
    """Lines of subject, predicate, object and maybe a time with tabs between; N-Triples (.nt); a folder with train.txt,
    valid.txt and test.txt; or umls, kinships or nations, as PyKEEN's wheel has them."""
    out: str = "knowledge"
    """Folder of the run: checkpoint, and at the end config.json, model.safetensors and vocabulary.json for attensor
    solve recall --model."""
    held_out: float = 0.1
    """Share of a single file for validation, and as much for the test."""
    threads: int = 1
    """Threads of PyTorch; the last bits depend on it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU when there is one."""

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            ValueError: the message names the option, its value and the repair.
        """
        check_options(self, 1, "dim", "epochs", "batch_size", "threads")
        check_options(self, 0, "episodes", "l2", "n3")
        check_options(self, 0, "learning_rate", is_open=True)
        for option, most in (("label_smoothing", 1.0), ("held_out", 0.5)):
            if not 0 <= getattr(self, option) < most:
                given = f"--{option.replace('_', '-')} {getattr(self, option)}"
                raise ValueError(f"{given}: must be at least 0 and below {most:g}.")

    def run(self) -> int:
        """Train, show how it goes, rank, and keep the model.

        Raises:
            DataError, ValueError, OSError: found before the training: data, options, the folder.
        """
        import torch

        from attensor.data.triples import BUNDLED, open_graph
        from attensor.knowledge_training import prepare
        from attensor.train.devices import training_device

        console, device = Console(), training_device(self.device)
        source = self.data if self.data in BUNDLED else str(user_path(self.data, "DATA"))
        graph = open_graph(source, held_out=self.held_out, seed=self.seed)
        asked = asked_of(self, without=("data",), device=device.type, data_fingerprint=graph.fingerprint)
        folder = unfinished(self.out, asked, console)
        if folder is None:
            return 0
        torch.set_num_threads(self.threads)
        say(console, _counted(self.data, graph))
        lesson = prepare(self, graph, device)
        folder.begin(asked, {})
        return self._carry_out(lesson, graph, folder, console)

    def _carry_out(self, lesson: Lesson, graph: Graph, folder: RunFolder, console: Console) -> int:
        from attensor.models.knowledge.saved import save_knowledge

        progress = carry_out(
            lesson.training, lesson.config, folder, console, units=min(self.batch_size, len(graph.train)),
            unit="triples", words=lambda score: f"{lesson.score} {score:.3f}",
        )  # fmt: skip
        if isinstance(progress, int):
            return progress
        model, found = lesson.training.model.eval(), lesson.figures()
        notes: dict[str, Any] = {"data": self.data, "seed": self.seed, "scores": found}
        save_knowledge(folder.path, model, lesson.vocabulary, notes)
        for what, scores in found.items():
            say(console, f"{what}: {', '.join(f'{name} {value:.3f}' for name, value in scores.items())}")
        say(console, f"({lesson.reading}{'' if len(graph.test) else '; nothing was held out'})")
        for words in self._uses(graph):
            say(console, f"Also: attensor {words}")
        return 0

    def _uses(self, graph: Graph) -> list[str]:
        """Commands that take the model, as they are typed, for the first triple."""
        subject, *_, last = graph.train[0].tolist()
        model = shlex.quote(self.out)
        asked = f"solve recall --model {model} --subject {shlex.quote(graph.entities[subject])}"
        if self.model == "brain":
            return [asked, f"lens decode --model {model} --out decode.html"]
        return [asked + (f" --time {shlex.quote(graph.times[last])}" if graph.times else "")]


def _counted(data: str, graph: Graph) -> str:
    times = f", {len(graph.times)} times" if graph.times else ""
    sizes = f"{len(graph.entities)} entities, {len(graph.relations)} predicates{times}"
    parts = f"{len(graph.train)} triples to learn from, {len(graph.valid)} to validate, {len(graph.test)} to test"
    return f"{data}: {sizes}; {parts}"
