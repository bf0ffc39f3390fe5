"""Who may take part, and how long each takes: contestants of one size take turns, the matrix product among them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from attensor.bench.linear import gpu_peers as gpu_peers  # enters its peers and those of `peers` into the registry
from attensor.bench.linear.forecast import Forecast
from attensor.bench.linear.options import BenchLinearOptions
from attensor.bench.linear.problem import Contestant, Problem, useful_flops
from attensor.bench.linear.registry import OURS, PEERS, Peer
from attensor.bench.machine import matrix_product
from attensor.bench.memory import measure_peak_bytes, total_bytes
from attensor.bench.timing import paired
from attensor.ops import backend, softmax_attention

__all__ = ["Check", "Row", "Tick", "check_peers", "choose_peers", "measure"]

PRODUCT = "matrix product"
# Largest error against ours, relative to the largest output, that still is the same function.
TOLERANCE = {"cpu": 1e-3, "cuda": 3e-2}
# When nothing is known of a peer, one sequence of so many tokens tells whether it would exceed so many budgets.
PROBE_LENGTH = 2048
PROBE_SLACK = 4.0
Tick = Callable[[str, float], None]  # what runs now, and the share of a cell that is newly done
Key = tuple[str, str]  # peer and variant; softmax peers serve all variants at once and have none


@dataclass(frozen=True)
class Check:
    """Whether a peer computes what ours does, tried once on a small input.

    Attributes:
        peer: its name.
        variant: of the problem.
        computes: the same function, or another at the same sizes.
        max_error: largest difference over the largest value, to ours, for ours to the reference, for softmax attention
            to its reference; None when it did not run.
        reason: why it does not take part; empty when it does.
    """

    peer: str
    variant: str
    computes: str
    max_error: float | None
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """One contestant at one size.

    Attributes:
        mode: `"forward"` or `"training"`.
        variant: of the problem.
        peer: name of the contestant.
        computes: as in its check.
        tokens: of a call, all sequences together.
        length: of a sequence.
        seconds: median of a call; None when it was left out.
        against_ours: its time over that of ours in the same run.
        of_matrix_rate: rate of useful operations over that of a matrix product in the same run.
        peak_bytes: memory at the worst moment beyond what was held before.
        skipped: why it was left out.
    """

    mode: str
    variant: str
    peer: str
    computes: str
    tokens: int
    length: int
    seconds: float | None = None
    against_ours: float | None = None
    of_matrix_rate: float | None = None
    peak_bytes: int | None = None
    skipped: str = ""


def choose_peers(names: Sequence[str]) -> dict[str, Peer]:
    """The peers of those names and always ours; all for `"all"`.

    Raises:
        ValueError: an unknown name.
    """
    unknown = [name for name in names if name not in PEERS and name != "all"]
    if unknown:
        known = ", ".join(("all", *PEERS))
        raise ValueError(f"bench linear: --peers: unknown {', '.join(map(repr, unknown))}; choose from {known}.")
    return {name: entry for name, entry in PEERS.items() if "all" in names or name in names or name == OURS}


def check_peers(options: BenchLinearOptions, peers: Mapping[str, Peer]) -> list[Check]:
    """Compare every peer with ours at 2 x 128 tokens, in each variant that it solves."""
    checks = []
    small = Problem("none", 2, 128, options.num_heads, options.head_dim, options.device)
    for variant in options.variants:
        problem = small.variation(variant)
        ours = _build(peers[OURS], problem)
        for entry in (entry for entry in peers.values() if variant in entry.variants):
            try:
                checks.append(_check(entry, problem, ours))
            except Exception as error:  # whatever goes wrong inside a peer is the reason why it is left out
                checks.append(Check(entry.name, variant, entry.computes, None, _brief(error)))
    return checks


def measure(
    options: BenchLinearOptions, peers: Mapping[str, Peer], checks: Sequence[Check], tick: Tick
) -> Iterator[list[Row]]:
    """The rows of one size after the other, the cheap ones first, so that they tell what the others will take."""
    fit = {(check.peer, check.variant) for check in checks if not check.reason}
    forecast = Forecast()
    for tokens in sorted(options.tokens):
        for length in options.lengths_of(tokens):
            base = Problem("none", tokens // length, length, options.num_heads, options.head_dim, options.device)
            problems = {variant: base.variation(variant) for variant in options.variants}
            for mode in ("forward", "training"):
                if mode in options.modes:
                    yield _Cell(options, peers, problems, mode, forecast, tick).rows(fit)


def _build(entry: Peer, problem: Problem) -> Contestant:
    found = entry.build(problem)
    if isinstance(found, str):
        raise ValueError(f"bench linear: {entry.name}: {found}.")
    return found


def _check(entry: Peer, problem: Problem, ours: Contestant) -> Check:
    contestant = entry.build(problem)
    if isinstance(contestant, str):
        return Check(entry.name, problem.variant, entry.computes, None, contestant)
    with torch.no_grad():
        actual, expected = contestant.forward().float(), _expected(entry, problem, ours).float()
    error = float((actual - expected).abs().max() / expected.abs().max())
    wrong = not error <= TOLERANCE[problem.device]  # also when it is NaN
    reason = f"computes another function: it differs by {error:.1e} of the largest value" if wrong else ""
    return Check(entry.name, problem.variant, entry.computes, error, reason)


def _expected(entry: Peer, problem: Problem, ours: Contestant) -> torch.Tensor:
    """What ours gives; for ours itself and for softmax attention, what their references give."""
    if not entry.is_softmax and entry.name != OURS:
        return ours.forward()
    with backend("reference"):
        return softmax_attention(*problem.qkv, is_causal=True) if entry.is_softmax else ours.forward()


def _brief(error: Exception) -> str:
    """The beginning of a message in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


