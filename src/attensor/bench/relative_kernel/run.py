"""The command: contestants of one size take turns, the matrix product among them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from attensor.bench.linear.forecast import Forecast
from attensor.bench.machine import describe, matrix_product, single_thread
from attensor.bench.memory import measure_peak_bytes
from attensor.bench.progress import Display
from attensor.bench.relative_kernel.options import BenchRelativeOptions, Mode
from attensor.bench.relative_kernel.problem import FLEX, OURS, SOFTMAX, Build, Problem, Sizes, contestants
from attensor.bench.relative_kernel.tables import Row, measure_tables, summary_table
from attensor.bench.table import publish
from attensor.bench.timing import paired

__all__ = ["measure", "run"]

PRODUCT = "matrix product"
# A first length beyond the last of these is tried at these, so that they tell what it will take.
PROBE_LENGTHS = (1024, 2048)
# A first call, which is checked against the budget, takes this much longer than those after it.
FIRST_CALL = 1.5
# Softmax attention, without which there is nothing to compare with, has this many budgets.
SOFTMAX_ALLOWANCE = 2
Key = tuple[str, ...]
Tick = Callable[[str, float], None]  # what runs now, and the share of a cell that is newly done


def run(console: Console, options: BenchRelativeOptions, *, folder: Path = Path("benchmarks/results")) -> None:
    """Measure, print and optionally save the tables.

    Args:
        console: where progress and tables are shown.
        options: what to measure.
        folder: for `options.save`.
    Raises:
        ValueError: options that make no sense.
        KeyboardInterrupt: again, after what was measured until then has been printed and saved.
    """
    options = options.settled()
    rows: list[Row] = []
    interruption: KeyboardInterrupt | None = None
    cells = 2 * len(options.lengths) * sum(1 for _ in _cells(options))
    with single_thread(), Display(console, cells) as display:
        machine = describe()
        try:
            for found in measure(options, display.tick):
                rows += found
        except KeyboardInterrupt as error:
            interruption = error
    publish(
        _file_name(options, complete=interruption is None),
        [*measure_tables(rows), summary_table(rows)],
        machine | {"complete": "no, interrupted" if interruption else "yes"},
        save=options.save,
        folder=folder,
        console=console,
    )
    if interruption is not None:
        raise interruption


def measure(options: BenchRelativeOptions, tick: Tick) -> Iterator[list[Row]]:
    """The rows of one size after the other, the short ones first, so that they tell what the others will take.

    Softmax attention is timed once for all numbers of features.
    """
    forecast = Forecast()
    for mode, sizes in _cells(options):
        for is_causal in (False, True):
            for length in options.lengths:
                group = [Sizes(length, *pair, is_causal, options.num_heads) for pair in sizes]
                yield _Cell(options, group, mode, forecast, tick).rows()


def _cells(options: BenchRelativeOptions) -> Iterator[tuple[Mode, list[tuple[int, int]]]]:
    """Each pass with the pairs of features and width that share a width."""
    pairs = dict.fromkeys(options.sizes)
    for mode in options.modes:
        for width in dict.fromkeys(width for _, width in pairs):
            yield mode, [pair for pair in pairs if pair[1] == width]


def _file_name(options: BenchRelativeOptions, *, complete: bool) -> str:
    """More heads, a quick look and an interrupted run do not replace the full tables."""
    heads = "" if options.num_heads == 1 else f"-h{options.num_heads}"
    return "relative" + "-quick" * options.quick + "-partial" * (not complete) + heads


class _Cell:
    """All contestants at one length, width and mode, ours once for each number of features."""

    def __init__(
        self, options: BenchRelativeOptions, group: Sequence[Sizes], mode: Mode, forecast: Forecast, tick: Tick
    ) -> None:
        self.options, self.group, self.mode, self.forecast, self.tick = options, group, mode, forecast, tick
        self.problem = Problem(group[0])
        self.length = group[0].length
        self.peaks: dict[Key, int] = {}
        self.skipped: dict[Key, str] = {}

    def rows(self) -> list[Row]:
        """One for each number of features and each contestant."""
        builds = {(sizes, name): build for sizes in self.group for name, build in contestants(sizes, self.mode).items()}
        calls: dict[Key, Callable[[], object]] = {}
        for (sizes, name), build in builds.items():
            key = _key(sizes, name, self.mode)
            call = None if key in calls or key in self.skipped else self._admit(key, sizes, build)
            if call is not None:
                calls[key] = call
        products = self._time(calls)
        found = [(sizes, name, _key(sizes, name, self.mode)) for sizes, name in builds]
        return [
            Row(self.mode, sizes, name, products.get(key), self.peaks.get(key), self.skipped.get(key, ""))
            for sizes, name, key in found
        ]

    def _admit(self, key: Key, sizes: Sizes, build: Build | str) -> Callable[[], object] | None:
        """The call to be timed, warmed up and its peak measured; None when the reason is in `skipped`."""
        self.tick(f"{key[0]}, {self.mode}, n {self.length}, {sizes.order}", 0.0)
        reason = build if isinstance(build, str) else self._why_not(key, build)
        if reason or isinstance(build, str):
            self.skipped[key] = reason
            return None
        try:
            call = build(self.problem).call(self.mode)
            if key[0] == FLEX:
                call()  # compiles
            start = time.perf_counter()
            self.peaks[key] = measure_peak_bytes(call)
            took = time.perf_counter() - start
        except Exception as error:
            if key[0].startswith(OURS):
                raise
            self.skipped[key] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            return None
        budget = self._budget(key)
        if took > FIRST_CALL * budget:
            self.forecast.add(key, 1, self.length, took)
            self.skipped[key] = f"a call took {took:.1f} s, budget {budget:g} s"
            return None
        return call

    def _why_not(self, key: Key, build: Build) -> str:
        budget = self._budget(key)
        if budget == math.inf:
            return ""
        if self._has_no_softmax() and key[0] != OURS:
            return "nothing to compare it with, softmax is left out"
        expected = self.forecast.seconds(key, 1, self.length)
        if expected is None and self.length > PROBE_LENGTHS[-1]:
            self._probe(key, build)
            expected = self.forecast.seconds(key, 1, self.length)
        return "" if expected is None or expected <= budget else f"{expected:.1f} s expected, budget {budget:g} s"

    def _budget(self, key: Key) -> float:
        """Seconds that a call may take: without limit for ours if there is something to compare it with."""
        if key[0] == OURS and not self._has_no_softmax():
            return math.inf
        return self.options.budget * (SOFTMAX_ALLOWANCE if key[0] == SOFTMAX else 1)

    def _has_no_softmax(self) -> bool:
        return any(key[0] == SOFTMAX for key in self.skipped)

    def _probe(self, key: Key, build: Build) -> None:
        for length in PROBE_LENGTHS:
            call = build(Problem(self.group[0]._replace(length=length))).call(self.mode)
            try:
                seconds = paired({key[0]: call}, rounds=3)[key[0]]
            except Exception:  # the full size gives the reason
                return
            self.forecast.add(key, 1, length, seconds)

    def _time(self, calls: Mapping[Key, Callable[[], object]]) -> dict[Key, float]:
        """What a call of each takes, in matrix products of the same rounds."""
        named = {" ".join(key): (key, call) for key, call in calls.items()}
        share = 1 / (self.options.rounds * (len(named) + 1))
        seconds = paired(
            {name: call for name, (_, call) in named.items()} | {PRODUCT: matrix_product()},
            self.options.rounds,
            warmup=0,
            after_call=lambda name: self.tick(f"timing, {self.mode}, n {self.length}", share),
        )
        for name, (key, _) in named.items():
            self.forecast.add(key, 1, self.length, seconds[name])
        return {key: seconds[name] / seconds[PRODUCT] for name, (key, _) in named.items()}


def _key(sizes: Sizes, name: str, mode: Mode) -> Key:
    """What the calls at all lengths share: of ours the number of features too."""
    features = (str(sizes.num_features),) if name.startswith(OURS) else ()
    return name, mode, sizes.order, str(sizes.width), *features
