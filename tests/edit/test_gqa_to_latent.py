"""Grouped softmax attention as latent attention: the same function at full rank, and what less of it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attensor import edit, sites
from attensor.nn import Frequencies, LatentAttention, Slicing, SlidingWindowAttention, SoftmaxAttention, Yarn
from tests.sites.models import SIZES, TOKENS, bert, drawn, llama

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def layer(**options: Any) -> SoftmaxAttention:
    torch.manual_seed(0)
    sizes = {"num_kv_heads": 2, "head_dim": 6, "dtype": torch.float64, **options}
    made = SoftmaxAttention(20, 4, **sizes)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.4)
    return made


def inputs(tokens: int = 9) -> Tensor:
    return torch.randn(2, tokens, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def near(found: Tensor, expected: Tensor, bound: float = 1e-10) -> bool:
    return bool((found - expected).norm() <= bound * expected.norm())


@torch.no_grad()
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("base", [10_000.0, 50.0, None])
def test_all_of_it_is_the_same_function_also_while_decoding(base: float | None, heads: int) -> None:
    made, x = layer(rotary_base=base, num_kv_heads=heads), inputs()
    found = edit.gqa_to_latent(made)
    assert (found.turned, found.kept) == (1.0, 1.0)
    expected = made(x)
    assert near(found.layer(x), expected)
    cache = found.layer.new_cache(2)
    steps = [found.layer(piece, cache=cache) for piece in x.split([4, 1, 1, 1, 2], 1)]
    assert near(torch.cat(steps, 1), expected)
    numbers = min(heads * 6, 20) + heads * 6 if base else min(2 * heads * 6, 20) + 2
    assert found.layer.kv_rank + found.layer.rotary_dim == numbers


@torch.no_grad()
def test_inputs_of_any_size_are_within_the_bound_of_the_norm() -> None:
    made = layer()
    for size in (1e-3, 1.0, 30.0):
        assert near(edit.gqa_to_latent(made).layer(size * inputs()), made(size * inputs()))
    single = layer(dtype=torch.float32)
    assert near(edit.gqa_to_latent(single).layer(inputs().float()), single(inputs().float()), 1e-5)


@torch.no_grad()
def test_transformers_llama_becomes_latent_and_generates_the_same() -> None:
    scaled = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 16}  # fmt: skip
    config = transformers.LlamaConfig(
        **SIZES, num_attention_heads=4, num_key_value_heads=2, rope_parameters=scaled, max_position_embeddings=128
    )
    model: Any = drawn(transformers.LlamaForCausalLM(config))
    tokens = torch.cat([TOKENS] * 5, 1)
    before = model(tokens).logits
    text = model.generate(TOKENS, max_new_tokens=9, do_sample=False, pad_token_id=0, eos_token_id=None)
    for site in sites.find_sites(model):
        sites.replace(site, edit.gqa_to_latent(site).layer)
    # their angles, norms and weights of attention are float32
    assert near(model(tokens).logits, before, 2e-6)
    found = model.generate(TOKENS, max_new_tokens=9, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(found, text)


@torch.no_grad()
@pytest.mark.parametrize(
    "rotary", [Yarn(8.0, 16, base=100.0, mscale=1.3, mscale_all_dim=0.7), Frequencies((1.0, 0.3, 0.01), 1.2)]
)
def test_positions_that_weights_do_not_say(rotary: Any) -> None:
    made, x = layer(rotary_base=None), inputs(30)
    found = edit.gqa_to_latent(made.to_attention(), rotary=rotary)
    q, k, v = (p(x).unflatten(-1, (-1, 6)) for p in (made.q_proj, made.k_proj, made.v_proj))
    angles = torch.arange(30)[:, None] * rotary.frequencies(6, torch.device("cpu"), torch.float64)
    cos, sin = torch.cat([angles.cos()] * 2, -1)[:, None], torch.cat([angles.sin()] * 2, -1)[:, None]

    def turn(t: Tensor) -> Tensor:
        first, second = t.chunk(2, -1)
        return (t * cos + torch.cat([-second, first], -1) * sin) * rotary.gain

    heads = (turn(q), turn(k).repeat_interleave(2, 2), v.repeat_interleave(2, 2))
    out = nn.functional.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in heads), is_causal=True, scale=6**-0.5 * rotary.score_gain
    )
    assert near(found.layer(x), made.o_proj(out.transpose(1, 2).flatten(2)))


@torch.no_grad()
def test_less_of_it_loses_what_it_says() -> None:
    """No positions and one head: what is lost of keys and values is the rest of their singular values."""
    made, x = layer(rotary_base=None, num_kv_heads=1), inputs(200)
    moment = x.flatten(0, 1).mT @ x.flatten(0, 1) / 400
    matrix = torch.cat([made.k_proj.weight, made.v_proj.weight])
    root = torch.linalg.cholesky(moment)
    sizes = [((w @ root).square().sum()).sqrt() for w in (made.k_proj.weight, made.v_proj.weight)]
    weighed = torch.cat([made.k_proj.weight / sizes[0], made.v_proj.weight / sizes[1]]) @ root
    energies = torch.linalg.svdvals(weighed).square()
    shares = []
    for rank in range(1, 13):
        found = edit.gqa_to_latent(made, kv_rank=rank, moment=moment)
        assert found.kept == pytest.approx(float(energies[:rank].sum() / energies.sum()), rel=1e-9)
        shares.append(float((found.layer(x) - made(x)).norm() / made(x).norm()))
    assert matrix.shape == (12, 20)
    assert shares[-1] < 1e-10
    assert shares[0] > shares[4] > shares[9] > 1e-3


@torch.no_grad()
def test_a_rank_that_holds_all_energy_is_exact() -> None:
    made, x = layer(), inputs()
    with torch.no_grad():
        made.v_proj.weight[4:] = made.v_proj.weight[:4].roll(1, 0).repeat(2, 1)
        made.k_proj.weight[6:] = made.k_proj.weight[:6] * 0.7  # the second head's keys are the first one's
    found = edit.gqa_to_latent(made, kv_rank=4, rotary_dim=6)
    assert found.layer.kv_rank + found.layer.rotary_dim == 10
    assert found.turned == pytest.approx(1.0)
    assert found.kept == pytest.approx(1.0)
    assert near(found.layer(x), made(x), 1e-9)


@torch.no_grad()
def test_pairs_that_hardly_turn_may_stay() -> None:
    """Frequencies near 0 for what is left: keys in the latent are as good as turned ones."""
    made, x = layer(rotary_base=None), inputs(30)
    slow = Frequencies((0.7, 1e-12, 1e-12))
    with torch.no_grad():  # the fast pair has most energy
        for weight in (made.q_proj.weight, made.k_proj.weight):
            weight.unflatten(0, (-1, 6))[:, [0, 3]] *= 30
    whole = edit.gqa_to_latent(made.to_attention(), rotary=slow).layer(x)
    part = edit.gqa_to_latent(made.to_attention(), rotary=slow, rotary_dim=4)
    assert part.layer.rotary.values == (0.7, 0.7)
    assert part.turned > 0.99
    assert near(part.layer(x), whole, 1e-8)


@torch.no_grad()
def test_more_turned_keys_come_nearer_and_energies_are_those_of_the_scores() -> None:
    made, x = layer(), inputs(40)
    moment = x.flatten(0, 1).mT @ x.flatten(0, 1) / 80
    found = [edit.gqa_to_latent(made, rotary_dim=n, moment=moment) for n in (2, 6, 10, 12)]
    assert [one.turned for one in found] == sorted(one.turned for one in found)
    far = [float((one.layer(x) - made(x)).norm() / made(x).norm()) for one in found]
    assert far[0] > far[2] > far[3]
    assert far[3] < 1e-10
    # energy of all scores, turned or not: over independent queries and keys
    q, k = (p(x).flatten(0, 1).unflatten(-1, (-1, 6)) for p in (made.q_proj, made.k_proj))
    pairs = [torch.complex(*t.chunk(2, -1)) for t in (q, k.repeat_interleave(2, 1))]
    energy = sum(
        (a[:, None].conj() * b[None]).abs().square().mean()
        for a, b in zip(pairs[0].permute(1, 2, 0).flatten(0, 1), pairs[1].permute(1, 2, 0).flatten(0, 1))
    )
    kept = found[0].layer
    own = kept.q_proj(x).unflatten(-1, (4, -1))[..., -2:] * (6 / (kept.nope_dim + 2)) ** 0.5
    key = kept.kv_a_proj_with_mqa(x)[..., -2:]
    a, b = (torch.complex(t[..., 0], t[..., 1]).flatten(0, 1) for t in (own, key))
    mine = sum((a[:, h, None].conj() * b).abs().square().mean() for h in range(4))
    assert found[0].turned == pytest.approx(float(mine / energy), rel=1e-9)


@torch.no_grad()
def test_moments_are_those_of_the_inputs() -> None:
    case = llama()
    found = edit.input_moments(case.model, [TOKENS, TOKENS[:1]])
    seen: list[Tensor] = []
    attention = case.model.model.layers[0].self_attn
    hook = attention.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"].flatten(0, 1)), with_kwargs=True
    )
    case.model(TOKENS), case.model(TOKENS[:1])
    hook.remove()
    x = torch.cat(seen)
    torch.testing.assert_close(found["model.layers.0.self_attn"], x.mT @ x / len(x))
    assert len(found) == 2
    with pytest.raises(ValueError, match="input_moments: batches must hold a token"):
        edit.input_moments(case.model, [])


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"kv_rank": 7}, {"rotary_dim": 6}, {"kv_rank": 5, "rotary_dim": 4}], ids=str)
def test_a_layer_without_a_norm_is_the_same_function_as_one_with(options: dict[str, Any]) -> None:
    """What a swap puts in and what engines for such layers read."""
    made, x = layer(), inputs()
    found = LatentAttention.from_attention(made.to_attention(), **options)
    assert near(found(x), edit.gqa_to_latent(made, **options).layer(x))
    assert not any("layernorm" in name for name in found.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("base", [50.0, None])
def test_biases_are_carried_by_a_layer_without_a_norm(base: float | None) -> None:
    made, x = layer(qkv_bias=True, out_bias=True, rotary_base=base), inputs()
    found = LatentAttention.from_attention(made.to_attention())
    assert near(found(x), made(x))
    assert near(LatentAttention.from_attention(made.to_attention(), kv_rank=21)(x), made(x))  # all of C and the bias
    made.v_proj.bias.zero_()
    assert not near(found(x), made(x), 1e-3)


@torch.no_grad()
def test_weights_come_back_as_they_were_until_they_are_trained() -> None:
    made = layer()
    weights = made.to_attention()
    found = LatentAttention.from_attention(weights, kv_rank=5, rotary_dim=6)
    assert found.to_attention() is weights
    assert found.float().to_attention() is weights
    found.kv_b_proj.weight[0, 0] += 1e-3
    for one in (found, LatentAttention(20, 4)):
        with pytest.raises(ValueError, match="weights must be those that from_attention made"):
            one.to_attention()
    assert all(one is not two for one, two in zip(made.parameters(), found.parameters()))
    found.o_proj.weight.zero_()
    assert made.o_proj.weight.any()  # no memory in common


def test_latents_without_a_norm_are_refused_where_a_norm_is_needed() -> None:
    found = LatentAttention(20, 4, kv_norm=False)
    with pytest.raises(ValueError, match=r"'' has latents without a norm \(kv_norm=False\)"):
        edit.latent_moments(found, [torch.randn(1, 3, 20)])
    with pytest.raises(ValueError, match=r"slicing\.norms stand for the norm"):
        LatentAttention(20, 4, kv_rank=4, kv_norm=False, slicing=Slicing(2, (2.0, 2.0)))
    assert LatentAttention(20, 4, kv_rank=4, kv_norm=False, slicing=Slicing(2))(torch.randn(1, 3, 20)).isfinite().all()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="source has a window of 3 tokens"):
        edit.gqa_to_latent(SlidingWindowAttention(24, 4, window_size=3))
    with pytest.raises(ValueError, match="source has a window of 3 tokens"):
        edit.gqa_to_latent(SlidingWindowAttention(24, 4, window_size=3))
    with pytest.raises(ValueError, match="source must be causal"):
        edit.gqa_to_latent(layer(is_causal=False))
    with pytest.raises(ValueError, match="source must be causal"):
        edit.gqa_to_latent(sites.find_sites(bert().model)[0])
    with pytest.raises(ValueError, match="source has q_bias, k_bias, v_bias"):
        edit.gqa_to_latent(layer(qkv_bias=True))
    with pytest.raises(ValueError, match=r"use \.to\(torch\.bfloat16\)"):
        edit.gqa_to_latent(layer(dtype=torch.float16))
    with pytest.raises(ValueError, match="rotary_dim must be even and from 2 to 12, got 5"):
        edit.gqa_to_latent(layer(), rotary_dim=5)
    with pytest.raises(ValueError, match="gqa_to_latent: kv_rank must be at least 1, got 0"):
        edit.gqa_to_latent(layer(), kv_rank=0)
    with pytest.raises(ValueError, match=r"moment must be \[R, R\] = \[20, 20\], got \[2, 2\]"):
        edit.gqa_to_latent(layer(), moment=torch.eye(2))
    with pytest.raises(TypeError, match=r"source must be AttentionWeights, .* got Linear"):
        edit.gqa_to_latent(nn.Linear(2, 2))
