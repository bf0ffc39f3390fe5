"""Sampling: the same tokens with and without caches, greedy at temperature 0, repeatable by seed."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from attensor import cli
from attensor.compare import generate as compare_generate
from attensor.models.language import Decoder, generate
from attensor.models.language._streaming import whole_characters
from attensor.models.language.generate import Pace, continue_text
from attensor.nn import Cache
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


def test_top_p_keeps_the_most_likely_that_reach_it() -> None:
    """No token outside of the smallest set with that probability, all in it with their shares."""
    decoder = build("softmax")
    prompt = tokens(1, 4).expand(4000, -1)
    shares = decoder(prompt[:1])[0, -1].detach().softmax(-1)
    for top_p in (0.3, 0.7, 1.0):
        drawn = run(decoder, prompt, 1, top_p=top_p, generator=torch.Generator().manual_seed(0))
        kept, total = torch.zeros_like(shares), 0.0
        for index in shares.argsort(descending=True).tolist():
            if total < top_p:
                kept[index], total = shares[index], total + float(shares[index])
        frequency = torch.bincount(drawn.flatten(), minlength=VOCAB) / 4000
        assert not frequency[kept == 0].any()
        torch.testing.assert_close(frequency.double(), kept / kept.sum(), rtol=0, atol=0.03)


@EVERY
def test_static_caches_write_the_same(name: str) -> None:
    decoder, prompt = build(name), tokens(2, 4)
    expected, pace = run(decoder, prompt, 6, temperature=0), Pace()
    assert torch.equal(run(decoder, prompt, 6, temperature=0, static=True, pace=pace), expected)
    assert (pace.prompt, pace.tokens, pace.steps, pace.compile_seconds) == (4, 6, 5, 0.0)
    assert pace.state_bytes() == sum(cache.nbytes for cache in held_after(decoder, torch.cat([prompt, expected], 1)))


def held_after(decoder: Decoder, read: Tensor) -> list[Cache]:
    """The caches of a decoder that has read all but the last token."""
    caches = decoder.new_caches(read.shape[0])
    decoder(read[:, :-1], caches=caches)
    return caches


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiled graphs run as they are."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("eager")
def test_compiled_steps_write_the_same_and_leave_the_model_alone(tmp_path: Path) -> None:
    decoder, prompt, pace = build("softmax"), tokens(2, 4), Pace()
    expected = run(decoder, prompt, 6, temperature=0)
    assert torch.equal(run(decoder, prompt, 6, temperature=0, static=True, compiled=True, pace=pace), expected)
    assert pace.compile_seconds > 0
    assert pace.steps == 4
    assert decoder._compiled_call_impl is None
    small = families.build("card-softmax", dtype=torch.float32, vocab_size=256, pad_token_id=None, num_hidden_layers=1)
    small.save_pretrained(tmp_path)
    text = "".join(continue_text(tmp_path, "abc", 12, **GREEDY))
    assert "".join(continue_text(tmp_path, "abc", 12, static=True, compiled=True, **GREEDY)) == text


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
    [
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"compiled": True}, "compiled needs static=True"),
    ],
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


def test_models_of_transformers_own_have_fixed_caches_too(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=256, initializer_range=0.3, **sizes)).save_pretrained(tmp_path)
    pace = Pace()
    text = "".join(continue_text(tmp_path, "abc", 12, pace=pace, **GREEDY))
    assert pace.state_bytes() == 2 * 2 * (3 + 11) * 16 * 4  # layers, keys and values, tokens read, channels
    assert "".join(continue_text(tmp_path, "abc", 12, static=True, **GREEDY)) == text


def test_characters_come_whole_and_spaces_stay() -> None:
    """A tokenizer that drops the space before a text, and characters of several tokens."""
    pieces = [
        b"\xe2\x96\x81Gr\xc3",
        b"\xb6",
        b"\xc3\x9f",
        b"e\xe2\x96\x81",
        b"\xf0\x9f",
        b"\x98",
        b"\x80",
        b"\xff",
        b"\xe2",
    ]

    def decode(tokens: list[int]) -> str:
        return b"".join(pieces[t] for t in tokens).decode("utf-8", "replace").replace("\u2581", " ").removeprefix(" ")

    found = list(whole_characters(range(len(pieces)), decode))
    assert "".join(found) == decode(list(range(len(pieces)))) == "Größe \U0001f600\ufffd\ufffd"
    assert found[:3] == ["Grö", "ß", "e "]


def test_the_pace_is_told_and_ctrl_c_keeps_what_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 256)
    arguments = ["generate", "--model", str(tmp_path), "--prompt", "abc", "--temperature", "0", "--tokens", "7"]
    capsys.readouterr()
    assert cli.main([*arguments, "--static", "--top-p", "0.9"]) == 0
    written, said = capsys.readouterr()
    assert re.fullmatch(
        r"prompt of 3 tokens read in \d+\.\d\d s; 7 tokens written, [\d.]+ tokens/s; state [\d.]+ KiB",
        said.splitlines()[-1],
    )

    def interrupted(config: Any, pace: Pace) -> Iterator[str]:
        stream = generate_text(config, pace)
        yield next(stream)
        yield next(stream)
        raise KeyboardInterrupt

    generate_text = compare_generate.generate_text
    monkeypatch.setattr(compare_generate, "generate_text", interrupted)
    assert cli.main(arguments) == 130
    part, said = capsys.readouterr()
    assert part.endswith("\n")
    assert written.startswith(part[:-1])
    assert "2 tokens written" in said


def test_what_cannot_be_read_as_a_language_model_is_explained(tmp_path: Path) -> None:
    model = saved(tmp_path / "cut", 256)
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"x" * 100)
    saved(tmp_path / "bare", 256)
    (tmp_path / "bare" / "model.safetensors").unlink()
    saved(tmp_path / "other", 256)
    (tmp_path / "other" / "config.json").write_text('{"model_type": "nothing-known"}')
    for name in ("cut", "bare", "other"):
        with pytest.raises(ValueError, match=rf"{name} holds no language model that can be read: .*save_pretrained"):
            next(continue_text(tmp_path / name, "a", 1, **GREEDY))
    assert model.config.vocab_size == 256
    assert cli.main(["generate", "--model", str(tmp_path / "cut"), "--compile"]) == 2


def test_folders_that_hold_no_text_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config.json in it"):
        next(continue_text(tmp_path, "", 1, **GREEDY))
    saved(tmp_path, 13)
    with pytest.raises(ValueError, match=r"has no tokenizer, and the model's 13 tokens are not the 256 bytes"):
        next(continue_text(tmp_path, "", 1, **GREEDY))
    for arguments in ([], ["--run", "x"], ["--model", "x", "--run", "y", "--mechanism", "gla"]):
        assert cli.main(["generate", *arguments]) == 2
