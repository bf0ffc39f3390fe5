"""A swap on trial: what it costs the model, beside controls that had the same chance, layer by layer and in part.

original, the replacement and four controls, each as it was carried over and after the same training;
one layer at a time; the best sets of 1, 2, .. layers; bytes and milliseconds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attensor import catalogue
from attensor.edit.align import distill, transfer
from attensor.edit.controls import controls
from attensor.edit.swap import chosen, layer_for
from attensor.edit.task import Task
from attensor.nn.softmax_attention import SoftmaxAttention
from attensor.sites import AttentionSite, find_sites

__all__ = ["Score", "Trial", "TrialOptions", "try_swap"]

_MOST_GREEDY = 8  # layers, beyond which a set grows in the order of single layers
_ROUNDS = 7


@dataclass(frozen=True)
class TrialOptions:
    """What is tried.

    Attributes:
        to: a mechanism.
        options: of its layers.
        layers: as of `edit.swap`.
        minutes: of the alignment, all arms together.
        distill_minutes: of the distillation of each of two arms, the replacement and the strongest control; 0 for none.
        window_size, sinks: of the controls.
        context: tokens for which bytes and milliseconds are given.
    """

    to: str
    options: Mapping[str, Any] = field(default_factory=dict)
    layers: Sequence[int] | None = None
    minutes: float = 5.0
    distill_minutes: float = 0.0
    window_size: int = 8
    sinks: int = 4
    context: int = 1024


@dataclass(frozen=True)
class Score:
    """How good a model is.

    Attributes:
        value: the mean over the task's units.
        worse: by how much it is worse than the original, the mean of the paired differences.
        interval: half the width of the 95 % interval of that.
    """

    value: float
    worse: float = 0.0
    interval: float = 0.0


@dataclass
class Trial:
    """What was found; all of it plain data.

    Attributes:
        task, unit, higher_is_better, units: the task, what its score is, and over how many units it is a mean.
        layers: names of the attentions that were swapped, of `of` in the model.
        original: score of the model as it came.
        carried, aligned, distilled: arm -> score of the whole swap.
        against: score of the replacement minus that of each control, aligned, as `Score.worse` (below 0: better).
        errors: arm -> relative error of each layer's output at the end of the alignment.
        steps, seconds: of the alignment.
        alone: arm -> worse than the original, with one layer swapped.
        hybrid: arm -> scores with 1, 2, .. layers swapped, in `order`.
        order: places of the layers in the order in which the greedy hybrid swaps them.
        bytes, milliseconds: of one layer, the original's and the replacement's, at `context` tokens.
    """

    task: str
    unit: str
    higher_is_better: bool
    units: int
    layers: list[str]
    of: int
    original: Score
    carried: dict[str, Score] = field(default_factory=dict)
    aligned: dict[str, Score] = field(default_factory=dict)
    distilled: dict[str, Score] = field(default_factory=dict)
    against: dict[str, Score] = field(default_factory=dict)
    errors: dict[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    alone: dict[str, list[Score]] = field(default_factory=dict)
    hybrid: dict[str, list[Score]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    bytes: dict[str, int] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class _Court:
    """A model, its task and the arms, and what comes out when some layers of an arm are in."""

    def __init__(self, model: nn.Module, task: Task, sites: Sequence[AttentionSite]) -> None:
        self.model, self.task, self.sites = model, task, sites
        self.sign = -1.0 if task.higher_is_better else 1.0
        self.base = task.score(model)

    def units(self, layers: Mapping[str, nn.Module], which: Sequence[int] | None = None) -> Tensor:
        """The task's score of each unit with the layers in the places `which`, all if None."""
        sites = [self.sites[i] for i in (range(len(self.sites)) if which is None else which)]
        try:
            for site in sites:
                site.replace(layers[site.name])
            return self.task.score(self.model)
        finally:
            for site in sites:
                site.restore()

    def compared(self, units: Tensor, base: Tensor | None = None) -> Score:
        """A score beside that of the original, or another."""
        worse = self.sign * (units - (self.base if base is None else base)).double()
        spread = 1.96 * float(worse.std()) / math.sqrt(len(worse)) if len(worse) > 1 else math.inf
        return Score(float(units.double().mean()), float(worse.mean()), spread)


