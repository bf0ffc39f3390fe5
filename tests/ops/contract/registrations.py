"""The operators and their cases. Sizes are unequal, so that no exchange of dimensions goes unseen."""

from __future__ import annotations

import torch
from tests.ops.contract.contract import Contract, Inputs, normal, register
from torch import Tensor

from attensor import ops

# changes of a tensor that are legal
ALLOWED = {
    "of another size": {"v", "x", "coefficients", "relative_bias of relative_kernel_attention"},
    "of another rank": {"x", "coefficients", "attn_mask"},
}


def qkv(batch: int = 2, tokens: int = 7, heads: int = 4, kv_heads: int = 2, keys: int = 3, values: int = 5):
    """q, k, v of grouped heads."""
    return {
        "q": normal(batch, tokens, heads, keys),
        "k": normal(batch, tokens, kv_heads, keys, seed=1),
        "v": normal(batch, tokens, kv_heads, values, seed=2),
    }


def softmax_mask() -> Tensor:
    mask = normal(2, 4, 7, 7, seed=3)
    mask[:, :, 2] = float("-inf")  # a row that sees nothing
    return mask


register(
    Contract(
        "softmax_attention",
        ops.softmax_attention,
        ops.softmax_attention_reference,
        {
            "plain": lambda: Inputs(qkv()),
            "causal with lse": lambda: Inputs(qkv(), {"is_causal": True, "return_lse": True, "scale": 0.7}),
            "mask with lse": lambda: Inputs({**qkv(), "attn_mask": softmax_mask()}, {"return_lse": True}),
            "few queries": lambda: Inputs({**qkv(heads=8), "q": normal(2, 2, 8, 3)}, {"is_causal": True}),
            "no tokens": lambda: Inputs(qkv(tokens=0), {"return_lse": True}),
        },
        batch={"q": 0, "k": 0, "v": 0},
        tokens={"q": 1, "k": 1, "v": 1},
        flops=lambda x: 2 * 2 * 4 * 7 * 7 * (3 + 5),
    )
)


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


def decays(*shape: int) -> Tensor:
    return -normal(*shape, seed=4).abs()


LINEAR = {
    "plain": lambda: Inputs(
        {**qkv(), "log_decay": decays(2, 7, 4), "initial_state": normal(2, 4, 3, 5, seed=5)},
        {"output_final_state": True},
    ),
    "constant": lambda: Inputs({**qkv(), "log_decay": decays(4)}, {"scale": 0.7, "chunk_size": 4}),
    "channel": lambda: Inputs(
        {**qkv(tokens=35), "log_decay": decays(2, 35, 2, 3)}, {"output_final_state": True, "chunk_size": 16}
    ),
    "none": lambda: Inputs({**qkv(tokens=19), "initial_state": normal(2, 4, 3, 5, seed=5)}, {"chunk_size": 8}),
    "both ways": lambda: Inputs(qkv(), {"is_causal": False, "output_final_state": True}),
    "no tokens": lambda: Inputs({**qkv(tokens=0), "initial_state": normal(2, 4, 3, 5)}, {"output_final_state": True}),
}
register(
    Contract(
        "linear_attention",
        ops.linear_attention,
        ops.linear_attention_reference,
        LINEAR,
        batch={"q": 0, "k": 0, "v": 0, "log_decay": 0, "initial_state": 0},
        tokens={"q": 1, "k": 1, "v": 1, "log_decay": 1},
        per_sequence=("initial_state",),
        flops=lambda x: 2 * 7 * 4 * 4 * 3 * 5,
    )
)


def one_token(heads: int = 4, kv_heads: int = 2) -> dict[str, Tensor]:
    return {**{name: x[:, 0] for name, x in qkv(tokens=1).items()}, "state": normal(2, 4, 3, 5, seed=5)}


register(
    Contract(
        "linear_attention_step",
        ops.linear_attention_step,
        ops.linear_attention_step_reference,
        {
            "token": lambda: Inputs({**one_token(), "log_decay": decays(2, 4)}),
            "none": lambda: Inputs(one_token(), {"scale": 0.7}),
            "constant": lambda: Inputs({**one_token(), "log_decay": decays(4)}),
            "channel": lambda: Inputs({**one_token(), "log_decay": decays(2, 2, 3)}),
        },
        batch={"q": 0, "k": 0, "v": 0, "log_decay": 0, "state": 0},
        flops=lambda x: 2 * 4 * 4 * 3 * 5,
    )
)


def turned(x: Tensor) -> Tensor:
    """Features with signs by their channel."""
    return x * torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)


