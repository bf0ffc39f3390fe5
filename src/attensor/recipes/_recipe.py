"""What a recipe is: a paper's claim, a way to measure it again, and the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from attensor.errors import LawError

__all__ = ["Recipe", "RecipeConfig", "Verdict", "ablation"]

STEPS, LEARNING_RATES = 500, (2e-3, 6e-3, 2e-2)
QUICK_STEPS, QUICK_LEARNING_RATES = 200, (6e-3,)


@dataclass(frozen=True)
class RecipeConfig:
    """How much to spend and where to put it.

    Attributes:
        quick: fewer steps at one learning rate; an indication instead of a verdict.
        out: folder that receives a new folder for the run.
    """

    quick: bool = False
    out: Path = Path("runs")


@dataclass(frozen=True)
class Verdict:
    """What was measured.

    Attributes:
        holds: whether the claim came out.
        figures: label -> measured value, with its unit, in the order in which they are to be read.
    """

    holds: bool
    figures: Mapping[str, str]


@dataclass(frozen=True)
class Recipe:
    """A claim that can be measured again.

    Attributes:
        name: the mechanism's name in the catalogue.
        paper: identifier and place of the claim in the paper.
        claim: the claim as it is tested, in one sentence.
        run: measures it.
    """

    name: str
    paper: str
    claim: str
    run: Callable[[RecipeConfig], Verdict]

    def report(self, verdict: Verdict, config: RecipeConfig) -> RenderableType:
        """Claim, figures and verdict for a terminal."""
        table = Table("", "measured")
        for label, value in verdict.figures.items():
            table.add_row(Text(label), Text(value))
        outcome = Text("holds", style="bold green") if verdict.holds else Text("does not hold", style="bold red")
        if config.quick:
            outcome.append(" in a quick run, which indicates and does not decide", style="default")
        return Group(Text(f"{self.name} ({self.paper})"), Text(f"claim: {self.claim}"), table, outcome)


def ablation(names: tuple[str, ...], config: RecipeConfig) -> dict[str, float]:
    """Train the same small byte-level language model with each mechanism: held-out bits per byte by name.

    The setting is that of `attensor compare` on the standard library's source code: two seeds, 500 steps of 16
    sequences of 96 bytes, each mechanism at the best of three learning rates (quick: 200 steps at one rate).

    Args:
        names: mechanisms of the catalogue.
        config: how long and where.
    Raises:
        LawError: one of them could not be trained; the message says why.
    """
    from attensor.compare.config import CompareConfig
    from attensor.compare.run import compare

    folder = compare(
        CompareConfig(
            mechanisms=",".join(names),
            steps=QUICK_STEPS if config.quick else STEPS,
            learning_rates=QUICK_LEARNING_RATES if config.quick else LEARNING_RATES,
            length=96,
            batch_size=16,
            max_length=256,
            out=str(config.out),
        )
    )
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    scores = {}
    for row in results["mechanisms"]:
        if row["status"] != "ok":
            raise LawError(f"{row['name']} was not trained: {row['reason']}")
        scores[row["name"]] = float(row["score"]["mean"])
    return scores
