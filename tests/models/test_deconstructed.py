"""Attention taken apart, beside the laws of all causal models: transformers' Qwen2, layouts, the sequence beside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attensor.errors import ShapeError
from attensor.models.language.deconstructed import LAYOUTS, DeconstructedConfig, DeconstructedForCausalLM
from attensor.models.language.side_stream import BesideAttention
from attensor.nn import KeyScoredAttention, NoMixing, SoftmaxAttention, TaylorAttention
from tests.models.families import VOCAB, tokens

TINY = {"vocab_size": VOCAB, "hidden_size": 12, "intermediate_size": 20, "num_attention_heads": 3}


def model_of(variant: str, layout: str = "hybrid", **options: Any) -> DeconstructedForCausalLM:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {**TINY, "num_hidden_layers": 4, "stream_length": 32, "initializer_range": 0.3, **options}
    return DeconstructedForCausalLM(DeconstructedConfig(variant=variant, layout=layout, **sizes)).double().eval()


def build_standard() -> DeconstructedForCausalLM:
    model = model_of("standard", num_hidden_layers=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_standard_blocks_are_those_of_qwen2() -> None:
    """Logits and every gradient of transformers' model with the same weights."""
    transformers = pytest.importorskip("transformers")
    ours = build_standard().train()
    sizes = {**TINY, "num_hidden_layers": 2, "num_key_value_heads": 3, "rms_norm_eps": 1e-6, "use_cache": False}
    settings = transformers.Qwen2Config(**sizes, tie_word_embeddings=False, rope_theta=10_000.0, pad_token_id=None)
    theirs = transformers.Qwen2ForCausalLM(settings).double().train()
    renamed = {name.replace(".attn.", ".self_attn."): x for name, x in ours.state_dict().items()}
    theirs.load_state_dict(renamed)
    rows = tokens(2, 19)
    found, expected = ours(rows), theirs(rows)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-6)  # their angles are float32
    weigh = torch.randn_like(found.logits)
    for model, out in ((ours, found), (theirs, expected)):
        (weigh * out.logits).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
    grads = {name.replace(".self_attn.", ".attn."): p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_layouts_are_the_paper_s() -> None:
    """Standard layers, counted from 1, of 24."""
    expected = {
        "uniform": [],
        "hybrid": list(range(2, 25, 2)),
        "odd": list(range(1, 24, 2)),
        "top": list(range(1, 13)),
        "middle": [*range(1, 7), *range(19, 25)],
        "bottom": list(range(13, 25)),
        "quarter": list(range(4, 25, 4)),
        "first": [1],
        "last": [24],
        "bilateral": [1, 24],
        "skip": list(range(1, 25)),
    }
    assert expected.keys() == LAYOUTS.keys()
    for layout, layers in expected.items():
        kinds = DeconstructedConfig(variant="taylor", layout=layout).kinds
        assert [index + 1 for index, kind in enumerate(kinds) if kind == "standard"] == layers, layout


@pytest.mark.parametrize(
    ("variant", "kind"),
    [
        ("standard", SoftmaxAttention),
        ("no-mixing", NoMixing),
        ("taylor", TaylorAttention),
        ("key-scored", KeyScoredAttention),
        ("random-sequence", BesideAttention),
        ("fixed-sequence", BesideAttention),
        ("static-embedding", SoftmaxAttention),
    ],
)
def test_variants_have_their_mixers_and_the_same_number_of_parameters(variant: str, kind: type) -> None:
    model = model_of(variant)
    assert [type(layer.attn) for layer in model.model.layers] == [kind, SoftmaxAttention] * 2
    found = [sum(p.numel() for p in layer.attn.parameters()) for layer in model.model.layers]
    assert found == [4 * 12**2 + 3 * 12] * 4


def by_definition(model: DeconstructedForCausalLM, rows: Tensor) -> Tensor:
    """Both streams from block to block, each map written out."""
    body, config = model.model, model.config
    x = body.embed_tokens(rows)
    side = body.side_stream
    start = body.embed_tokens(side.tokens) if hasattr(side, "tokens") else side.vectors
    s = start[None, : rows.shape[1]]
    embedded = x
    for layer, kind in zip(body.layers, config.kinds, strict=True):
        normed, beside = layer.input_layernorm(x), layer.input_layernorm(s)
        source = normed if kind == "standard" else embedded if kind == "static-embedding" else beside
        x, s = (
            (y := one + _attention(layer.attn, of, values)) + layer.mlp(layer.post_attention_layernorm(y))
            for one, of, values in ((x, source, normed), (s, beside, beside))
        )
    return model.lm_head(body.norm(x))


def _attention(mixer: SoftmaxAttention, source: Tensor, values: Tensor) -> Tensor:
    heads = mixer.project(source, torch.arange(source.shape[1]))
    scores = torch.einsum("bihc,bjhc->bhij", heads.q, heads.k) * heads.q.shape[-1] ** -0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    v = mixer.v_proj(values).unflatten(-1, (mixer.num_heads, -1))
    return mixer.o_proj(torch.einsum("bhij,bjhc->bihc", weights.expand(len(v), -1, -1, -1), v).flatten(-2))


@pytest.mark.parametrize("layout", ["uniform", "hybrid"])
@pytest.mark.parametrize("variant", ["random-sequence", "fixed-sequence"])
def test_queries_and_keys_come_from_the_sequence_beside(variant: str, layout: str) -> None:
    """Logits and gradients, which reach the shared weights through both streams."""
    model, rows = model_of(variant, layout), tokens(3, 11)
    found, expected = model(rows).logits, by_definition(model, rows)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weigh, weights = torch.randn_like(found), list(model.parameters())
    grads = [torch.autograd.grad((weigh * x).sum(), weights, allow_unused=True) for x in (found, expected)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        torch.testing.assert_close(model(rows).logits, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(model(rows[:1]).logits, expected[:1], rtol=1e-10, atol=1e-10)


def test_maps_of_a_sequence_beside_do_not_depend_on_the_text() -> None:
    """In a uniform model values alone do: it is a fixed linear map of the first block's values."""
    mixer = SoftmaxAttention(12, 3, dtype=torch.float64)
    source, a, b = torch.randn(3, 1, 7, 12, dtype=torch.float64)
    both = mixer(2 * a - 5 * b, qk_source=source)
    torch.testing.assert_close(both, 2 * mixer(a, qk_source=source) - 5 * mixer(b, qk_source=source))
    rows = torch.cat([a, b])
    torch.testing.assert_close(mixer(rows, qk_source=source), mixer(rows, qk_source=source.expand(2, -1, -1)))
    with pytest.raises(ShapeError, match=r"^SoftmaxAttention: qk_source must be \[2, 7, 12\]"):
        mixer(rows, qk_source=source[:, :5])


def test_the_sequence_beside_is_run_once_until_weights_change() -> None:
    model, rows, runs = model_of("fixed-sequence"), tokens(2, 6), []
    side = model.model.side_stream
    run = side._run
    side._run = lambda *given: (runs.append(given), run(*given))[1]
    with torch.no_grad():
        before = model(rows).logits
        model.generate(rows, max_new_tokens=9, do_sample=False, attention_mask=torch.ones_like(rows))
        assert len(runs) == 1
        for change in (
            lambda: model.model.layers[0].attn.q_proj.weight.mul_(1.5),
            lambda: side.tokens.copy_((side.tokens + 1) % VOCAB),
            lambda: model.load_state_dict(model_of("fixed-sequence").state_dict()),
        ):
            change()
            found = model(rows).logits
            torch.testing.assert_close(found, by_definition(model, rows), rtol=1e-10, atol=1e-10)
        assert len(runs) == 4
    torch.testing.assert_close(found, before, rtol=1e-10, atol=1e-10)  # its weights again, its tokens too
    model.train()(rows)
    model(rows)
    assert len(runs) == 6
    assert "side_stream.tokens" in model.model.state_dict()


def test_the_end_of_the_sequence_beside_is_an_error() -> None:
    model = model_of("random-sequence", stream_length=8)
    assert model(tokens(2, 8)).logits.isfinite().all()
    with pytest.raises(ValueError, match=r"at most 8 tokens, as stream_length has, got 9"):
        model(tokens(2, 9))
    with torch.no_grad():
        cache = model(tokens(2, 8), use_cache=True).past_key_values
        with pytest.raises(ValueError, match=r"at most 8 tokens, as stream_length has, got 9"):
            model(tokens(2, 1), past_key_values=cache)


@torch.no_grad()
@pytest.mark.parametrize("is_padded", [False, True])
def test_keys_of_the_sequence_beside_are_kept_once_for_all_rows(is_padded: bool) -> None:
    """(B + 1) L d numbers as in the paper's table: values of the rows in the cache, keys in the layer."""
    model, rows = model_of("random-sequence", "uniform"), tokens(3, 12)
    mask = torch.ones_like(rows)
    if is_padded:
        mask[0, :4], mask[2, :1] = 0, 0
    cache, found = model.new_cache(), []
    for start, end in ((0, 5), (5, 6), (6, 7), (7, 12)):
        out = model(rows[:, start:end], attention_mask=mask[:, :end], past_key_values=cache)
        found.append(out.logits)
    together = torch.cat(found, 1)
    for row, kept, one in zip(rows, mask, together):
        alone = model(row[kept.bool()][None], use_cache=False).logits[0]
        torch.testing.assert_close(one[kept.bool()], alone, rtol=1e-9, atol=1e-9)
    held = cache.layers[0].held
    assert held.nbytes == 8 * 3 * 12 * 12
    stream, keys = model.model.layers[0].attn._kept
    assert keys.shape == (1, len(stream), 3, 4)
    before = found[-1]
    model.model.embed_tokens.weight.mul_(1.5)
    model.model.layers[0].attn.k_proj.weight.mul_(1.5)
    cache.layers[0].held.crop(7)
    for layer in cache.layers[1:]:
        layer.held.crop(7)
    again = model(rows[:, 7:], attention_mask=mask, past_key_values=cache).logits
    assert model.model.layers[0].attn._kept[0] is not stream
    assert not torch.allclose(again, before)


def test_skipping_takes_whole_blocks_of_the_variant_out() -> None:
    model, rows = model_of("taylor"), tokens(2, 9)
    less = model.skipped()
    x = model.model.embed_tokens(rows)
    for layer in (model.model.layers[1], model.model.layers[3]):
        x = layer(x)
    torch.testing.assert_close(less(rows).logits, model.lm_head(model.model.norm(x)))
    assert less.config.num_hidden_layers == 2
    assert isinstance(less.model.layers, nn.ModuleList)
    out = less.generate(rows, max_new_tokens=3, do_sample=False, attention_mask=torch.ones_like(rows))
    assert out.shape == (2, 12)
    with pytest.raises(ValueError, match="layout must keep standard blocks, got 'uniform'"):
        model_of("taylor", "uniform").skipped()


@pytest.mark.parametrize(
    ("name", "is_tied", "number"),
    [
        ("70M", False, 76_692_992), ("160M", False, 190_560_000), ("160M", True, 151_926_528),
        ("500M", False, 481_109_888), ("500M", True, 436_037_504), ("1.7B", False, 1_732_895_744),
    ],
)  # fmt: skip
@pytest.mark.parametrize("variant", ["standard", "key-scored", "fixed-sequence"])
def test_presets_have_the_sizes_of_the_paper(name: str, is_tied: bool, number: int, variant: str) -> None:
    """77M, 481M untied; 152M, 436M tied; 1.7B as Qwen3 with 16 full heads."""
    with torch.device("meta"):
        config = DeconstructedConfig.from_preset(name, variant=variant, tie_word_embeddings=is_tied)
        model = DeconstructedForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) == number


def test_the_largest_is_qwen3_with_full_heads() -> None:
    """Logits of transformers' model with the same weights, which computes its norms and angles in float32."""
    transformers = pytest.importorskip("transformers")
    ours = model_of("standard", num_hidden_layers=2, qk_norm=True, qkv_bias=False, rotary_base=1e6)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    sizes = {**TINY, "num_hidden_layers": 2, "num_key_value_heads": 3, "head_dim": 4, "rms_norm_eps": 1e-6}
    given = {"rope_theta": 1e6, "tie_word_embeddings": False, "pad_token_id": None, "use_cache": False}
    theirs = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes, **given)).double().eval()
    theirs.load_state_dict({name.replace(".attn.", ".self_attn."): x for name, x in ours.state_dict().items()})
    rows = tokens(2, 19)
    torch.testing.assert_close(ours(rows).logits, theirs(rows).logits, rtol=1e-5, atol=1e-5)


def test_presets_take_a_variant_and_a_layout() -> None:
    config = DeconstructedConfig.from_preset("500M", variant="fixed-sequence", layout="hybrid")
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (896, 4864, 24)
    assert config.kinds == ["fixed-sequence", "standard"] * 12
    assert DeconstructedConfig.from_preset("500M", variant="taylor", layout="skip").kinds == ["standard"] * 12


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"variant": "mlp"}, "variant must be one of 'standard', .*, got 'mlp'"),
        ({"layout": "sideways"}, "layout must be one of 'uniform', .*, got 'sideways'"),
        ({"variant": "fixed-sequence", "fixed_tokens": [1, 2]}, "fixed_tokens must be 32 tokens"),
    ],
)
def test_impossible_configurations_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^DeconstructedConfig: {told}"):
        model_of(**{"variant": "standard", **options})
    given = list(range(VOCAB))
    model = model_of("fixed-sequence", stream_length=VOCAB, fixed_tokens=given)
    assert model.model.side_stream.tokens.tolist() == given
