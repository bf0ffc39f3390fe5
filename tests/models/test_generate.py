"""Sampling: the same tokens with and without caches, greedy at temperature 0, repeatable by seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from attensor import cli
from attensor.models.language import Decoder, generate
from attensor.models.language.generate import continue_text
from tests.models import families
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


def saved(folder: Path, vocab_size: int, **overrides: object) -> families.StackForCausalLM:
    model = families.build("hybrid", dtype=torch.float32, vocab_size=vocab_size, pad_token_id=None, **overrides)
    model.save_pretrained(folder)
    return model


GREEDY = {"temperature": 0.0, "top_k": None, "seed": 0}


def test_text_of_a_saved_model_of_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bytes of the model's own greedy choice; a character of several bytes comes whole."""
    model, prompt = saved(tmp_path, 256), "größer"
    with torch.no_grad():
        model.lm_head.weight[0x80:0xC0] *= 3  # continuation bytes, so that characters end early
        model.lm_head.weight[:0x80] *= 2
    model.save_pretrained(tmp_path)
    rows = torch.tensor([list(prompt.encode())])
    expected = model.generate(rows, max_new_tokens=30, do_sample=False, eos_token_id=None)[0, rows.shape[1] :]
    text = list(continue_text(tmp_path, prompt, 30, **GREEDY))
    assert "".join(text) == bytes(expected.tolist()).decode("utf-8", "replace")
    assert len(text) > 3
    assert cli.main(["generate", "--model", str(tmp_path), "--prompt", prompt, "--tokens", "30"]) == 0
    assert capsys.readouterr().out.startswith(prompt)


def test_text_of_a_saved_model_with_its_tokenizer(tmp_path: Path) -> None:
    alphabet = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=3)}
    made = Tokenizer(models.BPE({"<pad>": 0, "<s>": 1, "</s>": 2, **alphabet}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>")
    tokenizer.save_pretrained(tmp_path)
    model = saved(tmp_path, 259)
    rows = torch.tensor([tokenizer.encode("abc")])
    expected = model.generate(rows, max_new_tokens=12, do_sample=False, eos_token_id=None)[0, 3:]
    assert "".join(continue_text(tmp_path, "abc", 12, **GREEDY)) == tokenizer.decode(expected)
    ends = expected[4].item()
    before = expected[: expected.tolist().index(ends)]
    saved(tmp_path, 259, eos_token_id=ends)
    assert "".join(continue_text(tmp_path, "abc", 12, **GREEDY)) == tokenizer.decode(before)


def test_folders_that_hold_no_text_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config.json in it"):
        next(continue_text(tmp_path, "", 1, **GREEDY))
    saved(tmp_path, 13)
    with pytest.raises(ValueError, match=r"has no tokenizer, and the model's 13 tokens are not the 256 bytes"):
        next(continue_text(tmp_path, "", 1, **GREEDY))
    for arguments in ([], ["--run", "x"], ["--model", "x", "--run", "y", "--mechanism", "gla"]):
        assert cli.main(["generate", *arguments]) == 2
