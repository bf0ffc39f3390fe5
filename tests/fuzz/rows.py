"""Rows of the table that need no drawing of their own: what is called, and legal values of each argument."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.fuzz.calls import Call, Rules

__all__ = ["Row", "anything_goes", "row"]

Arguments = dict[str, Any]


def anything_goes(a: Arguments) -> str | None:
    """The rule where kinds say all."""
    return None


@dataclass(frozen=True)
class Row:
    """One function or class.

    Attributes:
        target: expression of it.
        arguments: name -> its kind (see `kinds.check`) and expressions of legal values.
        rules: of the arguments among each other.
        says: beginnings that errors may have beside the function's name.
        weight: how often it is drawn.
    """

    target: str
    arguments: dict[str, tuple[str, ...]]
    rules: Rules = anything_goes
    says: tuple[str, ...] = ()
    weight: float = 1.0

    def draw(self, rng: random.Random) -> Call:
        """A legal call, with half of what may be left out."""
        name = self.target.rpartition(")")[2].rpartition(".")[2] or self.target.partition("(")[0].rpartition(".")[2]
        given = {
            argument: rng.choice(choices)
            for argument, (kind, *choices) in self.arguments.items()
            if choices and (kind.startswith("*") or rng.random() < 0.5)
        }
        return Call(
            title=name,
            target=self.target,
            arguments=given,
            kinds={argument: kind for argument, (kind, *_) in self.arguments.items()},
            rules=self.rules,
            says=(name, *self.says),
            is_constructor=name[:1].isupper(),
        )


def row(
    target: str,
    rules: Callable[[Arguments], str | None] = anything_goes,
    /,
    *,
    says: tuple[str, ...] = (),
    weight: float = 1.0,
    **arguments: tuple[str, ...],
) -> Row:
    """A row by keywords; what a kind begins with "*" must be given."""
    return Row(target, arguments, rules, says, weight)
