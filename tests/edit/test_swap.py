"""Swapping attention: what is carried is what was there, the way back is bit-equal, and all layers go or none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from attensor import catalogue, edit, sites
from attensor.nn import SoftmaxAttention
from tests.sites.models import CASES, TOKENS, bert, encoder, gpt2, llama, mistral, our_vit, ours, qwen2, vit

SMALL: dict[str, dict[str, Any]] = {
    "sliding-window": {"window_size": 3},
    "neighborhood": {"window_size": 2},
    "window-grid": {"block_size": 2},
}
INTO = {"transformers": (llama, bert), "timm": (vit,), "torch": (encoder,)}
CARDS = [(name, kind) for name, card in catalogue.mechanisms().items() for kind in card.swaps_into]


def model_for(name: str, kind: str) -> Any:
    """A model of the kind that the mechanism can stand in: with or without a future, grids without further tokens."""
    if kind == "timm":
        from tests.oracles.timm import load_timm

        token = name == "neighborhood"
        sizes = {"img_size": (16, 24), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
        pooled = {"class_token": token, "global_pool": "token" if token else "avg"}
        model = load_timm().models.VisionTransformer(**sizes, **pooled).double().eval()
        images = torch.randn(2, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        return model, lambda: model(images)
    case = bert() if name in ("neighborhood", "l2vit") else qwen2() if kind == "transformers" else encoder()
    return case.model, case.call


@pytest.mark.parametrize(("name", "kind"), [one for one in CARDS if one != ("sliding-window", "torch")], ids=str)
def test_every_mechanism_goes_in_trains_and_comes_out_bit_equal(name: str, kind: str) -> None:
    model, call = model_for(name, kind)
    if name == "softmax" and kind == "timm":
        options: dict[str, Any] = {"is_causal": False}
    else:
        options = SMALL.get(name, {})
    with torch.no_grad():
        before, state = call(), copy.deepcopy(model.state_dict())
    assert edit.swap(model, to=name, **options) is model
    out = call()
    assert out.shape == before.shape
    assert out.isfinite().all()
    (out * torch.linspace(0, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    for site in sites.find_sites(model):
        assert site.is_replaced
        gradients = [p.grad is not None and bool(p.grad.any()) for p in site.module.parameters()]
        assert sum(gradients) > len(gradients) / 2
    edit.restore(model)
    assert not any(site.is_replaced for site in sites.find_sites(model))
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[key], state[key]) for key in state)
    with torch.no_grad():
        assert torch.equal(call(), before)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit", "encoder", "ours"])
def test_softmax_attention_for_softmax_attention_changes_nothing(name: str) -> None:
    case = CASES[name]()
    before = case.call()
    edit.swap(case.model, to="softmax")
    torch.testing.assert_close(case.call(), before, rtol=1e-10, atol=1e-10)
    edit.restore(case.model)
    assert torch.equal(case.call(), before)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "our_vit"])
def test_a_neighbourhood_as_large_as_the_grid_is_the_whole_attention(name: str) -> None:
    """Class tokens see all, and all see them."""
    case = CASES[name]()
    before = case.call()
    edit.swap(case.model, to="neighborhood", window_size=(2, 3))
    torch.testing.assert_close(case.call(), before, rtol=1e-10, atol=1e-10)
    edit.swap(case.model, to="neighborhood", window_size=(2, 1))
    assert (case.call() - before).abs().max() > 1e-3


@torch.no_grad()
def test_a_window_as_long_as_the_text_changes_nothing_also_while_decoding() -> None:
    case = llama()
    before = case.call()
    expected = case.model.generate(TOKENS, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
    edit.swap(case.model, to="sliding-window", window_size=64)
    torch.testing.assert_close(case.call(), before, rtol=1e-10, atol=1e-10)
    found = case.model.generate(TOKENS, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("to", ["softmax", "sliding-window"])
@pytest.mark.parametrize("make", [mistral, qwen2], ids=lambda make: make.__name__)
def test_the_window_of_the_original_is_carried(make: Any, to: str) -> None:
    """Mistral's in all layers, Qwen2's in the second alone; while decoding and with padding, too."""
    case = (
        make(sliding_window=3)
        if make is mistral
        else make(sliding_window=3, use_sliding_window=True, max_window_layers=1)
    )
    windows = [site.weights().window_size for site in sites.find_sites(case.model)]
    assert windows == ([3, 3] if make is mistral else [None, 3])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    before, choices = case.call(), {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    padded = case.model(TOKENS, attention_mask=mask).logits
    expected = case.model.generate(TOKENS, **choices)
    edit.swap(case.model, to=to, layers=None if make is mistral else [1])
    torch.testing.assert_close(case.call(), before, rtol=1e-10, atol=1e-10)
    found = case.model(TOKENS, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], padded[mask.bool()], rtol=1e-10, atol=1e-10)
    assert torch.equal(case.model.generate(TOKENS, **choices), expected)
    assert [site.weights().window_size for site in sites.find_sites(case.model)] == windows
    edit.swap(case.model, to="sliding-window", layers=[1], window_size=2)
    assert (case.call() - before).abs().max() > 1e-4
    edit.restore(case.model)
    assert torch.equal(case.call(), before)


@torch.no_grad()
@pytest.mark.parametrize(("make", "bound"), [(llama, 2e-6), (qwen2, 2e-6), (gpt2, 1e-10)])
def test_latents_of_full_rank_change_nothing_also_while_decoding(make: Any, bound: float) -> None:
    """Positions and biases included; angles of transformers are float32."""
    case = make()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    choices = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    calls = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    before, padded = case.call(), case.model(TOKENS, **calls).logits
    expected = case.model.generate(TOKENS, **choices)
    state = copy.deepcopy(case.model.state_dict())
    edit.swap(case.model, to="mla")
    torch.testing.assert_close(case.call(), before, rtol=bound, atol=bound * float(before.abs().max()))
    found, real = case.model(TOKENS, **calls).logits, mask.bool()
    torch.testing.assert_close(found[real], padded[real], rtol=bound, atol=bound * float(padded.abs().max()))
    assert torch.equal(case.model.generate(TOKENS, **choices), expected)
    edit.restore(case.model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in case.model.state_dict().items())


@torch.no_grad()
def test_a_stretched_model_keeps_its_positions_as_latents() -> None:
    scaled = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 16}  # fmt: skip
    case = llama(rope_parameters=scaled, max_position_embeddings=128)
    before, plain = case.call(), llama().call()
    assert (before - plain).abs().max() > 1e-4
    edit.swap(case.model, to="mla")
    torch.testing.assert_close(case.call(), before, rtol=1e-5, atol=1e-5)


def test_latents_of_less_rank_come_nearer_with_more_of_it_and_can_be_trained() -> None:
    far, kept = [], []
    for options in ({"kv_rank": 2, "rotary_dim": 4}, {"kv_rank": 6, "rotary_dim": 8}, {"kv_rank": 12}):
        case = llama()
        before = case.call().detach()
        edit.swap(case.model, to="mla", **options)
        far.append(float((case.call().detach() - before).norm() / before.norm()))
        layer = sites.find_sites(case.model)[0].layer
        kept.append(layer.kv_rank + layer.rotary_dim)
    assert kept == [6, 14, 24]
    assert far[0] > far[1] > 1e-3 > 1e-5 > far[2]
    case = llama()
    edit.swap(case.model, to="mla", kv_rank=6, rotary_dim=8)
    batches = [{"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}] * 60
    errors = edit.align(case.model, batches, learning_rate=3e-3).errors[""]
    assert all(one[-1] < 0.5 * one[0] for one in errors.values())
    with pytest.raises(ValueError, match=r'edit\.restore\(model, weights="original"\)'):
        edit.restore(case.model)
    edit.restore(case.model, weights="original")
    assert not any(site.is_replaced for site in sites.find_sites(case.model))


@torch.no_grad()
@pytest.mark.parametrize("to", ["gla", "linear", "retnet"])
def test_a_state_decodes_left_padded_rows_as_whole_ones(to: str) -> None:
    model = edit.swap(llama().model, to=to)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    # decays of channels and rotary positions together are not relative: rows count from their first real token
    places = (mask.cumsum(1) - 1).clamp(min=0)
    whole = model(TOKENS, attention_mask=mask, position_ids=places, use_cache=False).logits
    alone = model(TOKENS[:1, 2:], use_cache=False).logits
    torch.testing.assert_close(whole[:1, 2:], alone)
    past = None
    for t in range(7):
        step = model(
            TOKENS[:, t : t + 1],
            attention_mask=mask[:, : t + 1],
            position_ids=places[:, t : t + 1],
            past_key_values=past,
            use_cache=True,
        )
        past, real = step.past_key_values, mask[:, t].bool()
        torch.testing.assert_close(step.logits[real, 0], whole[real, t])


@torch.no_grad()
@pytest.mark.parametrize(("to", "options"), [("softmax", {}), ("sliding-window", {"window_size": 9})])
def test_masks_of_torch_are_understood(to: str, options: dict[str, Any]) -> None:
    """A causal mask, with and without padding; any other mask is refused."""
    model = encoder().model
    x = torch.randn(2, 7, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    mask = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 5:] = True
    whole = model(x, mask=mask, is_causal=True)
    padded = model(x, mask=mask.isinf(), src_key_padding_mask=padding)
    edit.swap(model, to=to, is_causal=True, **options)
    torch.testing.assert_close(model(x, mask=mask, is_causal=True), whole, rtol=1e-10, atol=1e-10)
    found = model(x, mask=mask.isinf(), src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], padded[~padding], rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="attn_mask must be the causal one"):
        model(x, mask=mask.mT)


@torch.no_grad()
def test_some_layers_then_others_and_back() -> None:
    case = llama()
    before = case.call()
    edit.swap(case.model, to="gla", layers=[-1])
    assert [site.is_replaced for site in sites.find_sites(case.model)] == [False, True]
    edit.swap(case.model, to="sliding-window", layers=[1, -1], window_size=2)
    assert "SlidingWindow" in repr(sites.find_sites(case.model)[1])
    edit.restore(case.model, layers=[0])
    assert sites.find_sites(case.model)[1].is_replaced
    edit.restore(case.model)
    assert torch.equal(case.call(), before)


@torch.no_grad()
def test_what_was_trained_comes_back_with_the_weights_or_is_left() -> None:
    for weights in ("carry", "original"):
        case = ours()
        before = case.call()
        edit.swap(case.model, to="gla")
        for site in sites.find_sites(case.model):
            site.layer.q_proj.weight.mul_(1.5)
        edit.restore(case.model, weights=weights)
        assert torch.equal(case.call(), before) == (weights == "original")


@torch.no_grad()
def test_fresh_weights_are_not_those_of_the_attention() -> None:
    case = llama()
    edit.swap(case.model, to="softmax", weights="fresh")
    for site in sites.find_sites(case.model):
        assert not torch.equal(site.layer.q_proj.weight, site.original.q_proj.weight)


def test_refusals_change_nothing() -> None:
    case = llama()
    before = case.call().detach()
    for match, options in {
        "no mechanism is called 'glaa'": {"to": "glaa"},
        "layers must be from -2 to 1 for 2 attentions, got 2": {"to": "gla", "layers": [0, 2]},
        "layers must name an attention": {"to": "gla", "layers": []},
        "cannot stand in for attention of transformers; these can": {"to": "window-grid"},
        "weights must be": {"to": "gla", "weights": "copied"},
        "q must be .* to fit the layer": {"to": "softmax", "head_dim": 4},
        "q must be .* to fit the layer, got": {"to": "gla", "key_size": 12},
        "rotary_dim must be even and from 2 to 12, got 14": {"to": "mla", "rotary_dim": 14},
        "LatentAttention.from_attention: kv_rank must be": {"to": "mla", "kv_rank": 0},
        "to='grouped-latent' cannot stand in for": {"to": "grouped-latent"},
    }.items():
        with pytest.raises(ValueError, match=match):
            edit.swap(case.model, **options)
    with pytest.raises(ValueError, match="must have an attention"):
        edit.swap(nn.Linear(3, 3), to="gla")
    for to in ("gla", "mla"):
        with pytest.raises(ValueError, match="reads from left to right"):
            edit.swap(bert().model, to=to)
    with pytest.raises(ValueError, match="heads that read one latent each"):
        edit.swap(ours().model, to="grouped-latent")
    with pytest.raises(ValueError, match="class token"):
        edit.swap(our_vit().model, to="window-grid")
    assert not any(site.is_replaced for site in sites.find_sites(case.model))
    assert torch.equal(case.call(), before)


def test_a_bias_that_the_original_has_not_is_not_dropped() -> None:
    case = qwen2()
    edit.swap(case.model, to=lambda weights: SoftmaxAttention.from_attention(weights, out_bias=True))
    edit.restore(case.model)
    edit.swap(case.model, to=lambda weights: SoftmaxAttention.from_attention(weights, out_bias=True))
    with torch.no_grad():
        sites.find_sites(case.model)[1].layer.o_proj.bias.fill_(1.0)
    with pytest.raises(ValueError, match="out_bias has no place"):
        edit.restore(case.model)
