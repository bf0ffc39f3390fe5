"""The training of one mechanism on one task: a pilot a learning rate, the better one goes on; scored at the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from attensor.compare.artefacts import Artefact
from attensor.compare.skills.body import build, right_answers, skill_loss, state_bytes
from attensor.compare.skills.skill import Skill, length_of
from attensor.compare.subjects import Subject
from attensor.errors import Diverged, Stopped
from attensor.lab import Reporter
from attensor.train import Point, Progress, TrainConfig, load_checkpoint, polynomial_average, train
from attensor.train.optimizer import adamw

__all__ = ["PILOT_SHARE", "RATES", "Learned", "Lesson", "training_batch"]

SEED = 0
# tried for each mechanism and task, largest first: it is the first to arrive where it works
RATES = (1e-2, 3e-3)
# of the steps, after which the rates are compared
PILOT_SHARE = 0.25
# share of right answers after which there is nothing left to learn
ENOUGH = 0.995
_WARM_UP_STEPS = 50
_EVALUATION_STEPS = 25
# numbers of the first batch, and batches of each form: none is one of a training, or of the other purpose
_SELECTION_BATCH, _SELECTION_BATCHES = -1, 2
_TEST_BATCH, _TEST_BATCHES = -1_000_001, 4
_TOKENS_AT_ONCE = 8192


@dataclass(frozen=True)
class Pilot(Artefact):
    """The beginning of a training: its cross-entropy on the selection batches; without one it diverged."""

    learning_rate: float
    loss: float | None
    is_solved: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class Learned(Artefact):
    """What came of a lesson.

    Attributes:
        at: key of the tests -> share of right answers.
        learning_rate: of the rates tried.
        steps: taken; fewer than all where the selection batches were solved before.
        seconds: of these steps.
        curve: step, seconds and share of right answers on the selection batches, by the averaged weights.
        state_bytes: what one layer keeps of the longest training row while decoding; None where nobody says.
    """

    at: dict[str, float]
    learning_rate: float
    steps: int
    seconds: float
    curve: list[list[float]]
    state_bytes: int | None


@dataclass
class Lesson:
    """Trains one subject on one task.

    Attributes:
        subject: with which mixer.
        skill: the task.
        steps: at most.
        mlp_hidden_size: that balances the parameters.
        folder: where states of trainings under way are kept.
        reporter: hears of progress, and asks to stop.
        device: where to train.
    """

    subject: Subject
    skill: Skill
    steps: int
    mlp_hidden_size: int
    folder: Path
    reporter: Reporter
    device: str = "cpu"

    def run(self) -> Learned:
        """Train, choose, score.

        Raises:
            Diverged: with every learning rate.
            Stopped: the reporter asked for it; the state is kept.
        """
        pilots: list[Pilot] = []
        for rate in RATES:
            pilots.append(Pilot.kept(self._pilot_file(rate), lambda rate=rate: self._pilot(rate)))  # type: ignore[misc]
            if pilots[-1].is_solved:
                break
        finite = [(pilot.loss, pilot.learning_rate) for pilot in pilots if pilot.loss is not None]
        if not finite:
            raise Diverged(f"diverged with every learning rate: {'; '.join(str(pilot.reason) for pilot in pilots)}")
        best = min(finite, key=lambda pilot: pilot[0])[1]
        progress, model = self._train(best, self.steps)
        at = {key: self._measure(model, (key,), _TEST_BATCH, _TEST_BATCHES)[0] for key in self.skill.tests}
        learned = Learned(
            at=at,
            learning_rate=best,
            steps=progress.step,
            seconds=progress.seconds,
            curve=[list(point) for point in progress.curve],
            state_bytes=state_bytes(self.subject, self.skill.length),
        )
        for rate in RATES:
            self._state(rate).unlink(missing_ok=True)
            self._pilot_file(rate).unlink(missing_ok=True)
        return learned

    def _pilot(self, rate: float) -> Pilot:
        try:
            progress, model = self._train(rate, max(1, round(PILOT_SHARE * self.steps)))
        except Diverged as error:
            return Pilot(rate, None, reason=str(error))
        loss = self._measure(model, self.skill.selection, _SELECTION_BATCH, _SELECTION_BATCHES)[1]
        return Pilot(rate, loss, is_solved=_is_solved(progress))

    def _train(self, rate: float, until: int) -> tuple[Progress, nn.Module]:
        """Go on to step `until`, or until the selection batches are solved; the averaged model."""
        torch.manual_seed(SEED)
        model = build(self.subject, self.skill.vocab_size, self.mlp_hidden_size).to(self.device)
        average = polynomial_average(model)
        latest = self._reached(rate, model, average)

        def goes_on(progress: Progress) -> bool:
            return progress.step < until and not _is_solved(progress)

        def on_step(progress: Progress) -> bool:
            nonlocal latest
            latest, score = progress, progress.curve[-1].score if progress.curve else None
            self.reporter.progress(stage=self.skill.name, fraction=progress.step / self.steps, score=score)
            return goes_on(progress) and not self.reporter.stop

        if goes_on(latest):
            try:
                train(
                    model,
                    lambda step: training_batch(self.skill, step, self.device),
                    skill_loss,
                    self._config(rate),
                    evaluate=self._selection_score,
                    checkpoint=self._state(rate),
                    average=average,
                    on_step=on_step,
                )
            except Stopped:
                if goes_on(latest):
                    raise
        average.module.eval()
        return latest, average.module

    def _config(self, rate: float) -> TrainConfig:
        # the rate stays where the warm-up leaves it: a pilot is the beginning of the training
        return TrainConfig(
            self.steps,
            rate,
            constant_after=_WARM_UP_STEPS,
            evaluations=max(1, self.steps // _EVALUATION_STEPS),
        )

    def _reached(self, rate: float, model: nn.Module, average: AveragedModel) -> Progress:
        """Restore what an interrupted or shorter training has kept."""
        if not self._state(rate).exists():
            return Progress()
        state = load_checkpoint(self._state(rate), model, adamw(model, rate), average=average)
        return Progress(state["step"], state["seconds"], [Point(*point) for point in state["curve"]])

    def _selection_score(self, model: nn.Module) -> float:
        return self._measure(model, self.skill.selection, _SELECTION_BATCH, _SELECTION_BATCHES)[0]

    def _measure(self, model: nn.Module, keys: tuple[str, ...], first: int, count: int) -> tuple[float, float]:
        """Share of right answers and mean cross-entropy over batches `first`, `first - 1`, .. of each form."""
        right, answers, nats = 0, 0, 0.0
        for key in keys:
            form = self.skill.tests[key]
            rows = max(1, _TOKENS_AT_ONCE // length_of(form))
            for number in range(first, first - count, -1):
                found = right_answers(model, _on(self.device, form(number, seed=SEED, batch_size=rows)))
                right, answers, nats = right + found[0], answers + found[1], nats + found[2]
        return right / answers, nats / answers

    def _state(self, rate: float) -> Path:
        return self.folder / f"{self.skill.name}-{rate:g}.state.safetensors"

    def _pilot_file(self, rate: float) -> Path:
        return self.folder / f"{self.skill.name}-{rate:g}.json"


def training_batch(one: Skill, step: int, device: str) -> tuple[Tensor, Tensor]:
    """The batch of a training step: as many rows of the form whose turn it is as make the task's tokens."""
    form = one.training[step % len(one.training)]
    return _on(device, form(step, seed=SEED, batch_size=max(1, one.tokens_per_step // length_of(form))))


def _on(device: str, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch[0].to(device), batch[1].to(device)


def _is_solved(progress: Progress) -> bool:
    return bool(progress.curve) and progress.curve[-1].score >= ENOUGH
