"""The sizes that belong to a mechanism are found from what was measured with its formulas."""

from __future__ import annotations

import pytest

from attensor import catalogue
from attensor.report.sized import sized

from .sample_results import sample_results


def measured(name, *, length, context, **own):
    """Results with one mechanism whose rows are what its card's formulas say for these sizes."""
    card = catalogue.mechanism(name)
    results = sample_results(count=1)
    known = {"B": 1, "H": 2, "K": 32, "V": 32, **own}
    row = results["mechanisms"][0] | {"name": name, "formula": {"flops": card.flops, "state_bytes": card.state_bytes}}
    row["cost"] = [{"length": length, "flops": card.cost("flops", **known, T=length)}]
    row["decode"] = [{"context": context, "batch": 1, "state_bytes": card.cost("state_bytes", **known, T=context)}]
    return results | {"mechanisms": [row]}


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("sliding-window", {"W": 64, "M": 61}),
        ("nprf-rpe", {"F": 16, "M": 77}),
        ("softmax", {}),
        ("neighborhood", {"M": 23}),
    ],
)
def test_own_symbols_are_solved_for(name, own):
    found = sized(measured(name, length=4096, context=2048, **own))
    assert found["rows"][0]["own"] == own
    assert set(own) <= set(found["symbols"])


def test_a_symbol_that_nothing_tells_stays_open():
    results = measured("sliding-window", length=4096, context=2048, W=64, M=61)
    results["mechanisms"][0]["decode"] = []
    assert sized(results)["rows"][0]["own"] == {"M": 61, "W": None}


def test_sizes_in_the_results_go_before_those_solved_for():
    results = measured("sliding-window", length=4096, context=2048, W=64, M=61)
    results["mechanisms"][0]["formula"]["sizes"] = {"W": 100}
    assert sized(results)["rows"][0]["own"] == {"M": 61, "W": 100}


def test_symbols_are_explained_by_the_card_that_uses_them():
    results = sample_results(count=25)
    meanings = sized(results)["symbols"]
    assert meanings["W"] == catalogue.mechanism("sliding-window").symbols["W"]
    # two cards mean two things by M: both are told, each with its card
    assert meanings["M"].count("(sliding-window)") == meanings["M"].count("(nprf-rpe)") == 1
    results["mechanisms"][1]["name"] = "other"
    assert sized(results)["symbols"]["W"] == "a size of the layer, as in its card"


def test_a_formula_that_is_none_is_left_out():
    results = sample_results(count=1)
    results["mechanisms"][0]["formula"] = {"flops": "alert(1)", "state_bytes": "4*B*H*K*V"}
    (row,) = sized(results)["rows"]
    assert row["trees"] == {"flops": None, "state_bytes": ["*", ["*", ["*", ["*", 4, "B"], "H"], "K"], "V"]}
    results["mechanisms"][0]["formula"] = None
    assert sized(results)["rows"] == []
