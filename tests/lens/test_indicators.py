"""Indicators of attention: maps whose numbers are known, models whose maps are, the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from attensor import cli
from attensor.errors import ShapeError
from attensor.lens.indicators import indicators, model_indicators
from attensor.nn import SlidingWindowAttention
from attensor.sites import capture, find_sites
from tests.models.families import build, tokens
from tests.oracles.timm import load_timm


def test_known_maps_have_known_numbers() -> None:
    """The identity, all to the first token, and equal weights."""
    length = 6
    even = torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]
    first = torch.zeros(length, length)
    first[:, 0] = 1
    found = indicators(torch.stack([torch.eye(length), first, even]).double())
    assert found.entropy.tolist() == pytest.approx([0, 0, sum(math.log(n) for n in range(1, 7))])
    assert found.concentration.tolist() == pytest.approx(
        [6**0.5, 6**0.5, sum(1 / n for n in range(1, 7)) ** 0.5], rel=1e-6
    )
    harmonic = sum(1 / n for n in range(1, 7)) / 6
    assert found.sink.tolist() == pytest.approx([1 / 6, 1, harmonic], rel=1e-6)
    assert found.local_focus[0].tolist() == [1, 0, 0, 0]
    assert found.local_focus[1].tolist() == pytest.approx([1 / 6, 1 / 5, 1 / 4, 1 / 3])
    assert found.local_focus[2].tolist() == pytest.approx(
        [sum(1 / n for n in range(1 + back, 7)) / (6 - back) for back in range(4)], rel=1e-6
    )


def test_random_maps_follow_the_definition() -> None:
    a = torch.randn(2, 3, 5, 5, dtype=torch.float64).exp().tril()
    a = a / a.sum(-1, keepdim=True)
    found, x = indicators(a), a.numpy()
    spread = sum(np.std(x[:, :, i, j], axis=1) for i in range(5) for j in range(i + 1))
    np.testing.assert_allclose(found.head_diversity, 2 / (5 * 6) * spread)
    np.testing.assert_allclose(found.concentration, np.linalg.norm(x, axis=(2, 3)))
    for back in range(4):
        expected = np.trace(x, -back, 2, 3) / (5 - back)
        np.testing.assert_allclose(found.local_focus[..., back], expected)
    assert not indicators(a[:, :1]).head_diversity.any()
    assert indicators(a[..., :1, :1]).local_focus.tolist() == [[[1, 0, 0, 0]] * 3] * 2


def test_what_is_no_map_is_refused() -> None:
    for wrong in (torch.ones(3, 3), torch.ones(2, 3, 4), torch.ones(2, 0, 0)):
        with pytest.raises(ShapeError, match=r"^indicators: attention must be \[.., H, L, L\]"):
            indicators(wrong)
    with pytest.raises(TypeError, match=r"^indicators: attention must be"):
        indicators(torch.ones(2, 3, 3, dtype=torch.int64))


def test_maps_of_transformers_are_its_own() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 13, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=3, num_key_value_heads=1, pad_token_id=None)
    config._attn_implementation = "eager"
    model = transformers.LlamaForCausalLM(config).double().eval()
    rows = tokens(2, 9)
    found = model_indicators(model, {"input_ids": rows})
    maps = model(rows, output_attentions=True).attentions
    for one, expected in zip(found.values(), maps, strict=True):
        torch.testing.assert_close(one.entropy, indicators(expected).entropy.mean(0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.local_focus, indicators(expected).local_focus.mean(0), rtol=1e-5, atol=1e-5)


def test_maps_of_a_vit_of_timm() -> None:
    """By its own projections: a class token and 9 patches that see each other; first is the class token."""
    timm = load_timm()
    torch.manual_seed(0)
    sizes = {"img_size": 12, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 5}
    model = timm.models.VisionTransformer(**sizes).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    images = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    found = model_indicators(model, {"x": images})
    assert list(found) == ["blocks.0.attn", "blocks.1.attn"]
    block = model.blocks[0]
    with torch.no_grad():
        x = block.norm1(model._pos_embed(model.patch_embed(images)))
        q, k, _ = block.attn.qkv(x).unflatten(-1, (3, 3, 4)).unbind(2)
        weights = (torch.einsum("bihc,bjhc->bhij", q, k) / 2).softmax(-1)
    expected = indicators(weights)
    one = found["blocks.0.attn"]
    torch.testing.assert_close(one.sink, weights[..., 0].mean((0, 2)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.entropy, expected.entropy.mean(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.head_diversity, expected.head_diversity.mean(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", ["deconstructed", "deconstructed-static-embedding"])
def test_maps_of_another_stream_are_those_that_mix(variant: str) -> None:
    """Those of a sequence beside do not change with the text; those of embeddings do."""
    model = build(variant).eval()
    a, b = (model_indicators(model, {"input_ids": tokens(1, 9, seed=seed)}) for seed in (1, 2))
    name = "model.layers.0.attn"
    assert list(a) == [name, "model.layers.1.attn"]
    assert torch.allclose(a[name].entropy, b[name].entropy) == (variant == "deconstructed")
    assert not torch.allclose(a["model.layers.1.attn"].entropy, b["model.layers.1.attn"].entropy)


@pytest.mark.parametrize("variant", ["taylor", "key-scored"])
def test_recurrences_that_average_have_a_map(variant: str) -> None:
    """What multiplies the values gives the output of the heads; rows sum to 1, and key-scored ones are one row, cut."""
    model = build(f"card-{variant}").eval()
    rows = tokens(2, 9)
    sites = find_sites(model)
    with torch.no_grad(), capture(sites, ["weights", "v", "out"]) as seen:
        model(rows, use_cache=False)
    for one in seen.values():
        mixed = torch.einsum("bhij,bjhc->bihc", one.weights, one.v).flatten(-2)
        torch.testing.assert_close(one.out, mixed, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(one.weights.sum(-1), torch.ones(2, 3, 9, dtype=torch.float64))
        assert not one.weights.triu(1).any()
        if variant == "key-scored":
            last = one.weights[:, :, -1:]
            cut = last.expand_as(one.weights).tril()
            torch.testing.assert_close(one.weights, cut / cut.sum(-1, keepdim=True))
    found = model_indicators(model, {"input_ids": rows})
    assert list(found) == [site.name for site in sites]


def test_maps_of_a_window_end_where_it_does() -> None:
    layer = SlidingWindowAttention(12, 3, window_size=3)
    model = torch.nn.Sequential(layer)
    with torch.no_grad(), capture(find_sites(model), ["weights", "v", "out"]) as seen:
        model(torch.randn(2, 8, 12))
    (one,) = seen.values()
    torch.testing.assert_close(one.out, torch.einsum("bhij,bjhc->bihc", one.weights, one.v).flatten(-2))


def test_attention_without_weights_is_left_out_or_named() -> None:
    found = model_indicators(build("hybrid"), {"input_ids": tokens(1, 5)})
    assert next(iter(found)) == "model.layers.0.attn"
    assert "model.layers.1.attn" not in found  # gated linear attention
    with pytest.raises(ValueError, match=r"^model_indicators: model must have attention that averages"):
        model_indicators(build("gla"), {"input_ids": tokens(1, 5)})


def test_the_command_reads_a_model_and_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, text = build("deconstructed", dtype=torch.float32, vocab_size=256), tmp_path / "text"
    model.save_pretrained(tmp_path / "model")
    text.write_bytes(b"All that is gold does not glitter, not all those who wander are lost.")
    asked = ["lens", "indicators", str(tmp_path / "model"), "--text", str(text), "--length", "16"]
    assert cli.main([*asked, "--out", str(tmp_path / "numbers.json")]) == 0
    shown = capsys.readouterr().out
    assert "4 passages of 16 tokens" in shown.replace("\n", " ")
    written = json.loads((tmp_path / "numbers.json").read_text())
    rows = torch.tensor(list(text.read_bytes())[:64]).view(4, 16)
    expected = model_indicators(model.eval(), {"input_ids": rows})
    assert written["layers"]["model.layers.1.attn"]["sink"] == pytest.approx(
        expected["model.layers.1.attn"].sink.tolist(), rel=1e-4
    )
    assert cli.main([*asked[:-1], "100"]) == 2
    assert "--length 100" in capsys.readouterr().err
