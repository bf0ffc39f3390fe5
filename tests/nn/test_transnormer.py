"""TransNormerLLM's mixer against its equations written out with T x T weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.nn import LightningAttention, TransNormerAttention

C, H, T = 12, 3, 29


def written_out(layer: TransNormerAttention, x: Tensor, slopes: list[float]) -> Tensor:
    q, k, v, u = (F.linear(x, p.weight) for p in (layer.q_proj, layer.k_proj, layer.v_proj, layer.g_proj))
    q, k = F.silu(q), F.silu(k)
    place = torch.arange(T, dtype=x.dtype)
    apart = place[:, None] - place
    heads = []
    for h, slope in enumerate(slopes):
        channels = slice(h * C // H, (h + 1) * C // H)
        if layer.uses_positions:
            turned = torch.cos(layer.theta[h] * apart[..., None])
            weights = torch.einsum("bic,bjc,ijc->bij", q[..., channels], k[..., channels], turned)
        else:
            weights = q[..., channels] @ k[..., channels].mT
        heads.append((weights * torch.exp(-slope * apart).tril()) @ v[..., channels])
    o = torch.cat(heads, -1)
    normed = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return F.linear(u * normed, layer.o_proj.weight)


@pytest.mark.parametrize(("layer_index", "factor"), [(0, 1 + 1e-5), (1, 0.5 + 1e-5), (2, 1e-5)])
@pytest.mark.parametrize("use_lrpe", [None, True])
def test_is_the_paper_s_layer(layer_index: int, factor: float, use_lrpe: bool | None) -> None:
    torch.manual_seed(0)
    layer = TransNormerAttention(C, H, layer_index=layer_index, num_layers=3, use_lrpe=use_lrpe, dtype=torch.float64)
    assert layer.uses_positions == (layer_index == 0 or use_lrpe is True)
    x = torch.randn(2, T, C, dtype=torch.float64)
    # three heads: those of two, 2^-4 and 2^-8, and the first one of four, 2^-2
    expected = written_out(layer, x, [factor * 2**-4, factor * 2**-8, factor * 2**-2])
    torch.testing.assert_close(layer(x), expected, rtol=1e-11, atol=1e-11)


def test_angles_run_through_all_heads() -> None:
    layer = TransNormerAttention(C, H)
    expected = torch.tensor([10_000 ** (-2 * j / C) for j in range(C)]).view(H, 1, C // H)
    torch.testing.assert_close(layer.theta.data, expected)


def test_angles_do_not_lose_digits_in_bfloat16() -> None:
    """Position 300 is no bfloat16 number: tables in the activations' dtype would collapse."""
    layer = TransNormerAttention(C, H).to(torch.bfloat16)
    x = torch.ones(1, 1, H, C // H, dtype=torch.bfloat16)
    turned = layer.embed_positions(x, torch.tensor([300]))
    theta = layer.theta.double().squeeze(1)
    expected = torch.cat([(300 * theta).cos(), (300 * theta).sin()], -1)[None, None]
    torch.testing.assert_close(turned.double(), expected, rtol=0, atol=4e-3)


def test_parameter_count() -> None:
    layer = TransNormerAttention(1024, 8, layer_index=1, num_layers=24, device="meta")
    assert sum(p.numel() for p in layer.parameters()) == 5 * 1024**2


def test_only_norm_gate_and_activations_differ_from_lightning_attention() -> None:
    ours, theirs = TransNormerAttention(C, H, use_lrpe=False), LightningAttention(C, H)
    assert set(theirs.state_dict()) - set(ours.state_dict()) == {"g_norm.weight"}
    assert torch.equal(ours.log_decay(torch.zeros(1, 1, C)), theirs.log_decay(torch.zeros(1, 1, C)))
