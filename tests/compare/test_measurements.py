"""Cost and decode measurements: what is measured, and that they stop in time, with a reason, without a crash."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from attensor.compare import cost, decoding
from attensor.compare.cost import CostContender, Setting
from attensor.compare.decoding import DecodeContender, GenerationContender, decode_sizes
from attensor.compare.measure import Stack
from attensor.compare.rounds import in_turns
from attensor.compare.tasks import doubled
from attensor.models.language import Decoder, DecoderConfig
from tests.compare.mixers import Mean

SPACES = [(16,), (32,), (64,), (128,)]


class Counter(nn.Module):
    """A cache that only counts, of one byte a token, and of the last `window` of them at most."""

    def __init__(self, window=None):
        super().__init__()
        self.window, self.pieces, self.caches = window, [], []

    def new_cache(self, batch_size):
        outer = self

        class Cache:
            length = 0
            nbytes = property(lambda self: min(self.length, outer.window or self.length) * batch_size)

        self.caches.append(Cache())
        return self.caches[-1]

    def forward(self, hidden_states, *, cache):
        cache.length += hidden_states.shape[1]
        self.pieces.append(hidden_states.shape[1])
        return hidden_states


SETTING = Setting(5, "cpu", contextlib.nullcontext)


def measured(mixer, spaces=SPACES, **options):
    contender = CostContender("it", mixer, SETTING, **options)
    in_turns([contender], spaces)
    return contender


def a_row(length, forward_ms, both_ms, peak_bytes):
    return {"length": length, "forward_ms": forward_ms, "forward_backward_ms": both_ms, "peak_bytes": peak_bytes}


@pytest.mark.slow
def test_every_length_is_measured():
    found = measured(Mean(5, 1), flops=lambda space: 7 * space[0])
    assert found.stopped is None
    assert [row["length"] for row in found.rows] == [16, 32, 64, 128]
    assert [row["flops"] for row in found.rows] == [112, 224, 448, 896]
    for row in found.rows:
        for key in ("forward", "forward_backward"):
            low, high = row[f"{key}_quartiles"]
            assert 0 < low <= row[f"{key}_ms"] <= high


class Cells(Mean):
    def forward(self, hidden_states):
        return self.proj(hidden_states)


def test_cells_of_a_grid_are_counted():
    assert [row["length"] for row in measured(Cells(5, 1), [(2, 3), (4, 6)]).rows] == [6, 24]


class Holds(nn.Module):
    """Holds `units` more tensors of its input's size, squared in the length, while it runs."""

    def __init__(self, units):
        super().__init__()
        self.units, self.table = units, {}

    def forward(self, hidden_states):
        length = hidden_states.shape[1]
        if length not in self.table:  # the first call of a length
            self.table[length] = torch.ones(99, length, length)
        held = torch.ones(self.units, length, length)
        return hidden_states * held[0, 0, 0]


@pytest.mark.slow
def test_peak_memory_is_that_of_the_tensors_to_the_byte():
    """Twice the tensors, twice the bytes; tables of a first call and repetitions change nothing."""
    peaks = {units: [row["peak_bytes"] for row in measured(Holds(units)).rows] for units in (23, 46)}
    for (length,), one, two in zip(SPACES, *peaks.values(), strict=True):
        assert two - one == 23 * 4 * length * length
    assert peaks[23] == sorted(peaks[23]) == [row["peak_bytes"] for row in measured(Holds(23)).rows]


def test_it_stops_before_a_length_that_takes_too_long(monkeypatch):
    # four times the time for twice the length: 512 takes 1.6 s a call, once for the memory and three times more
    contender = CostContender("it", Mean(5, 1), SETTING, rows=[a_row(128, 100, 100, 1000), a_row(256, 400, 400, 2000)])
    monkeypatch.setattr(cost, "available_bytes", lambda device: None)
    contender.spent = contender.limit - 13.0
    assert contender.why_not((512,)) is None
    contender.spent = contender.limit - 12.0
    assert contender.why_not((512,)).startswith("stopped at 256: 512 would take about 1.6 s")
    # accounting for its memory took longer than the calls
    contender.spent, contender.spent_last = 0.0, 5.5
    assert contender.why_not((512,)).startswith("stopped at 256: 512 would take about 1.6 s")
    assert CostContender("it", Mean(5, 1), SETTING).why_not((512,)) is None


