"""Lightning attention 2: the same result as the left product, at a time per token that does not grow with the length.

Source: arXiv:2401.04658, section 4 (speed and memory by length; loss of a 0.4B model 2.229 with lightning attention 1
and 2.228 with 2) and arXiv:2405.17381.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.bench.contestants.left_product import left_product
from attensor.bench.timing import paired
from attensor.nn import LightningAttention
from attensor.nn.cache import StateCache
from attensor.nn.lightning import decay_slopes
from attensor.nn.mixer import Heads
from attensor.ops import linear_attention
from attensor.recipes._language import decoder, fit
from attensor.recipes._recipe import Chart, Check, Interval, Recipe, RecipeConfig, Verdict, run_cells
from attensor.recipes._runs import Runs, measure

__all__ = ["RECIPE"]

Algorithm = Literal["la1", "la2"]

NUM_HEADS, HEAD_DIM = 2, 64
LA1, LA2, SOFTMAX = "lightning attention 1", "lightning attention 2", "softmax attention (SDPA)"
LENGTHS = {LA2: (1024, 2048, 4096, 8192, 16384), LA1: (1024, 2048, 4096, 8192), SOFTMAX: (1024, 2048, 4096, 8192)}
FORWARD, BOTH = "forward", "forward + backward"


class LightningAttention1(LightningAttention):
    """The layer of lightning attention, computed by the left product."""

    def attend(self, heads: Heads, *, cache: StateCache | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """The left product of whole rows: [B, T, H, V]."""
        return left_product(*heads[:3], heads.log_decay)


def measure_times(seed: int, rounds: int) -> dict[str, Any]:
    """Median seconds of each operator at each length, all taking turns; largest difference of the two algorithms."""
    calls = {
        (operator, passes, length): call
        for operator, lengths in LENGTHS.items()
        for length in lengths
        for passes, call in _passes(operator, length, seed)
    }
    seconds = paired({repr(key): call for key, call in calls.items()}, rounds=rounds)
    rows = [[*key, seconds[repr(key)]] for key in calls]
    with torch.no_grad():
        ones, twos = (_operator(operator)(*_inputs(4096, seed)) for operator in (LA1, LA2))
    return {"rows": rows, "difference": float((ones - twos).abs().max() / ones.abs().max())}


def train_text(algorithm: str, seed: int, steps: int) -> dict[str, Any]:
    """A small byte-level language model trained with one of the algorithms: its held-out loss."""
    layer = LightningAttention1 if algorithm == LA1 else LightningAttention
    model = decoder(lambda i: layer(64, NUM_HEADS, layer_index=i, num_layers=2), seed=seed)
    return fit(model, seed=seed, steps=steps, learning_rate=3e-3, length=128, batch_size=8)


def _inputs(length: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, length, NUM_HEADS, HEAD_DIM, generator=generator) for _ in range(3))
    return q, k, v


def _operator(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if name == SOFTMAX:
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    decay = -decay_slopes(NUM_HEADS, device=torch.device("cpu")).float()
    if name == LA1:
        return lambda q, k, v: left_product(q, k, v, decay)
    return lambda q, k, v: linear_attention(q, k, v, log_decay=decay, scale=1.0)[0]


def _passes(name: str, length: int, seed: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """The forward pass alone and with the backward pass, as calls of no arguments."""
    operator = _operator(name)
    inputs = _inputs(length, seed)
    if name == SOFTMAX:
        inputs = tuple(x.transpose(1, 2) for x in inputs)  # type: ignore[assignment]
    leaves = [x.clone().requires_grad_() for x in inputs]

    def forward() -> Tensor:
        with torch.no_grad():
            return operator(*inputs)

    yield FORWARD, forward
    yield BOTH, lambda: torch.autograd.grad(operator(*leaves), leaves, inputs[2])


def _run(config: RecipeConfig) -> Verdict:
    seeds, rounds, steps = (1, 1, 40) if config.quick else (3, 3, 200)
    # alone on the machine, so that none disturbs the times of another
    times = run_cells(config, measure_times, [{"seed": s, "rounds": rounds} for s in range(seeds)], at_once=1)
    return judge(times, measure(config, train_text, "algorithm", (LA1, LA2), seeds=seeds, steps=steps))


def judge(times: list[dict[str, Any]], texts: Runs) -> Verdict:
    """The verdict on results of `measure_times`, one a seed, and of `train_text`, one a seed and algorithm."""
    tables = [{(name, passes, length): time for name, passes, length, time in found["rows"]} for found in times]

    def ratio(above: tuple[str, str, int], below: tuple[str, str, int]) -> Interval:
        return Interval.of([table[above] / table[below] for table in tables])

    def growth(name: str, passes: str, length: int) -> Interval:
        return Interval.of([t[name, passes, length] / t[name, passes, 1024] * 1024 / length for t in tables])

    constant = {passes: growth(LA2, passes, 16384) for passes in (FORWARD, BOTH)}
    linear = {passes: growth(LA1, passes, 8192) for passes in (FORWARD, BOTH)}
    to_la1, to_softmax = (ratio((name, FORWARD, 4096), (LA2, FORWARD, 4096)) for name in (LA1, SOFTMAX))
    difference = max(found["difference"] for found in times)
    gap = max(abs(a - b) for a, b in zip(texts.of(LA1, "loss.1"), texts.of(LA2, "loss.1"), strict=True))
    mark = Check.between
    checks = (
        *(
            mark(f"time per token of LA-2, {passes}, at 16384 at most 2 x that at 1024", grown, high=2.0)
            for passes, grown in constant.items()
        ),
        *(
            mark(f"time per token of LA-1, {passes}, at 8192 at least 6 x that at 1024", grown, low=6.0)
            for passes, grown in linear.items()
        ),
        mark("LA-2 at least 5 x as fast as LA-1 at 4096, forward", to_la1, low=5.0),
        mark("LA-2 more than 1 x as fast as SDPA at 4096, forward", to_softmax, above=1.0),
        Check(f"outputs of LA-1 and LA-2 equal to 1e-4 of the largest: {difference:.1e}", difference <= 1e-4),
        Check(f"losses of models trained with LA-1 and LA-2 within 0.02 nats: at most {gap:.5f} apart", gap <= 0.02),
    )
    figures = {
        "LA-1's time over LA-2's at 4096, forward + backward": str(ratio((LA1, BOTH, 4096), (LA2, BOTH, 4096))),
        "SDPA's time over LA-2's at 4096, forward + backward": str(ratio((SOFTMAX, BOTH, 4096), (LA2, BOTH, 4096))),
        **texts.figures("loss with {}, nats a byte", "loss.1"),
    }
    charts = (
        *(_by_length(tables, p) for p in (FORWARD, BOTH)),
        Chart("Training", "step", "nats a byte", texts.curves()),
    )
    return Verdict(checks, figures, charts)


def _by_length(tables: list[dict[tuple[str, str, int], float]], passes: str) -> Chart:
    series = {
        name: [(n, 1e6 * Interval.of([table[name, passes, n] for table in tables]).mean / n) for n in lengths]
        for name, lengths in LENGTHS.items()
    }
    return Chart(f"Time per token, {passes}", "tokens", "µs a token", series, log_x=True, log_y=True)


RECIPE = Recipe(
    name="lightning-attention",
    paper="arXiv:2401.04658, section 4",
    claim="lightning attention 2 computes what the left product computes, at a time per token that stays constant as "
    "the sequence grows, and models trained with either are the same",
    run=_run,
)
