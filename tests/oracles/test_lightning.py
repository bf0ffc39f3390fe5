"""Lightning attention against the authors' left product and against MiniMax's layer in transformers."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
import torch
from torch import Tensor

from attensor.bench.contestants.left_product import left_product
from attensor.nn import LightningAttention
from attensor.nn.lightning import decay_slopes
from attensor.ops import linear_attention

_AUTHORS = importlib.util.find_spec("lightning_attn")
_TRANSFORMERS = importlib.util.find_spec("transformers")
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("backend")


def authors() -> ModuleType:
    """lightning_attn/ops/torch/linear_attention.py alone: importing its package would need triton."""
    folder = next(iter(_AUTHORS.submodule_search_locations))
    spec = importlib.util.spec_from_file_location("lightning_left", f"{folder}/ops/torch/linear_attention.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(_AUTHORS is None, reason="needs the authors' code: make test installs lightning_attn")
@pytest.mark.parametrize("algorithm", ["la1", "la2"])
@pytest.mark.parametrize("heads", [4, 6])
def test_the_authors_left_product(algorithm: str, heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 150, heads, d, generator=generator).requires_grad_() for d in (32, 32, 17))
    slopes = decay_slopes(heads, device=CPU).float()
    theirs = authors().linear_attn(*(x.transpose(1, 2) for x in (q, k, v)), slopes).transpose(1, 2)
    run = left_product if algorithm == "la1" else lambda *x: linear_attention(*x[:3], log_decay=x[3], scale=1.0)[0]
    ours = run(q, k, v, -slopes)
    weights = torch.linspace(-1, 1, ours.numel()).view_as(ours)
    grads = [torch.autograd.grad((x * weights).sum(), (q, k, v)) for x in (ours, theirs)]
    for mine, their in zip((ours, *grads[0]), (theirs, *grads[1]), strict=True):
        torch.testing.assert_close(mine, their, rtol=0, atol=1e-4 * their.abs().max().item())


def from_minimax(theirs: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Their weights under our names: q, k and v lie interleaved by head."""
    qkv = theirs["qkv_proj.weight"]
    q, k, v = qkv.view(heads, 3, -1, qkv.shape[1]).unbind(1)
    names = {"g_proj": "output_gate", "o_proj": "out_proj", "g_norm": "norm"}
    projections = {"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v}
    return {
        **{name: weight.flatten(0, 1) for name, weight in projections.items()},
        **{f"{ours}.weight": theirs[f"{their}.weight"] for ours, their in names.items()},
    }


@pytest.mark.skipif(_TRANSFORMERS is None, reason='needs transformers: pip install "attensor[hf]"')
@pytest.mark.parametrize("layer_index", [0, 2])
@pytest.mark.parametrize("heads", [4, 6])
def test_the_layer_of_minimax(heads: int, layer_index: int) -> None:
    """Blocks of 16 with a ragged tail, then decoding: values, input gradients and the state."""
    from transformers.models.minimax import MiniMaxConfig
    from transformers.models.minimax.modeling_minimax import MiniMaxCache, MiniMaxLightningAttention

    torch.manual_seed(0)
    config = MiniMaxConfig(
        hidden_size=48,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        num_hidden_layers=4,
        block_size=16,
        layer_types=["linear_attention"] * 4,
        head_dim=48 // heads,
    )
    theirs = MiniMaxLightningAttention(config, layer_index).double()
    ours = LightningAttention(48, heads, slopes="minimax", layer_index=layer_index, num_layers=4, dtype=torch.float64)
    ours.load_state_dict(from_minimax(theirs.state_dict(), heads))
    # their tables were made in float32
    slope = theirs.get_slope_rate().double()
    theirs.slope_rate, (theirs.query_decay, theirs.key_decay, theirs.diagonal_decay) = (
        slope,
        theirs.decay_factors(slope),
    )

    x = torch.randn(2, 43, 48, dtype=torch.float64).requires_grad_()
    empty = (torch.empty(0), torch.empty(0))
    expected, _ = theirs(x, empty, None)
    got = ours(x)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)
    weights = torch.linspace(-1, 1, got.numel(), dtype=got.dtype).view_as(got)
    for mine, their in zip(*(torch.autograd.grad((out * weights).sum(), x) for out in (got, expected)), strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-6, atol=1e-7)

    cache, past = ours.new_cache(2, dtype=torch.float64), MiniMaxCache()
    with torch.no_grad():
        for piece in x[:, :26].split([21, *[1] * 5], dim=1):
            expected, state = theirs(piece, empty, None, past_key_values=past)
            torch.testing.assert_close(ours(piece, cache=cache), expected, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(cache.states["state"], state, rtol=1e-6, atol=1e-7)
