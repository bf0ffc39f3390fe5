"""What is learned, by kind of data: a further kind is a file here and its line in `TASKS`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from attensor.compare.tasks.images import ImageTask
from attensor.compare.tasks.task import Final, Task, doubled
from attensor.compare.tasks.text import TextTask
from attensor.data import open_data
from attensor.errors import DataError

if TYPE_CHECKING:
    from attensor.compare.plan import Plan

__all__ = ["TASKS", "Final", "ImageTask", "Task", "TextTask", "autocast", "data_facts", "doubled", "open_task"]

TASKS: dict[str, type[Task]] = {task.kind: task for task in (TextTask, ImageTask)}


def open_task(plan: Plan, run: Path | None = None) -> Task:
    """Open the plan's data.

    Args:
        plan: of the run.
        run: its folder, where counts are kept; without it they are made anew where they are needed.
    Raises:
        DataError: the data is no longer what the plan was made for.
    """
    data = open_data(plan.source, minimum_bytes=4 * plan.length + 1, image_size=plan.length)
    found = data_facts(data)
    # notes tell of what is not used
    if names := [k for k in plan.facts if plan.facts[k] != found.get(k) and k != "notes"]:
        # every other difference is one of the contents too
        changed = [f"{k} {plan.facts[k]} is now {found.get(k)}" for k in names if k != "fingerprint"]
        changed = changed or ["other contents in files as large"]
        raise DataError(f"{plan.source} has changed since the run was started: {'; '.join(changed)}. Start a new run.")
    return plan.task(plan, data, run)


def data_facts(data: Any) -> dict[str, Any]:
    """The `data` part of results.json."""
    facts = {name: getattr(data, name) for name in TASKS[data.kind].facts}
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in facts.items()}
    return {"name": data.name, "kind": data.kind} | plain


def autocast(plan: Plan) -> torch.autocast:
    """The plan's precision as a context."""
    return torch.autocast(plan.device, dtype=torch.bfloat16, enabled=plan.dtype == "bfloat16")
