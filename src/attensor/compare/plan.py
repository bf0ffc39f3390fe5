"""The plan of a run: everything that is decided once, before the first step, and never again.

A resumed run reads it back; so its numbers cannot depend on what a default is, or how busy the machine was, that day.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attensor.catalogue import Domain
from attensor.compare.config import CompareConfig, parse_budget
from attensor.compare.subjects import Subject, resolve
from attensor.files import read_json, write_json

if TYPE_CHECKING:
    from torch import nn

__all__ = ["SIZES", "Plan", "Size", "data_facts", "make_plan"]

PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Size:
    """A model size, and the sequences or images that suit it."""

    hidden_size: int
    num_layers: int
    num_heads: int
    length: int
    batch_size: int
    image_side: int
    grid_side: int
    image_batch_size: int


SIZES = {
    "tiny": Size(64, 2, 2, length=128, batch_size=8, image_side=32, grid_side=8, image_batch_size=16),
    "small": Size(256, 6, 4, length=512, batch_size=32, image_side=64, grid_side=16, image_batch_size=64),
    "base": Size(768, 12, 12, length=1024, batch_size=32, image_side=128, grid_side=16, image_batch_size=64),
}

_BUDGETS = {"text": 120.0, "images": 60.0}
_MOST_JOBS = 4


@dataclass(frozen=True)
class Plan:
    """What a run does. Lengths are in tokens, or in pixels a side for images; `patch_size` is 0 for text.

    Attributes:
        source: what the data is opened from.
        facts: name, kind and counts of the data; a resumed run must find the same.
        steps: a seed, or None when each mechanism finds its own from `share_seconds`.
        share_seconds: time for pilots and seeds of one mechanism, or None.
        pilot_fraction: steps of one pilot, as a share of the steps of a seed.
        reference_mlp_size: MLP width of the reference model, whose parameter count the others match.
        kernels: `"cpp"` or `"torch"`: what operators with C++ kernels take in every process of the run.
        config: the options as given.
    """

    created: str
    command: str
    source: str
    facts: dict[str, Any]
    subjects: tuple[Subject, ...]
    size: str
    hidden_size: int
    num_layers: int
    num_heads: int
    reference_mlp_size: int
    length: int
    batch_size: int
    patch_size: int
    seeds: tuple[int, ...]
    steps: int | None
    budget_seconds: float | None
    share_seconds: float | None
    learning_rates: tuple[float, ...]
    pilot_fraction: float
    device: str
    dtype: str
    threads: int
    jobs: int
    max_length: int
    kernels: str
    config: dict[str, Any]

    @property
    def kind(self) -> str:
        """`"text"` or `"images"`."""
        return str(self.facts["kind"])

    @property
    def domain(self) -> Domain:
        """What the mixers mix."""
        return Domain.SEQUENCE if self.kind == "text" else Domain.GRID

    def subject(self, name: str) -> Subject:
        """The subject of that name."""
        return next(s for s in self.subjects if s.name == name)

    def mixers(self, subject: Subject) -> Callable[[int], nn.Module]:
        """Layer index -> a new mixer of the plan's sizes."""
        return subject.mixers(self.domain, self.hidden_size, self.num_heads, self.num_layers)

    def save(self, run: Path) -> None:
        """Write the plan into the folder of the run."""
        write_json(run / PLAN_FILE, asdict(self))

    @classmethod
    def load(cls, run: Path) -> Plan:
        """Read the plan of a run.

        Raises:
            ValueError: the folder is no run.
        """
        saved = read_json(run / PLAN_FILE)
        if saved is None:
            raise ValueError(f"{run}: is not the folder of a run: it has no {PLAN_FILE}.")
        saved["subjects"] = tuple(Subject(**s | {"layers": tuple(s["layers"])}) for s in saved["subjects"])
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
        return cls(**values)


def make_plan(config: CompareConfig, *, created: str, command: str) -> Plan:
    """Open the data, resolve the mechanisms and the machine, and decide everything.

    Raises:
        DataError: the data cannot be used.
        ValueError: an option does not fit the data or the machine.
    """
    from attensor.data import open_data
    from attensor.ops import kernels_form

    size = SIZES[config.size]
    source = config.data if config.data in ("stdlib", "digits") else str(Path(config.data).expanduser().resolve())
    data = open_data(
        source,
        minimum_bytes=4 * (config.length or size.length) + 1,
        image_size=config.length or (None if source == "digits" else size.image_side),
    )
    is_text = data.kind == "text"
    side = 0 if is_text else data.image_shape[1]  # type: ignore[union-attr]
    device, dtype = _machine(config)
    subjects = resolve(config.mechanisms, Domain.SEQUENCE if is_text else Domain.GRID)
    cores = os.cpu_count() or 1
    jobs = min(len(subjects), config.jobs or (1 if device == "cuda" else min(_MOST_JOBS, cores)))
    budget = None if config.steps is not None else _budget(config, data.kind)
    return Plan(
        created=created,
        command=command,
        source=source,
        facts=data_facts(data),
        subjects=subjects,
        size=config.size,
        hidden_size=size.hidden_size,
        # all cards of every stack have their place; and all models have the same depth
        num_layers=max(size.num_layers, *(subject.period for subject in subjects)),
        num_heads=size.num_heads,
        # the text model's MLP has three matrices, the image model's two: the same number of parameters
        reference_mlp_size=(8 * -(-size.hidden_size // 3)) if is_text else 4 * size.hidden_size,
        length=(config.length or size.length) if is_text else side,
        batch_size=config.batch_size or (size.batch_size if is_text else size.image_batch_size),
        patch_size=0 if is_text else _patch_size(side, size.grid_side),
        seeds=tuple(range(config.seeds)),
        steps=config.steps,
        budget_seconds=budget,
        # the mechanisms run in rounds of `jobs`, so that all rounds together take the budget
        share_seconds=None if budget is None else budget / -(-len(subjects) // jobs),
        learning_rates=config.learning_rates,
        pilot_fraction=0.2,
        device=device,
        dtype=dtype,
        # more threads than one make the tiny model's small products slower
        threads=1 if config.size == "tiny" else max(1, cores // jobs),
        jobs=jobs,
        max_length=config.max_length,
        kernels=kernels_form(),
        config={k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()},
    )


def data_facts(data: Any) -> dict[str, Any]:
    """The `data` part of results.json."""
    if data.kind == "text":
        names: tuple[str, ...] = ("train_bytes", "held_out_bytes", "train_files", "held_out_files")
    else:
        names = ("classes", "train_images", "held_out_images", "image_shape")
    facts = {name: getattr(data, name) for name in names}
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in facts.items()}
    return {"name": data.name, "kind": data.kind} | plain


def _budget(config: CompareConfig, kind: str) -> float:
    return _BUDGETS[kind] if config.budget is None else parse_budget(config.budget)


def _patch_size(side: int, grid_side: int) -> int:
    """The largest patch that divides the image and leaves at least `grid_side` patches a side, else 1."""
    return max((p for p in range(1, side + 1) if side % p == 0 and side // p >= grid_side), default=1)


def _machine(config: CompareConfig) -> tuple[str, str]:
    import torch

    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise ValueError("--device cuda: this PyTorch sees no GPU. Use --device cpu, or see `make doctor`.")
    device = "cuda" if has_gpu and config.device != "cpu" else "cpu"
    dtype = config.dtype if config.dtype != "auto" else ("bfloat16" if device == "cuda" else "float32")
    return device, dtype
