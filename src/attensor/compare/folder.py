"""The folder of a run: made with its disk checked, refused when it does not fit."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from attensor.compare.artefacts import Artefact, Balance, Measured, Pace, Pilot, References, Schedule, SeedRun
from attensor.compare.config import CompareConfig
from attensor.compare.counts import counts_bytes
from attensor.compare.pace import SCHEDULE_FILE
from attensor.compare.plan import Plan, training_time
from attensor.compare.subjects import Subject
from attensor.compare.tasks import open_task
from attensor.errors import BackendError
from attensor.files import DamagedFileError, new_folder, read_json
from attensor.train.devices import training_device

__all__ = [
    "check_disk",
    "check_file",
    "is_calibrated",
    "is_measured",
    "is_trained",
    "new_run",
    "refuse_contradictions",
    "reopened",
]

# results, logs and the report with its plotting library
_FIXED_BYTES = 20_000_000
# what files in the folder of a mechanism are, by the part of their name before a number
_ARTEFACTS: dict[str, type[Artefact]] = {
    "balance": Balance,
    "calibration": Pace,
    "pace": Schedule,
    "pilot": Pilot,
    "references": References,
    "seed": SeedRun,
    "cost": Measured,
    "decode": Measured,
    "generation": Measured,
}


def new_run(out: Path, now: datetime, plan: Plan, *, name: str | None = None) -> Path:
    """Check the disk for `plan`, make `out/<time>/`, or `out/NAME/`, and write the plan there.

    Raises:
        OSError: not writable, or too little space.
    """
    check_disk(out, needed_bytes(plan))
    run = new_folder(out, name or f"{now:%Y-%m-%d_%H-%M-%S}")
    plan.save(run)
    return run


def needed_bytes(plan: Plan) -> int:
    """About what a run writes: a model for each seed, and for each job a state with its successor."""
    model = 4 * (12 * plan.num_layers * plan.hidden_size**2 + 256 * plan.hidden_size)
    counts = counts_bytes(plan.facts["train_bytes"]) if plan.counts else 0
    return _FIXED_BYTES + counts + model * len(plan.seeds) * len(plan.subjects) + 2 * 4 * model * plan.jobs


def reopened(run: Path, config: CompareConfig) -> Plan:
    """The plan of an earlier run, if `config` does not ask for something else and the files are the same.

    Raises:
        ValueError: no run, contradicting options (each is named), data or a user's file that has changed, or a damaged
            file in the folder.
        BackendError: the run was started with the C++ kernels, and they are missing here.
        OSError: the disk.
    """
    plan = Plan.load(run)
    changeable: tuple[str, ...] = ()
    if not (run / SCHEDULE_FILE).exists():
        # nothing is trained yet: the number of steps is still open
        changeable = ("budget", "steps")
    refuse_contradictions(run, plan.config, config, {"resume", *changeable})
    if any(getattr(config, name) is not None for name in changeable):
        own = {name: getattr(config, name) for name in changeable}
        plan = replace(plan, **training_time(config, plan.task), config=plan.config | own)
        plan.save(run)
    for subject in plan.subjects:
        if subject.path is None:
            continue
        path = Path(subject.path)
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != subject.digest:
            raise ValueError(f"--resume {run}: {path} has changed since the run was started. Start a new run.")
    training_device(plan.device)
    if plan.kernels == "cpp" and plan.device == "cpu":
        _need_kernels(run)
    check_files(run)
    open_task(plan)
    check_disk(run, needed_bytes(plan))
    return plan


def refuse_contradictions(run: Path, kept: Mapping[str, Any], config: CompareConfig, free: set[str]) -> None:
    """Compare the options with those that a run was started with.

    Args:
        run: its folder.
        kept: its options.
        config: those of now, of which only what is no default counts.
        free: names that may differ.
    Raises:
        ValueError: each that contradicts is named.
    """
    contradictions = [
        f"--{field.name.replace('_', '-')} {given} (the run has {_plain(kept[field.name])})"
        for field in fields(config)
        if field.name not in free
        and (given := getattr(config, field.name)) != field.default
        and _plain(given) != _plain(kept[field.name])
    ]
    if contradictions:
        raise ValueError(
            f"--resume {run} continues with the options it was started with; leave out {', '.join(contradictions)}."
        )


def _need_kernels(run: Path) -> None:
    from attensor.ops import kernels_form

    if kernels_form() != "cpp":
        raise BackendError(
            f"--resume {run}: it was started with the C++ kernels, which are missing here. So that its numbers stay "
            "comparable, build them first: attensor doctor --build"
        )


def check_files(run: Path) -> None:
    """Look whether what an earlier run has left can be read.

    Raises:
        DamagedFileError: one cannot. What its mechanism has beside it would no longer fit to one made anew.
    """
    for path in sorted([*run.glob("**/*.json"), *run.glob("*/*.safetensors")]):
        try:
            check_file(path)
        except DamagedFileError as error:
            remedy = f"Delete the folder {path.parent}, and its mechanism is computed again."
            remedy = "Start a new run." if path.parent == run else remedy
            raise DamagedFileError(path, error.what, remedy) from error


def check_file(path: Path) -> None:
    """Look whether one file of a run can be read.

    Raises:
        DamagedFileError: it cannot.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt"):
                return
        except (SafetensorError, OSError) as error:
            raise DamagedFileError(path, str(error)) from error
    if not isinstance(read_json(path), dict):
        raise DamagedFileError(path, "it holds something else")
    kind = _ARTEFACTS.get(path.stem.partition("-")[0])
    if kind is not None:
        kind.load(path)


def is_calibrated(run: Path, subject: Subject) -> bool:
    """Whether the time of a mechanism's step is known."""
    return Pace.load(subject.folder(run) / "calibration.json") is not None


def is_trained(run: Path, subject: Subject, plan: Plan) -> bool:
    """Whether all seeds of a mechanism are done."""
    return all(SeedRun.load(subject.folder(run) / f"seed-{seed}.json") is not None for seed in plan.seeds)


def is_measured(run: Path, subject: Subject, plan: Plan) -> bool:
    """Whether cost, and decoding and writing for text, are done."""
    files = ("cost.json", "decode.json", "generation.json") if plan.task.decodes else ("cost.json",)
    return all((found := Measured.load(subject.folder(run) / file)) is not None and found.finished for file in files)


def check_disk(folder: Path, needed_bytes: int) -> None:
    """Create `folder`, write and sync a probe file in it, and compare the free space with `needed_bytes`.

    Raises:
        OSError: the folder cannot be made or written, or too little space is left; the message says which.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        with probe.open("wb") as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"--out {folder}: cannot be written ({error.strerror}). Choose another folder with --out."
        ) from error
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise OSError(
            f"--out {folder}: the run needs about {_megabytes(needed_bytes)} for checkpoints and results, "
            f"{_megabytes(free)} are free. Make room or choose another disk with --out."
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
