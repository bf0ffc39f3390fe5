"""Both passes as operators of PyTorch's library: a compiler takes them as they are, whatever the sizes.

Compilers have no code for complex numbers, and would trace every group of transforms and every diagonal of tiles, once
for each length. What they see here is one call, in which the algorithm is chosen by the sizes that come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from attensor.ops._kernel import register
from attensor.ops._precision import full_precision
from attensor.ops.relative_kernel_attention import quotient
from attensor.ops.relative_kernel_attention.cost import faster_algorithm, transform_flops
from attensor.ops.relative_kernel_attention.near import pairs
from attensor.ops.relative_kernel_attention.operands import Geometry, Inputs
from attensor.ops.relative_kernel_attention.tiles import products_of_tiles

__all__ = ["attention", "attention_gradients"]

_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor biases, Tensor? segment"
_OPTIONS = "SymInt[] queries, SymInt[] keys, bool is_causal, SymInt? reach, str algorithm, str backend"


def _geometry(queries: Sequence[int], keys: Sequence[int], is_causal: bool, reach: int | None) -> Geometry:
    return Geometry(tuple(queries), tuple(keys), is_causal, reach)


def _forward(x: Inputs, *options: Any) -> tuple[Tensor, Tensor]:
    with full_precision(x.q):
        return quotient.forward(x, _geometry(*options[:4]), *options[4:])


def _backward(x: Inputs, *rest: Any) -> tuple[Tensor, ...]:
    out, total, grad, *options = rest
    with full_precision(x.q):
        return quotient.backward(x, out, total, grad, _geometry(*options[:4]), *options[4:])


def _fake_forward(x: Inputs, *_: Any) -> tuple[Tensor, Tensor]:
    rows = x.q.shape[:3]
    return x.q.new_empty(*rows, x.v.shape[3]), x.q.new_empty(*rows, 1)


def _flops(
    q: Sequence[int], k: Sequence[int], v: Sequence[int], biases: Any, segment: Any, *rest: Any, passes: int = 1
) -> int:
    """Of transforms, or of the pairs that are seen; backward: of the scores again, and of the gradients of all."""
    *_, queries, keys, is_causal, reach, algorithm, backend = rest
    geometry, features, values = _geometry(queries, keys, is_causal, reach), q[3], v[3]
    if segment is None and (algorithm or faster_algorithm(geometry, features, values + 1, backend)) != "tiles":
        return round(q[0] * q[1] * passes * transform_flops(geometry, features, values + 1))
    if backend == "cpp":
        seen = pairs(geometry, features, values)
    else:
        seen = products_of_tiles(geometry, features, values + 1) // (features + values + 1)
    columns = features + values if passes == 1 else 3 * features + 2 * values
    return 2 * q[0] * q[1] * seen * (columns + 1)


attention = register(
    f"relative_kernel_attention({_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor)",
    _forward, _fake_forward, flops=_flops, devices=("CPU", "CUDA"), gather=Inputs,
)  # fmt: skip
attention_gradients = register(
    f"relative_kernel_attention_backward({_TENSORS}, Tensor out, Tensor total, Tensor grad, {_OPTIONS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _backward, lambda x, *_: tuple(t.new_empty(t.shape) for t in x[:4]),
    flops=lambda *x: _flops(*x, passes=2), devices=("CPU", "CUDA"), gather=Inputs,
)  # fmt: skip
