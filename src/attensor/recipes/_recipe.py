"""What a recipe is made of: a paper's claim, the cells that measure it, pass marks, charts, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from attensor import lab
from attensor.metrics import intervals
from attensor.recipes._outcome import Mark, Outcome, count_marks, mark_of, outcome_of

__all__ = ["Chart", "Check", "Interval", "Picture", "Recipe", "RecipeConfig", "Tile", "Verdict", "run_cells"]


@dataclass(frozen=True)
class RecipeConfig:
    """How much to spend and where to keep it.

    Attributes:
        folder: where finished cells, `verdict.json` and `report.html` are written; made when missing.
        quick: fewer steps and seeds; an indication instead of a verdict.
        resume: take the finished cells that `folder` holds instead of computing them anew.
        kernels: `"cpp"` or `"torch"`, what operators with C++ kernels take in all cells; None leaves it to them.
    """

    folder: Path
    quick: bool = False
    resume: bool = False
    kernels: str | None = None


_COLOURS: dict[str, str] = {
    "reached": "green",
    "reproduced": "green",
    "not decided": "yellow",
    "partly": "yellow",
    "not reached": "red",
    "not seen at this size": "red",
}


def run_cells(
    config: RecipeConfig, function: Callable[..., Any], cells: Sequence[dict[str, Any]], *, at_once: int | None = None
) -> list[Any]:
    """`attensor.lab.run_cells` in the recipe's folder."""
    folder, resume, kernels = config.folder / "cells", config.resume, config.kernels
    return lab.run_cells(folder, function, cells, resume=resume, at_once=at_once, kernels=kernels)


class Interval(intervals.Interval):
    """A mean over seeds and the two-sided 95 % interval by Student's t around it."""

    @property
    def mean(self) -> float:
        """Of the values."""
        return self.estimate

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Mean and interval of independent values, for instance one a seed, or one difference a seed.

        Raises:
            ValueError: no values.
        """
        return cls(**vars(intervals.t_interval(values)))

    def __str__(self) -> str:
        """`0.912 ± 0.013 (3 seeds)`, with two significant digits of the half-width."""
        if math.isnan(self.half_width):
            return f"{self.mean:.3f} (1 seed)"
        decimals = 3
        if 0 < self.half_width < math.inf:
            decimals = min(max(1 - math.floor(math.log10(self.half_width)), 0), 4)
        return f"{self.mean:.{decimals}f} ± {self.half_width:.{decimals}f} ({self.count} seeds)"


@dataclass(frozen=True)
class Check:
    """One pass mark.

    Attributes:
        text: the mark and what was measured, in one sentence with numbers.
        passed: whether the estimate is on the right side of the mark.
        measured: the estimate with its interval, where there is one.
        bounds: values of `measured` at which the mark turns; two for a mark with two sides.
    """

    text: str
    passed: bool
    measured: Interval | None = None
    bounds: tuple[float, ...] = ()

    @classmethod
    def between(
        cls, text: str, found: Interval, *, low: float = -math.inf, above: float = -math.inf, high: float = math.inf
    ) -> Self:
        """A mark on an estimate: at least `low`, more than `above`, at most `high`, each of which may be left out."""
        bounds = tuple(bound for bound in (low, above, high) if math.isfinite(bound))
        passed = low <= found.mean <= high and found.mean > above
        return cls(f"{text}: {found}", passed, found, bounds)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Low and high end of what was measured; None without one, or with one seed."""
        if self.measured is None or math.isnan(self.measured.low):
            return None
        return self.measured.low, self.measured.high

    @property
    def mark(self) -> Mark:
        """The word for it."""
        return mark_of(self.passed, self.interval, self.bounds)


@dataclass(frozen=True)
class Chart:
    """A drawing for the report.

    Attributes:
        title: what it shows.
        x, y: what is on the axes, with units.
        series: label -> points (x, y), in the order of the legend.
        log_x, log_y: logarithmic axes; points that are not positive are left out there.
        bars: bars side by side at each x, from zero, instead of lines.
    """

    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    log_x: bool = False
    log_y: bool = False
    bars: bool = False


@dataclass(frozen=True)
class Tile:
    """One of the images of a `Picture`.

    Attributes:
        name: what it shows.
        note: below the name, for instance a number.
        png: a PNG file in base64.
    """

    name: str
    note: str
    png: str


@dataclass(frozen=True)
class Picture:
    """Images side by side for the report.

    Attributes:
        title: what they show.
        text: how they are to be read.
        tiles: the images.
    """

    title: str
    text: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Verdict:
    """What was measured, and how the paper's claim came out.

    Attributes:
        checks: the pass marks.
        figures: label -> measured value with its unit, in the order in which they are to be read.
        charts: drawings for the report.
        pictures: images for the report.
    """

    checks: tuple[Check, ...]
    figures: Mapping[str, str] = field(default_factory=dict)
    charts: tuple[Chart, ...] = ()
    pictures: tuple[Picture, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The word for the paper, from the marks."""
        return outcome_of([check.mark for check in self.checks])


@dataclass(frozen=True)
class Recipe:
    """A claim that can be measured again.

    Attributes:
        name: what is typed after `attensor reproduce`: the name of its file, with hyphens.
        paper: identifier and place of the claim in the paper.
        claim: the claim as it is tested, in one sentence.
        run: measures it.
        needs: modules that must be installed beside attensor's own requirements.
        minutes: on two cores, at most; beyond five the command says so before it begins.
    """

    name: str
    paper: str
    claim: str
    run: Callable[[RecipeConfig], Verdict]
    needs: tuple[str, ...] = ()
    minutes: int = 5

    def report(self, verdict: Verdict, config: RecipeConfig) -> RenderableType:
        """Claim, figures, pass marks and verdict for a terminal."""
        # the width of a terminal belongs to the sentences
        figures, marks = (Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False) for _ in range(2))
        for table, columns in ((figures, ("measured", "")), (marks, ("pass mark and measurement", ""))):
            for column in columns:
                table.add_column(column)
        for label, value in verdict.figures.items():
            figures.add_row(Text(label), Text(value))
        for check in verdict.checks:
            marks.add_row(Text(check.text), Text(check.mark, style=_COLOURS[check.mark], no_wrap=True))
        said = Text(verdict.outcome, style=f"bold {_COLOURS[verdict.outcome]}")
        if config.quick:
            said = Text("a quick run indicates and does not decide: ").append(said)
        return Group(
            Text(f"{self.name} ({self.paper})"),
            Text(f"claim: {self.claim}"),
            *((figures,) if verdict.figures else ()),
            marks,
            said.append(f" ({count_marks([check.mark for check in verdict.checks])})", style="default"),
        )
