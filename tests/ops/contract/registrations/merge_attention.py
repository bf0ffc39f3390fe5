"""`merge_attention` and its cases."""

from __future__ import annotations

from tests.ops.contract.contract import Contract, Inputs, normal, register
from torch import Tensor

from attensor import ops


def of_two(merge):
    """`merge` of two parts, as a function of tensors by name."""
    return lambda first, second, first_lse, second_lse: merge([first, second], [first_lse, second_lse])


def parts() -> dict[str, Tensor]:
    found = {"first": normal(2, 7, 4, 5), "second": normal(2, 7, 4, 5, seed=1)}
    lses = {"first_lse": normal(2, 7, 4, seed=2), "second_lse": normal(2, 7, 4, seed=3)}
    lses["first_lse"][:, 2] = float("-inf")  # a row that sees nothing of the first part
    return {**found, **lses}


register(
    Contract(
        "merge_attention",
        of_two(ops.merge_attention),
        of_two(ops.merge_attention_reference),
        {"two parts": lambda: Inputs(parts())},
        batch={"first": 0, "second": 0, "first_lse": 0, "second_lse": 0},
    )
)
