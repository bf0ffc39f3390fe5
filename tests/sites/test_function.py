"""A function as transformers' attention implementation: what it is given, and that nothing is left of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attensor import sites
from attensor.ops import softmax_attention
from tests.sites.models import TOKENS, bert, gpt2, llama, mistral, qwen2

MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])


@torch.no_grad()
@pytest.mark.parametrize("make", [llama, qwen2, mistral, gpt2, bert], ids=lambda make: make.__name__)
def test_softmax_attention_is_what_the_model_computes_and_removing_it_is_bit_equal(make: Any) -> None:
    case = make()
    before = case.call()
    masked = case.model(TOKENS, attention_mask=MASK)[0]
    with sites.attention_function(case.model, "softmax-of-attensor", softmax_attention) as handle:
        assert case.model.config._attn_implementation == handle.name
        torch.testing.assert_close(case.call(), before, rtol=1e-10, atol=1e-10)
        found = case.model(TOKENS, attention_mask=MASK)[0]
        torch.testing.assert_close(found[MASK.bool()], masked[MASK.bool()], rtol=1e-10, atol=1e-10)
    assert torch.equal(case.call(), before)
    assert case.model.config._attn_implementation == "sdpa"
    handle.remove()
    sites.attention_function(case.model, handle.name, softmax_attention).remove()  # the name is free again


@torch.no_grad()
def test_windows_caches_beams_and_grouped_heads_reach_the_function() -> None:
    case = mistral(sliding_window=3)
    choices = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    padded = {**choices, "attention_mask": MASK, "num_beams": 2}
    before, expected = case.call(), [case.model.generate(TOKENS, **one) for one in (choices, padded)]
    heads: set[tuple[int, ...]] = set()

    def f(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        heads.add((q.shape[2], k.shape[2]))
        return softmax_attention(q, k, v, **options)

    with sites.attention_function(case.model, "watched", f):
        torch.testing.assert_close(case.call(), before, rtol=1e-10, atol=1e-10)
        for one, wanted in zip((choices, padded), expected, strict=True):
            assert torch.equal(case.model.generate(TOKENS, **one), wanted)
    assert heads == {(4, 2)}


@torch.no_grad()
def test_a_function_learns_which_layer_calls_and_its_answer_counts() -> None:
    case = llama()
    layers: list[int] = []

    def f(q: Tensor, k: Tensor, v: Tensor, *, module: Any, **options: Any) -> Tensor:
        layers.append(module.layer_idx)
        return torch.zeros_like(q)

    before = case.call()
    with sites.attention_function(case.model, "zeros", f), sites.capture(sites.find_sites(case.model)) as seen:
        assert not torch.equal(case.call(), before)
    assert layers == [0, 1]
    assert not any(one.out.any() for one in seen.values())


@torch.no_grad()
def test_a_part_alone() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 8}
    text = {"vocab_size": 31, "max_position_embeddings": 8, "eos_token_id": 30, **sizes}
    vision = {"image_size": 4, "patch_size": 2, **sizes}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    model = transformers.CLIPModel(config).double().eval()
    images = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    calls: list[int] = []

    def f(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        calls.append(q.shape[1])
        return softmax_attention(q, k, v, **options)

    def call() -> Tensor:
        return model(input_ids=TOKENS[:1], pixel_values=images).logits_per_image

    before = call()
    with sites.attention_function(model, "text-alone", f, part="text_config"):
        torch.testing.assert_close(call(), before, rtol=1e-10, atol=1e-10)
    assert calls == [7]
    assert torch.equal(call(), before)
    with pytest.raises(ValueError, match=r"part must be among .*text_config"):
        sites.attention_function(model, "elsewhere", f, part="sound_config")


def test_refusals_change_nothing() -> None:
    case = llama(attention_dropout=0.5)
    for name in ("sdpa", "eager", "some/kernel", ""):
        with pytest.raises(ValueError, match="name must be a new word"):
            sites.attention_function(case.model, name, softmax_attention)
    with pytest.raises(ValueError, match="must be one of transformers"):
        sites.attention_function(torch.nn.Linear(3, 3), "mine", softmax_attention)
    case.model.train()

    def f(q: Tensor, k: Tensor, v: Tensor, *, scale: Any, is_causal: bool, attn_mask: Any) -> Tensor:
        return q

    with sites.attention_function(case.model, "without-dropout", f), pytest.raises(ValueError, match="dropout"):
        case.call()
    with sites.attention_function(case.model, "with-dropout", softmax_attention):
        assert case.call().isfinite().all()
    assert case.model.config._attn_implementation == "sdpa"
