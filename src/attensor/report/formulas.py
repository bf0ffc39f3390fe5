"""The cost formulas of cards as data that a page evaluates: trees of sums, products and powers, never code.

A formula is text in Python's syntax with one-letter symbols, `+ - * / **`, whole numbers, `Min` and `Max`. Its tree is
a number, a symbol, or a list of an operation and its arguments: `2*B*T**2` is `["*", ["*", 2, "B"], ["**", "T", 2]]`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["evaluate", "formula_text", "solve", "symbols", "tree"]

Tree = Any  # int | float | str | list[Tree]

_SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}
_OPERATIONS: dict[str, Callable[..., float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "**": lambda a, b: a**b,
    "Min": min,
    "Max": max,
}


def tree(text: object) -> Tree | None:
    """The tree of a formula; None for what is no formula."""
    try:
        return _tree(ast.parse(str(text), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError):
        return None


def _tree(node: ast.expr) -> Tree:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.Name(id=name) if re.fullmatch("[A-Z]", name):
            return name
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _SIGNS:
            return [_SIGNS[type(operation)], _tree(left), _tree(right)]
        case ast.Call(func=ast.Name(id="Min" | "Max" as name), args=arguments, keywords=[]) if arguments:
            return [name, *map(_tree, arguments)]
    raise ValueError(f"formulas: {ast.dump(node)} is no part of a formula.")


def symbols(formula: Tree) -> set[str]:
    """The symbols of a tree."""
    if isinstance(formula, str):
        return {formula}
    return set().union(*map(symbols, formula[1:])) if isinstance(formula, list) else set()


def evaluate(formula: Tree, sizes: Mapping[str, float]) -> float:
    """The value of a tree; `templates/size.js` does the same.

    Raises:
        KeyError: a symbol has no size.
        ZeroDivisionError: a division by zero.
    """
    if isinstance(formula, list):
        return _OPERATIONS[formula[0]](*(evaluate(part, sizes) for part in formula[1:]))
    return sizes[formula] if isinstance(formula, str) else formula


def solve(formula: Tree, symbol: str, sizes: Mapping[str, float], value: float) -> float | None:
    """The size of `symbol` at which a formula that is linear in it has that value; None where there is none.

    Raises:
        KeyError: another symbol has no size.
    """
    at = [evaluate(formula, {**sizes, symbol: size}) for size in (0.0, 1.0)]
    slope = at[1] - at[0]
    return (value - at[0]) / slope if slope else None


def formula_text(text: object) -> str:
    """A formula with the signs of mathematics; empty where there is none."""
    if not text:
        return ""
    powers = {"2": "²", "3": "³"}
    raised = re.sub(r"\*\*([23])\b", lambda found: powers[found[1]], str(text))
    return raised.replace("**", "^").replace("*", "·")
