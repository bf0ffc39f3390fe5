"""`relative_kernel_attention` and its cases."""

from __future__ import annotations

import torch
from tests.ops.contract.contract import Contract, Inputs, normal, register
from tests.ops.contract.inputs import fused, packed, qkv
from torch import Tensor

from attensor import ops

ALGORITHMS = ("tiles", "fft")


def features(**sizes: int) -> dict[str, Tensor]:
    """q, k, v of features, which are not negative, and biases of offsets up to 4."""
    return {**{name: x if name == "v" else x.abs() for name, x in qkv(**sizes).items()}, "relative_bias": normal(4, 9)}


def on_grid() -> dict[str, Tensor]:
    tensors = {name: x.unflatten(1, (3, 4)) for name, x in qkv(tokens=12).items()}
    return {**tensors, "relative_bias": normal(4, 5, 5)}


def few(queries: int) -> dict[str, Tensor]:
    tensors = features(tokens=9)
    return {**tensors, "q": tensors["q"][:, -queries:]}


def operations(inputs: Inputs, form: str) -> tuple[int, int] | None:
    """Tiles in C++ count the pairs that are seen, not what else lies in a tile; the denominator is one column more."""
    if form != "cpp" or inputs.options.get("algorithm") != "tiles" or "cu_seqlens" in inputs.tensors:
        return None
    q, k = inputs.tensors["q"], inputs.tensors["k"]
    if q.ndim == 5 or q.shape[1] == 1:  # grids are Fourier transforms or tiles of torch, one query is two products
        return None
    seen = torch.ones(q.shape[1], k.shape[1]).tril(k.shape[1] - q.shape[1] if inputs.options.get("is_causal") else 99)
    return fused(q.shape[0] * q.shape[2] * int(seen.sum()), inputs, columns=1)


def of_algorithm(algorithm: str) -> dict:
    chosen = {"algorithm": algorithm, "feature_map": "elu+1"}
    causal = {**chosen, "is_causal": True}
    return {
        algorithm: lambda: Inputs(features(), {"algorithm": algorithm}),
        f"{algorithm} causal": lambda: Inputs(features(), {"algorithm": algorithm, "is_causal": True}),
        f"{algorithm} on a grid": lambda: Inputs(on_grid(), chosen),
        f"{algorithm} of few queries": lambda: Inputs(few(3), chosen),
        f"{algorithm} of few queries, causal": lambda: Inputs(few(3), causal),
        f"{algorithm} of one token": lambda: Inputs(features(tokens=1), causal),
        f"{algorithm} packed": lambda: Inputs(
            {**packed(0, 2, 2, 9), "relative_bias": normal(4, 9)}, {**causal, "max_seqlen": 7}
        ),
    }


register(
    Contract(
        "relative_kernel_attention",
        ops.relative_kernel_attention,
        ops.relative_kernel_attention_reference,
        {name: case for algorithm in ALGORITHMS for name, case in of_algorithm(algorithm).items()}
        | {
            "packed without a bound": lambda: Inputs(
                {**packed(0, 2, 2, 9), "relative_bias": normal(4, 9)}, {"feature_map": "elu+1"}
            ),
            "masked": lambda: Inputs({**features(), "key_mask": normal(2, 7) > -0.5}, {"feature_map": "elu+1"}),
            "masked grid": lambda: Inputs({**on_grid(), "key_mask": normal(2, 3, 4) > -0.5}, {"feature_map": "elu+1"}),
        },
        batch={"q": 0, "k": 0, "v": 0, "key_mask": 0},
        tokens={"q": 1, "k": 1, "v": 1},
        packing={"max_seqlen": 5},
        whole=(
            "masked",
            "masked grid",
            "packed without a bound",
            *(
                f"{algorithm} {kind}"
                for algorithm in ALGORITHMS
                for kind in ("on a grid", "of few queries", "of few queries, causal", "packed")
            ),
        ),
        causal={"tiles causal": 0, "fft causal": 1e-12},
        flops=operations,
        half_error=5e-2,
    )
)