def test_it_stops_before_memory_runs_out(monkeypatch):
    rows = [a_row(1024, 1, 1, 1_000_000), a_row(2048, 2, 2, 4_000_000)]
    contender = CostContender("it", Mean(5, 1), SETTING, rows=rows)
    monkeypatch.setattr(cost, "available_bytes", lambda device: 20_000_000)
    assert contender.why_not((4096,)) == (
        "stopped at 2048: 4096 would need about 15.3 MiB of the 19.1 MiB that are free"
    )
    monkeypatch.setattr(cost, "available_bytes", lambda device: 30_000_000)
    assert contender.why_not((4096,)) is None


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

    found = measured(Breaks(5, 1))
    assert [row["length"] for row in found.rows] == [16, 32]
    assert found.stopped == f"stopped at 32: 64 failed ({what})"


def decoded(mixer, sizes, **options):
    contender = DecodeContender("it", mixer, SETTING, **options)
    in_turns([contender], sizes)
    return contender


def test_decoding_fills_one_cache_to_each_context():
    mixer = Counter()
    found = decoded(mixer, [(1, 300), (1, 600), (1, 1200)])
    assert found.stopped is None
    assert [(row["context"], row["batch"], row["state_bytes"]) for row in found.rows] == [
        (300, 1, 300), (600, 1, 600), (1200, 1, 1200)
    ]  # fmt: skip
    assert max(mixer.pieces) == 512
    assert len(mixer.caches) == 1
    assert mixer.caches[0].length == 1200 + 3 + 2 * len(found.samples[2])


def test_several_sequences_are_decoded_with_caches_of_their_own(monkeypatch):
    def timed(call):
        call()
        return 0.5

    monkeypatch.setattr(decoding, "own_seconds_of", timed)
    monkeypatch.setattr(decoding, "_DECODE_SECONDS", 60.0)
    mixer = Counter()
    found = decoded(mixer, [(1, 300), (1, 600), (8, 300)])
    assert [(row["context"], row["batch"], row["state_bytes"]) for row in found.rows][2] == (300, 8, 2400)
    assert len(mixer.caches) == 2
    # for one token of each sequence, of one layer
    assert [row["ms_per_token"] for row in found.rows] == [500.0, 500.0, 500.0]
    assert decoded(Counter(), [(8, 300)], layers=4).rows[0]["ms_per_token"] == 125.0


@pytest.mark.parametrize("window", [100, 350, None])
def test_a_constant_state_is_one_figure(window):
    """What has the same state at several contexts has one median and one pair of quartiles, of all its tokens."""
    found = decoded(Counter(window), [(1, 200), (1, 400), (1, 800), (8, 400)])
    alike = {100: [[0, 1, 2], [3]], 350: [[0], [1, 2], [3]], None: [[0], [1], [2], [3]]}[window]
    for group in alike:
        times = torch.tensor([time for i in group for time in found.samples[i]], dtype=torch.float64)
        low, median, high = times.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
        for i in group:
            assert found.rows[i]["ms_per_token"] == pytest.approx(median)
            assert found.rows[i]["quartiles"] == pytest.approx([low, high])


def test_decoding_goes_on_where_it_was_interrupted():
    whole = decoded(Counter(100), [(1, 200), (1, 400)])
    mixer = Counter(100)
    rest = decoded(mixer, [(1, 200), (1, 400), (1, 800)], rows=whole.rows, samples=whole.samples)
    assert [row["context"] for row in rest.rows] == [200, 400, 800]
    assert rest.samples[:2] == whole.samples
    assert len({row["ms_per_token"] for row in rest.rows}) == 1
    assert sum(mixer.pieces) == 800 + 3 + 2 * len(rest.samples[2])


