"""The linear family against a token-by-token loop written here, and the published layers' details."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.nn import GatedLinearAttention, LightningAttention, LinearAttention, ScalarGatedLinearAttention
from attensor.nn.lightning import decay_slopes

B, T, C, H = 2, 70, 24, 4
CPU = torch.device("cpu")


def rows() -> Tensor:
    return torch.randn(B, T, C, dtype=torch.float64)


def recurrence(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """The definition, one token at a time: q, k [B, T, H, K], v [B, T, H, V], decay broadcasts to k; [B, T, H, V]."""
    state, outs = torch.zeros(B, q.shape[2], q.shape[3], v.shape[3], dtype=q.dtype), []
    decay = decay.expand(k.shape)
    for t in range(q.shape[1]):
        state = decay[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None]
        outs.append((q[:, t, :, :, None] * state).sum(2))
    return torch.stack(outs, 1)


def heads(x: Tensor, weight: Tensor, count: int = H) -> Tensor:
    return (x @ weight.T).unflatten(-1, (count, -1))


def rms(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def randomise(layer: nn.Module) -> None:
    """Norm weights of one and zero biases would hide where they enter."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def test_plain_linear() -> None:
    layer, x = LinearAttention(C, H, dtype=torch.float64), rows()
    randomise(layer)
    q, k, v = (heads(x, p.weight) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    out = rms(recurrence(q * 6**-0.5, k, v, torch.ones(1)), layer.g_norm.weight)
    torch.testing.assert_close(layer(x), out.flatten(2) @ layer.o_proj.weight.T, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("layer_index", "factor"), [(0, 1 + 1e-5), (1, 0.5 + 1e-5), (2, 1e-5)])
def test_lightning_is_the_layer_of_minimax(layer_index: int, factor: float) -> None:
    """SiLU on q, k, v; no scale; one norm over all heads; sigmoid gate; decay exp(-2^(-8h/H) factor)."""
    layer = LightningAttention(C, H, layer_index=layer_index, num_layers=3, dtype=torch.float64)
    randomise(layer)
    x = rows()
    q, k, v = (F.silu(heads(x, p.weight)) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    decay = torch.tensor([2.0 ** (-8 * h / H) for h in range(1, H + 1)], dtype=torch.float64).mul(-factor).exp()
    out = rms(recurrence(q, k, v, decay[:, None]).flatten(2), layer.g_norm.weight, eps=1e-6)
    expected = (torch.sigmoid(x @ layer.g_proj.weight.T) * out) @ layer.o_proj.weight.T
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("num_kv_heads", [4, 2])
@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("gate_bias", [False, True])
def test_gla_is_the_layer_of_its_paper(num_kv_heads: int, norm: str, gate_bias: bool) -> None:
    layer = GatedLinearAttention(C, H, num_kv_heads=num_kv_heads, norm=norm, gate_bias=gate_bias, dtype=torch.float64)
    randomise(layer)
    x, groups = rows(), H // num_kv_heads
    low_rank = x @ layer.gk_proj[0].weight.T @ layer.gk_proj[1].weight.T + layer.gk_proj[1].bias
    decay = torch.sigmoid(low_rank).pow(1 / 16).unflatten(-1, (num_kv_heads, -1)).repeat_interleave(groups, 2)
    k, v = (heads(x, p.weight, num_kv_heads).repeat_interleave(groups, 2) for p in (layer.k_proj, layer.v_proj))
    out = recurrence(heads(x, layer.q_proj.weight) * 3**-0.5, k, v, decay)
    out = rms(out, layer.g_norm.weight) if norm == "rms" else F.layer_norm(out, (6,))
    gate = x @ layer.g_proj.weight.T + (layer.g_proj.bias if gate_bias else 0)
    expected = (out.flatten(2) * gate * torch.sigmoid(gate)) @ layer.o_proj.weight.T
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-10)


def test_scalar_gate_is_one_per_head_and_token() -> None:
    layer, x = ScalarGatedLinearAttention(C, H, num_kv_heads=2, dtype=torch.float64), rows()
    randomise(layer)
    decay = torch.sigmoid(x @ layer.gk_proj.weight.T + layer.gk_proj.bias).pow(1 / 16).repeat_interleave(2, 2)
    k, v = (heads(x, p.weight, 2).repeat_interleave(2, 2) for p in (layer.k_proj, layer.v_proj))
    out = rms(recurrence(heads(x, layer.q_proj.weight) * 3**-0.5, k, v, decay[..., None]), layer.g_norm.weight)
    expected = (out.flatten(2) * F.silu(x @ layer.g_proj.weight.T)) @ layer.o_proj.weight.T
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-10)


