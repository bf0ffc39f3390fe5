"""The stages of one mechanism's training, in order; each leaves one artefact and is not repeated once it is there.

laws -> balance -> calibrate -> pilots -> seeds
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import nn

from attensor.catalogue import Domain
from attensor.compare.artefacts import Balance, Pace, Pilot, SeedRun
from attensor.compare.balance import balanced_mlp_size, parameter_count
from attensor.compare.laws import check_laws
from attensor.compare.plan import Plan
from attensor.compare.subjects import Subject
from attensor.compare.tasks import autocast, open_task
from attensor.files import atomic_path, locked
from attensor.lab import Reporter, kept
from attensor.train import Diverged, Progress, Stopped, TrainConfig, train

__all__ = ["Training"]

_CALIBRATION_STEPS = 24
_CALIBRATION_WARM_UP = 4
_FEWEST_STEPS = 10
_CURVE_POINTS = 12


@dataclass
class Training:
    """Trains one subject of a plan.

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

    def run(self) -> None:
        """Go through all stages that are not done.

        Raises:
            LawError: the mixer breaks a law.
            ValueError: parameters cannot be balanced.
            Diverged: no pilot, or a seed with the best pilot's rate, stays finite.
            Stopped: the reporter asked for it.
        """
        plan, folder = self.plan, self.folder
        self.reporter.event(stage="laws")
        kept(folder / "laws.json", self._laws)
        self.size = Balance.kept(folder / "balance.json", self._balance)
        self.task = open_task(plan)
        self._stop_here()
        self.reporter.event(stage="calibrate")
        self.pace = Pace.kept(folder / "calibration.json", self._calibrate)
        pilots = [self._pilot(i) for i in range(len(plan.learning_rates))]
        best = self._best(pilots)
        for index in range(len(plan.seeds)):
            self._seed(index, best)

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

    def _balance(self) -> Balance:
        plan = self.plan
        reference = plan.mixers(Subject.of("softmax"))
        with torch.device("meta"):
            target = parameter_count(plan.task.build(plan, reference, plan.reference_mlp_size))
        mixer = plan.mixers(self.subject)
        width, count = balanced_mlp_size(lambda width: plan.task.build(plan, mixer, width), target)
        return Balance(width, count, target)

    def _calibrate(self) -> Pace:
        """Seconds a step, measured once; the numbers of steps follow and stay."""
        plan = self.plan
        started, started_own = time.perf_counter(), self._clock()
        seconds = self._seconds_per_step()
        load = (time.perf_counter() - started) / max(self._clock() - started_own, 1e-9)
        # how busy the machine is counts once, for all alike: it shortens the runs, and favours nobody
        with locked(self.folder.parent, wait=True, name=".load"):
            load = float(kept(self.folder.parent / "load.json", lambda: max(1.0, load)))
        if plan.steps is not None:
            steps = plan.steps
        else:
            weight = len(plan.seeds) + plan.pilot_fraction * len(plan.learning_rates)
            steps = max(_FEWEST_STEPS, int((plan.share_seconds or 0.0) / (seconds * load) / weight))
        pilot = max(_FEWEST_STEPS, math.ceil(plan.pilot_fraction * steps))
        return Pace(seconds, steps, min(pilot, steps))

    def _seconds_per_step(self) -> float:
        stamps: list[float] = []

        def stamp(progress: Progress) -> bool:
            stamps.append(self._clock())
            return True

        config = TrainConfig(
            _CALIBRATION_STEPS, min(self.plan.learning_rates), evaluations=1, autocast=self._precision()
        )
        seed = self.plan.seeds[0]
        model = self._model(seed)
        batch, loss = (lambda step: self.task.batch(step, seed)), self.task.loss
        train(model, batch, loss, config, evaluate=lambda model: 0.0, on_step=stamp)
        # the evaluation falls into the last interval
        return statistics.median(b - a for a, b in pairwise(stamps[_CALIBRATION_WARM_UP:-1]))

    def _clock(self) -> float:
        """Seconds that pass for this mechanism alone: wall time, sleep included, without the wait for a processor."""
        if self.plan.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.perf_counter() - _queued_seconds()

    def _pilot(self, index: int) -> Pilot:
        rate, steps = self.plan.learning_rates[index], self.pace.pilot_steps
        key = f"pilot-{index}"

        def make() -> Pilot:
            try:
                progress, _ = self._train(key, self.plan.seeds[0], rate, steps, done=index * steps, evaluations=1)
            except Diverged as error:
                return Pilot(rate, steps, None, str(error))
            return Pilot(rate, steps, progress.curve[-1].score)

        result = Pilot.kept(self.folder / f"{key}.json", make)
        self._state(key).unlink(missing_ok=True)
        return result

    def _best(self, pilots: list[Pilot]) -> float:
        finite = [(pilot.score, pilot.learning_rate) for pilot in pilots if pilot.score is not None]
        if not finite:
            raise Diverged(f"diverged with every learning rate: {', '.join(str(pilot.reason) for pilot in pilots)}")
        return (min if self.plan.task.lower_is_better else max)(finite, key=lambda pilot: pilot[0])[1]

    def _seed(self, index: int, rate: float) -> None:
        seed, steps, tokens = self.plan.seeds[index], self.pace.steps, self.task.tokens_per_step
        done = len(self.plan.learning_rates) * self.pace.pilot_steps + index * steps
        key = f"seed-{seed}"

        def make() -> SeedRun:
            progress, model = self._train(key, seed, rate, steps, done=done, evaluations=_CURVE_POINTS)
            model.eval()
            with torch.no_grad(), autocast(self.plan):
                final = self.task.final(model)
            with atomic_path(self.folder / f"{key}.safetensors") as temporary:
                save_model(model, str(temporary))
            return SeedRun(
                seed=seed,
                learning_rate=rate,
                tokens_per_second=steps * tokens / progress.seconds,
                curve=[point._asdict() | {"tokens": point.step * tokens} for point in progress.curve],
                final=final,
                checkpoint=f"{self.folder.name}/{key}.safetensors",
            )

        SeedRun.kept(self.folder / f"{key}.json", make)
        self._state(key).unlink(missing_ok=True)

    def _train(
        self, key: str, seed: int, rate: float, steps: int, *, done: int, evaluations: int
    ) -> tuple[Progress, nn.Module]:
        """One run from its checkpoint or its start; `done` steps of this mechanism lie before it."""
        self._stop_here()
        total = len(self.plan.learning_rates) * self.pace.pilot_steps + len(self.plan.seeds) * self.pace.steps

        def on_step(progress: Progress) -> bool:
            self.reporter.progress(
                stage=key,
                fraction=(done + progress.step) / total,
                seconds_left=(total - done - progress.step) * progress.seconds / progress.step,
                score=progress.curve[-1].score if progress.curve else None,
            )
            return not self.reporter.stop

        model = self._model(seed)
        progress = train(
            model,
            lambda step: self.task.batch(step, seed),
            self.task.loss,
            TrainConfig(steps, rate, evaluations=evaluations, autocast=self._precision()),
            evaluate=self.task.score,
            checkpoint=self._state(key),
            on_step=on_step,
        )
        return progress, model

    def _state(self, key: str) -> Path:
        return self.folder / f"{key}.state.safetensors"

    def _model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return self.task.build(self.plan, self.plan.mixers(self.subject), self.size.mlp_hidden_size).to(
            self.plan.device
        )

    def _precision(self) -> torch.dtype | None:
        return torch.bfloat16 if self.plan.dtype == "bfloat16" else None

    def _stop_here(self) -> None:
        if self.reporter.stop:
            raise Stopped("stopped between two stages")


def _queued_seconds() -> float:
    """How long this thread has been ready to run while another program had the processor; 0 where nobody counts it."""
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
