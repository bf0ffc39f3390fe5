"""A swap on trial: what it costs the model, beside controls that had the same chance, layer by layer and in part.

original, the replacement and four controls, each as it was carried over and after the same training;
one layer at a time; the best sets of 1, 2, .. layers; bytes and milliseconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from attensor import catalogue
from attensor.edit.align import distill, transfer
from attensor.edit.controls import controls
from attensor.edit.court import Court, Score
from attensor.edit.journal import Journal
from attensor.edit.swap import chosen, layer_for
from attensor.edit.task import Task
from attensor.nn._shapes import check_range
from attensor.ops._checks import checked, checked_fields
from attensor.sites import AttentionSite, find_sites

__all__ = ["Trial", "TrialOptions", "try_swap"]

_MOST_GREEDY = 8  # layers, beyond which a set grows in the order of single layers
_ROUNDS = 7


@checked_fields
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

    def __post_init__(self) -> None:
        """Refuse what nothing can be tried with.

        Raises:
            ValueError: a number out of its range.
        """
        check_range(self, 0, minutes=self.minutes, distill_minutes=self.distill_minutes, sinks=self.sinks)
        check_range(self, 1, window_size=self.window_size, context=self.context)


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
        alone: the replacement, the strongest control and no attention -> scores with one layer swapped.
        hybrid: arm -> scores with 1, 2, .. layers swapped, in `order`.
        order: places of the layers in the order in which the greedy hybrid swaps them.
        bytes, milliseconds: of one layer, the original's and the replacement's, at `context` tokens; processor time.
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


@checked
def try_swap(model: nn.Module, task: Task, options: TrialOptions, *, journal: Journal | None = None) -> Trial:
    """Try a swap, and leave it in the model: aligned, and distilled where that was asked for.

    Args:
        model: in its original form; it ends with the replacement in.
        task: what it is good for, and text to learn from.
        options: what is tried.
        journal: is told what happens; with what it has kept of the same trial, this goes on where that ended.
    Raises:
        ValueError, ShapeError: see `edit.swap`. Stopped: by the journal.
    Cost: besides the minutes, 11 scores of all held-out text, 4 for each layer, L^2 / 2 for a hybrid of L <= 8.
    """
    journal = journal or Journal()
    found_sites = find_sites(model)
    picked = chosen(found_sites, options.layers, "try_swap")
    sites = [found_sites[index] for index in picked]
    arms: dict[str, dict[str, Any]] = {
        options.to: {
            site.name: layer_for(options.to, site, index, len(found_sites), dict(options.options))
            for index, site in zip(picked, sites)
        }
    }
    for name, make in controls(options.window_size, options.sinks).items():
        arms[name] = {site.name: make(site.weights()) for site in sites}
    journal.expected = _scores(len(sites), len(arms)) + (2 if options.distill_minutes > 0 else 0)
    journal.begin(f"Original, and each of {len(arms)} arms as it is carried over")
    court = Court(model, task, sites, journal)
    trial = Trial(
        **task.facts(),
        units=len(court.base),
        layers=[site.name for site in sites],
        of=len(found_sites),
        original=Score(float(court.base.double().mean())),
    )
    trial.carried = {arm: court.compared(court.units("carried", arm, layers)) for arm, layers in arms.items()}
    _align(court, arms, options, trial)
    _in_part(court, arms, options.to, trial)
    trial.bytes, trial.milliseconds = _costs(arms[options.to], sites, options)
    _finish(court, arms, options, trial)
    return trial


def _scores(layers: int, arms: int) -> int:
    """Scores that a trial needs: whole swaps before and after, single layers, sets of the replacement and a control."""
    sets = layers * (layers - 1) // 2 - 1 if layers <= _MOST_GREEDY else layers - 2
    return 1 + 2 * arms + (0 if layers == 1 else 3 * layers + max(0, sets) + layers - 2)


def _align(court: Court, arms: dict[str, dict[str, Any]], options: TrialOptions, trial: Trial) -> None:
    if options.minutes > 0:
        court.journal.begin(f"Alignment of {len(arms)} arms side by side, {options.minutes:g} minutes", "aligned")
        batches, told = court.task.batches(), court.journal
        done = transfer(court.model, court.sites, arms, batches, minutes=options.minutes, journal=told)
        trial.steps, trial.seconds = done.steps, done.seconds
        tail = max(1, done.steps // 20)
        trial.errors = {
            arm: [statistics.fmean(errors[-tail:]) for errors in layers.values()] for arm, layers in done.errors.items()
        }
    court.journal.begin("Each arm aligned")
    units = {arm: court.units("aligned", arm, layers) for arm, layers in arms.items()}
    trial.aligned = {arm: court.compared(one) for arm, one in units.items()}
    trial.against = {arm: court.compared(units[options.to], one) for arm, one in units.items() if arm != options.to}


def _in_part(court: Court, arms: dict[str, dict[str, Any]], to: str, trial: Trial) -> None:
    """One layer at a time, and the best sets."""

    def score(arm: str, which: Sequence[int]) -> Score:
        return court.compared(court.units("aligned", arm, arms[arm], which))

    count = len(court.sites)
    court.journal.begin("One layer at a time")
    shown = dict.fromkeys((to, _strongest(trial, to), "no attention"))
    trial.alone = {arm: [score(arm, [i]) for i in range(count)] for arm in shown}
    court.journal.begin("The best sets of layers")
    single = sorted(range(count), key=lambda i: trial.alone[to][i].worse)
    order: list[int] = [single[0]]
    while len(order) < count:
        rest = [i for i in single if i not in order]
        if count <= _MOST_GREEDY:
            rest.sort(key=lambda i: score(to, [*order, i]).worse)
        order.append(rest[0])
    trial.order = order
    trial.hybrid = {arm: [score(arm, order[:n]) for n in range(1, count + 1)] for arm in (to, _strongest(trial, to))}


def _strongest(trial: Trial, to: str) -> str:
    return min((arm for arm in trial.aligned if arm != to), key=lambda arm: trial.aligned[arm].worse)


def _finish(court: Court, arms: dict[str, dict[str, Any]], options: TrialOptions, trial: Trial) -> None:
    """Distillation of the strongest control and of the replacement, which stays in the model."""
    arm_of = {"distilled-control": _strongest(trial, options.to), "distilled": options.to}
    for kept, arm in arm_of.items() if options.distill_minutes > 0 else [("", options.to)]:
        for site in court.sites:
            site.replace(arms[arm][site.name])
        if options.distill_minutes > 0:
            court.journal.begin(f"Distillation of {arm}, {options.distill_minutes:g} minutes", kept)
            batches, told = court.task.batches(), court.journal
            distill(court.model, batches, minutes=options.distill_minutes, journal=told)
            trial.distilled[arm] = court.compared(court.measured(f"distilled: {arm}"))
        if arm != options.to:
            for site in court.sites:
                site.restore()


def _costs(
    layers: Mapping[str, Any], sites: Sequence[AttentionSite], options: TrialOptions
) -> tuple[dict[str, int], dict[str, float]]:
    """Bytes of one layer's decode state and milliseconds of its forward pass, beside softmax attention's.

    Processor time of all threads, since other programs may run beside this one.
    """
    name = sites[0].name
    card, given = catalogue.mechanism(options.to), sites[0].weights()
    pair = {"original": layer_for("softmax", sites[0], 0, 1, {}), options.to: layers[name]}
    hidden = torch.randn(1, options.context, given.q.shape[1], dtype=given.q.dtype, device=given.q.device)
    kept = min(options.context, given.window_size or options.context)
    bytes_ = {"original": 2 * kept * given.num_kv_heads * given.head_dim * given.q.element_size()}
    if given.is_causal and hasattr(layers[name], "new_cache"):
        cache = layers[name].new_cache(1, dtype=given.q.dtype)
        with torch.no_grad():
            layers[name](hidden, cache=cache)
        bytes_[card.name] = cache.nbytes
    times: dict[str, list[float]] = {arm: [] for arm in pair}
    with torch.no_grad():
        for _ in range(_ROUNDS):
            for arm, layer in pair.items():
                begin = time.process_time()
                layer(hidden)
                times[arm].append(1000 * (time.process_time() - begin))
    return bytes_, {arm: statistics.median(values[1:]) for arm, values in times.items()}
