"""`attensor bench decode`: every causal card, and transformers' layers, which compute the same at every context."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from attensor.bench.contest import OURS
from attensor.bench.contestants import decode
from attensor.bench.contestants.decode_peers import PEERS_OF
from attensor.bench.hold import hold
from attensor.catalogue import mechanisms
from attensor.commands.bench_decode import BenchDecode

SMALL = BenchDecode(contexts=(70,), rounds=1, hidden_size=24, num_heads=4, batch_size=2)


def test_every_causal_card_is_timed_with_the_state_of_its_formula(tmp_path: Path) -> None:
    assert hold("decode", replace(SMALL, save=True), Console(quiet=True), folder=tmp_path) == 0
    written = json.loads(next(tmp_path.glob("*-decode-b2-c24-h4-cpu.json")).read_text())
    for check in written["checks"]:
        assert check["reason"] == "", check
        assert check["max_error"] < 1e-4, check
    ours = {
        (row["problem"]["mechanism"], row["problem"]["context"]): row for row in written["rows"] if row["peer"] == OURS
    }
    cards = {name: card for name, card in mechanisms().items() if name in decode.causal()}
    assert set(ours) == {(name, context) for name in cards for context in SMALL.contexts}
    for (name, context), row in ours.items():
        layer = decode.DecodeProblem(name, context, 2, 24, 4).layer
        assert row["state_bytes"] == cards[name].cost("state_bytes", B=2, **layer.cost_sizes((context,)))
        assert row["seconds"] > 0
    theirs = [row for row in written["rows"] if row["peer"] != OURS]
    assert {row["problem"]["mechanism"] for row in theirs} == set(PEERS_OF)
    assert all(row["seconds"] and row["state_bytes"] for row in theirs)
    assert "milliseconds a token" in next(tmp_path.glob("*.md")).read_text()


@pytest.mark.parametrize("name", PEERS_OF)
def test_both_are_brought_to_the_same_context(name: str) -> None:
    """Repeated tokens, counters and positions: the layers still agree."""
    problem = decode.DecodeProblem(name, 150, 2, 24, 4)
    ours, theirs = (peer.build(problem) for peer in decode.PEERS)
    with torch.no_grad():
        expected = theirs.forward()
        assert (ours.forward() - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert theirs.state_bytes > 0


def test_what_is_no_causal_mechanism_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bench decode: --mechanisms: 'axial' is none of gated-deltanet, gla"):
        decode.bench(BenchDecode(mechanisms=("axial",)))
    bench = decode.bench(BenchDecode(mechanisms=("attention", "gla", "softmax"), contexts=(64, 48, 64)))
    assert [[problem.label for problem in cell.problems] for cell in bench.cells] == [
        ["softmax, context 48", "gla, context 48"],
        ["softmax, context 64", "gla, context 64"],
    ]
    with pytest.raises(ValueError, match="--contexts must be at least 48, a prompt, got 8"):
        decode.bench(BenchDecode(contexts=(64, 8)))
