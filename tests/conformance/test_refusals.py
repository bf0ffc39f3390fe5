"""Every layer refuses what it cannot take, in its constructor and in its call: by name, and before anything changes."""

from __future__ import annotations

import inspect
import typing
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from attensor.catalogue import load, mechanisms
from attensor.nn import Cache, Mixer
from tests.conformance.cases import HEADS, HIDDEN, Case, all_cases, name

EVERY = pytest.mark.parametrize("case", [c for c in all_cases() if c.variant is None], ids=name)
CAUSAL = pytest.mark.parametrize("case", [c for c in all_cases() if c.variant is None and c.is_causal], ids=name)
LAYERS = sorted({path for card in mechanisms().values() for path in card.layers})

NAN = float("nan")
# what is of none of the kinds, by the kind that an annotation names
WRONG: dict[Any, tuple[Any, ...]] = {
    bool: ("no", 1, None, torch.tensor(True)),
    int: (2.0, "2", True, NAN, torch.tensor(2), -1),
    float: ("2", True, NAN, float("inf"), torch.tensor(2.0)),
    Literal: ("nonsense", 0, True),
}


def options(layer: str) -> list[tuple[str, Any]]:
    """(option, wrong value), for every option whose annotation names a kind."""
    found = []
    for argument, annotation in typing.get_type_hints(load(layer).__init__).items():
        parts = [annotation] if typing.get_origin(annotation) is Literal else typing.get_args(annotation)
        kinds = {Literal if typing.get_origin(k) is Literal else k for k in parts or [annotation]}
        for kind in kinds & {*WRONG} if len(kinds & {*WRONG}) == 1 else ():
            found += [(argument, value) for value in WRONG[kind] if value is not None or type(None) not in kinds]
    return found


def build(layer: str, **changed: Any) -> Mixer:
    kind = load(layer)
    known = set(inspect.signature(kind).parameters)
    base = {"hidden_size": HIDDEN, "num_heads": HEADS}
    return kind(**base | {key: value for key, value in changed.items() if key in known})


@pytest.mark.parametrize("layer", LAYERS, ids=lambda path: path.partition(":")[2])
def test_an_option_of_another_kind_is_refused_by_the_constructor(layer: str) -> None:
    found = options(layer)
    assert {"hidden_size", "num_heads"} <= {option for option, _ in found}
    for option, value in found:
        with pytest.raises((TypeError, ValueError), match=rf"^{load(layer).__name__}: {option} must be .*, got "):
            build(layer, **{option: value})


@pytest.mark.parametrize(
    ("layer", "option", "value"),
    [
        ("SoftmaxAttention", "dropout_p", 1.0),
        ("SoftmaxAttention", "dropout_p", -0.1),
        ("SoftmaxAttention", "rotary_base", 0.0),
        ("SlidingWindowAttention", "window_size", 0),
        ("NeighborhoodAttention", "window_size", (3, 0)),
        ("GatedLinearAttention", "clamp_min", 0.5),
        ("GlobalLinearAttention", "denominator_minimum", 0.0),
        ("RelativeKernelAttention", "max_distance", 0),
        ("LightningAttention", "layer_index", 1),
        ("AxialAttention", "layer_index", -1),
        ("AxialAttention", "axis", 3),
        ("WindowGridAttention", "block_size", 0),
    ],
)
def test_a_number_out_of_range_is_refused_by_the_constructor(layer: str, option: str, value: Any) -> None:
    (path,) = (path for path in LAYERS if path.endswith(f":{layer}"))
    with pytest.raises(ValueError, match=rf"^{layer}: {option} must be .*, got "):
        build(path, **{option: value})


def wrong_inputs(x: Tensor) -> list[Any]:
    """In place of hidden states in float64 on a CPU."""
    kinds = (x.numpy(), x.tolist(), None, "x", x.to_sparse(), torch.nested.nested_tensor(list(x), layout=torch.jagged))
    numbers = (x.to(torch.float8_e4m3fn), x.to(torch.complex64), x.long(), x > 0, x.float(), x.bfloat16())
    return [*kinds, *numbers, x.to("meta"), x[..., :-1], x[0, ..., 0]]


@EVERY
def test_other_hidden_states_are_refused(case: Case) -> None:
    layer = case.layer()
    for wrong in wrong_inputs(case.hidden_states()):
        with pytest.raises((TypeError, ValueError), match=rf"^{type(layer).__name__}: hidden_states .*(got|is on) "):
            layer(wrong)


@CAUSAL
def test_other_packings_are_refused(case: Case) -> None:
    """Before positions are made of them."""
    layer, x = case.layer(), case.hidden_states(batch=1)
    good = torch.tensor([0, 3, 7])
    bad = [[0, 7], good.numpy(), "x", 3, good.double(), good[None], good.to("meta"), good + 1, good.flip(0), good[:2]]
    for cu_seqlens in bad:
        with pytest.raises((TypeError, ValueError), match=rf"^{type(layer).__name__}: cu_seqlens .*(got|is on) "):
            layer(x, cu_seqlens=cu_seqlens)
    with pytest.raises(ValueError, match=rf"^{type(layer).__name__}: .*got hidden_states \[2, "):
        layer(case.hidden_states(), cu_seqlens=good)


def sizes(cache: Cache) -> tuple[Any, ...]:
    """Its kind, names and sizes without rows and tokens, and the window; another layer's with the same is as good."""
    windows = {n: b.window for n, b in getattr(cache, "_buffers", {}).items()}
    return type(cache), windows, {n: t.shape[1 + (n in windows) :] for n, t in cache.state_dict().items()}


def other_caches(case: Case) -> list[Any]:
    """Of other layers, heads, rows and devices, and no caches at all."""
    layer = case.layer()
    found: list[Any] = [{}, "x", object(), layer.new_cache(3), layer.new_cache(2, device="meta")]
    if case.card.name not in ("scalar-gated", "gla"):  # whose state is as wide with any number of heads
        found.append(case.layer(num_heads=1).new_cache(2))
    for other in (c.layer() for c in all_cases() if c.is_causal):
        cache = other.new_cache(2)
        if sizes(cache) != sizes(layer.new_cache(2)):
            found.append(cache)
    return found


@CAUSAL
def test_other_caches_are_refused_and_left_as_they_are(case: Case) -> None:
    layer, x = case.layer(), case.hidden_states()
    for cache in other_caches(case):
        before = cache.state_dict() if isinstance(cache, Cache) else None
        with pytest.raises((TypeError, ValueError), match=rf"^{type(layer).__name__}: cache .*(got|is on) "):
            layer(x, cache=cache)
        if before is not None:
            after = cache.state_dict()
            assert all(torch.equal(after[n], t) for n, t in before.items() if not t.is_meta)
            assert cache.length == 0


@CAUSAL
def test_a_cache_of_nonsense_is_not_made(case: Case) -> None:
    layer = case.layer()
    for wrong in (-1, 2.5, "a", True, None, torch.tensor(2)):
        with pytest.raises((TypeError, ValueError), match=r"batch_size must be .*, got "):
            layer.new_cache(wrong)
    for wrong in (-1, 2.5, "a", True):
        with pytest.raises((TypeError, ValueError), match=r"max_length must be .*, got "):
            layer.new_cache(2, wrong)
    for wrong in (torch.int32, torch.complex64, "float32"):
        with pytest.raises((TypeError, ValueError), match=r"dtype must be .*, got "):
            layer.new_cache(2, dtype=wrong)


def test_a_numpy_integer_is_an_integer() -> None:
    for path in LAYERS:
        assert build(path, num_heads=np.int64(HEADS)).num_heads == HEADS
