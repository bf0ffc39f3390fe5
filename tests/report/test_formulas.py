"""Formulas become data: the value of a tree is that of the card's own arithmetic, and nothing else is a formula."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attensor import catalogue
from attensor.report.formulas import evaluate, formula_text, solve, symbols, tree

CARDS = catalogue.mechanisms()


@pytest.mark.parametrize("which", ["flops", "state_bytes"])
@pytest.mark.parametrize("name", CARDS)
@settings(max_examples=5)
@given(data=st.data())
def test_a_tree_has_the_value_that_sympy_finds(name, which, data):
    card = CARDS[name]
    sizes = {symbol: data.draw(st.integers(1, 999)) for symbol in card.used_symbols}
    assert evaluate(tree(getattr(card, which)), sizes) == card.cost(which, **sizes)


def test_operations_bind_as_in_mathematics():
    sizes = {"A": 7.0, "B": 3.0}
    assert evaluate(tree("A - B - 2"), sizes) == 2
    assert evaluate(tree("A + 2*B**2"), sizes) == 25
    assert evaluate(tree("(A + 2)*B/9"), sizes) == 3
    assert evaluate(tree("Min(A, B, 5) + Max(A, B)"), sizes) == 10
    assert symbols(tree("Min(A, B) + 3")) == {"A", "B"}


@pytest.mark.parametrize(
    "text",
    [
        *("__import__('os')", "A.real", "A[0]", "lambda: 1", "abs(A)", "ABC", "a", "'A'", "True", "A if B else 1"),
        *("Min()", "Min(A, key=B)", "A and B", "A < B", "", "A +", "f'{A}'", "alert(1)", "(" * 500 + "A" + ")" * 500),
    ],
)
def test_what_is_no_formula_has_no_tree(text):
    assert tree(text) is None


def test_a_symbol_is_found_from_a_value():
    formula = tree("B*T*H*(4*K*F + 2*M*(F + V + 1))")
    sizes = {"B": 1, "T": 100, "H": 2, "K": 32, "V": 32, "F": 16}
    value = evaluate(formula, {**sizes, "M": 63})
    assert solve(formula, "M", sizes, value) == pytest.approx(63)
    assert solve(tree("4*B*T"), "M", sizes, 5) is None


def test_formulas_read_like_mathematics():
    assert formula_text("2*B*T**2*H*(K + V)") == "2·B·T²·H·(K + V)"
    assert formula_text("T**12") == "T^12"
    assert formula_text(None) == ""