def test_contexts_that_take_too_long_to_fill_are_left_out():
    contender = DecodeContender("it", Counter(), SETTING, rows=[{"context": 128, "batch": 1, "state_bytes": 7}])
    contender._filling, contender.spent = 1.0, contender.limit - 5.0
    assert contender.why_not((1, 256)) is None
    assert contender.why_not((1, 512)) == "stopped at 128: filling a context of 512 would take too long"
    assert contender.why_not((4, 128)) is None
    assert contender.why_not((8, 64)) is None
    assert contender.why_not((8, 128)) == "stopped at 128: filling a context of 128 at batch 8 would take too long"


def test_one_sequence_at_all_contexts_and_several_at_one():
    assert decode_sizes(4096) == [*((1, c) for c in (128, 256, 512, 1024, 2048, 4096)), (8, 1024), (32, 1024)]
    assert decode_sizes(300) == [(1, 128), (1, 256), (8, 256), (32, 256)]
    assert decode_sizes(50) == [(1, 50), (8, 50), (32, 50)]


def test_a_mixer_without_a_cache_is_named():
    reason = "Mean has no new_cache(), so it cannot decode token by token"
    assert decoded(Mean(5, 1), [(1, 3)]).stopped == reason
    generation = GenerationContender("it", list, 1, SETTING, Mean(5, 1))
    in_turns([generation], [(1,)])
    assert (generation.stopped, generation.rows) == (reason, [])


def model_with(mixer):
    return Decoder(DecoderConfig(256, 8, 1, 2, 16), lambda index: mixer)


def test_a_whole_model_writes_at_each_batch(monkeypatch):
    from attensor.nn import SoftmaxAttention

    seconds = iter([0.09, 0.5, 0.25, 1.0, 9.0, 2.0, 4.0, 8.0])
    built, wrote = [], []

    def timed(call):
        call()
        return next(seconds)

    def build():
        built.append(model_with(SoftmaxAttention(8, 2)))
        built[0].register_forward_pre_hook(lambda module, inputs: wrote.append(inputs[0].shape))
        return built[0]

    monkeypatch.setattr(decoding, "own_seconds_of", timed)
    contender = GenerationContender("it", build, 1000, SETTING, SoftmaxAttention(8, 2))
    in_turns([contender], [(1,), (8,)])
    assert contender.rows == [
        {"batch": 1, "tokens_per_second": 8 / 0.5},  # three blocks of 8 after the first: 0.5, 0.25, 1
        {"batch": 8, "tokens_per_second": 64 / 4.0},
    ]
    assert len(built) == 1
    assert not built[0].training
    # the prompt, the block that is not counted, and for each of three rounds a token and a block
    assert [tuple(shape) for shape in wrote] == [
        step for batch in (1, 8) for step in [(batch, 64), *((batch, 1),) * (8 + 3 * 9)]
    ]


def test_a_model_that_does_not_fit_is_not_built(monkeypatch):
    monkeypatch.setattr(decoding, "available_bytes", lambda device: 5_000_000)
    contender = GenerationContender("it", list, 1_000_000, SETTING, Counter())
    in_turns([contender], [(1,)])
    assert contender.stopped == "the model would need 3.81 MiB of the 4.77 MiB that are free"


@pytest.mark.slow
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
    setting = Setting(16, "cpu", contextlib.nullcontext)
    rows = {}
    for count in (1, 2):
        contender = CostContender("it", stack, setting, layers=count)
        contender.prepare((24,))
        contender._times = {"forward": [1.0, 2.0, 4.0], "forward_backward": [6.0, 6.0, 6.0]}
        contender.finish()
        rows[count] = contender.rows[0]
    assert rows[1]["forward_ms"] == 2 * rows[2]["forward_ms"] == 2000
    assert rows[1]["forward_quartiles"] == [1500, 3000]
    assert rows[2]["forward_quartiles"] == [750, 1500]
    assert rows[1]["peak_bytes"] == 2 * rows[2]["peak_bytes"]


def test_lengths_double_up_to_the_longest():
    assert doubled(256, 16384) == [256, 512, 1024, 2048, 4096, 8192, 16384]
    assert doubled(256, 1000) == [256, 512]
    assert doubled(256, 100) == [100]


@pytest.mark.slow
def test_measuring_leaves_no_gradients():
    mixer = Mean(5, 1)
    measured(mixer)
    assert all(p.grad is None for p in mixer.parameters())
    assert torch.is_grad_enabled()
