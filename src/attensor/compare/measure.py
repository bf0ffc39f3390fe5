"""The second phase of a mechanism: what its layer costs, with the machine to itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attensor import catalogue
from attensor.compare.artefacts import Measured
from attensor.compare.cost import Cost, Decode, measure_cost, measure_decode
from attensor.compare.plan import Plan
from attensor.compare.subjects import Subject
from attensor.compare.tasks import autocast, doubled
from attensor.lab import Reporter
from attensor.nn.cache import JointCache
from attensor.train import Stopped

__all__ = ["Measurement"]

_COST_SECONDS = 10.0
_DECODE_SECONDS = 5.0
_SHORTEST_CONTEXT = 128


@dataclass
class Measurement:
    """Measures one subject of a plan; the artefacts `cost.json` and `decode.json` grow row by row."""

    plan: Plan
    subject: Subject
    folder: Path
    reporter: Reporter

    def run(self) -> None:
        """Measure what has not been measured.

        Raises:
            Stopped: the reporter asked for it.
        """
        plan = self.plan
        torch.manual_seed(0)
        build = plan.mixers(self.subject)
        layers: list[Any] = [build(index).to(plan.device) for index in range(self.subject.period)]
        mixer = layers[0] if len(layers) == 1 else Stack(layers)
        options: dict[str, Any] = {"device": plan.device, "precision": lambda: autocast(plan)}

        def cost(on_row: Callable[[Any], None]) -> str | None:
            def with_flops(row: Cost) -> None:
                on_row(_cost_row(row, self._flops(layers, spaces[row.length]), len(layers)))

            spaces = {torch.Size(space).numel(): space for space in plan.task.spaces(plan.max_length)}
            lengths = list(spaces.values())
            return measure_cost(mixer, plan.hidden_size, lengths, seconds=_COST_SECONDS, on_row=with_flops, **options)

        def decode(on_row: Callable[[Any], None]) -> str | None:
            return measure_decode(
                mixer,
                plan.hidden_size,
                doubled(_SHORTEST_CONTEXT, plan.max_length),
                seconds=_DECODE_SECONDS,
                on_row=lambda row: on_row(_decode_row(row, len(layers))),
                **options,
            )

        self._stage("cost", cost)
        if plan.task.decodes:
            self._stage("decode", decode)

    def _stage(self, name: str, measure: Callable[[Callable[[Any], None]], str | None]) -> None:
        path = self.folder / f"{name}.json"
        saved = Measured.load(path)
        if saved is not None and saved.finished:
            return
        rows: list[Any] = []

        def on_row(row: Any) -> None:
            rows.append(row)
            Measured(rows).save(path)
            self.reporter.event(stage=name, length=row.get("length") or row.get("context"))
            if self.reporter.stop:
                raise Stopped(f"stopped while {name} was measured")

        self.reporter.event(stage=name)
        stopped = measure(on_row)
        Measured(rows, stopped, finished=True).save(path)

    def _flops(self, layers: list[Any], space: tuple[int, ...]) -> int | None:
        if self.subject.path is not None:
            return None
        cards = [catalogue.mechanism(name) for name in self.subject.layers]
        flops = [card.cost("flops", B=1, **m.cost_sizes(space)) for card, m in zip(cards, layers, strict=True)]
        return sum(flops) // len(flops)


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


def _cost_row(row: Cost, flops: int | None, layers: int) -> dict[str, Any]:
    """For one layer: of a stack, the mean over its layers."""
    return {
        "length": row.length,
        "forward_ms": 1000 * row.forward / layers,
        "forward_backward_ms": 1000 * row.forward_backward / layers,
        "peak_bytes": row.peak_bytes // layers,
        "flops": flops,
    }


def _decode_row(row: Decode, layers: int) -> dict[str, Any]:
    milliseconds = 1000 * row.seconds_per_token / layers
    return {"context": row.context, "ms_per_token": milliseconds, "state_bytes": row.state_bytes // layers}
