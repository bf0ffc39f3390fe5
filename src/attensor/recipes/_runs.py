"""Variants times seeds: measured in cells, grouped by variant, and put into intervals, figures and curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from attensor.recipes._recipe import Interval, RecipeConfig, run_cells
from attensor.train import TrainConfig, train

__all__ = ["Runs", "measure", "trained"]

Key = str | Callable[[Any], float]


class Runs(dict[Any, list[Any]]):
    """Results by variant, a list each with one a seed, in the same order of seeds.

    A `key` says which number of a result is meant: a path such as `"loss.1"`, or a function of the result.
    """

    def of(self, variant: Any, key: Key) -> list[float]:
        """The number of every seed."""
        return [_number(result, key) for result in self[variant]]

    def interval(self, variant: Any, key: Key) -> Interval:
        """Its mean over the seeds."""
        return Interval.of(self.of(variant, key))

    def margin(self, variant: Any, other: Any, key: Key) -> Interval:
        """By how much it exceeds that of another variant with the same seed: the same data in the same order."""
        return Interval.of([a - b for a, b in zip(self.of(variant, key), self.of(other, key), strict=True)])

    def figures(self, label: str, key: Key) -> dict[str, str]:
        """Its interval for each variant that has it, under `label` with the variant in the place of `{}`."""
        return {
            label.format(variant): str(self.interval(variant, key))
            for variant, results in self.items()
            if callable(key) or key.partition(".")[0] in results[0]
        }

    def curves(self) -> dict[Any, list[tuple[float, float]]]:
        """The mean over seeds of every variant's `curve`, point by point; runs without points do not count."""
        return {variant: _mean_curve([r["curve"] for r in results if r["curve"]]) for variant, results in self.items()}


def measure(
    config: RecipeConfig,
    function: Callable[..., Any],
    name: str,
    variants: Iterable[Any],
    *,
    seeds: int,
    at_once: int | None = None,
    **arguments: Any,
) -> Runs:
    """Compute `function(**{name: variant}, seed=seed, **arguments)` for every variant and seed.

    Args:
        config: of the recipe.
        function: of a module, see `run_cells`.
        name: of its argument that takes the variant.
        variants: JSON values; the slowest first, so that no core waits at the end.
        seeds: how many, from 0 on.
        at_once: processes, see `run_cells`; 1 for measurements of time.
        arguments: the same for all, JSON values.
    """
    variants = list(variants)
    cells = [{name: variant, "seed": seed, **arguments} for seed in range(seeds) for variant in variants]
    results = run_cells(config, function, cells, at_once=at_once)
    return Runs({variant: results[i :: len(variants)] for i, variant in enumerate(variants)})


def trained(
    model: nn.Module,
    batch: Callable[[int], Any],
    loss: Callable[[nn.Module, Any], Tensor],
    score: Callable[[nn.Module], float],
    settings: TrainConfig,
) -> dict[str, Any]:
    """Train in place by `attensor.train.train`: the final `score`, and the `curve` [[step, score], ..]."""
    curve = [[point.step, point.score] for point in train(model, batch, loss, settings, evaluate=score).curve]
    return {"score": curve[-1][1], "curve": curve}


def _number(result: Any, key: Key) -> float:
    number: float = key(result) if callable(key) else reduce(lambda found, part: found[part], key.split("."), result)
    return number


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[tuple[float, float]]:
    return [(points[0][0], fmean(score for _, score in points)) for points in zip(*curves, strict=True)]
