"""Cost of a mixer layer alone, against length: seconds of a forward and of a training call, bytes at its peak.

A first call at each length is not counted: it loads code and builds tables that stay. Freed memory is kept by the
process (`attensor.bench.memory.keep_freed_memory`), so that long calls do not pay for pages that short ones find. Bytes
are those of tensors (`measure_tensor_bytes`).

Before each length the time and memory it would take are predicted from the growth so far; what would not fit is not
tried, and the reason is part of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attensor.bench.available import available_bytes
from attensor.bench.memory import measure_tensor_bytes
from attensor.bench.timing import Quartiles, own_seconds_of
from attensor.compare.rounds import Contender, Size, rounds_within
from attensor.report.numbers import size as readable_size

__all__ = ["CostContender", "Setting"]

# of one mechanism at all lengths, and of its rounds at one length
_SECONDS = 20.0
_SECONDS_AT_A_LENGTH = 0.2
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 15
# shorter calls are led in by another one, so that they find the processor's caches as they leave them
_SHORT = 0.02
# from here on, a first call costs about what the next does, and none is made to warm up
_LONG = 1.0
# share of the remaining memory that a prediction may reach
_MEMORY_SHARE = 0.7


@dataclass(frozen=True)
class Setting:
    """Where mixers run: width of their input, device, and what makes the autocast context of a call."""

    hidden_size: int
    device: str
    precision: Callable[[], AbstractContextManager[Any]]

    def inputs(self, *sizes: int) -> Tensor:
        """[*sizes, hidden_size], the same at each call."""
        return torch.randn(*sizes, self.hidden_size, generator=torch.Generator().manual_seed(0)).to(self.device)


class CostContender(Contender):
    """A mixer that reads `[1, *space, hidden_size]`.

    Args:
        name: of the mechanism.
        mixer: on the setting's device.
        setting: where it runs.
        layers: how many layers the mixer stands for; rows are the mean of one.
        flops: space -> operations of one layer, or None.
        rows: found earlier.
    """

    def __init__(
        self,
        name: str,
        mixer: nn.Module,
        setting: Setting,
        *,
        layers: int = 1,
        flops: Callable[[Size], int | None] = lambda space: None,
        rows: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__(name, rows, _SECONDS)
        self._mixer, self._setting, self._layers, self._flops = mixer, setting, layers, flops
        self._expected = 0.0  # seconds of a training call at the next length

    def facts(self, size: Size) -> dict[str, int]:
        """The number of tokens or cells."""
        return {"length": torch.Size(size).numel()}

    def prepare(self, size: Size) -> int:
        """Call it once more than its memory is counted, unless it takes long."""
        mixer, precision = self._mixer, self._setting.precision
        inputs = self._setting.inputs(1, *size)

        def forward() -> None:
            with torch.no_grad(), precision():
                mixer(inputs)

        def forward_backward() -> None:
            hidden = inputs.detach().requires_grad_()
            with precision():
                out: Tensor = mixer(hidden)
            (out * inputs).sum().backward()  # type: ignore[no-untyped-call]
            mixer.zero_grad(set_to_none=True)

        self._size, self._calls = size, {"forward": forward, "forward_backward": forward_backward}
        self._times: dict[str, list[float]] = {key: [] for key in self._calls}
        both = self._expected
        if both < _LONG:
            forward_backward()
            forward()
            both = own_seconds_of(forward_backward)
        self._peak = measure_tensor_bytes(forward_backward, device=self._setting.device)
        self._lead_in = 1 if both < _SHORT else 0
        # the forward call takes about a third of the training call
        once = both * 4 / 3 * (1 + self._lead_in)
        return rounds_within(_SECONDS_AT_A_LENGTH, once, fewest=_FEWEST_ROUNDS, most=_MOST_ROUNDS)

    def turn(self) -> None:
        """Time one call of each kind."""
        for key, call in self._calls.items():
            for _ in range(self._lead_in):
                call()
            self._times[key].append(own_seconds_of(call))

    def finish(self) -> None:
        """A row of one layer."""
        row: dict[str, Any] = self.facts(self._size)
        for key, times in self._times.items():
            found = Quartiles.of([1000 * seconds / self._layers for seconds in times])
            row |= {f"{key}_ms": found.median, f"{key}_quartiles": [found.low, found.high]}
        self.rows.append(row | {"peak_bytes": self._peak // self._layers, "flops": self._flops(self._size)})
        del self._calls  # with the input that they hold

    def why_not(self, size: Size) -> str | None:
        """By the growth between the last two lengths."""
        if not self.rows:
            return None
        last, before = self.rows[-1], self.rows[max(-2, -len(self.rows))]
        cells = self.facts(size)["length"] / last["length"]
        took, took_before = (self._layers * (r["forward_ms"] + r["forward_backward_ms"]) / 1000 for r in (last, before))
        # at least in proportion, at most with the cube: one noisy pair of lengths must not stop everything
        growth = min(cells**3, max(cells, took / took_before))
        self._expected = self._layers * last["forward_backward_ms"] / 1000 * growth
        # once for the memory, at least; many small operations take longer to account for
        needed = max(took * growth * (1 + _FEWEST_ROUNDS), (self.spent_last - _SECONDS_AT_A_LENGTH) * growth)
        if self.spent + needed > self.limit:
            return (
                f"stopped at {last['length']}: {self.name_of(size)} would take about {self._expected:.2g} s a call, "
                "beyond the time for this"
            )
        growth = min(cells**2, max(cells, last["peak_bytes"] / max(1, before["peak_bytes"])))
        memory = self._layers * last["peak_bytes"] * growth
        available = available_bytes(self._setting.device)
        if available is not None and memory > _MEMORY_SHARE * available:
            return (
                f"stopped at {last['length']}: {self.name_of(size)} would need about {readable_size(memory)} "
                f"of the {readable_size(available)} that are free"
            )
        return None
