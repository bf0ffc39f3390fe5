"""`attensor bench linear`: linear attention by variant and length, and while decoding, against everyone installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from attensor.bench.contest import Cell, Problem
from attensor.bench.contestants import decode
from attensor.bench.contestants.linear_peers import PEERS
from attensor.bench.contestants.linear_problem import LinearProblem
from attensor.bench.hold import Bench

if TYPE_CHECKING:
    from attensor.commands.bench_linear import BenchLinear

__all__ = ["bench"]

QUICK_LAYERS = 2
HOW_TO_READ = (
    "Useful operations, a token and head: 4 K V + 64 (K + V) for chunked algorithms, whatever their chunk; 4 K V for "
    "recurrent ones; T (K + V) for those quadratic in the length T: the causal half alone counts. A layer adds 10 C^2 "
    f"a token. 'of inputs': peak over the size of q, k, v. {decode.HOW_TO_READ}"
)


def bench(options: BenchLinear) -> Bench:
    """The contest of the options.

    Raises:
        ValueError: no length divides a number of tokens.
    """
    cells, small = list(_cells(options)), list[Problem]()
    if {"forward", "training"} & set(options.modes):
        small += _variants(options, 2, 128)
    if "decode" in options.modes:
        tokens = decode.problems(options.device, QUICK_LAYERS if options.quick else decode.LAYERS)
        small += [problem for problem in tokens if problem.position == decode.POSITIONS[0]]
        cells.append(Cell("decode", tokens))
    is_usual = (options.num_heads, options.head_dim) == (2, 64)
    suffix = "" if is_usual else f"-h{options.num_heads}-d{options.head_dim}"
    return Bench([*PEERS, *decode.PEERS], small, cells, HOW_TO_READ, suffix)


def _cells(options: BenchLinear) -> Iterator[Cell]:
    for tokens in sorted(options.tokens):
        lengths = [length for length in sorted(set(options.lengths)) if tokens % length == 0]
        if not lengths:
            raise ValueError(
                f"bench linear: none of the lengths {list(options.lengths)} divides {tokens} tokens; "
                "choose --tokens that are a multiple of a length."
            )
        for length in lengths:
            for mode in ("forward", "training"):
                if mode in options.modes:
                    yield Cell(mode, _variants(options, tokens // length, length))


def _variants(options: BenchLinear, batch: int, length: int) -> list[Problem]:
    sizes = (batch, length, options.num_heads, options.head_dim)
    return [LinearProblem(variant, *sizes, device=options.device) for variant in options.variants]