def test_clamped_gates_keep_at_least_that_much() -> None:
    layer = GatedLinearAttention(C, H, clamp_min=-0.05, dtype=torch.float64)
    open_layer = GatedLinearAttention(C, H, dtype=torch.float64)
    open_layer.load_state_dict(layer.state_dict())
    x = rows()
    assert layer.log_decay(100 * x).min() == -0.05
    assert torch.equal(layer.log_decay(100 * x), open_layer.log_decay(100 * x).clamp(min=-0.05))
    assert open_layer.log_decay(100 * x).min() < -0.05


def test_gla_has_the_keys_and_shapes_of_its_checkpoints() -> None:
    layer = GatedLinearAttention(1024, 4, device="meta")
    assert {name: tuple(p.shape) for name, p in layer.state_dict().items()} == {
        "q_proj.weight": (512, 1024),
        "k_proj.weight": (512, 1024),
        "v_proj.weight": (1024, 1024),
        "gk_proj.0.weight": (16, 1024),
        "gk_proj.1.weight": (512, 16),
        "gk_proj.1.bias": (512,),
        "g_norm.weight": (256,),
        "g_proj.weight": (1024, 1024),
        "o_proj.weight": (1024, 1024),
    }


@pytest.mark.parametrize(
    ("num_heads", "exponents"),
    [
        (1, [8]),
        (4, [2, 4, 6, 8]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (6, [2, 4, 6, 8, 1, 3]),  # those of 4 heads, then every second one of 8
        (3, [4, 8, 2]),
    ],
)
def test_alibi_slopes(num_heads: int, exponents: list[int]) -> None:
    expected = torch.tensor([2.0**-e for e in exponents], dtype=torch.float64) * (1 + 1e-5)
    torch.testing.assert_close(decay_slopes(num_heads, device=CPU), expected, rtol=1e-14, atol=0)


def test_linear_slopes() -> None:
    got = decay_slopes(4, "linear", layer_index=1, num_layers=4, device=CPU)
    torch.testing.assert_close(got, torch.tensor([0, 1.5, 3, 4.5], dtype=torch.float64), rtol=1e-14, atol=0)


def test_slow_decays_survive_a_move_to_bfloat16() -> None:
    """In bfloat16 exp(-1e-5) would be 1; decays are made in float32 whatever the weights are."""
    layer = LightningAttention(C, H, layer_index=2, num_layers=3).to(torch.bfloat16)
    decay = layer.log_decay(torch.zeros(1, 1, C, dtype=torch.bfloat16))
    assert decay.dtype == torch.float32
    torch.testing.assert_close(decay, -1e-5 * torch.tensor([0.25, 0.0625, 2**-6, 2**-8]), rtol=1e-6, atol=0)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"key_size 10 is not a multiple of num_heads 4"):
        LinearAttention(C, H, key_size=10)
    with pytest.raises(ValueError, match=r"norm must be one of 'rms', 'layer', .*, got 'batch'"):
        LinearAttention(C, H, norm="batch")
    with pytest.raises(ValueError, match=r"slopes must be one of 'alibi', 'minimax', 'linear', got 'steep'"):
        LightningAttention(C, H, slopes="steep")
    with pytest.raises(ValueError, match=r"layer_index must be in \[0, num_layers = 2\), got 2"):
        LightningAttention(C, H, layer_index=2, num_layers=2)
