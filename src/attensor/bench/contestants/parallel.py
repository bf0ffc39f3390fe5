"""`attensor bench parallel`: what a decoding step of latent attention costs each of the ranks that share it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from attensor.bench.contest import OURS, Cell, Contestant, Peer, Problem
from attensor.bench.hold import Bench
from attensor.bench.layout import Table
from attensor.bench.tables import digits
from attensor.nn import LatentAttention, Slicing, TokenCache
from attensor.nn.mixer import Heads
from attensor.parallel import Ranks, ShardedLatentAttention, on_ranks

if TYPE_CHECKING:
    from attensor.commands.bench_parallel import BenchParallel

__all__ = ["ParallelProblem", "bench", "measure_rank"]

HEADS_ALONE, ONE_RANK = "heads alone", "one rank"
NOTE = (
    "B = 1. Ours: each rank reads its slice of the latent for all heads (TPLA). 'heads alone': each reads the whole "
    "latent for its share of the heads, which is exact; 'one rank': all of it. A call is the attention of rank 0 with "
    "the products that absorb keys and values, without projections and other ranks. Useful operations: scores and the "
    "sums of values."
)


@dataclass(frozen=True)
class ParallelProblem(Problem):
    """A token behind `length` others, for one of the ranks that share a layer."""

    length: int
    ranks: int
    num_heads: int
    kv_rank: int
    rotary_dim: int
    hidden_size: int

    title = property(
        lambda self: f"{self.num_heads} heads, latent {self.kv_rank} + {self.rotary_dim}, {self.ranks} ranks"
    )
    size = property(lambda self: (self.length,))
    label = property(lambda self: f"{self.length} tokens")

    @property
    def layer(self) -> LatentAttention:
        """The whole one, with a random latent's norms; the same for all contestants."""
        return _layer(replace(self, length=0))

    def part(self, name: str, ranks: Ranks) -> ShardedLatentAttention:
        """What one of the ranks has of the layer."""
        return ShardedLatentAttention(self.layer, ranks, self.ranks if name == OURS else 1)

    def filled(self, layer: LatentAttention) -> TokenCache:
        """A cache of a layer, filled with numbers; what a token is worth does not change what reading it costs."""
        cache: TokenCache = layer.new_cache(1, self.length + 1)
        width = layer.new_cache(0).state_dict()["latent"].shape[-1]
        with torch.no_grad():
            cache.append(latent=self.draw(1, self.length, 1, width, seed=1))
        return cache

    def token(self) -> Tensor:
        """[1, 1, C]."""
        return self.draw(1, 1, self.hidden_size, seed=0)


@lru_cache(maxsize=1)
def _layer(problem: ParallelProblem) -> LatentAttention:
    torch.manual_seed(0)
    return LatentAttention(
        problem.hidden_size,
        problem.num_heads,
        kv_rank=problem.kv_rank,
        nope_dim=128,
        rotary_dim=problem.rotary_dim,
        slicing=Slicing(problem.ranks, (float(problem.ranks),) * problem.ranks),
        device=problem.device,
        dtype=problem.dtype,
    )


def _ours(problem: ParallelProblem) -> Contestant:
    return _attention(problem, problem.part(OURS, Ranks(0, problem.ranks)))


def _heads_alone(problem: ParallelProblem) -> Contestant:
    return _attention(problem, problem.part(HEADS_ALONE, Ranks(0, problem.ranks)))


def _one_rank(problem: ParallelProblem) -> Contestant:
    return _attention(problem, problem.part(ONE_RANK, Ranks(0, 1)))


def _attention(problem: ParallelProblem, layer: ShardedLatentAttention) -> Contestant:
    cache = problem.filled(layer)
    return Contestant(_step(problem, layer, cache), state_bytes=cache.nbytes)


def _step(problem: ParallelProblem, layer: ShardedLatentAttention, cache: TokenCache) -> Callable[[], Tensor]:
    """The attention of one more token, which the cache then forgets."""
    with torch.no_grad():
        positions = torch.tensor([problem.length], device=problem.device)
        heads: Heads = layer.project(problem.token(), positions, is_sliced=layer.place.groups > 1)

    def step() -> Tensor:
        out = layer.attend(heads, cache=cache)
        cache.crop(problem.length)
        return out

    return step


def _whole_attention(problem: ParallelProblem, *, heads: int) -> Tensor:
    """The first heads of the layer that nobody cuts."""
    layer = problem.part(ONE_RANK, Ranks(0, 1))
    return _step(problem, layer, problem.filled(layer))()[:, :, :heads]


def _operations(problem: ParallelProblem, *, heads: int, width: int) -> float:
    return 2.0 * heads * problem.length * (2 * width + problem.rotary_dim)


