"""What an operator registers, once, to be held to all laws of `test_contract.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attensor.ops import OPERATORS

__all__ = ["CONTRACTS", "Case", "Contract", "Inputs", "normal", "register", "weighted"]

CONTRACTS: dict[str, Contract] = {}


@dataclass(frozen=True)
class Inputs:
    """One call: tensors by argument name (float64, or integers), options beside them."""

    tensors: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def floats(self) -> dict[str, Tensor]:
        return {name: x for name, x in self.tensors.items() if x.is_floating_point()}

    def replaced(self, tensors: Mapping[str, Tensor]) -> Inputs:
        return Inputs({**self.tensors, **tensors}, self.options)

    def to(self, dtype: torch.dtype) -> Inputs:
        return self.replaced({name: x.to(dtype) for name, x in self.floats.items()})


Case = Callable[[], Inputs]


@dataclass(frozen=True)
class Contract:
    """An operator and what its laws need to know.

    Attributes:
        function: the public operator; takes tensors and options by name.
        reference: its definition, with the same arguments.
        cases: name -> inputs; the first is small and plain, and stands for all where a law is slow.
        batch: tensor -> dimension of its batch; those without one are not named.
        tokens: tensor -> dimension of its tokens, where sequences can be packed with `cu_seqlens`; empty otherwise.
        per_sequence: tensors with a row for each packed sequence.
        outputs: result -> the tensors in it.
        flops: inputs of the first case -> useful floating-point operations; None: the operator has no kernel to count.
        float_error, half_error: relative root-mean-square errors allowed in float32 and bfloat16.
    """

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    cases: dict[str, Case]
    batch: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    per_sequence: tuple[str, ...] = ()
    flops: Callable[[Inputs], int] | None = None
    float_error: float = 1e-5
    half_error: float = 3e-2

    @property
    def backends(self) -> list[str]:
        """Forms on a CPU besides the definition; Triton's, interpreted, have tests of their own."""
        known = OPERATORS[self.name].implementations if self.name in OPERATORS else {"torch": None, "cpp": None}
        return [name for name in ("cpp", "torch") if name in known]

    def call(self, function: Callable[..., Any], inputs: Inputs) -> list[Tensor]:
        """The tensors of a result."""
        result = function(**inputs.tensors, **inputs.options)
        return [result] if isinstance(result, Tensor) else [x for x in result if x is not None]


def register(contract: Contract) -> None:
    """Hold an operator to the laws."""
    CONTRACTS[contract.name] = contract


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def weighted(tensors: list[Tensor]) -> Tensor:
    """A loss of uneven weights: a plain sum hides transposed gradients. Rows that see nothing (-inf) do not count."""
    total = torch.zeros((), dtype=torch.float64)
    for number, x in enumerate(tensors):
        weights = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view(x.shape) + 0.3 + number
        total = total + (torch.where(x.isfinite(), x, 0.0).double() * weights).sum()
    return total
