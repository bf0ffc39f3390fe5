"""The measuring instruments: fair turns, medians, peaks that are seen, machines that are described."""

from __future__ import annotations

import pytest
import torch

from attensor.bench import measure_peak_bytes, memory, paired, processor, timing
from attensor.bench.machine import describe, torch_threads
from attensor.bench.memory import measure_tensor_bytes
from attensor.bench.timing import Quartiles, alternate, own_seconds_of, turns


def test_contestants_take_turns_in_both_directions() -> None:
    calls: list[str] = []
    result = paired({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=2)
    assert "".join(calls) == "aabb" + "ab" + "ba" + "ab"
    assert list(result) == ["a", "b"]


def test_a_call_may_lead_in_and_be_reported() -> None:
    calls: list[str] = []
    alternate(
        {"a": lambda: calls.append("a")}, rounds=2, warmup=0, lead_in=1, after_call=lambda name: calls.append("!")
    )
    assert "".join(calls) == "aa!aa!"


def test_the_median_round_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 1, 10, 100, 200, 203])  # rounds of 1, 90 and 3 seconds
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert paired({"a": int}, rounds=3) == {"a": 3}


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        paired({"a": int}, rounds=0)


@pytest.mark.parametrize("mebibytes", [17, 61])
def test_peak_sees_what_is_held_at_the_same_time(mebibytes: int) -> None:
    def call() -> None:
        first = torch.ones(mebibytes * 2**18)
        first.add_(torch.ones(mebibytes * 2**18))

    for _ in range(2):  # the second time the pages of the first must not seem free of charge
        assert measure_peak_bytes(call) == pytest.approx(2 * mebibytes * 2**20, rel=0.1)


def test_peak_counts_pages_that_were_in_use_before() -> None:
    """Freed memory that the allocator keeps would otherwise be handed out again and cost nothing."""

    def call() -> list[torch.Tensor]:
        return [torch.ones(2**14) for _ in range(600)]  # small enough to come from the heap

    blocks = call()
    last = torch.ones(2**14)  # keeps the heap from shrinking by itself
    del blocks
    assert measure_peak_bytes(call) == pytest.approx(600 * 2**16, rel=0.1)
    del last


def test_peak_forgets_an_earlier_larger_peak() -> None:
    torch.ones(2**26)
    assert measure_peak_bytes(lambda: torch.ones(2**22)) == pytest.approx(2**24, rel=0.1)


def test_peak_without_a_resettable_mark_measures_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_RESET", memory.Path("/nonexistent/clear_refs"))
    monkeypatch.setattr(memory, "_STATUS", memory.Path("/nonexistent/status"))
    mark = memory._mark()
    assert measure_peak_bytes(lambda: None) == 0
    assert measure_peak_bytes(lambda: torch.ones(mark // 4 + 2**24)) > 2**24  # beyond any earlier peak


def test_tensors_are_counted_to_the_byte() -> None:
    kept = torch.ones(3, 7)  # from before: its end is no gain

    def call() -> None:
        nonlocal kept
        first = torch.ones(1001, 13)
        second = first.clone()  # both at once, and the largest moment
        del first
        kept = torch.ones(5)
        second[:17].clone()

    assert [measure_tensor_bytes(call) for _ in range(3)] == [2 * 4 * 1001 * 13] * 3


def test_tensors_of_the_backward_pass_are_counted() -> None:
    weight = torch.ones(997, 11, requires_grad=True)

    def call() -> None:
        (weight.exp() * torch.ones(997, 11)).sum().backward()
        weight.grad = None

    unit = 4 * 997 * 11
    assert 3 * unit <= measure_tensor_bytes(call) <= 4 * unit + 64
    assert measure_tensor_bytes(call) == measure_tensor_bytes(call)


def test_what_only_a_first_call_takes_is_not_counted_again() -> None:
    """A table that is built once is held before the second call."""
    tables: list[torch.Tensor] = []

    def call() -> None:
        if not tables:
            tables.append(torch.ones(100_003))
        torch.ones(1009)

    assert [measure_tensor_bytes(call) for _ in range(3)] == [4 * 101_012, 4 * 1009, 4 * 1009]


def test_tensors_in_cycles_live_to_the_end_of_the_call() -> None:
    class Node:
        def __init__(self) -> None:
            self.tensor, self.me = torch.ones(1013), self

    assert measure_tensor_bytes(lambda: [Node() for _ in range(50)] and None) == 50 * 4 * 1013


def test_nothing_is_printed_while_memory_is_counted(capfd: pytest.CaptureFixture[str]) -> None:
    measure_tensor_bytes(lambda: torch.ones(3))
    assert capfd.readouterr() == ("", "")


def test_turns_are_spread_over_the_same_time() -> None:
    assert "".join(turns({"a": 4, "b": 4})) == "ab" + "ba" + "ab" + "ba"
    order = "".join(turns({"a": 6, "b": 2, "c": 3}))
    assert {name: order.count(name) for name in "abc"} == {"a": 6, "b": 2, "c": 3}
    # each third of the time has two of a's turns and one of c's, each half one of b's
    assert order == "a" + "ca" + "ab" + "ca" + "a" + "cba"
    assert list(turns({})) == []


def test_quartiles_lie_between_the_nearest() -> None:
    assert Quartiles.of([4.0, 1.0, 2.0, 8.0, 5.0]) == (2.0, 4.0, 5.0)
    assert Quartiles.of([2.0, 4.0]) == (2.5, 3.0, 3.5)
    assert Quartiles.of([7.0]) == (7.0, 7.0, 7.0)


def test_the_wait_for_a_processor_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, queue = iter([10.0, 13.0]), iter([1.0, 1.5])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(timing, "queued_seconds", lambda: next(queue))
    assert own_seconds_of(lambda: None) == 2.5


def test_one_thread_inside_the_block_only() -> None:
    torch.set_num_threads(2)
    try:
        with torch_threads(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_measurement_says_where_it_was_taken() -> None:
    facts = describe("einops", "no-such-package")
    assert facts["torch"] == torch.__version__
    assert facts["processor"] == processor() != ""
    assert facts["no-such-package"] == "not installed"
    assert set(facts) >= {"date", "cores", "threads", "python", "attensor"}
