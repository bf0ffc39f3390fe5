"""The generic language model: padding, packing, caches, sizes, and any mixer."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attensor.catalogue import Domain, build_mixer, load, mechanisms
from attensor.errors import ShapeError
from attensor.models.language import Decoder, DecoderConfig
from attensor.models.language.decoder import post_norm
from attensor.nn import GatedLinearAttention

VOCAB = 11
SEQUENCE_CARDS = [name for name, card in mechanisms().items() if Domain.SEQUENCE in card.domain]
EVERY = pytest.mark.parametrize("name", SEQUENCE_CARDS)


def build(name: str, *, seed: int = 0, tie_embeddings: bool = True) -> Decoder:
    torch.manual_seed(seed)
    card = mechanisms()[name]
    options = {**card.mixer_options(Domain.SEQUENCE), **card.example_options, "dtype": torch.float64}
    layer = load(card.layer)
    config = DecoderConfig(VOCAB, 12, num_layers=2, num_heads=3, mlp_hidden_size=20, tie_embeddings=tie_embeddings)
    return Decoder(config, lambda i: build_mixer(layer, 12, 3, layer_index=i, num_layers=2, **options)).double()


def tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


@EVERY
def test_padding_changes_nothing(name: str) -> None:
    """Left, right, inner, none, and a row of one token: logits and gradients are those of the rows alone."""
    decoder = build(name)
    left, right, inner, one = [0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 0, 1], [0, 1, 0, 0, 0, 0, 0]
    mask = torch.tensor([left, right, inner, [1] * 7, one])
    rows = tokens(5, 7)
    padded = decoder(rows, attention_mask=mask)
    assert not padded[mask == 0].any()
    alone = torch.cat([decoder(row[kept.bool()][None])[0] for row, kept in zip(rows, mask)])
    torch.testing.assert_close(padded[mask.bool()], alone, rtol=1e-10, atol=1e-10)

    weight = torch.linspace(-1, 1, alone.numel(), dtype=alone.dtype).view_as(alone)
    parameters = list(decoder.parameters())
    for got, expected in zip(
        torch.autograd.grad((padded[mask.bool()] * weight).sum(), parameters),
        torch.autograd.grad((alone * weight).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@EVERY
def test_what_stands_at_padding_is_never_read(name: str) -> None:
    decoder, mask, rows = build(name), torch.tensor([[0, 1, 1, 0, 1]]), tokens(1, 5)
    other = torch.where(mask.bool(), rows, (rows + 1) % VOCAB)
    assert torch.equal(decoder(rows, attention_mask=mask), decoder(other, attention_mask=mask))


@EVERY
def test_packed_rows_equal_separate_ones(name: str) -> None:
    decoder, parts = build(name), [tokens(1, n, seed=n) for n in (4, 1, 9)]
    packed = decoder(torch.cat(parts, 1), cu_seqlens=torch.tensor([0, 4, 5, 14]))
    torch.testing.assert_close(packed, torch.cat([decoder(part) for part in parts], 1), rtol=1e-10, atol=1e-10)


@EVERY
def test_any_split_gives_the_whole(name: str) -> None:
    decoder, rows = build(name), tokens(2, 9)
    caches = decoder.new_caches(2, 9)
    split = torch.cat([decoder(piece, caches=caches) for piece in rows.split([4, 1, 1, 3], 1)], 1)
    torch.testing.assert_close(split, decoder(rows), rtol=1e-10, atol=1e-10)
    assert {cache.length for cache in caches} == {9}


@EVERY
def test_left_padding_in_caches_changes_nothing(name: str) -> None:
    decoder, rows = build(name), tokens(3, 9)
    mask = torch.tensor([[0] * 5 + [1] * 4, [1] * 9, [0] + [1] * 8])
    caches, start, got = decoder.new_caches(3), 0, []
    for end in (3, 4, 8, 9):
        got.append(decoder(rows[:, start:end], caches=caches, attention_mask=mask[:, :end]))
        start = end
    alone = torch.cat([decoder(row[kept.bool()][None])[0] for row, kept in zip(rows, mask)])
    torch.testing.assert_close(torch.cat(got, 1)[mask.bool()], alone, rtol=1e-10, atol=1e-10)


def test_a_block_may_norm_after_its_parts() -> None:
    decoder, rows = build("gla"), tokens(2, 5)
    (layer, *_) = decoder.layers
    layer.block = post_norm
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    middle = layer.input_layernorm(x + layer.attn(x))
    assert torch.equal(layer(x), layer.post_attention_layernorm(middle + layer.mlp(middle)))
    config = DecoderConfig(VOCAB, 12, num_layers=1, num_heads=3, mlp_hidden_size=20)
    assert Decoder(config, lambda i: GatedLinearAttention(12, 3), block=post_norm).layers[0].block is post_norm
    assert decoder(rows).isfinite().all()


@EVERY
def test_nothing_leaks_from_the_future(name: str) -> None:
    decoder, rows = build(name), tokens(2, 8)
    changed = rows.clone()
    changed[:, 5] = (rows[:, 5] + 1) % VOCAB
    assert torch.equal(decoder(rows)[:, :5], decoder(changed)[:, :5])
    assert not torch.equal(decoder(rows)[:, 5], decoder(changed)[:, 5])


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_weights_travel_through_safetensors(tie_embeddings: bool, tmp_path: Path) -> None:
    decoder, other = (build("gla", seed=seed, tie_embeddings=tie_embeddings) for seed in (0, 1))
    assert ("lm_head.weight" in decoder.state_dict()) != tie_embeddings
    save_file(decoder.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other(tokens(2, 5)), decoder(tokens(2, 5)))
    assert torch.equal(copy.deepcopy(decoder)(tokens(2, 5)), decoder(tokens(2, 5)))


def test_names_are_those_of_the_field() -> None:
    names = set(build("softmax", tie_embeddings=False).state_dict())
    block = {
        *(f"attn.{p}_proj.weight" for p in "qkvo"),
        *(f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")),
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
    }
    assert names == {
        "embed_tokens.weight",
        "norm.weight",
        "lm_head.weight",
        *(f"layers.{i}.{n}" for i in (0, 1) for n in block),
    }


@pytest.mark.parametrize(
    ("hidden_size", "mlp_hidden_size", "millions"), [(1024, 2816, 374.5), (2048, 5632, 1365.5)], ids=["340M", "1.3B"]
)
def test_gla_models_have_the_published_sizes(hidden_size: int, mlp_hidden_size: int, millions: float) -> None:
    """Parameter counts of arXiv:2312.06635's two models in fla's configuration; nothing is allocated."""
    config = DecoderConfig(32000, hidden_size, 24, 4, mlp_hidden_size, tie_embeddings=False)
    with torch.device("meta"):
        decoder = Decoder(config, lambda i: GatedLinearAttention(hidden_size, 4))
    count = sum(p.numel() for p in decoder.parameters())
    assert round(count / 1e6, 1) == millions
    assert all(p.is_meta for p in decoder.parameters())


def test_first_logits_of_other_tokens_have_unit_variance_at_every_width() -> None:
    for width in (32, 512):
        config = DecoderConfig(256, width, 1, 1, width)
        logits = Decoder(config, lambda i: nn.Identity())(torch.arange(256)[None])[0]
        others = logits[~torch.eye(256, dtype=torch.bool)]  # the token that is read meets its own embedding
        assert 0.8 < others.std() < 1.2


class RunningMean(nn.Module):
    """A user's mixer: no cache, no packing."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        count = torch.arange(1, hidden_states.shape[1] + 1)[:, None]
        return self.proj(hidden_states.cumsum(1) / count)


def test_any_module_can_be_the_mixer() -> None:
    decoder = Decoder(DecoderConfig(VOCAB, 12, 2, 3, 20), lambda i: RunningMean(12, 3))
    assert decoder(tokens(2, 5)).shape == (2, 5, VOCAB)
    assert not decoder.can_decode
    with pytest.raises(ValueError, match="RunningMean has no new_cache"):
        decoder.new_caches(2)


def test_bad_input_is_refused() -> None:
    decoder, rows = build("softmax"), tokens(2, 5)
    with pytest.raises(ShapeError, match=r"tokens must be \[B, T\], got \[5\]"):
        decoder(rows[0])
    with pytest.raises(ValueError, match="cu_seqlens excludes attention_mask and a cache"):
        decoder(rows[:1], caches=decoder.new_caches(1), cu_seqlens=torch.tensor([0, 5]))
    with pytest.raises(ShapeError, match="one for each of 2 layers, got 1"):
        decoder(rows, caches=decoder.new_caches(2)[:1])
    with pytest.raises(ShapeError, match=r"attention_mask must be \[2, 5\], got \[5, 2\]"):
        decoder(rows, attention_mask=torch.ones(5, 2))
