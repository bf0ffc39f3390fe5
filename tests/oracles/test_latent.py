"""Latent attention is transformers' DeepSeek attention: outputs, gradients, cached steps, stretched positions.

Their norm, softmax and angles are in float32 whatever the model is in, which would bound how near both can be: while
they run, what they call float32 is float64.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attensor.nn import LatentAttention, Yarn

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SIZES = {"hidden_size": 24, "num_heads": 3, "kv_rank": 10, "nope_dim": 4, "rotary_dim": 6, "value_dim": 5}
STRETCHED = Yarn(40.0, 16, mscale=1.0, mscale_all_dim=1.0)


def theirs(version: int, q_rank: int | None, yarn: Yarn | None) -> tuple[nn.Module, nn.Module]:
    """Their layer and what turns positions into angles."""
    if version == 2:
        from transformers.models.deepseek_v2 import modeling_deepseek_v2 as module

        config_type, attention, rotary = (
            transformers.DeepseekV2Config,
            module.DeepseekV2Attention,
            module.DeepseekV2RotaryEmbedding,
        )
    else:
        from transformers.models.deepseek_v3 import modeling_deepseek_v3 as module

        config_type, attention, rotary = (
            transformers.DeepseekV3Config,
            module.DeepseekV3Attention,
            module.DeepseekV3RotaryEmbedding,
        )
    positions = {"rope_type": "default", "rope_theta": 10_000.0}
    if yarn is not None:
        positions |= {
            "rope_type": "yarn",
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_length,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "mscale": yarn.mscale,
            "mscale_all_dim": yarn.mscale_all_dim,
        }
    config = config_type(
        hidden_size=24,
        num_attention_heads=3,
        num_key_value_heads=3,
        kv_lora_rank=10,
        q_lora_rank=q_rank,
        qk_nope_head_dim=4,
        qk_rope_head_dim=6,
        v_head_dim=5,
        rope_parameters=positions,
        max_position_embeddings=640,
    )
    config.head_dim = 6  # what turns
    config._attn_implementation = "eager"
    return attention(config, 0).double().eval(), rotary(config)


@pytest.fixture(autouse=True)
def _in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their float32 is float64."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(Tensor, "float", Tensor.double)


def forward(layer: nn.Module, rotary: nn.Module, x: Tensor) -> Tensor:
    tokens = x.shape[1]
    mask = torch.full((tokens, tokens), -torch.inf, dtype=x.dtype).triu(1)[None, None]
    angles = rotary(x, torch.arange(tokens)[None].expand(x.shape[0], -1))
    out: Tensor = layer(hidden_states=x, attention_mask=mask, position_embeddings=angles)[0]
    return out


@pytest.mark.parametrize("yarn", [None, STRETCHED], ids=["plain", "yarn"])
@pytest.mark.parametrize("q_rank", [None, 7])
@pytest.mark.parametrize("version", [2, 3])
def test_outputs_and_gradients(version: int, q_rank: int | None, yarn: Yarn | None) -> None:
    peer, rotary = theirs(version, q_rank, yarn)
    layer = LatentAttention(**SIZES, q_rank=q_rank, rotary=yarn or 10_000.0, dtype=torch.float64)
    assert layer.state_dict().keys() == peer.state_dict().keys()
    with torch.no_grad():
        for parameter in peer.parameters():  # norms of ones would hide a weight that is not used
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.ndim == 1))
    layer.load_state_dict(peer.state_dict())
    x = torch.randn(2, 50, 24, dtype=torch.float64)
    grads = []
    for run in (lambda t: forward(peer, rotary, t), layer):
        given = x.clone().requires_grad_()
        out = run(given)
        loss = (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum()
        parameters = (
            peer.parameters()
            if len(grads) == 0
            else (dict(layer.named_parameters())[n] for n, _ in peer.named_parameters())
        )
        grads.append([out.detach(), *torch.autograd.grad(loss, [given, *parameters])])
    for found, expected in zip(grads[1], grads[0], strict=True):
        assert (found - expected).norm() <= 1e-10 * expected.norm()


def test_steps_from_the_cache_are_theirs() -> None:
    peer, rotary = theirs(3, 7, None)
    layer = LatentAttention(**SIZES, q_rank=7, dtype=torch.float64)
    layer.load_state_dict(peer.state_dict())
    x = torch.randn(2, 12, 24, dtype=torch.float64)
    cache = layer.new_cache(2)
    found = [layer(x[:, :5], cache=cache), *(layer(x[:, t : t + 1], cache=cache) for t in range(5, 12))]
    expected = forward(peer, rotary, x)
    assert (torch.cat(found, 1) - expected).norm() <= 1e-10 * expected.norm()
    assert cache.nbytes == 2 * 12 * (10 + 6) * 8


def test_stretched_frequencies_are_theirs() -> None:
    for width, factor, length in ((6, 40.0, 16), (64, 40.0, 4096), (64, 32.0, 4096), (8, 1.0, 32)):
        yarn = Yarn(factor, length, mscale=0.707, mscale_all_dim=0.707)
        config = transformers.DeepseekV3Config(
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": factor,
                "original_max_position_embeddings": length,
                "beta_fast": 32,
                "beta_slow": 1,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
            },
        )
        config.head_dim = width
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        expected, gain = ROPE_INIT_FUNCTIONS["yarn"](config, device="cpu")
        torch.testing.assert_close(yarn.frequencies(width, torch.device("cpu"), torch.float32), expected)
        assert yarn.gain == pytest.approx(gain)
