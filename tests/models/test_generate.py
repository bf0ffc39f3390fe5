"""Sampling: the same tokens with and without caches, greedy at temperature 0, repeatable by seed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attensor.models.language import Decoder, generate
from tests.models.test_decoder import EVERY, VOCAB, build, tokens


class WithoutCache(torch.nn.Module):
    """Hides a mixer's cache."""

    def __init__(self, mixer: torch.nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.mixer(hidden_states)


def run(decoder: Decoder, prompt: Tensor, count: int, **options: object) -> Tensor:
    return torch.stack(list(generate(decoder, prompt, count, **options)), 1)


@EVERY
def test_greedy_tokens_are_those_of_a_full_pass(name: str) -> None:
    decoder, prompt = build(name), tokens(3, 4)
    new = run(decoder, prompt, 6, temperature=0)
    whole = torch.cat([prompt, new], 1)
    assert torch.equal(decoder(whole)[:, 3:-1].argmax(-1), new)


@EVERY
def test_caches_change_nothing_but_the_cost(name: str) -> None:
    decoder, prompt = build(name), tokens(2, 4)
    cached = run(decoder, prompt, 6, generator=torch.Generator().manual_seed(5))
    for layer in decoder.layers:
        layer.attn = WithoutCache(layer.attn)
    assert not decoder.can_decode
    assert torch.equal(run(decoder, prompt, 6, generator=torch.Generator().manual_seed(5)), cached)


def test_temperature_and_top_k_shape_the_choice() -> None:
    """Drawn often from one state, frequencies are those of the tempered, truncated distribution."""
    decoder = build("softmax")
    prompt = tokens(1, 4).expand(4000, -1)
    logits = 4 * decoder(prompt[:1])[0, -1].detach()
    with torch.no_grad():
        decoder.norm.weight.mul_(4)
    for top_k in (None, 3):
        kept = logits if top_k is None else logits.masked_fill(logits < logits.sort().values[-top_k], float("-inf"))
        drawn = run(decoder, prompt, 1, temperature=2.0, top_k=top_k, generator=torch.Generator().manual_seed(0))
        frequency = torch.bincount(drawn.flatten(), minlength=VOCAB) / 4000
        torch.testing.assert_close(frequency.double(), (kept / 2).softmax(-1), rtol=0, atol=0.03)


def test_tokens_come_one_at_a_time() -> None:
    """Without recording gradients inside, and with the caller's setting back between them."""
    decoder, recorded = build("gla"), []
    decoder.register_forward_hook(lambda module, inputs, logits: recorded.append(logits.requires_grad))
    stream = generate(decoder, tokens(2, 3), 10**6)
    assert [next(stream).shape for _ in range(3)] == [(2,)] * 3
    assert recorded == [False] * 3
    assert torch.is_grad_enabled()


def test_nothing_asked_nothing_given() -> None:
    assert list(generate(build("gla"), tokens(2, 3), 0)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [({"temperature": -1.0}, "temperature must be at least 0"), ({"top_k": 0}, "top_k must be at least 1, got 0")],
)
def test_impossible_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(generate(build("gla"), tokens(2, 3), 1, **options))


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one token, got \[2, 0\]"):
        next(generate(build("gla"), tokens(2, 0), 1))
