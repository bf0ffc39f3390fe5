"""`why_not` as torch.compile sees it: a constant, so that no file and no compiler is followed into the graph.

A module of its own, imported while torch.compile traces, because marking a function imports torch._dynamo: a second.
"""

from __future__ import annotations

import torch

from attensor.ops._native import build

__all__ = ["why_not"]


def why_not(demanded: bool) -> str | None:
    """What `build.why_not` says, asked once while a graph is traced."""
    return build.why_not(True) if demanded else build.why_not()


# called, not written as a decorator, which has no types and would take them away
torch.compiler.assume_constant_result(why_not)  # type: ignore[no-untyped-call]
