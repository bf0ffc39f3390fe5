"""The plan of a run: everything that is decided once, before the first step, and never again.

A resumed run reads it back; so its numbers cannot depend on what a default is, or how busy the machine was, that day.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attensor.compare.config import CompareConfig, parse_budget
from attensor.compare.subjects import Subject, resolve
from attensor.compare.tasks import TASKS, ImageTask, Task, TextTask, data_facts
from attensor.compare.user_files import try_class
from attensor.data import BUNDLED, open_data
from attensor.files import DamagedFileError, read_json, user_path, write_json
from attensor.ops import kernels_form

if TYPE_CHECKING:
    from torch import nn

__all__ = ["SIZES", "Plan", "make_plan", "training_time"]

PLAN_FILE = "plan.json"


# size -> hidden size, layers, heads
SIZES = {"tiny": (64, 2, 2), "small": (256, 6, 4), "base": (768, 12, 12)}

_MOST_JOBS = 4


@dataclass(frozen=True)
class Plan:
    """What a run does. Lengths are in tokens, or in pixels a side for images; `patch_size` is 0 for text.

    Attributes:
        source: what the data is opened from.
        facts: name, kind and counts of the data; a resumed run must find the same.
        units: what the test consists of, see `Task.test_units`.
        steps: a seed, or None when they follow from `budget_seconds` (see `pace`).
        budget_seconds: time for all training, or None.
        pilot_fraction: steps of one pilot, as a share of the steps of a seed.
        counts: whether the models correct an n-gram, see `counts`.
        reference_mlp_size: MLP width of the reference model, whose parameter count the others match.
        kernels: `"cpp"` or `"torch"`: what operators with C++ kernels take in every process of the run.
        config: the options as given.
        load_at_start: programs that wanted a processor in the minute before, per core; None where nobody counts them.
    """

    created: str
    command: str
    source: str
    facts: dict[str, Any]
    units: dict[str, Any]
    subjects: tuple[Subject, ...]
    size: str
    hidden_size: int
    num_layers: int
    num_heads: int
    reference_mlp_size: int
    length: int
    batch_size: int
    patch_size: int
    counts: bool
    seeds: tuple[int, ...]
    steps: int | None
    budget_seconds: float | None
    learning_rates: tuple[float, ...]
    pilot_fraction: float
    device: str
    dtype: str
    threads: int
    jobs: int
    max_length: int
    kernels: str
    config: dict[str, Any]
    load_at_start: float | None = field(default=None, compare=False)

    @property
    def kind(self) -> str:
        """`"text"` or `"images"`."""
        return str(self.facts["kind"])

    @property
    def cell_kernels(self) -> str | None:
        """What its processes are told to take: on a GPU the C++ kernels have no part."""
        return self.kernels if self.device == "cpu" else None

    @property
    def task(self) -> type[Task]:
        """What is learned from such data."""
        return TASKS[self.kind]

    def subject(self, name: str) -> Subject:
        """The subject of that name."""
        return next(s for s in self.subjects if s.name == name)

    def mixers(self, subject: Subject) -> Callable[[int], nn.Module]:
        """Layer index -> a new mixer of the plan's sizes."""
        return subject.mixers(self.task.domain, self.hidden_size, self.num_heads, self.num_layers)

    def save(self, run: Path) -> None:
        """Write the plan into the folder of the run."""
        write_json(run / PLAN_FILE, asdict(self))

    @classmethod
    def load(cls, run: Path) -> Plan:
        """Read the plan of a run.

        Raises:
            ValueError: the folder is no run, or one of another version of attensor; or the plan is damaged.
        """
        try:
            saved = read_json(run / PLAN_FILE)
        except NotADirectoryError:
            saved = None
        except DamagedFileError as error:
            raise DamagedFileError(error.path, error.what, "Start a new run.") from error
        if saved is None:
            raise ValueError(f"{run}: is not the folder of a run: it has no {PLAN_FILE}.")
        try:
            saved["subjects"] = tuple(Subject(**s | {"layers": tuple(s["layers"])}) for s in saved["subjects"])
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
            if not all(subject.has_folder for subject in values["subjects"]) or saved["facts"]["kind"] not in TASKS:
                raise KeyError
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{run}: its {PLAN_FILE} is damaged, or of another version of attensor. Start a new run."
            ) from error


def make_plan(config: CompareConfig, *, created: str, command: str) -> Plan:
    """Open the data, resolve the mechanisms and the machine, and decide everything.

    Raises:
        DataError, ValueError: the data cannot be used; an option does not fit the data or the machine.
    """
    hidden_size, num_layers, num_heads = SIZES[config.size]
    (source, data), (device, dtype) = _opened(config), _machine(config)
    task = TASKS[data.kind]
    task.check(data)
    layout = task.layout(config, data, hidden_size)
    subjects = resolve(config.mechanisms, task.domain)
    _try_users_classes(subjects)
    jobs, threads = _workers(config, len(subjects), device)
    return Plan(
        created=created,
        command=command,
        source=source,
        facts=data_facts(data),
        units=task.test_units(data, layout["length"]),
        subjects=subjects,
        size=config.size,
        hidden_size=hidden_size,
        # all cards of every stack have their place, and all models the same depth
        num_layers=max(num_layers, *(subject.period for subject in subjects)),
        num_heads=num_heads,
        **layout,
        seeds=tuple(range(config.first_seed, config.first_seed + config.seeds)),
        **training_time(config, task),
        learning_rates=config.learning_rates,
        pilot_fraction=0.25,
        device=device,
        dtype=dtype,
        threads=threads,
        jobs=jobs,
        max_length=config.max_length,
        kernels=kernels_form(),
        config={k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()},
        load_at_start=_system_load(),
    )


def training_time(config: CompareConfig, task: type[Task]) -> dict[str, Any]:
    """The plan's `steps` and `budget_seconds`, one of which is None."""
    budget = task.budget if config.budget is None else parse_budget(config.budget)
    return {"steps": config.steps, "budget_seconds": None if config.steps is not None else budget}


def _system_load() -> float | None:
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (AttributeError, OSError):  # Windows
        return None


def _workers(config: CompareConfig, subjects: int, device: str) -> tuple[int, int]:
    """Mechanisms at a time, and threads of each."""
    cores = os.cpu_count() or 1
    jobs = min(subjects, config.jobs or min(1 if device == "cuda" else _MOST_JOBS, cores))
    return jobs, 1 if config.size == "tiny" else max(1, cores // jobs)


def _try_users_classes(subjects: Sequence[Subject]) -> None:
    for subject in subjects:
        if subject.path is not None:
            try_class(Path(subject.path), subject.class_name)


def _opened(config: CompareConfig) -> tuple[str, Any]:
    """Where the data is, the same from every folder, and the data."""
    source = config.data if config.data in BUNDLED else str(user_path(config.data, "--data"))
    length, side = (task.sizes[config.size][0] for task in (TextTask, ImageTask))
    image_size = config.length or (None if source == "digits" else side)
    return source, open_data(source, minimum_bytes=4 * (config.length or length) + 1, image_size=image_size)


def _machine(config: CompareConfig) -> tuple[str, str]:
    from attensor.train.devices import training_device

    device = training_device(config.device).type
    dtype = config.dtype if config.dtype != "auto" else ("bfloat16" if device == "cuda" else "float32")
    return device, dtype