register(
    Contract(
        "kernel_attention",
        ops.kernel_attention,
        ops.kernel_attention_reference,
        {
            "normalised": lambda: Inputs(
                {**qkv(), "log_decay": decays(2, 7, 4)},
                {"feature_map": "elu+1", "denominator": ops.Denominator(), "output_final_state": True},
            ),
            "features": lambda: Inputs(qkv(), {"feature_map": "relu", "is_causal": False}),
            "positions": lambda: Inputs(
                qkv(), {"feature_map": "elu+1", "denominator": ops.Denominator(), "position_map": turned}
            ),
        },
        batch={"q": 0, "k": 0, "v": 0, "log_decay": 0},
        tokens={"q": 1, "k": 1, "v": 1, "log_decay": 1},
        per_sequence=("initial_state",),
    )
)


register(
    Contract(
        "kernel_attention_step",
        ops.kernel_attention_step,
        ops.kernel_attention_step_reference,
        {
            "normalised": lambda: Inputs(
                {**one_token(), "state": normal(2, 4, 3, 6, seed=5).abs(), "log_decay": decays(2, 4)},
                {"feature_map": "elu+1", "denominator": ops.Denominator()},
            ),
            "features": lambda: Inputs(one_token(), {"feature_map": "silu"}),
        },
        batch={"q": 0, "k": 0, "v": 0, "log_decay": 0, "state": 0},
    )
)
register(
    Contract(
        "neighborhood_attention",
        ops.neighborhood_attention,
        ops.neighborhood_attention_reference,
        {
            "grid": lambda: Inputs(grid(), {"window_size": 3}),
            "bias with lse": lambda: Inputs(
                {**grid(), "relative_bias": normal(4, 5, 5)},
                {"window_size": 3, "dilation": (2, 1), "return_lse": True},
            ),
            "additional": lambda: Inputs(
                {**qkv(), "additional_keys": normal(2, 2, 2, 3), "additional_values": normal(2, 2, 2, 5)},
                {"window_size": 4, "stride": 2},
            ),
            "causal": lambda: Inputs(qkv(tokens=13), {"window_size": 4, "is_causal": True, "return_lse": True}),
        },
        batch={"q": 0, "k": 0, "v": 0, "additional_keys": 0, "additional_values": 0},
    )
)
register(
    Contract(
        "block_attention",
        ops.block_attention,
        ops.block_attention_reference,
        {
            "window": lambda: Inputs(grid(), {"pattern": "window", "block_size": (3, 2)}),
            "grid with bias": lambda: Inputs(
                {**grid(), "attn_mask": normal(4, 6, 6)}, {"pattern": "grid", "block_size": (3, 2)}
            ),
            "causal axis": lambda: Inputs(grid(), {"pattern": "axial", "axis": 0, "is_causal": True}),
        },
        batch={"q": 0, "k": 0, "v": 0},
    )
)
register(
    Contract(
        "relative_kernel_attention",
        ops.relative_kernel_attention,
        ops.relative_kernel_attention_reference,
        {
            f"{algorithm}{' causal' * is_causal}": lambda algorithm=algorithm, is_causal=is_causal: Inputs(
                {**features(), "relative_bias": normal(4, 9)}, {"algorithm": algorithm, "is_causal": is_causal}
            )
            for algorithm in ("tiles", "fft")
            for is_causal in (False, True)
        }
        | {
            "masked": lambda: Inputs(
                {**features(), "relative_bias": normal(4, 9), "key_mask": normal(2, 7) > -0.5},
                {"feature_map": "elu+1"},
            )
        },
        batch={"q": 0, "k": 0, "v": 0, "key_mask": 0},
        tokens={"q": 1, "k": 1, "v": 1},
        half_error=5e-2,
    )
)
register(
    Contract(
        "toeplitz",
        ops.toeplitz,
        ops.toeplitz_reference,
        {
            "line": lambda: Inputs({"coefficients": normal(3, 11), "x": normal(2, 3, 5)}),
            "causal": lambda: Inputs({"coefficients": normal(9), "x": normal(2, 5)}, {"is_causal": True}),
            "grid": lambda: Inputs({"coefficients": normal(5, 9), "x": normal(2, 3, 4)}, {"space_dims": 2}),
        },
    )
)


def grid() -> dict[str, Tensor]:
    """q, k, v on a grid of 6 x 5."""
    return {name: x.unflatten(1, (6, 5)) for name, x in qkv(tokens=30).items()}


def features() -> dict[str, Tensor]:
    """q, k, v of features, which are not negative."""
    return {name: x if name == "v" else x.abs() for name, x in qkv().items()}
