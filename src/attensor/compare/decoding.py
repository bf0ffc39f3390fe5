"""Decoding: what one more token costs, a layer alone against its context, and a whole model."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attensor.bench.available import available_bytes
from attensor.bench.timing import Quartiles, own_seconds_of
from attensor.compare.cost import Setting
from attensor.compare.rounds import Contender, Size, rounds_within
from attensor.models.language import generate
from attensor.report.numbers import size as readable_size

__all__ = ["DecodeContender", "GenerationContender", "cannot_decode", "decode_sizes"]

# of one mechanism: the layer alone, and the whole model
_DECODE_SECONDS, _GENERATION_SECONDS = 5.0, 4.0
_SHORTEST_CONTEXT = 128
_BATCHES, _BATCH_CONTEXT = (8, 32), 1024
# tokens read at once, calls before the first that counts, tokens timed
_PIECE, _WARM_UP = 512, 3
_FEWEST_TOKENS, _MOST_TOKENS, _TOKENS_SECONDS = 5, 16, 0.1
# of a whole model: bytes of the prompt, tokens of one timed block, blocks, seconds for them
_PROMPT, _BLOCK = 64, 8
_FEWEST_BLOCKS, _MOST_BLOCKS, _BLOCKS_SECONDS = 3, 8, 0.3
_MEMORY_SHARE = 0.7


def decode_sizes(max_length: int) -> list[Size]:
    """(batch, context): one sequence at contexts that double up to `max_length`, then several at one context."""
    contexts = [min(_SHORTEST_CONTEXT, max_length)]
    while 2 * contexts[-1] <= max_length:
        contexts.append(2 * contexts[-1])
    context = max(context for context in contexts if context <= max(_BATCH_CONTEXT, contexts[0]))
    return [*((1, context) for context in contexts), *((batch, context) for batch in _BATCHES)]


def cannot_decode(mixer: object) -> str | None:
    """Why a mixer has no way to go on token by token, or None."""
    if hasattr(mixer, "new_cache"):
        return None
    return f"{type(mixer).__name__} has no new_cache(), so it cannot decode token by token"


class DecodeContender(Contender):
    """A causal mixer with `new_cache`, whose cache is filled further and further by prefill.

    A time that cannot depend on the context, because the state is as large, is one figure: rows of one batch with the
    same `state_bytes` share the median and the quartiles of all their tokens.

    Args:
        name: of the mechanism.
        mixer: on the setting's device.
        setting: where it runs.
        layers: how many layers the mixer stands for; rows are the mean of one.
        rows, samples: found earlier: each row with its milliseconds a token.
    """

    def __init__(
        self,
        name: str,
        mixer: nn.Module,
        setting: Setting,
        *,
        layers: int = 1,
        rows: Sequence[dict[str, Any]] = (),
        samples: Sequence[Sequence[float]] = (),
    ) -> None:
        super().__init__(name, rows, _DECODE_SECONDS)
        self._mixer: Any = mixer.eval()
        self._setting, self._layers = setting, layers
        self.samples = [list(times) for times in samples]
        self._cache: Any = None
        self._batch = 0
        self._filling = 0.0  # seconds that it took to get to the context of the cache

    def facts(self, size: Size) -> dict[str, int]:
        """Context and batch."""
        return {"context": size[1], "batch": size[0]}

    def name_of(self, size: Size) -> str:
        """The context, with the batch when it is not one."""
        return f"{size[1]}" if size[0] == 1 else f"{size[1]} at batch {size[0]}"

    def why_not(self, size: Size) -> str | None:
        """By the time that filling has taken so far."""
        batch, context = size
        if (reason := cannot_decode(self._mixer)) is not None:
            return reason
        reached = max((row["context"] for row in self.rows), default=0)
        # the attention of a longer piece grows with the square at worst
        ratio = context / reached if reached else 0.0
        needed = self._filling * batch * max(ratio, ratio**2)
        if self.spent + needed > self.limit:
            return f"stopped at {reached}: filling a context of {self.name_of(size)} would take too long"
        return None

    @torch.no_grad()
    def prepare(self, size: Size) -> int:
        """Fill the cache, and read some tokens."""
        batch, context = size
        if self._cache is None or self._batch != batch or self._cache.length > context:
            self._cache, self._filling = self._mixer.new_cache(batch), 0.0
        self._batch, self._size = batch, size
        hidden = self._setting.inputs(batch, _PIECE)
        self._filling += own_seconds_of(lambda: self._fill(hidden, context))
        self._state_bytes = self._cache.nbytes
        self._token, self._times = hidden[:, :1], list[float]()
        once = statistics.median(own_seconds_of(self._step) for _ in range(_WARM_UP))
        return rounds_within(_TOKENS_SECONDS, 2 * once, fewest=_FEWEST_TOKENS, most=_MOST_TOKENS)

    def _fill(self, hidden: Tensor, context: int) -> None:
        with self._setting.precision():
            while self._cache.length < context:
                self._mixer(hidden[:, : min(_PIECE, context - self._cache.length)], cache=self._cache)

    @torch.no_grad()
    def _step(self) -> None:
        with self._setting.precision():
            self._mixer(self._token, cache=self._cache)

    def turn(self) -> None:
        """Time a token, after another that finds the processor's caches full of other mechanisms' data."""
        self._step()
        self._times.append(own_seconds_of(self._step))

    def finish(self) -> None:
        """A row of one layer: the time for one token of each sequence, the state of all of them together."""
        milliseconds = [1000 * seconds / self._layers for seconds in self._times]
        self.samples.append(milliseconds)
        self.rows.append(self.facts(self._size) | {"state_bytes": self._state_bytes // self._layers})
        self._pool()

    def _pool(self) -> None:
        for row in self.rows:
            alike = [
                times
                for other, times in zip(self.rows, self.samples, strict=True)
                if (other["batch"], other["state_bytes"]) == (row["batch"], row["state_bytes"])
            ]
            found = Quartiles.of([time for times in alike for time in times])
            row |= {"ms_per_token": found.median, "quartiles": [found.low, found.high]}


class GenerationContender(Contender):
    """A whole language model that continues random bytes by its most likely ones, through its decode cache.

    Args:
        name: of the mechanism.
        build: makes the model, on the CPU; called when it is first needed.
        parameters: how many it has.
        setting: where it runs.
        mixer: one of its mixers, which tells whether they have a cache.
        rows: found earlier.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[], nn.Module],
        parameters: int,
        setting: Setting,
        mixer: nn.Module,
        *,
        rows: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__(name, rows, _GENERATION_SECONDS)
        self._mixer = mixer
        self._build, self._parameters, self._setting = build, parameters, setting
        self._model: Any = None
        self._took = 0.0  # seconds at the last batch

    def facts(self, size: Size) -> dict[str, int]:
        """The batch."""
        return {"batch": size[0]}

    def why_not(self, size: Size) -> str | None:
        """By the memory of the model, and the time at the batch before."""
        if (reason := cannot_decode(self._mixer)) is not None:
            return reason
        available, needed = available_bytes(self._setting.device), 4 * self._parameters
        if self._model is None and available is not None and needed > _MEMORY_SHARE * available:
            return f"the model would need {readable_size(needed)} of the {readable_size(available)} that are free"
        last = max((row["batch"] for row in self.rows), default=size[0])
        if self.spent + self._took * size[0] / last > self.limit:
            return f"stopped at {last}: a batch of {size[0]} would take too long"
        return None

    def prepare(self, size: Size) -> int:
        """Read the prompt and write a block."""
        if self._model is None:
            self._model = self._build().to(self._setting.device).eval()
        self._size, self._times = size, list[float]()
        prompt = torch.randint(0, 256, (size[0], _PROMPT), generator=torch.Generator().manual_seed(0))
        most = (1 + _MOST_BLOCKS) * (1 + _BLOCK)
        self._tokens: Iterator[Tensor] = generate(self._model, prompt.to(self._setting.device), most, temperature=0.0)
        self._write(1)
        block = own_seconds_of(lambda: self._write(_BLOCK))
        count = rounds_within(_BLOCKS_SECONDS, block, fewest=_FEWEST_BLOCKS, most=_MOST_BLOCKS)
        self._took = count * block
        return count

    def _write(self, count: int) -> None:
        with self._setting.precision():
            for _ in range(count):
                next(self._tokens)

    def turn(self) -> None:
        """Time a block, after one more token."""
        self._write(1)
        self._times.append(own_seconds_of(lambda: self._write(_BLOCK)))

    def finish(self) -> None:
        """A row: tokens of all sequences together."""
        speed = self._size[0] * _BLOCK / statistics.median(self._times)
        self.rows.append(self.facts(self._size) | {"tokens_per_second": speed})
        del self._tokens  # with its caches
