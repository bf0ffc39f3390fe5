"""The panel as a field of the results, a table for the terminal and sentences; nothing here knows a mechanism by name.

    {"tasks": [{"name", "title", "chance", "steps", "claim", "judged", "rows": [{"name", "score", "at", "learning_rate",
                "steps", "seconds", "state_bytes", "reason"}]}]}

`score` is that of `at[judged]`: for the tasks of state tracking at six times the training length. A row without a score
has a reason when there will be none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from attensor.compare.skills.pace import load_steps, skills_seconds
from attensor.compare.skills.phase import failure, learned
from attensor.compare.skills.skill import SKILLS, Skill

if TYPE_CHECKING:
    from attensor.compare.plan import Plan
    from attensor.compare.subjects import Subject

__all__ = ["collect_skills", "skills_sentences", "skills_table"]

# share of right answers with which a claim is made
_MASTERED = 0.95
# that share of the way from chance to 1 below which nothing is said to have been learned
_NOTHING = 0.05
# learning needs about as many for what is easy
_USEFUL_STEPS = 400
_DASH = "-"


def collect_skills(run: Path, plan: Plan) -> dict[str, Any] | None:
    """The `skills` of results.json as far as they are there; None where nobody asked for them.

    Raises:
        DamagedFileError: an artefact holds something else.
    """
    if skills_seconds(plan) is None:
        return None
    steps = load_steps(run) or {}
    return {"tasks": [_task(run, plan, task, steps.get(task.name)) for task in SKILLS]}


def _task(run: Path, plan: Plan, task: Skill, steps: int | None) -> dict[str, Any]:
    return {
        "name": task.name,
        "title": task.title,
        "chance": task.chance,
        "steps": steps,
        "claim": task.claim,
        "judged": task.judged,
        "rows": [_row(run, task, subject) for subject in plan.subjects],
    }


def _row(run: Path, task: Skill, subject: Subject) -> dict[str, Any]:
    found = learned(run, subject, task.name)
    return {
        "name": subject.name,
        "score": found and found.at[task.judged],
        "at": found.at if found else {},
        "learning_rate": found and found.learning_rate,
        "steps": found and found.steps,
        "seconds": found and found.seconds,
        "state_bytes": found and found.state_bytes,
        "reason": None if found else failure(run, subject, task.name),
    }


def skills_table(skills: Mapping[str, Any]) -> Table:
    """Right answers in percent: a row a mechanism, a column a task with its forms beside each other."""
    title = "Skills: right answers in %, one seed"
    table = Table("mechanism", box=box.SIMPLE, title=title, title_justify="left", pad_edge=False)
    tasks = skills["tasks"]
    for task in tasks:
        table.add_column(f"{task['name']}\n{_form_names(task)}", justify="right", no_wrap=True)
    for name in dict.fromkeys(row["name"] for task in tasks for row in task["rows"]):
        rows = [next((row for row in task["rows"] if row["name"] == name), None) for task in tasks]
        table.add_row(
            name, *("/".join(map(_percent, row["at"].values())) if row and row["at"] else _DASH for row in rows)
        )
    table.add_section()
    table.add_row("chance", *(_percent(task["chance"]) for task in tasks))
    table.add_row("steps", *(_DASH if task["steps"] is None else f"{task['steps']:,}" for task in tasks))
    return table


def _form_names(task: Mapping[str, Any]) -> str:
    """`1x/6x`, or `4/8/16 pairs`, of the tests that there are results of."""
    keys = next((list(row["at"]) for row in task["rows"] if row["at"]), [task["judged"]])
    numbers, units = zip(*(key.partition(" ")[::2] for key in keys), strict=True)
    return f"{'/'.join(numbers)} {units[0]}".strip()


def _percent(share: float) -> str:
    # never rounded to a whole that was not reached
    return f"{math.floor(100 * share + 1e-9)}" if share > 0.99 else f"{100 * share:.0f}"


def skills_sentences(skills: Mapping[str, Any] | None) -> list[str]:
    """For the answer: who does what the tasks ask for, how far the best came where nobody does, what was too short."""
    tasks = [task for task in (skills or {"tasks": []})["tasks"] if _scores(task)]
    done = [f"{task['claim']}: {', '.join(names)}" for task in tasks if (names := _masters(task))]
    not_done = [f"{task['claim']} ({_nearest(task)})" for task in tasks if not _masters(task)]
    sentences = []
    if done:
        sentences.append(f"Skills, at least {_percent(_MASTERED)} % of the answers right: {'; '.join(done)}.")
    if not_done:
        sentences.append(f"No mechanism {', none '.join(not_done)}.")
    steps = sorted(task["steps"] for task in tasks)
    if steps and steps[0] < _USEFUL_STEPS:
        taken = f"{steps[0]} to {steps[-1]}" if steps[0] < steps[-1] else f"{steps[0]}"
        sentences.append(
            f"The skills panel took {taken} steps a task, and few tasks can be learned in fewer than "
            f"{_USEFUL_STEPS}: give --skills about {math.ceil(_USEFUL_STEPS / steps[0])} times as long."
        )
    return sentences


def _scores(task: Mapping[str, Any]) -> dict[str, float]:
    """Name -> score, best first."""
    scored = {row["name"]: row["score"] for row in task["rows"] if row["score"] is not None}
    return dict(sorted(scored.items(), key=lambda item: -item[1]))


def _masters(task: Mapping[str, Any]) -> list[str]:
    return [name for name, score in _scores(task).items() if score >= _MASTERED]


def _nearest(task: Mapping[str, Any]) -> str:
    name, score = next(iter(_scores(task).items()))
    if score < task["chance"] + _NOTHING * (1 - task["chance"]):
        return "all near chance"
    return f"best {name} with {_percent(score)} %, chance {_percent(task['chance'])} %"
