"""TransNormerLLM: its published sizes, its layout, and the formula of a block with LRPE as a cosine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from attensor.models.language.transnormer import TransNormerConfig, TransNormerForCausalLM
from attensor.nn.lightning import decay_slopes
from tests.models.families import build, tokens

# name: layers, channels, MLP channels, vocabulary of the released models, total as published, its vocabulary
PUBLISHED = {
    "385M": (24, 1024, 2816, 64_000, 384_974_848, 50_272),
    "1B": (16, 2048, 5632, 64_000, 992_165_888, 50_272),
    "3B": (32, 2560, 6912, 64_000, 2_876_006_400, 50_272),
    "7B": (30, 4096, 11_008, 64_000, 6_780_547_072, 50_272),
    "15B": (42, 5120, 13_656, 100_280, 14.83e9, 100_280),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_the_published_number_of_parameters(preset: str) -> None:
    """The formula exactly; the published totals, which count one table and other positions, to a few in 10,000."""
    layers, channels, inside, vocabulary, published, its_vocabulary = PUBLISHED[preset]
    made = TransNormerConfig.from_preset(preset)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    assert isinstance(model, TransNormerForCausalLM)
    blocks = layers * (5 * channels**2 + 3 * channels * inside)
    assert model.num_parameters() == blocks + 2 * vocabulary * channels + channels  # LRPE's angles in layer 0
    assert made.hidden_size // made.num_attention_heads == 128
    assert blocks + its_vocabulary * channels == pytest.approx(published, rel=2e-4)


def test_configuration_names() -> None:
    assert TransNormerConfig() == TransNormerConfig.from_preset("385M") == TransNormerConfig.from_preset("0.4B")
    assert isinstance(AutoConfig.for_model("attensor_transnormer"), TransNormerConfig)
    assert TransNormerConfig().embedding_scale == 32
    assert TransNormerConfig(scale_embedding=False).embedding_scale == 1


@pytest.mark.parametrize("variant", ["transnormer", "transnormer-lrpe-everywhere"])
def test_a_model_is_its_formula(variant: str) -> None:
    """Logits from dense T x T weights: q . k cos(theta (t - s)) exp(-slope (t - s)) and no softmax."""
    model, rows = build(variant), tokens(2, 7)
    w = model.state_dict()
    x = 12**0.5 * w["model.embed_tokens.weight"][rows]
    for index in range(2):
        at = f"model.layers.{index}"
        slopes = decay_slopes(3, layer_index=index, num_layers=2, device=x.device)
        x = x + _mixer(_norm(x), {name: w.get(f"{at}.attn.{name}") for name in NAMES}, slopes)
        h = _norm(x)
        inside = F.linear(h, w[f"{at}.mlp.gate_proj.weight"]) * F.linear(h, w[f"{at}.mlp.up_proj.weight"])
        x = x + F.linear(inside, w[f"{at}.mlp.down_proj.weight"])
    logits = _norm(x) @ w["lm_head.weight"].mT
    torch.testing.assert_close(model(rows).logits, logits, rtol=1e-9, atol=1e-9)
    assert ("model.layers.1.attn.theta" in w) == (variant == "transnormer-lrpe-everywhere")
    assert not [name for name in w if "norm" in name]


NAMES = (*(f"{letter}_proj.weight" for letter in "qkvgo"), "theta")


def _norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def _mixer(x: Tensor, w: dict[str, Tensor | None], slopes: Tensor) -> Tensor:
    q, k, v, u = (F.linear(x, w[f"{letter}_proj.weight"]) for letter in "qkvg")
    q, k, v = (t.unflatten(-1, (3, 4)) for t in (q * torch.sigmoid(q), k * torch.sigmoid(k), v))
    age = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])  # [t, s]
    theta = torch.zeros(3, 1, 4, dtype=x.dtype) if w["theta"] is None else w["theta"]
    turned = torch.cos(theta[:, None] * age[None, :, :, None])  # [H, t, s, K]
    scores = torch.einsum("bthk,bshk,htsk->bhts", q, k, turned)
    scores = (scores * torch.exp(-slopes[:, None, None] * age)).tril()
    out = _norm(torch.einsum("bhts,bshv->bthv", scores, v).flatten(-2))
    return F.linear(u * out, w["o_proj.weight"])


def test_simple_norm_is_a_norm_without_weight() -> None:
    norm = build("transnormer", dtype=torch.float64).model.norm
    width = norm.normalized_shape[0]
    x = torch.randn(3, 5, width, dtype=torch.float64, requires_grad=True)
    assert not list(norm.parameters())
    torch.testing.assert_close(norm(x), _norm(x), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(norm, x)
    tiny = torch.full((1, width), 2.0**-12, dtype=torch.bfloat16)
    assert norm(tiny).dtype == torch.bfloat16
    torch.testing.assert_close(norm(tiny).float(), _norm(tiny.double()).float(), rtol=1e-2, atol=0)


def test_angles_that_a_checkpoint_lacks_are_drawn_and_others_kept(tmp_path: Path) -> None:
    """A missing theta becomes the default one; one that is there survives although other weights are missing."""
    model = build("transnormer", dtype=torch.float32)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    fresh = TransNormerForCausalLM(model.config).model.layers[0].attn.theta
    for lost, expected in (("theta", fresh), ("q_proj.weight", model.model.layers[0].attn.theta)):
        left = {name: tensor for name, tensor in stored.items() if name != f"model.layers.0.attn.{lost}"}
        save_file(left, tmp_path / "model.safetensors", {"format": "pt"})
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(again.model.layers[0].attn.theta, expected)
