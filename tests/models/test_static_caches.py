"""Caches of fixed size: the same tokens as with growing ones, and one graph for every step of decoding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import CompileConfig

from tests.models.families import CAUSAL, FAMILIES, VARIANTS, build, tokens

pytestmark = pytest.mark.slow  # every causal mechanism is traced or trained

EVERY = pytest.mark.parametrize("variant", VARIANTS)
COMPILED = pytest.mark.parametrize(
    "variant", [f"card-{name}" for name in CAUSAL] + [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None}
PADDED = torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
ROOM = 14


@pytest.fixture(autouse=True)
def _fresh_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@EVERY
def test_static_generation_gives_the_dynamic_tokens(variant: str) -> None:
    model, rows = build(variant), tokens(2, 5)
    options = {"attention_mask": PADDED, "max_new_tokens": 9, "num_beams": 2, **GREEDY}
    expected = model.generate(rows, **options)
    got = model.generate(rows, cache_implementation="static", return_dict_in_generate=True, **options)
    assert torch.equal(got.sequences, expected)
    assert all(layer.held.is_static for layer in got.past_key_values.layers)


@COMPILED
@torch.no_grad()
def test_a_compiled_step_is_one_graph_for_every_length(variant: str) -> None:
    """Greedy tokens and logits of the growing cache, after a left-padded prompt, from one compilation."""
    model, rows = build(variant, num_hidden_layers=1 if variant.startswith("card-") else 2), tokens(2, 5)
    growing, fixed = model.new_cache(), model.new_cache(max_length=ROOM)
    chosen = [model(rows, attention_mask=PADDED, past_key_values=c).logits[:, -1:].argmax(-1) for c in (growing, fixed)]
    counter = CompileCounter()
    step = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    for length in range(6, ROOM + 1):
        expected = model(chosen[0], past_key_values=growing).logits
        got = step(chosen[1], past_key_values=fixed).logits
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
        chosen = [logits.argmax(-1) for logits in (expected, got)]
        assert torch.equal(*chosen)
        assert fixed.get_seq_length() == length
    assert counter.frame_count == 1


def test_generate_compiles_the_steps_once() -> None:
    """As transformers does by itself on GPUs: `cache_implementation="static"` with a compile_config."""
    model, rows = build("hybrid"), tokens(2, 5)
    graphs: list[Any] = []

    def keep(graph: Any, inputs: Any) -> Any:  # a function, as the configuration is copied
        graphs.append(graph)
        return graph.forward

    compiled = CompileConfig(backend=keep, fullgraph=True, dynamic=False, mode=None)
    compiled._compile_all_devices = True
    options: dict[str, Any] = {"attention_mask": PADDED, "max_new_tokens": 9, **GREEDY}
    got = model.generate(rows, cache_implementation="static", compile_config=compiled, **options)
    assert torch.equal(got, model.generate(rows, **options))
    assert len(graphs) == 1


def test_what_transformers_asks_of_a_static_cache() -> None:
    model = build("card-softmax")
    cache = model.new_cache(max_length=8)
    assert (cache.get_seq_length(), cache.is_compileable, cache.get_max_length()) == (0, True, 8)
    with torch.no_grad():
        model(tokens(2, 5), past_key_values=cache)
    assert (cache.get_seq_length(), cache.layers[0].get_mask_sizes(1)) == (5, (6, 0))
    assert not model.new_cache().is_compileable


def test_a_longer_sequence_than_there_is_room_for_is_refused() -> None:
    """Before anything is written; windows and states have no end."""
    model, rows = build("card-softmax"), tokens(2, 5)
    with torch.no_grad():
        with pytest.raises(
            ValueError, match=r"room for max_length 4 tokens, got a prompt of 5; .*new_cache\(max_length"
        ):
            model(rows, past_key_values=model.new_cache(max_length=4))
        cache = model.new_cache(max_length=6)
        model(rows, past_key_values=cache)
        with pytest.raises(ValueError, match=r"room for max_length 6 tokens, got 7; make it larger with make_static"):
            model(rows[:, :2], past_key_values=cache)
        assert cache.get_seq_length() == 5
        expected = model(torch.cat([rows, rows[:, :2]], 1)).logits[:, -2:]
        cache.make_static(7)
        torch.testing.assert_close(model(rows[:, :2], past_key_values=cache).logits, expected)
        step = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
        with pytest.raises(RuntimeError, match="a static cache has room for max_length 7 tokens, and all are taken"):
            step(rows[:, :1], past_key_values=cache)
    with pytest.raises(ValueError, match="ModelCache: max_length must be at least 1, got 0"):
        model.new_cache(max_length=0)
    helped: dict[str, Any] = {"assistant_model": build("card-softmax", seed=1), "max_new_tokens": 2, **GREEDY}
    with pytest.raises(ValueError, match="assisted generate is not supported with Static cache"):
        model.generate(rows[:1], cache_implementation="static", **helped)
