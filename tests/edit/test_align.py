"""Alignment and trials: errors fall, only the stand-ins learn, controls are what they say, and the page shows them."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attensor import edit, sites
from attensor.data.text import TextData, open_text
from attensor.edit.controls import CONTROLS, ControlAttention, controls
from attensor.edit.task import NextToken, Passages, byte_tokens
from attensor.edit.trial import TrialOptions, try_swap
from attensor.nn import SlidingWindowAttention, SoftmaxAttention
from tests.sites.models import TOKENS, bert, encoder, gpt2, llama, vit


def batches(case: Any) -> Any:
    name = {"timm": "x", "torch": "src"}.get(case.kind)
    if name is None:
        return itertools.repeat({"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)})
    generator = torch.Generator().manual_seed(1)
    shape = (2, 3, 16, 24) if name == "x" else (2, 7, 24)
    return itertools.repeat({name: torch.randn(shape, dtype=torch.float64, generator=generator)})


@pytest.mark.parametrize("make", [llama, gpt2, bert, vit, encoder], ids=lambda make: make.__name__)
def test_alignment_lowers_the_error_and_trains_the_stand_ins_alone(make: Any) -> None:
    case = make()
    state = copy.deepcopy(case.model.state_dict())
    edit.swap(case.model, to=controls(window_size=3)["window only"])
    learned = copy.deepcopy(case.model.state_dict())
    found = edit.align(case.model, batches(case), steps=30, learning_rate=3e-3)
    assert found.steps == 30
    assert len(found.errors[""]) == case.count
    for errors in found.errors[""].values():
        assert len(errors) == 30
        assert errors[-1] < errors[0]
    assert all(site.is_replaced for site in sites.find_sites(case.model))
    assert any(not torch.equal(tensor, learned[name]) for name, tensor in case.model.state_dict().items())
    edit.restore(case.model, weights="original")
    assert all(torch.equal(tensor, state[name]) for name, tensor in case.model.state_dict().items())


def test_an_exact_stand_in_has_no_error_from_the_first_step() -> None:
    for make in (llama, gpt2, bert):
        case = make()
        edit.swap(case.model, to="softmax")
        found = edit.align(case.model, batches(case), steps=1)
        assert max(errors[0] for errors in found.errors[""].values()) < 1e-10


@pytest.mark.parametrize("make", [llama, bert], ids=lambda make: make.__name__)
def test_distillation_lowers_the_divergence_and_leaves_the_rest_alone(make: Any) -> None:
    case = make()
    before = case.call().detach()
    edit.swap(case.model, to=controls(window_size=2)["window only"])
    frozen = {
        name: p.clone()
        for name, p in case.model.named_parameters()
        if ".layer." not in f".{name}".replace("encoder.layer", "")
    }
    far = (case.call() - before).square().mean().item()
    edit.distill(case.model, batches(case), steps=40, learning_rate=3e-3)
    assert (case.call() - before).square().mean().item() < 0.8 * far
    assert all(p.requires_grad for p in case.model.parameters())
    assert all(torch.equal(p, frozen[name]) for name, p in case.model.named_parameters() if name in frozen)


def test_nothing_swapped_and_no_batch_are_refused() -> None:
    for train in (edit.align, edit.distill):
        with pytest.raises(ValueError, match=r"must have layers that edit\.swap has put in"):
            train(llama().model, [], steps=1)
        with pytest.raises(ValueError, match="batches must hold one"):
            train(edit.swap(llama().model, to="softmax"), [], steps=1)


def seen(layer: SoftmaxAttention, tokens: int, **past: Any) -> Tensor:
    """Which tokens each output depends on, [T, T], where values are one-hot and all scores are zero."""
    with torch.no_grad():
        for projection in (layer.q_proj, layer.k_proj):
            projection.weight.zero_()
        layer.v_proj.weight.copy_(torch.eye(12))
        layer.o_proj.weight.copy_(torch.eye(12))
        x = torch.zeros(1, tokens, 12)
        x[0, :, :tokens] = torch.eye(tokens)
        return layer(x, **past)[0, :, :tokens]


def test_controls_see_what_their_names_say() -> None:
    row, column = torch.arange(9)[:, None], torch.arange(9)
    made = {"rotary_base": None}
    none, mean, window, sinks = (
        seen(ControlAttention(12, 1, how=how, window_size=3, sinks=count, is_causal=True, **made), 9)
        for how, count in (("none", 0), ("mean", 0), ("window", 0), ("window", 2))
    )
    assert not none.any()
    torch.testing.assert_close(mean, (column <= row) / (row + 1.0))
    near = (row - column >= 0) & (row - column < 3)
    torch.testing.assert_close(window, near / near.sum(1, keepdim=True))
    both = near | ((column < 2) & (column <= row))
    torch.testing.assert_close(sinks, both / both.sum(1, keepdim=True))
    wide = seen(ControlAttention(12, 1, how="window", window_size=4, is_causal=False, **made), 9)
    near = (row - column <= 2) & (row - column >= -1)
    torch.testing.assert_close(wide, near / near.sum(1, keepdim=True))


@torch.no_grad()
def test_a_control_window_is_the_sliding_window_packed_and_while_decoding() -> None:
    torch.manual_seed(0)
    layer = SlidingWindowAttention(24, 4, num_kv_heads=2, window_size=3).double()
    control = ControlAttention.from_attention(layer.to_attention(), how="window", window_size=3)
    sinks = ControlAttention.from_attention(layer.to_attention(), how="window", window_size=3, sinks=2)
    x = torch.randn(1, 11, 24, dtype=torch.float64)
    bounds = torch.tensor([0, 4, 11])
    torch.testing.assert_close(control(x, cu_seqlens=bounds), layer(x, cu_seqlens=bounds), rtol=1e-10, atol=1e-10)
    apart = torch.cat([sinks(x[:, :4]), sinks(x[:, 4:])], 1)
    torch.testing.assert_close(sinks(x, cu_seqlens=bounds), apart, rtol=1e-10, atol=1e-10)
    cache = sinks.new_cache(1, dtype=torch.float64)
    cache.first = torch.tensor([2])
    padded = torch.cat([sinks(x[:, t : t + 1], cache=cache) for t in range(11)], 1)
    torch.testing.assert_close(padded[:, 2:], sinks(x[:, 2:]), rtol=1e-10, atol=1e-10)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextData:
    folder = tmp_path_factory.mktemp("text")
    for number in range(12):
        lines = [f"line {i} of file {number} holds {i * number}\n" for i in range(40)]
        (folder / f"{number}.txt").write_text("".join(lines))
    return open_text(folder, minimum_bytes=33)


def byte_model(kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 256,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
    }
    torch.manual_seed(0)
    if kind == "llama":
        ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **ends)).eval()
    return transformers.BertModel(transformers.BertConfig(**sizes), add_pooling_layer=False).eval()


@pytest.mark.slow
def test_a_trial_shows_all_controls_each_layer_and_a_hybrid(text: TextData, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    from attensor.report.swapped import sentences, write_swap_report

    model = byte_model("llama")
    task = NextToken(text, byte_tokens, length=32, batch_size=4, held_out=8)
    options = TrialOptions("gla", minutes=0.02, distill_minutes=0.02, context=32)
    trial = try_swap(model, task, options)
    assert set(trial.carried) == set(trial.aligned) == {"gla", *CONTROLS}
    assert set(trial.against) == set(CONTROLS)
    assert [len(scores) for scores in trial.alone.values()] == [2] * len(trial.alone)
    assert {"gla", "no attention"} <= set(trial.alone) <= {"gla", *CONTROLS}
    assert sorted(trial.order) == [0, 1]
    assert trial.hybrid["gla"][1] == trial.aligned["gla"]
    assert trial.hybrid["gla"][0].worse == min(one.worse for one in trial.alone["gla"])
    assert len(trial.distilled) == 2
    assert trial.bytes == {"original": 2 * 32 * 24 * 4, "gla": 3 * 8 * 8 * 4}
    assert all(site.is_replaced for site in sites.find_sites(model))
    torch.testing.assert_close(trial.distilled["gla"].value, float(task.score(model).double().mean()))
    found = {"to": "gla", "model": "a <b> model", "context": 32, "trial": trial.as_dict(), "facts": {"Command": "x"}}
    write_swap_report(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert all(control in page for control in CONTROLS)
    assert "a &lt;b&gt; model" in page
    assert len(sentences(trial.as_dict(), "gla")) == 3


def test_what_a_control_reaches_is_not_claimed() -> None:
    from attensor.report.swapped import sentences

    score = {"value": 2.0, "worse": 0.1, "interval": 0.01}
    arms = dict(zip(("gla", *CONTROLS), [score] * 5, strict=True))
    trial = {
        "unit": "bits per byte",
        "original": {"value": 1.9},
        "distilled": {},
        "aligned": arms,
        "layers": ["a"],
        "of": 2,
    }
    for gap, interval, word in (
        (-0.2, 0.1, "better than every control"),
        (0.05, 0.1, "cannot be told from"),
        (0.2, 0.1, "worse than"),
    ):
        found = {"value": 2.0, "worse": gap, "interval": interval}
        against = dict(zip(CONTROLS, [found] * 4, strict=True))
        assert word in sentences({**trial, "against": against}, "gla")[0]


@torch.no_grad()
def test_scores_are_those_of_the_definition(text: TextData) -> None:
    model = byte_model("llama")
    task = NextToken(text, byte_tokens, length=32, batch_size=3, held_out=8)
    tokens = byte_tokens(task.passages)["input_ids"]
    whole = torch.nn.functional.cross_entropy(model(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    expected = whole / torch.log(torch.tensor(2.0)) * 31 / 32
    torch.testing.assert_close(task.score(model).mean(), expected)
    found = Passages(text, byte_tokens, length=32, batch_size=3, held_out=8).score(byte_model("bert"))
    assert found.shape == (8,)
    assert set(found.tolist()) <= {0.0, 1.0}


@torch.no_grad()
def test_a_swapped_model_is_read_again(tmp_path: Path) -> None:
    model = byte_model("llama")
    model.config.architectures = ["LlamaForCausalLM"]
    source = tmp_path / "source"
    model.save_pretrained(source)
    swaps = [{"to": "gla", "layers": [0]}, {"to": "sliding-window", "layers": [1], "window_size": 4}]
    for one in swaps:
        edit.swap(model, **one)
    edit.save_swapped(model, tmp_path / "out", swaps, source=source)
    again = edit.load_swapped(tmp_path / "out")
    tokens = torch.arange(20)[None]
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    with pytest.raises(FileNotFoundError, match=r"swap\.json"):
        edit.load_swapped(source)