class _Cell:
    """All contestants of all variants at one size and mode."""

    def __init__(
        self,
        options: BenchLinearOptions,
        peers: Mapping[str, Peer],
        problems: Mapping[str, Problem],
        mode: str,
        forecast: Forecast,
        tick: Tick,
    ) -> None:
        self.options, self.peers, self.problems, self.mode = options, peers, problems, mode
        self.forecast, self.tick = forecast, tick
        some = next(iter(problems.values()))
        self.tokens, self.length = some.batch * some.length, some.length
        self.peaks: dict[Key, int] = {}
        self.skipped: dict[Key, str] = {}

    def rows(self, fit: set[Key]) -> list[Row]:
        """One for each variant and each peer that is fit for it."""
        entries = {
            (variant, name): _key(entry, variant)
            for variant in self.problems
            for name, entry in self.peers.items()
            if (name, variant) in fit
        }
        first_variant = {key: variant for (variant, _), key in reversed(entries.items())}
        calls = {key: self._admit(self.peers[key[0]], variant, key) for key, variant in first_variant.items()}
        seconds = self._time({key: call for key, call in calls.items() if call is not None})
        return [self._row(variant, name, key, seconds) for (variant, name), key in entries.items()]

    def _admit(self, entry: Peer, variant: str, key: Key) -> Callable[[], object] | None:
        """The call to be timed, warmed up and its peak measured; None when the reason is in `skipped`."""
        problem = self.problems[variant]
        reason = self._why_not(entry, problem, key)
        if reason:
            self.skipped[key] = reason
            return None
        self.tick(f"{entry.name}, {self.mode}, {self.tokens // self.length} x {self.length}", 0.0)
        try:
            call = _build(entry, problem).call(self.mode)
            if entry.compiles or problem.device == "cuda":
                call()
            start = time.perf_counter()
            self.peaks[key] = measure_peak_bytes(call, device=problem.device)
            took = time.perf_counter() - start
        except Exception as error:  # out of memory, or a size that the peer refuses
            self.skipped[key] = _brief(error)
            return None
        if entry.name != OURS and took > 2 * self.options.budget:
            self.forecast.add((*key, self.mode), self.tokens, self.length, took)
            self.skipped[key] = f"a call took {took:.1f} s, budget {self.options.budget:g} s"
            return None
        return call

    def _why_not(self, entry: Peer, problem: Problem, key: Key) -> str:
        if entry.name == OURS:
            return ""
        if self.mode == "training" and problem.device == "cpu" and entry.no_backward:
            return entry.no_backward
        states = entry.kept_states * 4 * self.tokens * problem.num_heads * problem.head_dim**2
        memory = total_bytes(problem.device)
        if self.mode == "training" and memory is not None and states > memory / 2:
            return f"keeps {states / 2**30:.0f} GiB of states for the backward pass"
        expected, limit = self.forecast.seconds((*key, self.mode), self.tokens, self.length), self.options.budget
        if expected is None:
            # a guess from so little work is good for keeping out what would take minutes
            expected, limit = self._probe(entry, problem), PROBE_SLACK * limit
        return f"{expected:.1f} s a call expected, budget {self.options.budget:g} s" if expected > limit else ""

    def _probe(self, entry: Peer, problem: Problem) -> float:
        """Seconds to expect when nothing is known yet: from one short sequence, if that is much less than all."""
        length = min(self.length, PROBE_LENGTH)
        if self.tokens <= 2 * length:
            return 0.0
        small = Problem(problem.variant, 1, length, problem.num_heads, problem.head_dim, problem.device)
        try:
            call = _build(entry, small).call(self.mode)
            call()
            start = time.perf_counter()
            call()
        except Exception:  # the full size gives the reason
            return 0.0
        seconds = time.perf_counter() - start
        # a loop that writes token by token makes its backward pass copy the whole output at each
        is_quadratic = entry.work == "quadratic" or (entry.work == "recurrent" and self.mode == "training")
        return seconds * self.tokens / length * (self.length / length if is_quadratic else 1)

    def _time(self, calls: Mapping[Key, Callable[[], object]]) -> dict[Key, float]:
        """Seconds of a call, and of the matrix product under the key of its name."""
        size, dtype = (1024, torch.float32) if self.options.device == "cpu" else (4096, torch.bfloat16)
        product = matrix_product(size, device=self.options.device, dtype=dtype)
        named = {"/".join(key): (key, call) for key, call in calls.items()}
        share = 1 / (self.options.rounds * (len(named) + 1))
        medians = paired(
            {name: call for name, (_, call) in named.items()} | {PRODUCT: product},
            self.options.rounds,
            warmup=0,
            after_call=lambda name: self.tick(name, share),
        )
        seconds = {key: medians[name] for name, (key, _) in named.items()}
        for key, time_taken in seconds.items():
            self.forecast.add((*key, self.mode), self.tokens, self.length, time_taken)
        self.rate = 2.0 * size**3 / medians[PRODUCT]
        return seconds

    def _row(self, variant: str, name: str, key: Key, seconds: Mapping[Key, float]) -> Row:
        entry, problem = self.peers[name], self.problems[variant]
        time_taken, ours = seconds.get(key), seconds.get((OURS, variant))
        row = (self.mode, variant, name, entry.computes, self.tokens, self.length)
        if time_taken is None:
            return Row(*row, skipped=self.skipped[key])
        return Row(
            *row,
            seconds=time_taken,
            against_ours=None if ours is None else time_taken / ours,
            of_matrix_rate=useful_flops(problem, self.mode, entry.work) / time_taken / self.rate,
            peak_bytes=self.peaks[key],
        )


def _key(entry: Peer, variant: str) -> Key:
    return entry.name, "" if entry.is_softmax else variant