def try_swap(
    model: nn.Module, task: Task, options: TrialOptions, *, say: Callable[[str], None] = lambda text: None
) -> Trial:
    """Try a swap, and leave it in the model: aligned, and distilled where that was asked for.

    Args:
        model: in its original form; it ends with the replacement in.
        task: what it is good for, and text to learn from.
        options: what is tried.
        say: receives a line at each stage.
    Raises:
        ValueError, ShapeError: see `edit.swap`.
    """
    found_sites = find_sites(model)
    picked = chosen(found_sites, options.layers, "try_swap")
    sites = [found_sites[index] for index in picked]
    weights = {site.name: site.weights() for site in sites}
    arms: dict[str, dict[str, Any]] = {
        options.to: {
            site.name: layer_for(options.to, site, index, len(found_sites), dict(options.options))
            for index, site in zip(picked, sites)
        }
    }
    for name, make in controls(options.window_size, options.sinks).items():
        arms[name] = {site: make(one) for site, one in weights.items()}
    say("original, and each arm as it is carried over")
    court = _Court(model, task, sites)
    trial = Trial(
        **task.facts(),
        units=len(court.base),
        layers=[site.name for site in sites],
        of=len(found_sites),
        original=Score(float(court.base.double().mean())),
    )
    trial.carried = {arm: court.compared(court.units(layers)) for arm, layers in arms.items()}
    _align(court, arms, options, trial, say)
    _in_part(court, arms, options.to, trial, say)
    trial.bytes, trial.milliseconds = _costs(arms[options.to], weights, sites, options)
    _finish(court, arms, options, trial, say)
    return trial


def _align(
    court: _Court, arms: dict[str, dict[str, Any]], options: TrialOptions, trial: Trial, say: Callable[[str], None]
) -> None:
    say(f"alignment of {len(arms)} arms, {options.minutes:g} minutes")
    if options.minutes > 0:
        done = transfer(court.model, court.sites, arms, court.task.batches(), minutes=options.minutes)
        trial.steps, trial.seconds = done.steps, done.seconds
        tail = max(1, done.steps // 20)
        trial.errors = {
            arm: [statistics.fmean(errors[-tail:]) for errors in layers.values()] for arm, layers in done.errors.items()
        }
    units = {arm: court.units(layers) for arm, layers in arms.items()}
    trial.aligned = {arm: court.compared(one) for arm, one in units.items()}
    trial.against = {arm: court.compared(units[options.to], one) for arm, one in units.items() if arm != options.to}


def _in_part(court: _Court, arms: dict[str, dict[str, Any]], to: str, trial: Trial, say: Callable[[str], None]) -> None:
    """One layer at a time, and the best sets."""
    count = len(court.sites)
    say("one layer at a time")
    trial.alone = {
        arm: [court.compared(court.units(layers, [i])) for i in range(count)] for arm, layers in arms.items()
    }
    say("the best sets of layers")
    single = sorted(range(count), key=lambda i: trial.alone[to][i].worse)
    order: list[int] = [single[0]]
    while len(order) < count:
        rest = [i for i in single if i not in order]
        if count <= _MOST_GREEDY:
            rest.sort(key=lambda i: court.compared(court.units(arms[to], [*order, i])).worse)
        order.append(rest[0])
    trial.order = order
    strongest = min((arm for arm in arms if arm != to), key=lambda arm: trial.aligned[arm].worse)
    trial.hybrid = {
        arm: [court.compared(court.units(arms[arm], order[:n])) for n in range(1, count + 1)] for arm in (to, strongest)
    }


def _finish(
    court: _Court, arms: dict[str, dict[str, Any]], options: TrialOptions, trial: Trial, say: Callable[[str], None]
) -> None:
    """Distillation of the strongest control and of the replacement, which stays in the model."""
    strongest = min((arm for arm in arms if arm != options.to), key=lambda arm: trial.aligned[arm].worse)
    for arm in (strongest, options.to) if options.distill_minutes > 0 else (options.to,):
        for site in court.sites:
            site.replace(arms[arm][site.name])
        if options.distill_minutes > 0:
            say(f"distillation of {arm}, {options.distill_minutes:g} minutes")
            distill(court.model, court.task.batches(), minutes=options.distill_minutes)
            trial.distilled[arm] = court.compared(court.task.score(court.model))
        if arm != options.to:
            for site in court.sites:
                site.restore()


def _costs(
    layers: Mapping[str, Any], weights: Mapping[str, Any], sites: Sequence[AttentionSite], options: TrialOptions
) -> tuple[dict[str, int], dict[str, float]]:
    """Bytes of one layer's decode state and milliseconds of its forward pass, beside softmax attention's."""
    name = sites[0].name
    card, given = catalogue.mechanism(options.to), weights[name]
    pair = {"original": SoftmaxAttention.from_attention(given), options.to: layers[name]}
    hidden = torch.randn(1, options.context, given.q.shape[1], dtype=given.q.dtype, device=given.q.device)
    bytes_ = {"original": 2 * options.context * given.num_kv_heads * given.head_dim * given.q.element_size()}
    if given.is_causal and hasattr(layers[name], "new_cache"):
        cache = layers[name].new_cache(1, dtype=given.q.dtype)
        with torch.no_grad():
            layers[name](hidden, cache=cache)
        bytes_[card.name] = cache.nbytes
    times: dict[str, list[float]] = {arm: [] for arm in pair}
    with torch.no_grad():
        for _ in range(_ROUNDS):
            for arm, layer in pair.items():
                begin = time.perf_counter()
                layer(hidden)
                times[arm].append(1000 * (time.perf_counter() - begin))
    return bytes_, {arm: statistics.median(values[1:]) for arm, values in times.items()}
