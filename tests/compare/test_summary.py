"""The sentences follow the numbers: turn a number round, and the sentence turns too."""

from __future__ import annotations

import pytest

from attensor.compare.summary import answer

LENGTHS = (256, 1024, 4096, 16384)


def row(name, mean, spread, power, *, at_4x=None, state=None, status="ok", reason=None):
    cost = [
        {"length": n, "forward_ms": n**power / 1e3, "forward_backward_ms": 3 * n**power / 1e3, "peak_bytes": 100 * n}
        for n in LENGTHS
    ]
    decode = [{"context": n, "ms_per_token": n / 1e4, "state_bytes": (state or n * 512)} for n in LENGTHS]
    score = None if mean is None else {"mean": mean, "spread": spread}
    return {
        "name": name,
        "status": status,
        "reason": reason,
        "parameters": 123_456,
        "score": score,
        "score_4x": None if mean is None else {"mean": mean if at_4x is None else at_4x, "spread": spread},
        "runs": [] if mean is None else [{"curve": [{"tokens": 1_500_000}]}],
        "cost": cost if status == "ok" else [],
        "decode": decode if status == "ok" else [],
    }


def results(*rows, kind="text"):
    return {
        "mechanisms": list(rows),
        "quality": {"metric": "bits per byte", "lower_is_better": True},
        "data": {"kind": kind},
        "plan": {"length": 128},
        "machine": {"device": "cpu"},
    }


def said(*rows):
    return " ".join(answer(results(*rows)))


def test_the_best_is_named_with_its_spread_and_the_last_too():
    text = said(row("square", 2.4, 0.01, 2), row("line", 2.2, 0.02, 1))
    assert "Best quality: line, 2.200 ± 0.020 bits per byte. Last: square, 2.400" in text


def test_a_tie_is_called_one():
    text = said(row("square", 2.21, 0.02, 2), row("line", 2.2, 0.01, 1), row("last", 3.0, 0.0, 1))
    assert "square (2.210 ± 0.020 bits per byte) cannot be told from it" in text


def test_the_crossing_of_the_costs_is_named():
    # 256 ** 2 / 256 ** 1.25 = 64, so that a factor of 64 makes them equal at 256
    steep, flat = row("steep", 2.2, 0.0, 2), row("flat", 2.4, 0.0, 1)
    for cost in flat["cost"]:
        cost["forward_backward_ms"] *= 1024
    text = said(steep, flat)
    assert "Up to 1k tokens on this machine steep is the fastest layer (forward and backward)" in text
    assert "from 4k tokens on flat is, 16.0x faster than steep at 16k" in text
    assert "The best in quality, steep, takes as little as any at 256 tokens and 16.0x the time of the fastest" in text


def test_a_loss_at_longer_contexts_is_named():
    text = said(row("forgets", 2.2, 0.0, 1, at_4x=3.1), row("keeps", 2.3, 0.0, 1))
    assert "Read at 512 tokens, 4 times the training length, the best is keeps (2.300" in text
    assert "forgets loses most, from 2.200 to 3.100" in text


def test_state_and_time_of_decoding_are_given_at_the_longest_context():
    text = said(row("cache", 2.2, 0.0, 1), row("state", 2.3, 0.0, 1, state=4096))
    assert "Decoding after 16k tokens, a layer keeps from 4 KiB (state) to 8 MiB (cache) for one sequence" in text


def test_failures_and_missing_rows_are_named():
    text = said(
        row("good", 2.2, 0.0, 1),
        row("bad", None, None, 1, status="failed", reason="leaks the future: changing token 9 changed output 3."),
        row("late", None, None, 1, status="unfinished"),
    )
    assert "bad has no result: leaks the future: changing token 9 changed output 3. " in text
    assert "Not finished: late" in text


@pytest.mark.parametrize("status", ["failed", "unfinished"])
def test_nothing_trained_is_no_ranking(status):
    sentences = answer(results(row("a", None, None, 1, status=status, reason="out of memory")))
    assert sentences[0].startswith("No mechanism has been trained to the end")


def test_how_little_it_was_trained_is_said():
    assert "123 thousand parameters after 1.5 million training tokens a run" in said(row("a", 2.0, 0.0, 1))
