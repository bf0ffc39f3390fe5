"""`merge_attention` and its cases."""

from __future__ import annotations

from tests.ops.contract.contract import Contract, Inputs, normal, register
from torch import Tensor

from attensor import ops

NAMES = ("first", "second", "third")


def of_parts(merge):
    """`merge` as a function of tensors by name."""

    def function(**tensors: Tensor):
        return merge(*([x for name, x in tensors.items() if name.endswith(what)] for what in ("outs", "lses")))

    return function


def parts(number: int) -> dict[str, Tensor]:
    outs = {f"{name} outs": normal(2, 7, 4, 5, seed=n) for n, name in enumerate(NAMES[:number])}
    lses = {f"{name} lses": normal(2, 7, 4, seed=3 + n) for n, name in enumerate(NAMES[:number])}
    lses["first lses"][:, 2] = float("-inf")  # a row that sees nothing of the first part
    for x in lses.values():
        x[:, 4] = float("-inf")  # and one that sees nothing
    return {**outs, **lses}


register(
    Contract(
        "merge_attention",
        of_parts(ops.merge_attention),
        of_parts(ops.merge_attention_reference),
        {"two parts": lambda: Inputs(parts(2)), "one": lambda: Inputs(parts(1)), "three": lambda: Inputs(parts(3))},
        batch={f"{name} {what}": 0 for name in NAMES for what in ("outs", "lses")},
        dtype_of="first outs",
    )
)
