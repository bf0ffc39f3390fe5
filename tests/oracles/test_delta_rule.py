"""The gated delta rule and its layer are those of flash-linear-attention and of transformers, run beside ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attensor import nn
from attensor.ops import gated_delta_rule

naive = pytest.importorskip("fla.ops.gated_delta_rule.naive", reason="flash-linear-attention is not installed")
qwen = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next", reason="no Qwen3-Next")
olmo = pytest.importorskip("transformers.models.olmo_hybrid.modeling_olmo_hybrid", reason="no OLMo Hybrid")

# where fla is installed, the names lead to its kernels, which need a GPU
BY_TOKEN, BY_CHUNK = (
    inspect.unwrap(getattr(qwen, f"torch_{form}_gated_delta_rule")) for form in ("recurrent", "chunk")
)
ROWS, HEADS, WIDTH, SIZE = 2, 3, 8, 12
ORACLES: dict[str, Callable[..., Any]] = {
    "fla, by token": lambda *x: naive.naive_recurrent_gated_delta_rule(*x[:5], None, x[5], True),
    "fla, by chunk": lambda q, k, v, beta, g, start: naive.naive_chunk_gated_delta_rule(
        q, k, v, g, beta, 16, None, start, True
    ),
    "transformers, by token": lambda q, k, v, beta, g, start: BY_TOKEN(
        q, k, v, g, beta, initial_state=start, output_final_state=True
    ),
    "transformers, by chunk": lambda q, k, v, beta, g, start: BY_CHUNK(
        q, k, v, g, beta, initial_state=start, output_final_state=True
    ),
}


def weighted(tensors: Any) -> Tensor:
    return sum((x * torch.linspace(-1, 2, x.numel()).view_as(x)).sum() for x in tensors)  # type: ignore[return-value]


def inputs(tokens: int) -> list[Tensor]:
    """q, keys of length 1, v, beta, log decays of which some forget nearly all, a first state."""
    q, k, v = (torch.randn(ROWS, tokens, HEADS, n) for n in (WIDTH, WIDTH, SIZE))
    decay = -torch.rand(ROWS, tokens, HEADS)
    decay[:, ::7] *= 20
    start = torch.randn(ROWS, HEADS, WIDTH, SIZE)
    return [q, F.normalize(k, dim=-1), v, 2 * torch.rand(ROWS, tokens, HEADS), decay, start]


@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize(("tokens", "chunk_size"), [(1, None), (50, 16), (130, None)])
def test_outputs_states_and_gradients(oracle: str, tokens: int, chunk_size: int | None) -> None:
    """In float32, as theirs compute in it."""
    given, results = inputs(tokens), []
    for ours in (True, False):
        q, k, v, beta, decay, start = tracked = [x.clone().requires_grad_() for x in given]
        if ours:
            options: dict[str, Any] = {"log_decay": decay, "initial_state": start, "chunk_size": chunk_size}
            found = gated_delta_rule(q, k, v, beta, output_final_state=True, **options)
        else:
            found = ORACLES[oracle](q, k, v, beta, decay, start)
        results.append([*(x.detach() for x in found), *torch.autograd.grad(weighted(found), tracked)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def official(layer: nn.GatedDeltaNet) -> Any:
    """OLMo Hybrid's layer with the same weights: its three convolutions are one."""
    config = olmo.OlmoHybridConfig(
        hidden_size=layer.hidden_size,
        num_attention_heads=layer.num_heads,
        linear_num_key_heads=layer.num_qk_heads,
        linear_num_value_heads=layer.num_heads,
        linear_key_head_dim=layer.key_dim,
        linear_value_head_dim=layer.value_dim,
        linear_conv_kernel_dim=layer.conv_size,
        linear_allow_neg_eigval=layer.allow_neg_eigval,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
    )
    theirs, weights = olmo.OlmoHybridGatedDeltaNet(config, 0), dict(layer.state_dict())
    weights["conv1d.weight"] = torch.cat([weights.pop(f"{name}_conv1d.weight") for name in "qkv"])
    theirs.load_state_dict(weights)
    return theirs


@pytest.mark.parametrize("num_qk_heads", [None, 2])
@pytest.mark.parametrize("allow_neg_eigval", [False, True])
def test_the_layer_is_olmo_s(num_qk_heads: int | None, allow_neg_eigval: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output and gradients of the input and of all weights, in float32; our convolutions side by side are theirs."""
    for name in ("torch_chunk_gated_delta_rule", "causal_conv1d_fn"):
        monkeypatch.setattr(olmo, name, inspect.unwrap(getattr(olmo, name)))
    options: dict[str, Any] = {"num_qk_heads": num_qk_heads, "allow_neg_eigval": allow_neg_eigval}
    layer = nn.GatedDeltaNet(24, 4, head_dim=6, expand_v=1.5, **options)
    with torch.no_grad():
        layer.o_norm.weight.add_(0.3 * torch.randn(9))
    x, results = torch.randn(2, 70, 24), []
    for module in (layer, official(layer)):
        tracked = x.clone().requires_grad_()
        out, named = module(tracked), dict(module.named_parameters())
        grads = dict(zip(["x", *named], torch.autograd.grad(weighted([out]), [tracked, *named.values()])))
        if "conv1d.weight" not in grads:
            grads["conv1d.weight"] = torch.cat([grads.pop(f"{name}_conv1d.weight") for name in "qkv"])
        results.append({"out": out.detach(), **grads})
    assert results[0].keys() == results[1].keys()
    for name, expected in results[1].items():
        error = (results[0][name] - expected).norm()
        assert error <= 2e-5 * expected.norm(), name
