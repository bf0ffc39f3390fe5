"""The cells of the panel: calibration of every mechanism, then each with each task; what fails costs its own place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attensor.compare.plan import Plan
from attensor.compare.skills.lesson import Learned, Lesson
from attensor.compare.skills.pace import Paces, Steps, common_steps, load_steps, measure_paces, skills_seconds
from attensor.compare.skills.skill import SKILLS, skill
from attensor.compare.subjects import Subject
from attensor.files import locked, read_json, write_json
from attensor.lab import Cell, Display, Interruption, Outcome, Pool, Reporter

__all__ = ["failure", "folder_of", "learned", "run_skills", "skills_are_done"]


def run_skills(
    run: Path,
    plan: Plan,
    subjects: Sequence[Subject],
    *,
    interruption: Interruption,
    display: Display,
    on_end: Callable[[], object] = lambda: None,
) -> None:
    """Do what the panel still lacks; nothing without `--skills`, and on images.

    Args:
        run: folder of the run; every mechanism's artefacts go to `NAME/skills`.
        plan: of the run.
        subjects: mechanisms that could be trained.
        interruption: as of `Pool`.
        display: with a row for each of them.
        on_end: called after each cell.
    """
    if skills_seconds(plan) is None or not subjects:
        return
    work = _Work(run.absolute(), plan, interruption, display, on_end)
    work.do(calibrate, [{"name": one.name} for one in subjects if Paces.load(paces_file(run, one)) is None])
    if interruption.requested or not _decide(run, plan, subjects):
        return
    # task by task, so that what an interruption leaves is whole columns
    work.do(
        learn,
        [
            {"name": one.name, "skill_name": task.name}
            for task in SKILLS
            for one in subjects
            if Paces.load(paces_file(run, one)) is not None and learned(run, one, task.name) is None
        ],
    )


def _decide(run: Path, plan: Plan, subjects: Sequence[Subject]) -> bool:
    """Write the steps of every task once; whether any mechanism can be trained."""
    paces = [found for one in subjects if (found := Paces.load(paces_file(run, one))) is not None]
    if paces and load_steps(run) is None:
        seconds = skills_seconds(plan) or 0.0
        Steps(common_steps(paces, seconds=seconds, jobs=plan.jobs, mechanisms=len(subjects))).save(run / "skills.json")
    return bool(paces)


class _Work:
    """Runs cells and shows what they say."""

    def __init__(
        self, run: Path, plan: Plan, interruption: Interruption, display: Display, on_end: Callable[[], object]
    ) -> None:
        self._run, self._plan, self._interruption = run, plan, interruption
        self._display, self._on_end = display, on_end

    def do(self, function: Callable[..., Any], arguments: Sequence[dict[str, str]]) -> None:
        """Compute the cells; an earlier failure is forgotten."""
        for one in arguments:
            failure_file(self._folder(one), one.get("skill_name")).unlink(missing_ok=True)
        cells = [Cell.of(function, {"run": str(self._run), **one}) for one in arguments]
        self._left = self._display.expect(dict.fromkeys(cell.key for cell in cells), self._plan.jobs)
        Pool(self._interruption, threads=self._plan.threads, kernels=self._plan.cell_kernels).run(
            cells, at_once=self._plan.jobs, on_end=self._ended, on_event=self._event, on_tick=self._display.tick
        )

    def _folder(self, arguments: dict[str, Any]) -> Path:
        folder = folder_of(self._run, self._plan.subject(arguments["name"]))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _event(self, cell: Cell, event: dict[str, Any]) -> None:
        score = event.get("score")
        state = event["stage"] if score is None else f"{event['stage']}, {100 * score:.0f} %"
        self._display.row(cell.arguments["name"], state, stage=event["stage"], fraction=event.get("fraction"))
        self._display.tick()

    def _ended(self, cell: Cell, outcome: Outcome) -> None:
        name, task = cell.arguments["name"], cell.arguments.get("skill_name")
        if outcome.reason is not None:
            write_json(failure_file(self._folder(cell.arguments), task), {"reason": outcome.reason})
            self._display.alarm(f"{name}, {task or 'calibration of the tasks'}, failed", outcome.reason)
        if not outcome.is_stopped:
            self._left.finished(cell.key, outcome.seconds)
            self._display.done += 1
            state = f"{task or 'tasks calibrated'} {'failed' if outcome.reason else 'done' if task else ''}".strip()
            self._display.row(name, state, stage=f"end of {task}", fraction=1.0)
        self._on_end()


def calibrate(run: str, name: str) -> None:
    """The cell that measures the pace of one mechanism on every task."""
    from attensor.compare.skills.body import balanced

    plan = Plan.load(Path(run))
    subject = plan.subject(name)
    Reporter.current().event(stage="calibrates the tasks")
    with locked(folder_of(Path(run), subject), wait=True):
        measure_paces(subject, balanced(subject), device=plan.device).save(paces_file(Path(run), subject))


def learn(run: str, name: str, skill_name: str) -> None:
    """The cell that trains one mechanism on one task."""
    import torch

    plan, reporter = Plan.load(Path(run)), Reporter.current()
    subject, steps = plan.subject(name), load_steps(Path(run))
    paces, folder = Paces.load(paces_file(Path(run), subject)), folder_of(Path(run), subject)
    if steps is None or paces is None:
        raise ValueError(f"{folder}: the pace of the tasks is missing; continue with attensor compare --resume {run}.")
    if plan.device == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
    with locked(folder, wait=True, name=f".lock-{skill_name}"):
        lesson = Lesson(
            subject, skill(skill_name), steps[skill_name], paces.mlp_hidden_size, folder, reporter, plan.device
        )
        Learned.kept(folder / f"{skill_name}.json", lesson.run)


def folder_of(run: Path, subject: Subject) -> Path:
    """Where the artefacts of a mechanism's tasks are."""
    return subject.folder(run) / "skills"


def paces_file(run: Path, subject: Subject) -> Path:
    """Its calibration."""
    return folder_of(run, subject) / "paces.json"


def failure_file(folder: Path, task: str | None) -> Path:
    """Where the reason is written why a task, or the calibration, failed."""
    return folder / f"failed-{task or 'calibration'}.json"


def learned(run: Path, subject: Subject, task: str) -> Learned | None:
    """What has come of a lesson; None before its end."""
    return Learned.load(folder_of(run, subject) / f"{task}.json")


def skills_are_done(run: Path, plan: Plan, subject: Subject) -> bool:
    """Whether nothing more will come of a mechanism's tasks: each has a result or has failed, or nobody asked."""
    return skills_seconds(plan) is None or all(
        learned(run, subject, task.name) is not None or failure(run, subject, task.name) is not None for task in SKILLS
    )


def failure(run: Path, subject: Subject, task: str) -> str | None:
    """Why there is no result and will be none: of the task, or of the calibration."""
    for name in (task, None):
        found = read_json(failure_file(folder_of(run, subject), name))
        if found is not None:
            return str(found.get("reason"))
    return None
