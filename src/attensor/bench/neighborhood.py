"""`attensor bench neighborhood`: neighbourhood attention against the ways of getting it without a kernel.

The contestants are a gather of each query's own keys (what `unfold` gives), dense attention under a boolean mask, and
NATTEN where it is installed. B = 1, one thread, all in one run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from attensor.bench.machine import describe, matrix_product, single_thread
from attensor.bench.memory import measure_peak_bytes
from attensor.bench.peers import natten_na2d
from attensor.bench.table import Table, publish
from attensor.bench.timing import paired
from attensor.ops import neighborhood_attention

__all__ = ["SETTINGS", "Setting", "gather_attention", "measure_memory", "measure_time", "run"]

OURS = "ours"
PRODUCT = "matrix product"


@dataclass(frozen=True)
class Setting:
    """One problem: a square grid, a square window, heads."""

    side: int
    window_size: int
    num_heads: int = 4
    head_dim: int = 32

    @property
    def title(self) -> str:
        """What a table of this setting is called."""
        return (
            f"neighborhood_attention, {self.side} x {self.side}, window {self.window_size}, "
            f"{self.num_heads} heads of {self.head_dim}"
        )


SETTINGS = (Setting(64, 13), Setting(32, 7))
WINDOWS = (3, 5, 7, 9, 13)


def run(
    console: Console,
    *,
    settings: Sequence[Setting] = SETTINGS,
    windows: Sequence[int] = WINDOWS,
    rounds: int = 5,
    save: bool = False,
    folder: Path = Path("benchmarks/results"),
) -> None:
    """Measure, print and optionally save the tables. Takes a few minutes at the default sizes."""
    with single_thread():
        tables = [measure_time(setting, rounds=rounds) for setting in settings]
        tables.append(measure_memory(settings[0].side, windows))
        publish("neighborhood", tables, describe("natten"), save=save, folder=folder, console=console)


def measure_time(setting: Setting, *, rounds: int) -> Table:
    """How many times faster ours is than each contestant, forward alone and with the backward pass."""
    table = Table(
        setting.title,
        ("contestant", "pass", "time against ours", "of matmul rate", "peak MiB"),
        note="Fraction of the rate of a 1024 x 1024 matrix product in the same run, counting the two products over "
        "the window only (twice more for the backward pass).",
    )
    for name, passes in (("forward", 1), ("forward + backward", 3)):
        calls = _contestants(setting, with_backward=passes > 1)
        seconds = paired(calls | {PRODUCT: matrix_product()}, rounds=rounds)
        rate = 2.0 * 1024**3 / seconds[PRODUCT]
        for contestant, call in calls.items():
            time = seconds[contestant]
            share = passes * _useful_flops(setting) / time / rate
            peak = measure_peak_bytes(call) / 2**20
            table.rows.append((contestant, name, f"{time / seconds[OURS]:.1f}x", f"{share:.1%}", f"{peak:.1f}"))
    return table


def measure_memory(side: int, windows: Sequence[int]) -> Table:
    """Peak memory of the forward pass against the window, ours beside the gather."""
    table = Table(f"peak MiB of the forward pass, {side} x {side}", ("window", OURS, "gather"))
    for window_size in windows:
        calls = _contestants(Setting(side, window_size), with_backward=False)
        peaks = [measure_peak_bytes(calls[name]) / 2**20 for name in (OURS, "gather")]
        table.rows.append((str(window_size), *(f"{peak:.1f}" for peak in peaks)))
    return table


def gather_attention(q: Tensor, k: Tensor, v: Tensor, window_size: int) -> Tensor:
    """Neighbourhood attention by copying each query's keys and values: the contestant, not an operator.

    Args:
        q, k, v: [1, side, side, H, D].
        window_size: odd keys an axis.
    """
    side, (heads, width) = q.shape[1], q.shape[3:]
    keys_of = _neighbours(side, window_size)  # [T, W]
    q, k, v = (x.view(side * side, heads, width) for x in (q, k, v))
    near_k, near_v = k[keys_of], v[keys_of]  # [T, W, H, D]
    weights = torch.einsum("thd,twhd->thw", q * width**-0.5, near_k).softmax(-1)
    return torch.einsum("thw,twhd->thd", weights, near_v).view(1, side, side, heads, width)


def _contestants(setting: Setting, *, with_backward: bool) -> dict[str, Callable[[], object]]:
    side, window = setting.side, setting.window_size
    generator = torch.Generator().manual_seed(side)
    shape = (1, side, side, setting.num_heads, setting.head_dim)
    q, k, v, upstream = (torch.randn(shape, generator=generator) for _ in range(4))
    leaves = [x.requires_grad_(with_backward) for x in (q, k, v)]
    mask = torch.zeros(side * side, side * side, dtype=torch.bool).scatter_(1, _neighbours(side, window), True)

    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(shape)

    def passes(operator: Callable[..., Tensor]) -> Callable[[], object]:
        if with_backward:
            return lambda: torch.autograd.grad(operator(*leaves), leaves, upstream)
        return lambda: operator(*leaves)

    found = {
        OURS: passes(lambda q, k, v: neighborhood_attention(q, k, v, window_size=window)),
        "gather": passes(lambda q, k, v: gather_attention(q, k, v, window)),
        "dense SDPA, masked": passes(dense),
    }
    peer = None if with_backward else natten_na2d()
    if peer is not None:
        found["natten (FlexAttention)"] = passes(lambda *x: peer(*x, kernel_size=window))
    return found


def _neighbours(side: int, window_size: int) -> Tensor:
    """[T, W]: which tokens each token of a square grid attends to; windows are shifted inwards at the border."""
    start = (torch.arange(side) - window_size // 2).clamp(0, side - window_size)
    axis = start[:, None] + torch.arange(window_size)  # [side, window]
    tokens = axis[:, None, :, None] * side + axis[None, :, None, :]  # [side, side, window, window]
    return tokens.reshape(side * side, window_size**2)


def _useful_flops(setting: Setting) -> int:
    """Two products over the keys that a query may see, and nothing for those that a tile computes and masks."""
    return 4 * setting.side**2 * setting.window_size**2 * setting.num_heads * setting.head_dim
