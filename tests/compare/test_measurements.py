"""Cost and decode measurements: what is measured, and that they stop in time, with a reason, without a crash."""

from __future__ import annotations

import contextlib
import time

import pytest
import torch
from torch import nn

from attensor.compare import cost
from attensor.compare.cost import measure_cost, measure_decode
from attensor.compare.measure import Stack, _cost_row
from attensor.compare.tasks import doubled
from tests.compare.mixers import Mean

SPACES = [(16,), (32,), (64,), (128,)]


class Counter(nn.Module):
    """A cache that only counts, of one byte a token."""

    def __init__(self):
        super().__init__()
        self.pieces = []

    def new_cache(self, batch_size):
        outer = self

        class Cache:
            length = 0
            nbytes = property(lambda self: self.length * batch_size)

        outer.cache = Cache()
        return outer.cache

    def forward(self, hidden_states, *, cache):
        cache.length += hidden_states.shape[1]
        self.pieces.append(hidden_states.shape[1])
        return hidden_states


def measured(mixer, spaces=SPACES, seconds=60.0):
    rows = []
    stopped = measure_cost(
        mixer, 5, spaces, seconds=seconds, device="cpu", precision=contextlib.nullcontext, on_row=rows.append
    )
    return rows, stopped


def test_every_length_is_measured():
    rows, stopped = measured(Mean(5, 1))
    assert stopped is None
    assert [row.length for row in rows] == [16, 32, 64, 128]
    assert all(row.forward > 0 and row.forward_backward > 0 for row in rows)


def test_cells_of_a_grid_are_counted():
    class Cells(Mean):
        def forward(self, hidden_states):
            return self.proj(hidden_states)

    rows, _ = measured(Cells(5, 1), [(2, 3), (4, 6)])
    assert [row.length for row in rows] == [6, 24]


def test_it_stops_before_a_length_that_takes_too_long(monkeypatch):
    rows = [cost.Cost(128, 0.1, 0.1, 1000), cost.Cost(256, 0.4, 0.4, 2000)]
    monkeypatch.setattr(cost, "available_bytes", lambda device: None)
    # four times the time for twice the length: 512 takes 1.6 s a call, twice forward and twice with the backward pass
    assert cost._why_not(rows, (512,), time.monotonic() + 60, "cpu") is None
    assert cost._why_not(rows, (512,), time.monotonic() + 6, "cpu").startswith(
        "stopped at 256: 512 would take about 1.6 s"
    )
    rows, stopped = measured(Mean(5, 1), [(64,), (128,)], seconds=1e-9)
    assert stopped.startswith("stopped at 64: 128 would take about")
    assert [row.length for row in rows] == [64]


def test_it_stops_before_memory_runs_out(monkeypatch):
    rows = [cost.Cost(1024, 1e-3, 1e-3, 1_000_000), cost.Cost(2048, 2e-3, 2e-3, 4_000_000)]
    monkeypatch.setattr(cost, "available_bytes", lambda device: 20_000_000)
    assert cost._why_not(rows, (4096,), time.monotonic() + 60, "cpu") == (
        "stopped at 2048: 4096 would need about 15.3 MiB of the 19.1 MiB that are free"
    )
    monkeypatch.setattr(cost, "available_bytes", lambda device: 30_000_000)
    assert cost._why_not(rows, (4096,), time.monotonic() + 60, "cpu") is None


@pytest.mark.parametrize(
    ("error", "what"),
    [(RuntimeError("can't allocate memory: 9 GB"), "out of memory"), (IndexError("9"), "IndexError: 9")],
)
def test_a_failure_at_a_longer_length_keeps_the_shorter_ones(error, what):
    class Breaks(Mean):
        def forward(self, hidden_states):
            if hidden_states.shape[1] > 32:
                raise error
            return super().forward(hidden_states)

    rows, stopped = measured(Breaks(5, 1))
    assert [row.length for row in rows] == [16, 32]
    assert stopped == f"stopped at 32: 64 failed ({what})"


def test_decoding_fills_one_cache_to_each_context():
    mixer, rows = Counter(), []
    contexts = [300, 600, 1200]
    stopped = measure_decode(
        mixer, 5, contexts, seconds=60, device="cpu", precision=contextlib.nullcontext, on_row=rows.append
    )
    assert stopped is None
    assert [(row.context, row.state_bytes) for row in rows] == [(c, c) for c in contexts]
    assert max(mixer.pieces) == 512
    assert mixer.cache.length == 1219


def test_a_mixer_without_a_cache_is_named():
    stopped = measure_decode(Mean(5, 1), 5, [3], seconds=60, device="cpu", precision=contextlib.nullcontext)
    assert stopped == "Mean has no new_cache(), so it cannot decode token by token"


def test_a_stack_costs_as_its_layers_together():
    from attensor.nn import GatedLinearAttention, SoftmaxAttention

    layers = [GatedLinearAttention(16, 2), SoftmaxAttention(16, 2)]
    stack, inputs = Stack(layers), torch.randn(1, 24, 16)
    assert torch.equal(stack(inputs), layers[0](inputs) + layers[1](inputs))
    cache = stack.new_cache(1)
    pieces = [stack(piece, cache=cache) for piece in inputs.split(8, 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), stack(inputs))
    alone = [layer.new_cache(1) for layer in layers]
    for layer, one in zip(layers, alone, strict=True):
        layer(inputs, cache=one)
    assert cache.nbytes == sum(one.nbytes for one in alone)
    row = _cost_row(cost.Cost(64, 2.0, 6.0, 1000), 500, 2)
    assert row == {"length": 64, "forward_ms": 1e3, "forward_backward_ms": 3e3, "peak_bytes": 500, "flops": 500}


def test_lengths_double_up_to_the_longest():
    assert doubled(256, 16384) == [256, 512, 1024, 2048, 4096, 8192, 16384]
    assert doubled(256, 1000) == [256, 512]
    assert doubled(256, 100) == [100]


def test_measuring_leaves_no_gradients():
    mixer = Mean(5, 1)
    measured(mixer)
    assert all(p.grad is None for p in mixer.parameters())
    assert torch.is_grad_enabled()
