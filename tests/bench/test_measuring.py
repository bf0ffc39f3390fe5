"""The measuring instruments: fair turns, medians, peaks that are seen, machines that are described."""

from __future__ import annotations

import pytest
import torch

from attensor.bench import measure_peak_bytes, memory, paired, processor, timing
from attensor.bench.machine import describe, torch_threads
from attensor.bench.timing import alternate


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