def _peers(options: BenchParallel) -> tuple[Peer, ...]:
    """With the useful operations and the references of these sizes."""
    heads, share, width = options.num_heads, options.num_heads // options.ranks, options.kv_rank
    return (
        Peer(OURS, _ours, partial(_operations, heads=heads, width=width // options.ranks), packages=("attensor",)),
        Peer(
            HEADS_ALONE,
            _heads_alone,
            partial(_operations, heads=share, width=width),
            computes="exact attention, a share of the heads",
            reference=partial(_whole_attention, heads=share),
        ),
        Peer(
            ONE_RANK,
            _one_rank,
            partial(_operations, heads=heads, width=width),
            computes="exact attention, all heads",
        ),
    )


def measure_rank(problem: ParallelProblem, rounds: int) -> dict[str, dict[str, float]]:
    """On every rank at once: processor seconds of the attention and of a whole step, and the bytes of the cache."""
    ranks = Ranks.of()
    found, calls = dict[str, dict[str, float]](), dict[tuple[str, str], Callable[[], Any]]()
    for name in (OURS, HEADS_ALONE):
        layer = problem.part(name, ranks)
        cache = problem.filled(layer)
        found[name] = {"bytes": cache.nbytes}
        calls[name, "attention"] = _step(problem, layer, cache)
        calls[name, "step"] = partial(_forward, problem, layer, cache)
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    with torch.no_grad():
        for turn in range(rounds + 1):
            for key in list(calls) if turn % 2 else list(reversed(calls)):
                dist.barrier()
                began = time.process_time()
                calls[key]()
                taken[key] += [time.process_time() - began] if turn else []
    for (name, what), seconds in taken.items():
        found[name][what] = median(seconds)
    return found


def _forward(problem: ParallelProblem, layer: ShardedLatentAttention, cache: TokenCache) -> None:
    layer(problem.token(), cache=cache)
    cache.crop(problem.length)


def _ranks_table(options: BenchParallel, problems: list[ParallelProblem]) -> Iterator[Table]:
    """All ranks at once, each with one thread."""
    headings = ("tokens", "ours, ms", "heads alone, ms", "ratio", "whole step, ratio", "numbers a token", "bytes")
    table = Table(
        f"all {options.ranks} ranks at once, processor time of a rank",
        headings,
        note="Medians over rounds, of the slowest rank; contestants take turns. 'ratio': attention, ours over that of "
        "heads alone. 'whole step': with projections, of which a rank with a slice has those of all heads, and the one "
        "all-reduce of B C numbers that both take. Last columns: of a rank's cache, ours / heads alone. "
        f"{os.getloadavg()[0]:.1f} processes wanted the {os.cpu_count()} cores when this began.",
    )
    for problem in problems:
        by_rank = on_ranks(measure_rank, options.ranks, problem, options.rounds)
        worst = {
            (name, what): max(one[name][what] for one in by_rank)
            for name in (OURS, HEADS_ALONE)
            for what in ("attention", "step", "bytes")
        }
        ours, alone = worst[OURS, "attention"], worst[HEADS_ALONE, "attention"]
        held = [worst[name, "bytes"] for name in (OURS, HEADS_ALONE)]
        table.rows.append(
            (
                str(problem.length),
                digits(1e3 * ours),
                digits(1e3 * alone),
                digits(ours / alone),
                digits(worst[OURS, "step"] / worst[HEADS_ALONE, "step"]),
                " / ".join(f"{count / problem.length / 4:.0f}" for count in held),
                " / ".join(f"{count:,.0f}" for count in held),
            )
        )
    yield table


def bench(options: BenchParallel) -> Bench:
    """The contest of the options.

    Raises:
        ValueError: heads, the latent or the rotary part cannot be shared, or a GPU, of which one process has one.
    """
    if options.device != "cpu":
        raise ValueError(
            "bench parallel: --device must be cpu: the ranks of one machine are processes of its processor."
        )
    for name, count in (("num-heads", options.num_heads), ("kv-rank", options.kv_rank)):
        if count % options.ranks:
            raise ValueError(f"bench parallel: --{name} must be a multiple of --ranks {options.ranks}, got {count}.")
    sizes = (options.ranks, options.num_heads, options.kv_rank, options.rotary_dim, options.hidden_size)
    problems = [ParallelProblem(length, *sizes) for length in sorted(options.lengths)]
    cells = [Cell("decode", [problem]) for problem in problems]
    small = [ParallelProblem(33, *sizes)]
    usual = type(options)()
    suffix = "" if options.num_heads == usual.num_heads else f"-h{options.num_heads}"
    return Bench(_peers(options), small, cells, NOTE, suffix, findings=lambda rows: _ranks_table(options, problems))
