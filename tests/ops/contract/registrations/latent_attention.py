"""`latent_attention` and its cases."""

from __future__ import annotations

import torch
from tests.ops.contract.contract import Contract, Inputs, normal, register
from torch import Tensor

from attensor import ops

NAIVE, ABSORBED = {"form": "naive"}, {"form": "absorbed"}
LSE = {"return_lse": True}


def tensors(batch: int = 2, queries: int = 7, tokens: int = 7, groups: int = 2, rotary: int = 2) -> dict[str, Tensor]:
    """Four heads with keys of 3, values of 5 and latents of 6."""
    found = {
        "q": normal(batch, queries, 4, 3),
        "latent": normal(batch, tokens, groups, 6, seed=1),
        "key_weight": normal(4, 3, 6, seed=2),
        "value_weight": normal(4, 5, 6, seed=3),
    }
    if rotary:
        found |= {
            "q_rotary": normal(batch, queries, 4, rotary, seed=4),
            "k_rotary": normal(batch, tokens, 1, rotary, seed=5),
        }
    return found


def in_one_tensor() -> dict[str, Tensor]:
    """Latents and rotary keys as a cache holds them."""
    kept = normal(2, 7, 1, 8)
    return {**tensors(queries=2, groups=1), "latent": kept[..., :6], "k_rotary": kept[..., 6:]}


def mask() -> Tensor:
    found = normal(2, 4, 7, 7, seed=6)
    found[:, :, 2] = float("-inf")
    return found


def packed() -> dict[str, Tensor]:
    return {**tensors(batch=1, queries=11, tokens=11), "cu_seqlens": torch.tensor([0, 1, 1, 6, 11])}


register(
    Contract(
        "latent_attention",
        ops.latent_attention,
        ops.latent_attention_reference,
        {
            "naive": lambda: Inputs(tensors(), NAIVE),
            "absorbed": lambda: Inputs(tensors(), ABSORBED),
            "causal, naive": lambda: Inputs(tensors(), {"is_causal": True, **NAIVE}),
            "causal, absorbed": lambda: Inputs(tensors(), {"is_causal": True, **ABSORBED, "scale": 0.7}),
            "one query": lambda: Inputs(tensors(queries=1, groups=1), {"is_causal": True}),
            "in one tensor": lambda: Inputs(in_one_tensor(), {"is_causal": True, **ABSORBED}),
            "few queries, two latents": lambda: Inputs(
                tensors(queries=2), {"is_causal": True, **ABSORBED, "scale": 0.7}
            ),
            "few queries, mask": lambda: Inputs({**tensors(queries=3), "attn_mask": mask()[:, :, 1:4]}, ABSORBED),
            "few queries, choice": lambda: Inputs({**tensors(queries=3), "attn_mask": mask()[:, :, :3] > 0}, ABSORBED),
            "few queries, log-sum-exp": lambda: Inputs(tensors(queries=2), {"is_causal": True, **ABSORBED, **LSE}),
            "log-sum-exp, naive": lambda: Inputs({**tensors(), "attn_mask": mask()}, {**NAIVE, **LSE}),
            "log-sum-exp, absorbed": lambda: Inputs({**tensors(), "attn_mask": mask()}, {**ABSORBED, **LSE}),
            "no positions": lambda: Inputs(tensors(rotary=0), {"is_causal": True}),
            "mask, naive": lambda: Inputs({**tensors(), "attn_mask": mask()}, NAIVE),
            "mask, absorbed": lambda: Inputs({**tensors(), "attn_mask": mask() > -0.3}, ABSORBED),
            "packed": lambda: Inputs(packed(), {"is_causal": True}),
            "no tokens": lambda: Inputs(tensors(queries=0, tokens=0), NAIVE),
        },
        batch={"q": 0, "latent": 0, "q_rotary": 0, "k_rotary": 0, "attn_mask": 0},
        tokens={"q": 1, "latent": 1, "q_rotary": 1, "k_rotary": 1},
        whole=(
            "mask, naive",
            "mask, absorbed",
            "one query",
            "in one tensor",
            "few queries, two latents",
            "few queries, mask",
            "few queries, choice",
            "few queries, log-sum-exp",
            "log-sum-exp, naive",
            "log-sum-exp, absorbed",
            "no tokens",
            "packed",
        ),
        causal={"causal, naive": 0, "causal, absorbed": 0},
        dtype_of="q",
    )
)
