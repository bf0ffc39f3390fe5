"""`attensor bench linear`: linear attention against softmax attention as the sequence grows.

Forward and backward of the operators alone, B = 1, one thread. All lengths and contestants take turns in one run,
the matrix product that serves as the yardstick among them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from attensor.bench.machine import describe, matrix_product, single_thread
from attensor.bench.memory import measure_peak_bytes
from attensor.bench.peers import fla_chunk_simple_gla
from attensor.bench.table import Table, publish
from attensor.bench.timing import paired
from attensor.ops import linear_attention

__all__ = ["LENGTHS", "measure", "run"]

LENGTHS = (1024, 2048, 4096, 8192, 16384)
SOFTMAX = "SDPA, causal"
PRODUCT = "matrix product"
# What the count of useful operations assumes: state read and written once a token, scores inside a chunk.
CHUNK_SIZE = 64
# A backward pass repeats each product of the forward pass once for either factor.
PASSES = 3


@dataclass(frozen=True)
class Sizes:
    """Heads, key width and value width of the operators measured."""

    num_heads: int = 4
    key_dim: int = 64
    value_dim: int = 64


def run(
    console: Console,
    *,
    lengths: Sequence[int] = LENGTHS,
    rounds: int = 5,
    save: bool = False,
    folder: Path = Path("benchmarks/results"),
) -> None:
    """Measure, print and optionally save the table. Takes a few minutes at the default lengths."""
    with single_thread():
        table = measure(lengths, rounds=rounds)
        publish("linear", [table], describe("fla-core"), save=save, folder=folder, console=console)


def measure(lengths: Sequence[int], *, rounds: int, sizes: Sizes | None = None) -> Table:
    """The table for the given lengths, the first of which is the base of the column "time per token".

    Args:
        lengths: tokens in a sequence.
        rounds: timed calls of each contestant at each length.
        sizes: of the heads.
    """
    sizes = sizes or Sizes()
    calls = {(name, length): call for length in lengths for name, call in _contestants(length, sizes).items()}
    seconds = paired({repr(key): call for key, call in calls.items()} | {PRODUCT: matrix_product()}, rounds=rounds)
    rate = 2.0 * 1024**3 / seconds[PRODUCT]
    table = Table(
        f"linear_attention, forward + backward, B1 H{sizes.num_heads} K{sizes.key_dim} V{sizes.value_dim}, float32",
        (
            "operator",
            "tokens",
            "speed against SDPA",
            f"time/token, 1 at {lengths[0]}",
            "of matmul rate",
            "peak MiB",
        ),
        note="Fraction of the rate of a 1024 x 1024 matrix product in the same run, counting three times the forward "
        "products: 4 K V + 64 (K + V) a token and head, for SDPA T (K + V). What is recomputed does not count.",
    )
    for (name, length), call in calls.items():
        time = seconds[repr((name, length))]
        base = seconds[repr((name, lengths[0]))] / lengths[0]
        table.rows.append(
            (
                name,
                str(length),
                f"{seconds[repr((SOFTMAX, length))] / time:.2f}x",
                f"{time / length / base:.2f}",
                f"{_useful_flops(name, length, sizes) / time / rate:.0%}",
                f"{measure_peak_bytes(call) / 2**20:.1f}",
            )
        )
    return table


def _contestants(length: int, sizes: Sizes) -> dict[str, Callable[[], object]]:
    """Name -> forward and backward on fixed inputs."""
    generator = torch.Generator().manual_seed(length)
    draw = functools.partial(torch.randn, generator=generator)
    shape = (1, length, sizes.num_heads, sizes.key_dim)
    q, k, v = draw(shape), draw(shape), draw(*shape[:3], sizes.value_dim)
    upstream = torch.randn(v.shape, generator=generator)
    constant = torch.log1p(-(2.0 ** (-5.0 - torch.arange(sizes.num_heads))))
    gate = functional.logsigmoid(draw(shape)) / 16

    def both_passes(operator: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        return lambda: torch.autograd.grad(operator(*leaves), leaves, upstream)

    found = {
        SOFTMAX: both_passes(_sdpa, q, k, v),
        "ours, constant decay": both_passes(lambda *x: linear_attention(*x, log_decay=constant)[0], q, k, v),
        "ours, gate per channel": both_passes(lambda *x: linear_attention(*x[:3], log_decay=x[3])[0], q, k, v, gate),
    }
    peer = fla_chunk_simple_gla()
    if peer is not None:
        per_token = constant.expand(1, length, -1)
        found["fla naive chunk, constant decay"] = both_passes(lambda *x: peer(*x, per_token)[0], q, k, v)
    return found


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def _useful_flops(name: str, length: int, sizes: Sizes) -> float:
    """Products that the algorithm needs, the part above the causal diagonal not counted."""
    width, state = sizes.key_dim + sizes.value_dim, sizes.key_dim * sizes.value_dim
    per_token = length * width if name == SOFTMAX else 4 * state + CHUNK_SIZE * width
    return float(PASSES * length * sizes.num_heads * per_token)
