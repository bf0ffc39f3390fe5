"""What an operator registers, once, to be held to all laws beside this file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attensor.ops import OPERATORS

__all__ = ["CONTRACTS", "Case", "Contract", "Inputs", "normal", "register"]

CONTRACTS: dict[str, Contract] = {}


@dataclass(frozen=True)
class Inputs:
    """One call: tensors by argument name (float64, or integers), options beside them."""

    tensors: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def floats(self) -> dict[str, Tensor]:
        return {name: x for name, x in self.tensors.items() if x.is_floating_point()}

    def replaced(self, tensors: Mapping[str, Tensor], **options: Any) -> Inputs:
        return Inputs({**self.tensors, **tensors}, {**self.options, **options})

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
        tokens: tensor -> dimension of its tokens (where it has that many), if sequences can be packed by `cu_seqlens`.
        per_sequence: tensors with a row for each packed sequence.
        packing: options of a packed call.
        state: the tensor in which a sequence goes on from the second result of its first part, if there is one.
        whole: cases whose sequences can neither be packed nor cut.
        causal: case -> how much of a later token may be seen before it: rounding of transforms, or 0 for no bit.
        dtype_of: the tensor whose dtype the first result has; further ones are in float32 at least.
        bounded: tensors with which a recurrence grows, so that large ones are no legal input.
        flops: inputs and form -> useful floating-point operations forward and backward; None: torch counts products.
        float_error, half_error: relative root-mean-square errors allowed in float32 and bfloat16.
    """

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    cases: dict[str, Case]
    batch: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    per_sequence: tuple[str, ...] = ()
    packing: dict[str, Any] = field(default_factory=dict)
    state: str = ""
    whole: tuple[str, ...] = ()
    causal: dict[str, float] = field(default_factory=dict)
    dtype_of: str = "v"
    bounded: tuple[str, ...] = ()
    flops: Callable[[Inputs, str], tuple[int, int | None] | None] = lambda inputs, form: None
    float_error: float = 1e-5
    half_error: float = 3e-2

    @property
    def backends(self) -> list[str]:
        """Forms on a CPU besides the definition, or that alone; Triton's, interpreted, have tests of their own."""
        known = OPERATORS[self.name].implementations if self.name in OPERATORS else {"torch": None, "cpp": None}
        return [name for name in ("cpp", "torch") if name in known] or ["reference"]

    def call(self, function: Callable[..., Any], inputs: Inputs) -> list[Tensor]:
        """The tensors of a result."""
        result = function(**inputs.tensors, **inputs.options)
        return [result] if isinstance(result, Tensor) else [x for x in result if x is not None]

    def cut(self, inputs: Inputs, start: int, stop: int) -> Inputs:
        """The tokens from `start` up to `stop`."""
        named = {name: x for name, x in inputs.tensors.items() if name in self.tokens and x.ndim > self.tokens[name]}
        return inputs.replaced({name: x.narrow(self.tokens[name], start, stop - start) for name, x in named.items()})


def register(contract: Contract) -> None:
    """Hold an operator to the laws."""
    CONTRACTS[contract.name] = contract


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))
