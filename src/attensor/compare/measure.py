"""The second phase: what the layers of all trained mechanisms cost, in one process with the machine to itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attensor import catalogue
from attensor.bench.memory import keep_freed_memory, measure_tensor_bytes
from attensor.compare.artefacts import AT_WORK, FAILED, Balance, Measured
from attensor.compare.cost import CostContender, Setting
from attensor.compare.counts import load_counts
from attensor.compare.decoding import DecodeContender, GenerationContender, decode_sizes
from attensor.compare.generate import trained_model
from attensor.compare.plan import Plan
from attensor.compare.rounds import Contender, Size, in_turns
from attensor.compare.subjects import Subject
from attensor.compare.tasks import autocast
from attensor.data.ngram import NGram
from attensor.errors import Stopped
from attensor.files import write_json
from attensor.lab import Reporter
from attensor.lab.reason import reason
from attensor.nn.joint_cache import JointCache

__all__ = ["Measurement", "Stack"]


class Measurement:
    """Measures the subjects of a plan in turns; `cost.json`, `decode.json` and `generation.json` of each grow by rows.

    One that fails leaves `failed-measure.json`, and has no further part.

    Args:
        plan: of the run.
        subjects: the trained ones.
        run: its folder.
        reporter: hears of progress, and asks to stop.
    """

    def __init__(self, plan: Plan, subjects: Sequence[Subject], run: Path, reporter: Reporter) -> None:
        self._plan, self._run, self._reporter = plan, run, reporter
        self._subjects = {subject.name: subject for subject in subjects}
        self._layers: dict[str, list[nn.Module]] = {}
        self._setting = Setting(plan.hidden_size, plan.device, lambda: autocast(plan))

    def run(self) -> None:
        """Measure what has not been measured.

        Raises:
            Stopped: the reporter asked for it.
        """
        if self._plan.device == "cpu":
            keep_freed_memory()
            measure_tensor_bytes(lambda: None)  # what it loads at first is nobody's
        self._layers |= {name: layers for name in self._subjects if (layers := self._built(name))}
        task = self._plan.task
        self._stage("cost", self._cost, task.spaces(self._plan.max_length))
        if task.decodes:
            self._stage("decode", self._decode, decode_sizes(self._plan.max_length))
            self._stage("generation", self._generation, [(batch,) for batch in (1, 8, 32)])
        (self._run / AT_WORK).unlink(missing_ok=True)
        for name in self._layers:
            self._reporter.event(stage="end", name=name, reason=None)

    def _built(self, name: str) -> list[nn.Module]:
        """The layers of one subject, or none where they cannot be built."""
        subject, device = self._subjects[name], self._plan.device
        self._marked(name)
        torch.manual_seed(0)
        try:
            build = self._plan.mixers(subject)
            return [build(index).to(device) for index in range(subject.period)]
        except (Exception, SystemExit) as error:  # it may be the user's
            self._failed(name, reason(error))
            return []

    def _stage(self, stage: str, make: Callable[[str, Measured], Contender], sizes: Sequence[Size]) -> None:
        paths = {name: self._subjects[name].folder(self._run) / f"{stage}.json" for name in self._layers}
        found = {name: Measured.load(path) or Measured() for name, path in paths.items()}
        contenders = [make(name, found[name]) for name in paths if not found[name].finished]

        def keep(contender: Contender, *, finished: bool = False) -> None:
            samples = getattr(contender, "samples", [])
            Measured(contender.rows, contender.stopped, finished, samples).save(paths[contender.name])

        in_turns(
            contenders,
            sizes,
            on_turn=lambda contender: self._marked(contender.name),
            on_size=lambda contender, size: self._reporter.event(
                stage=stage, name=contender.name, size=contender.name_of(size)
            ),
            on_row=keep,
        )
        for contender in contenders:
            if contender.failure is not None and not contender.rows:
                self._failed(contender.name, contender.failure)
            else:
                keep(contender, finished=True)

    def _marked(self, name: str) -> None:
        """Its code runs next.

        Raises:
            Stopped: the reporter asked for it.
        """
        if self._reporter.stop:
            raise Stopped("stopped while costs were measured")
        (self._run / AT_WORK).write_text(name, encoding="utf-8")

    def _failed(self, name: str, why: str) -> None:
        self._layers.pop(name, None)
        write_json(self._subjects[name].folder(self._run) / FAILED, {"reason": why})
        self._reporter.event(stage="end", name=name, reason=why)

    def _mixer(self, name: str) -> nn.Module:
        layers = self._layers[name]
        return layers[0] if len(layers) == 1 else Stack(layers)

    def _cost(self, name: str, found: Measured) -> Contender:
        layers = self._layers[name]
        flops = partial(self._flops, name)
        options: dict[str, Any] = {"layers": len(layers), "flops": flops, "rows": found.rows}
        return CostContender(name, self._mixer(name), self._setting, **options)

    def _flops(self, name: str, space: Size) -> int | None:
        subject = self._subjects[name]
        if subject.path is not None:
            return None
        cards = [catalogue.mechanism(layer) for layer in subject.layers]
        layers: list[Any] = self._layers[name]
        flops = [card.cost("flops", B=1, **m.cost_sizes(space)) for card, m in zip(cards, layers, strict=True)]
        return sum(flops) // len(flops)

    def _decode(self, name: str, found: Measured) -> Contender:
        options: dict[str, Any] = {"layers": len(self._layers[name]), "rows": found.rows, "samples": found.samples}
        return DecodeContender(name, self._mixer(name), self._setting, **options)

    def _trained(self, subject: Subject) -> nn.Module:
        checkpoint = subject.checkpoint(self._run, self._plan.seeds[0])
        return trained_model(self._run, self._plan, subject, checkpoint, counts=self._counts)

    @cached_property
    def _counts(self) -> NGram | None:
        """Those that all models share."""
        return load_counts(self._run) if self._plan.counts else None

    def _generation(self, name: str, found: Measured) -> Contender:
        subject = self._subjects[name]
        balance = Balance.load(subject.folder(self._run) / "balance.json")
        parameters = 0 if balance is None else balance.parameters
        build = partial(self._trained, subject)
        return GenerationContender(name, build, parameters, self._setting, self._mixer(name), rows=found.rows)


class Stack(nn.Module):
    """The layers of a stack side by side, as one mixer: each reads the same input, their outputs are summed."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def new_cache(self, batch_size: int) -> JointCache:
        """One cache of all layers."""
        layers: Any = self.layers
        return JointCache(**{str(i): layer.new_cache(batch_size) for i, layer in enumerate(layers)})

    def forward(self, hidden_states: Tensor, cache: JointCache | None = None) -> Tensor:
        """What a mixer maps to the same."""
        pasts = [{} if cache is None else {"cache": cache.parts[str(i)]} for i in range(len(self.layers))]
        outputs = [layer(hidden_states, **past) for layer, past in zip(self.layers, pasts, strict=True)]
        return torch.stack(outputs).sum(0)
