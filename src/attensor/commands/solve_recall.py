"""`attensor solve recall`: what it can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SolveRecall"]


@dataclass(frozen=True)
class SolveRecall:
    """Ask a trained knowledge model what it knows of a subject, or of a time.

    A scorer ranks objects of a predicate, or pairs of predicate and object. A Tensor Brain decodes a sentence: from the
    subject (semantic memory) or from a time alone (episodic memory).
    """

    model: Path
    """Folder that `attensor train triples` wrote."""
    subject: str | None = None
    """Name of an entity."""
    predicate: str | None = None
    """Name of a predicate; of scorers. Left out: all of them, against each other by their scores."""
    time: str | None = None
    """Name of a time; of a Tensor Brain also the number of an episode."""
    count: int = 10
    """Answers shown."""

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            ValueError: nothing to ask, or a number below 1.
        """
        if self.subject is None and self.time is None:
            raise ValueError("--subject or --time must be given: recall starts from one of them.")
        if self.count < 1:
            raise ValueError(f"--count {self.count}: must be at least 1.")

    def run(self) -> None:
        """Load, ask and print.

        Raises:
            FileNotFoundError: no model. ValueError: a name that it does not know, or an option of the other kind.
        """
        from attensor.models.knowledge.saved import load_knowledge
        from attensor.models.knowledge.tensor_brain import TensorBrain

        model, names = load_knowledge(self.model)
        Console().print(self._decoded(model, names) if isinstance(model, TensorBrain) else self._ranked(model, names))

    def _ranked(self, model: Any, names: dict[str, list[str]]) -> Table:
        """Of a scorer: objects, or pairs of predicate and object, the best first."""
        import torch

        from attensor.models.knowledge.saved import number_of

        if self.subject is None:
            raise ValueError("--subject must be given: this model is a scorer, which answers (subject, predicate, ?).")
        if (self.time is None) != (not names["times"]):
            repair = f"name one, such as {names['times'][0]!r}" if names["times"] else "leave it out"
            raise ValueError(f"--time {self.time}: the model has {len(names['times'])} times; {repair}.")
        subject = number_of(names, "entities", self.subject, option="--subject")
        asked = list(range(len(names["relations"])))
        if self.predicate is not None:
            asked = [number_of(names, "relations", self.predicate, option="--predicate")]
        p = torch.tensor(asked)
        when = None if self.time is None else torch.full_like(p, number_of(names, "times", self.time, option="--time"))
        with torch.inference_mode():
            scores = model.scores(torch.full_like(p, subject), p, when)
        best = scores.flatten().topk(min(self.count, scores.numel()))
        shares = scores.softmax(-1).flatten()[best.indices]
        table = _table(self.subject, "predicate", "object", "score", "P(object)")
        for score, place, share in zip(best.values.tolist(), best.indices.tolist(), shares.tolist()):
            row, entity = divmod(place, scores.shape[1])
            shown = (names["relations"][asked[row]], names["entities"][entity], f"{score:.2f}", f"{share:.3f}")
            table.add_row(*map(Text, shown))
        return table

    def _decoded(self, model: Any, names: dict[str, list[str]]) -> Table:
        """Of a Tensor Brain: what each window holds, the best symbols first."""
        import torch

        from attensor.models.knowledge.saved import number_of

        if self.predicate is not None:
            raise ValueError("--predicate is of scorers: a Tensor Brain decodes the predicate last; leave it out.")
        if self.subject is not None and self.time is not None:
            raise ValueError(
                "--subject and --time exclude each other for a Tensor Brain: memory starts from one of them."
            )
        with torch.inference_mode():
            if self.subject is None:
                decoded = model.recall(torch.tensor([self._episode(names)]))
            else:
                decoded = model.remember(torch.tensor([number_of(names, "entities", self.subject, option="--subject")]))
        table = _table(self.subject or f"time {self.time}", "window", "symbol", "P")
        for step in decoded.steps:
            if step.window == "scene" or (step.window == "subject" and self.subject is not None):
                continue
            share: Tensor = decoded.probabilities(step.window)[0]
            group = names["relations" if step.group == "predicates" else step.group]
            for place, index in enumerate(share.topk(min(self.count, 3, len(group))).indices.tolist()):
                table.add_row(step.window if place == 0 else "", Text(group[index]), f"{share[index]:.3f}")
        return table

    def _episode(self, names: dict[str, list[str]]) -> int:
        from attensor.models.knowledge.saved import number_of

        text, count = str(self.time), len(names["times"])
        if not text.isdigit():
            return number_of(names, "times", text, option="--time")
        if int(text) >= count:
            raise ValueError(f"--time {text}: the model has {count} episodes, from 0 to {count - 1}.")
        return int(text)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("predicate", "object", "window", "symbol") else "right")
    return table
