"""To TPLA in one step: gains as they are defined, weights that load, slices that travel in a configuration."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from attensor import edit
from attensor.models.language.stack import StackConfig, StackForCausalLM
from attensor.nn import LatentAttention, Slicing
from tests.edit.test_rotate import inputs, layer


def scores_of(made: LatentAttention, x: Tensor, matrix: Tensor) -> Tensor:
    """Content scores of each channel of the turned latent, of every query with every token: [B, H, Tq, Tk, R]."""
    latent = made.kv_a_proj_with_mqa(x)[..., :8]
    latent = latent / (latent.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    q = made.q_proj(x).view(*x.shape[:2], 3, 10)[..., :4]
    up = made.kv_b_proj.weight.view(3, 9, 8)[:, :4] * made.kv_a_layernorm.weight
    absorbed = torch.einsum("bthn,hnr->bthr", q, up)
    return torch.einsum("bihr,bjr->bhijr", absorbed @ matrix, latent @ matrix)


@torch.no_grad()
@pytest.mark.parametrize("how", ["identity", "hadamard", "pca"])
def test_fitted_gains_are_least_squares_over_all_pairs(how: str) -> None:
    made, x = layer(), inputs()
    _, slicings = edit.to_tpla(made, [x], how=how, groups=2, gains="fitted")
    matrix = edit.rotation(how, 8, moment=edit.latent_moments(made, [x])[""])
    # every query with every token of every text, less the mean over tokens, which no softmax sees
    q_and_c = scores_of(made, x.reshape(1, -1, 24), matrix)
    q_and_c = q_and_c - q_and_c.mean(3, keepdim=True)
    whole = q_and_c.sum(-1)
    for j, found in enumerate(slicings[""].gains):
        own = q_and_c[..., j * 4 : j * 4 + 4].sum(-1)
        assert found == pytest.approx(float((whole * own).sum() / own.square().sum()), rel=1e-9)


@torch.no_grad()
def test_gains_of_slices_that_do_not_vary_together_are_one() -> None:
    made, x = layer(), inputs()
    centred = torch.cat([x, -x])  # latents have no mean, by symmetry
    _, slicings = edit.to_tpla(made, [centred], gains="fitted")
    assert slicings[""].gains == pytest.approx((1.0, 1.0), rel=1e-9)


@torch.no_grad()
def test_gains_come_near_the_whole_where_slices_speak_for_it() -> None:
    """All energy twice: each slice knows half of every score, and the fit doubles it."""
    made = layer()
    made.kv_a_proj_with_mqa.weight[4:8] = made.kv_a_proj_with_mqa.weight[:4]
    made.kv_a_layernorm.weight[4:] = made.kv_a_layernorm.weight[:4]
    made.kv_b_proj.weight[:, 4:] = made.kv_b_proj.weight[:, :4]
    _, slicings = edit.to_tpla(made, [inputs()], how="identity", gains="fitted")
    assert slicings[""].gains == pytest.approx((2.0, 2.0), rel=1e-9)
    assert slicings[""].norms == pytest.approx((2.0, 2.0), rel=1e-9)


@torch.no_grad()
def test_a_model_is_turned_sliced_and_configured() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 17, "hidden_size": 24, "intermediate_size": 20, "num_attention_heads": 3}
    config = StackConfig(**sizes, num_hidden_layers=2, layers="mla", mixer_options={"mla": {"kv_rank": 8}})
    model = StackForCausalLM(config).double().eval()
    tokens = torch.randint(0, 17, (2, 12), generator=torch.Generator().manual_seed(1))
    expected = model(tokens).logits
    state, slicings = edit.to_tpla(model, [tokens], gains="reciprocal", when="always")
    assert all(slicing.gains == slicing.norms for slicing in slicings.values())
    turned = StackForCausalLM(config).double().eval()
    turned.load_state_dict(state)
    torch.testing.assert_close(turned(tokens).logits, expected, rtol=1e-10, atol=1e-10)
    edit.apply_slicings(turned, slicings)
    sliced = turned(tokens).logits
    assert 1e-6 < (sliced - expected).abs().max() < expected.abs().max()
    written = json.loads(json.dumps(edit.slicing_options(slicings)))
    options = {**config.mixer_options, **written}
    same = StackForCausalLM(
        StackConfig(**sizes, num_hidden_layers=2, layers="mla", mixer_options=options)
    ).double().eval()  # fmt: skip
    same.load_state_dict(state)
    assert same.model.layers[1].attn.slicing == slicings["model.layers.1.attn."]
    assert torch.equal(same(tokens).logits, sliced)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="gains must be one of 'one', 'reciprocal', 'fitted', got 'two'"):
        edit.to_tpla(layer(), [inputs()], gains="two")
    with pytest.raises(ValueError, match="how='pca' needs batches"):
        edit.to_tpla(layer())
    with pytest.raises(ValueError, match="gains='fitted' needs batches"):
        edit.to_tpla(layer(), how="hadamard", gains="fitted")
    with pytest.raises(ValueError, match=r"'up\.' must be an nn\.LatentAttention of model, got NoneType"):
        edit.apply_slicings(layer(), {"up.": Slicing(2)})
    with pytest.raises(ValueError, match="groups must divide the latent's width 8, got 3"):
        edit.apply_slicings(layer(), {"": Slicing(3)})
    with pytest.raises(ValueError, match="must have the number of a layer"):
        edit.slicing_options({"attention.": Slicing(2)})
    with pytest.raises(ValueError, match="score_moments: model has no layer with a kv_a_proj_with_mqa"):
        edit.score_moments(torch.nn.Linear(2, 2), [])
    with pytest.raises(ValueError, match="score_moments: batches must hold a token"):
        edit.score_moments(layer(), [])
