"""The stages of one mechanism, in order; each leaves one artefact and is not repeated once it is there.

Of the phase "calibrate": laws -> balance -> calibrate. Then, all mechanisms being at the same number of steps (see
`pace`): pilots -> seeds. A pilot is the beginning of the run with the first seed, and the best one is continued.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

from attensor.bench.timing import queued_seconds
from attensor.catalogue import Domain
from attensor.compare.artefacts import Balance, Pace, Pilot, Schedule, SeedRun
from attensor.compare.balance import balanced_mlp_size, parameter_count
from attensor.compare.laws import check_laws
from attensor.compare.pace import SCHEDULE_FILE, WARM_UP
from attensor.compare.pilots import best_pilot, next_rate
from attensor.compare.plan import Plan
from attensor.compare.subjects import Subject
from attensor.compare.tasks import Task, autocast, open_task
from attensor.files import atomic_path
from attensor.lab import Reporter, kept
from attensor.train import Diverged, Progress, Stopped, TrainConfig, polynomial_average, train

__all__ = ["Calibration", "Training", "curve_steps"]

_CALIBRATION_STEPS = 24
_CALIBRATION_WARM_UP = 4
_CURVE_POINTS = 12
# the first point of the curve, as a part of the run
_CURVE_FIRST = 1 / 32


@dataclass
class _Stages:
    """What both phases of a mechanism need.

    Attributes:
        plan: what to do.
        subject: with which mixer.
        folder: where the artefacts go.
        reporter: hears of progress, and asks to stop.
    """

    plan: Plan
    subject: Subject
    folder: Path
    reporter: Reporter

    def _model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        mixers, size = self.plan.mixers(self.subject), self._size()
        return self.plan.task.build(self.plan, mixers, size.mlp_hidden_size).to(self.plan.device)

    def _size(self) -> Balance:
        return Balance.kept(self.folder / "balance.json", self._balance)

    def _balance(self) -> Balance:
        plan = self.plan
        reference = plan.mixers(Subject.of("softmax"))
        with torch.device("meta"):
            target = parameter_count(plan.task.build(plan, reference, plan.reference_mlp_size))
        mixer = plan.mixers(self.subject)
        width, count = balanced_mlp_size(lambda width: plan.task.build(plan, mixer, width), target)
        return Balance(width, count, target)

    def _precision(self) -> torch.dtype | None:
        return torch.bfloat16 if self.plan.dtype == "bfloat16" else None

    def _stop_here(self) -> None:
        if self.reporter.stop:
            raise Stopped("stopped between two stages")


class Calibration(_Stages):
    """Finds out whether a mechanism can be compared, and how long its steps take."""

    def run(self) -> None:
        """Go through all stages that are not done.

        Raises:
            LawError: the mixer breaks a law.
            ValueError: parameters cannot be balanced.
            Stopped: the reporter asked for it.
        """
        self.reporter.event(stage="laws")
        kept(self.folder / "laws.json", self._laws)
        self._size()
        self._stop_here()
        self.reporter.event(stage="calibrate")
        Pace.kept(self.folder / "calibration.json", lambda: self._pace(open_task(self.plan, self.folder.parent)))

    def _laws(self) -> dict[str, Any]:
        torch.manual_seed(0)
        build = self.plan.mixers(self.subject)
        # layers may differ by their place, and the cards of a stack do
        for index in range(min(max(2, self.subject.period), self.plan.num_layers)):
            mixer = build(index).to(self.plan.device)
            check_laws(
                mixer, self.plan.hidden_size, is_grid=self.plan.task.domain is Domain.GRID, device=self.plan.device
            )
        return {"kept": True}

    def _pace(self, task: Task) -> Pace:
        """Measured once; the number of steps follows for all and stays."""
        clock = _Clock(self.plan.device)
        stamps: list[float] = []
        evaluation: list[float] = []

        def stamp(progress: Progress) -> bool:
            stamps.append(clock.own_seconds())
            return True

        def evaluate(model: nn.Module) -> float:
            started = clock.own_seconds()
            task.score(model)
            evaluation.append(clock.own_seconds() - started)
            return 0.0

        seed, rate = self.plan.seeds[0], min(self.plan.learning_rates)
        config = TrainConfig(
            _CALIBRATION_STEPS, rate, constant_after=WARM_UP, evaluations=1, autocast=self._precision()
        )
        model = self._model(seed)
        average = polynomial_average(model)
        batch, loss = (lambda step: task.batch(step, seed)), task.loss
        train(model, batch, loss, config, evaluate=evaluate, average=average, optimizer=task.optimizer, on_step=stamp)
        # the evaluation falls into the last interval
        seconds = statistics.median(b - a for a, b in pairwise(stamps[_CALIBRATION_WARM_UP:-1]))
        evaluations = _CURVE_POINTS + 1 + task.final_cost
        return Pace(seconds, evaluations * statistics.fmean(evaluation), clock.load())


class Training(_Stages):
    """Trains one subject of a plan."""

    def run(self) -> None:
        """Go through all stages that are not done.

        Raises:
            Diverged: no pilot, or a seed with the best pilot's rate, stays finite.
            ValueError: nobody has decided the number of steps.
            Stopped: the reporter asked for it.
        """
        schedule = Schedule.load(self.folder.parent / SCHEDULE_FILE)
        if schedule is None:
            raise ValueError(f"{self.folder.parent}: has no {SCHEDULE_FILE}, which says how many steps to train.")
        self.schedule, self.task = schedule, open_task(self.plan, self.folder.parent)
        self._done = 0
        self._total = len(self.plan.seeds) * schedule.steps + len(self.plan.learning_rates) * schedule.pilot_steps
        best = self._best_rate()
        for seed in self.plan.seeds:
            self._seed(seed, best)

    def _best_rate(self) -> float:
        """That of the best pilot, whose state is left as the beginning of the first seed."""
        lower = self.plan.task.lower_is_better
        pilots: list[Pilot] = []
        while (rate := next_rate(pilots, self.plan.learning_rates, lower_is_better=lower)) is not None:
            pilots.append(self._pilot(len(pilots), rate))
            best = best_pilot(pilots, self.plan.learning_rates, lower_is_better=lower)
            for index, pilot in enumerate(pilots):
                if pilot is not best:
                    self._state(f"pilot-{index}").unlink(missing_ok=True)
        if best is None:
            raise Diverged(f"diverged with every learning rate: {', '.join(str(pilot.reason) for pilot in pilots)}")
        begun = self._state(f"pilot-{pilots.index(best)}")
        if begun.exists():
            begun.replace(self._state(f"seed-{self.plan.seeds[0]}"))
        return best.learning_rate

    def _pilot(self, index: int, rate: float) -> Pilot:
        steps, key = self.schedule.pilot_steps, f"pilot-{index}"

        def make() -> Pilot:
            try:
                run = self._train(key, self.plan.seeds[0], rate, until=steps)
            except Diverged as error:
                return Pilot(rate, steps, None, str(error))
            return Pilot(rate, steps, next(point.score for point in run.progress.curve if point.step == steps))

        pilot = Pilot.kept(self.folder / f"{key}.json", make)
        self._done += steps
        return pilot

    def _seed(self, seed: int, rate: float) -> None:
        steps, tokens, key = self.schedule.steps, self.task.tokens_per_step, f"seed-{seed}"

        def make() -> SeedRun:
            run = self._train(key, seed, rate, until=steps)
            run.model.eval()
            with torch.no_grad(), autocast(self.plan):
                final = self.task.final(run.model)
            with atomic_path(self.folder / f"{key}.safetensors") as temporary:
                save_model(run.model, str(temporary))
            seconds = run.progress.seconds
            return SeedRun(
                seed=seed,
                learning_rate=rate,
                steps=steps,
                seconds_per_step=seconds / steps / run.load,
                machine_load=run.load,
                tokens_per_second=steps * tokens / seconds,
                curve=[point._asdict() | {"tokens": point.step * tokens} for point in run.progress.curve],
                final=final.scores,
                units=final.units,
                checkpoint=f"{self.folder.name}/{key}.safetensors",
            )

        SeedRun.kept(self.folder / f"{key}.json", make)
        self._state(key).unlink(missing_ok=True)
        self._done += steps

    def _train(self, key: str, seed: int, rate: float, *, until: int) -> _Run:
        """One run from its checkpoint or its start up to a step, where its state is kept if it is not its last."""
        self._stop_here()
        steps, latest = self.schedule.steps, Progress()

        def on_step(progress: Progress) -> bool:
            nonlocal latest
            latest = progress
            self._tell(key, progress, until)
            return not self.reporter.stop and (progress.step < until or until == steps)

        model = self._model(seed)
        average = polynomial_average(model)
        points, precision = curve_steps(self.schedule), self._precision()
        clock = _Clock(self.plan.device)
        try:
            latest = train(
                model,
                lambda step: self.task.batch(step, seed),
                self.task.loss,
                TrainConfig(steps, rate, constant_after=WARM_UP, evaluations=points, autocast=precision),
                evaluate=self.task.score,
                checkpoint=self._state(key),
                average=average,
                optimizer=self.task.optimizer,
                on_step=on_step,
            )
        except Stopped:
            if self.reporter.stop or latest.step < until:
                raise
        return _Run(latest, average.module, clock.load())

    def _tell(self, key: str, progress: Progress, until: int) -> None:
        total = max(self._total, self._done + until)
        left = total - self._done - progress.step
        self.reporter.progress(
            stage=key,
            fraction=1 - left / total,
            seconds_left=left * progress.seconds / progress.step,
            score=progress.curve[-1].score if progress.curve else None,
        )

    def _state(self, key: str) -> Path:
        return self.folder / f"{key}.state.safetensors"


@dataclass(frozen=True)
class _Run:
    progress: Progress
    model: nn.Module
    load: float


def curve_steps(schedule: Schedule) -> tuple[int, ...]:
    """After which steps a run is scored: denser at its beginning, after the pilot's last step, and at its end."""
    ratio = _CURVE_FIRST ** (1 / (_CURVE_POINTS - 1))
    found = {max(1, round(schedule.steps * ratio**i)) for i in range(_CURVE_POINTS)}
    return tuple(sorted(found | {schedule.pilot_steps}))


class _Clock:
    """Time since its creation: all of it, and that without the wait for a processor."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._started, self._queued = time.perf_counter(), queued_seconds()

    def own_seconds(self) -> float:
        """Seconds that pass for this mechanism alone: wall time, sleep included, without the wait for a processor."""
        if self._device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter() - self._started
        return time.perf_counter() - self._started - (queued_seconds() - self._queued)

    def load(self) -> float:
        """Wall time by own time: 1 on an idle machine."""
        return max(1.0, (time.perf_counter() - self._started) / max(self.own_seconds(), 1e-9))
