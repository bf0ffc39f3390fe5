"""Mixture of heads against numbers of the authors' modules (tests/golden): outputs, gradients and loads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attensor.nn import AggregatedAttention, CosineAttention, MixtureOfHeads, load_balance_loss
from attensor.nn.head_router import HeadRouter
from tests.golden.drawn import golden, summaries, uniform, weighed, weights

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
SETTINGS = {"shared and routed": (2, 3), "none shared": (0, 3), "all shared": (4, 4)}


def filled(layer: nn.Module, prefix: str, names: dict[str, list[str]]) -> dict[str, list[nn.Parameter]]:
    """Weights by the authors' names; theirs -> those of ours that are its parts, one below the other."""
    own = dict(layer.named_parameters())
    groups = {theirs: [own[name] for name in parts] for theirs, parts in names.items() if parts[0] in own}
    sizes = {f"{prefix}.{key}": (sum(len(x) for x in parts), *parts[0].shape[1:]) for key, parts in groups.items()}
    with torch.no_grad():
        for key, whole in weights(sizes).items():
            parts = groups[key.removeprefix(f"{prefix}.")]
            for x, rows in zip(parts, whole.split([len(x) for x in parts])):
                x.copy_(rows)
    assert sum(len(parts) for parts in groups.values()) == len(own)
    return groups


def compare(layer: nn.Module, groups: dict[str, list[nn.Parameter]], x: Tensor, name: str) -> None:
    expected, x = golden("moh"), x.requires_grad_()
    out = layer(x)
    weighed(out).backward()
    torch.testing.assert_close(out, expected[f"{name}.out"], **CLOSE)
    torch.testing.assert_close(x.grad, expected[f"{name}.dx"], **CLOSE)
    found = summaries({key: torch.cat([x.grad for x in parts]) for key, parts in groups.items()})
    torch.testing.assert_close(found, expected[f"{name}.dp"], **CLOSE)


NAMES = {f"qkv.{kind}": [f"{part}_proj.{kind}" for part in "qkv"] for kind in ("weight", "bias")}
NAMES |= {f"proj.{kind}": [f"o_proj.{kind}"] for kind in ("weight", "bias")}
NAMES |= {f"{gate}.weight": [f"router.{gate}.weight"] for gate in ("wg", "wg_0", "wg_1")}


@pytest.mark.parametrize("setting", SETTINGS)
def test_attention_of_the_diffusion_transformer(setting: str) -> None:
    shared, active = SETTINGS[setting]
    layer = MixtureOfHeads(
        12, 4, num_shared=shared, num_active=active, head_dim=5, is_causal=False, rotary_base=None,
        qkv_bias=True, out_bias=True, dtype=torch.float64,
    )  # fmt: skip
    compare(layer, filled(layer, "dit", NAMES), uniform("tokens", 2, 9, 12), f"dit.{setting}")
    if active > shared:
        torch.testing.assert_close(load_balance_loss(layer), golden("moh")[f"dit.{setting}.load"], **CLOSE)


def test_router_of_the_language_model() -> None:
    """Probabilities by the lengths of queries, and the heads that are on."""
    router = HeadRouter(1, 8, num_shared=4, num_active=6, router="query-norm", gate_scale="hard").eval()
    queries, expected = uniform("queries", 2, 9, 24).unflatten(-1, (8, 3)), golden("moh")
    assert torch.equal(router(queries[..., 0, :1], queries), expected["llama.mask"])
    soft = HeadRouter(1, 8, num_shared=4, num_active=8, router="query-norm", gate_scale="paper", dtype=torch.float64)
    nn.init.zeros_(soft.wg_0.weight)  # halves
    found = 2 * soft(queries[..., 0, :1], queries)[..., 4:]
    torch.testing.assert_close(found.flatten(0, 1), expected["llama.gates"], **CLOSE)


VIT = {"shared and routed": (2, 3), "one shared": (1, 3), "none shared": (0, 3), "all shared": (4, 4)}
SAME = ("qkv", "q", "kv", "proj", "sr", "norm")
OF_CELLS = {f"{part}.{kind}": [f"{part}.{kind}"] for part in SAME for kind in ("weight", "bias")}
OF_CELLS |= {f"cpb_{part}.{kind}": [f"bias.{part}.{kind}"] for part in ("fc1", "fc2") for kind in ("weight", "bias")}
OF_CELLS |= {f"{gate}.weight": [f"router.{gate}.weight"] for gate in ("wg", "wg_0", "wg_1")}
OF_CELLS |= {name: [name] for name in ("relative_pos_bias_local", "learnable_tokens")}


def with_theirs(layer: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Numbers of heads are [h], [h, width] here, and [h, 1, 1], [h, 1, width] there, with which they are drawn."""
    names = {**OF_CELLS, **{name: [name] for name in ("temperature", "query_embedding", "learnable_bias")}}
    groups = filled(layer, "vit", names)
    with torch.no_grad():
        for name in ("temperature", "query_embedding", "learnable_bias"):
            if hasattr(layer, name):
                x = getattr(layer, name)
                wide = (len(x), 1, x.shape[-1]) if x.ndim > 1 else (len(x), 1, 1)
                x.copy_(weights({f"vit.{name}": wide})[f"vit.{name}"].view_as(x))
    return groups


@pytest.mark.parametrize("setting", VIT)
def test_attention_of_coarse_maps(setting: str) -> None:
    shared, active = VIT[setting]
    layer = CosineAttention(12, 4, num_shared=shared, num_active=active, trained_space=(5, 6), dtype=torch.float64)
    groups = with_theirs(layer)
    compare(OnRows(layer, (5, 6)), groups, uniform("cells", 2, 30, 12), f"vit.{setting}")
    if active > shared:
        torch.testing.assert_close(load_balance_loss(layer), golden("moh")[f"vit.{setting}.load"], **CLOSE)


def test_aggregated_attention() -> None:
    layer = AggregatedAttention(
        12, 4, reduction=2, num_shared=2, num_active=3, trained_space=(7, 9), dtype=torch.float64
    )
    groups = with_theirs(layer)
    compare(OnRows(layer, (6, 8)), groups, uniform("cells", 2, 48, 12), "aggregated")


class OnRows(nn.Module):
    """A layer of grids that takes their cells in one row."""

    def __init__(self, layer: nn.Module, space: tuple[int, int]) -> None:
        super().__init__()
        self.layer, self.space = layer, space

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.unflatten(1, self.space)).flatten(1, 2)
