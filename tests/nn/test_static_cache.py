"""Caches of fixed size hold what growing ones hold: after prompts in pieces, beams, crops, files and another room."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attensor import nn
from attensor.nn.cache import Cache, StateCache, TokenCache
from attensor.nn.joint_cache import JointCache
from tests.conformance.cases import Case, all_cases, name

pytestmark = pytest.mark.slow  # every causal mechanism is traced or trained

ROOM = 12
CAUSAL = pytest.mark.parametrize("case", [case for case in all_cases() if case.is_causal], ids=name)


def same(got: Cache, expected: Cache) -> None:
    """The same contents, bit for bit."""
    mine, others = got.state_dict(), expected.state_dict()
    assert mine.keys() == others.keys()
    for key, tensor in others.items():
        assert torch.equal(mine[key], tensor), key
    assert (got.length, got.nbytes) == (expected.length, expected.nbytes)


@CAUSAL
@pytest.mark.parametrize("cuts", [[7, 8, 9, 12], [1, 4, 6, 12]], ids=str)
@torch.no_grad()
def test_a_static_cache_is_a_growing_one_of_fixed_size(case: Case, cuts: list[int]) -> None:
    """Prompts in pieces, single tokens, pieces again: outputs and contents; one row begins with padding."""
    layer, x = case.layer(), case.hidden_states(space=(12,))
    growing, made, later = (layer.new_cache(2), layer.new_cache(2, ROOM, static=True), layer.new_cache(2))
    padded = "batch" not in case.card.breaks
    for cache in (growing, made, later):
        if padded:
            cache.first = torch.tensor([3, 0])
    start = 0
    for end in cuts:
        expected = layer(x[:, start:end], cache=growing)
        for cache in (made, later):
            torch.testing.assert_close(layer(x[:, start:end], cache=cache), expected, rtol=1e-9, atol=1e-9)
        if not start:
            later.make_static(ROOM)
            assert later.is_static
        start = end
    for cache in (made, later):
        torch.testing.assert_close(cache.state_dict(), growing.state_dict(), rtol=1e-9, atol=1e-9)
        assert (cache.length, cache.nbytes) == (growing.length, growing.nbytes)


@CAUSAL
@torch.no_grad()
def test_a_layer_forgets_what_is_cropped(case: Case) -> None:
    """Also where the room of forgotten tokens is read, as by layers that mask nothing."""
    layer, x = case.layer(), case.hidden_states(space=(9,))
    growing, fixed = layer.new_cache(2), layer.new_cache(2, ROOM, static=True)
    outputs = []
    for cache in (growing, fixed):
        layer(x[:, :7], cache=cache)
        cache.crop(4 if cache.can_crop else 0)
        outputs.append([layer(x[:, 7 + t : 8 + t], cache=cache) for t in range(2)])
    for got, expected in zip(*reversed(outputs)):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def pieces(count: int, *, seed: int = 0) -> Tensor:
    return torch.randn(3, count, 2, generator=torch.Generator().manual_seed(seed))


def pair(window: int | None) -> tuple[TokenCache, TokenCache]:
    """A growing and a static cache of seven tokens."""
    growing, fixed = (TokenCache(3, {"keys": (2,)}, windows=window, dtype=torch.float32) for _ in range(2))
    fixed.make_static(ROOM)
    for cache in (growing, fixed):
        cache.append(keys=pieces(7))
    return growing, fixed


@pytest.mark.parametrize("window", [None, 4, 40])
def test_rows_are_reordered_repeated_and_dropped(window: int | None) -> None:
    growing, fixed = pair(window)
    for cache in (growing, fixed):
        cache.first = torch.tensor([2, 0, 1])
        cache.reorder(torch.tensor([2, 0, 0, 1]))
        cache.append(keys=pieces(1, seed=2)[[0, 1, 1, 2]])
    same(fixed, growing)


@pytest.mark.parametrize(("window", "length"), [(None, 4), (None, 0), (4, 0), (4, 7)])
def test_crops_forget_the_end(window: int | None, length: int) -> None:
    growing, fixed = pair(window)
    for cache in (growing, fixed):
        cache.crop(length)
        cache.append(keys=pieces(2, seed=2))
    same(fixed, growing)
    if window is not None and length:
        with pytest.raises(ValueError, match="cannot be restored"):
            fixed.crop(3)


@pytest.mark.parametrize("window", [None, 4])
def test_contents_travel_between_growing_and_static_caches(window: int | None, tmp_path: Path) -> None:
    growing, fixed = pair(window)
    save_file(fixed.state_dict(), tmp_path / "cache.safetensors")
    held = load_file(tmp_path / "cache.safetensors")
    for cache in pair(window):
        cache.crop(0)
        cache.load_state_dict(held)
        same(cache, growing)
        cache.append(keys=pieces(1))
        assert cache.length == 8
    same(copy.deepcopy(fixed), growing)


@pytest.mark.parametrize("window", [None, 4])
def test_another_room(window: int | None) -> None:
    growing, fixed = pair(window)
    fixed.make_static(9)
    for cache in (growing, fixed):
        cache.append(keys=pieces(2, seed=3))
    same(fixed, growing)
    with pytest.raises(
        ValueError, match=r"make_static: max_length must be at least 9, the tokens that are held, got 8"
    ):
        fixed.make_static(8)
    if window is None:
        with pytest.raises(ValueError, match="room for max_length 9 tokens, got 10"):
            fixed.append(keys=pieces(1))
    same(fixed, growing)


def test_memory_stays_where_it_is() -> None:
    """Graphs that are recorded write to addresses."""
    cache = nn.SoftmaxAttention(8, 2).new_cache(1, ROOM, static=True, dtype=torch.float32)
    states = StateCache(1, {"state": (2, 3)})
    states.make_static(ROOM)
    joint = JointCache(tokens=cache, states=states)
    held: list[int] = [tensor.data_ptr() for tensor in joint._memory()]
    with torch.no_grad():
        for _ in range(3):
            cache.append(keys=torch.ones(1, 1, 2, 4), values=torch.ones(1, 1, 2, 4))
            states.update(1, state=torch.ones(1, 2, 3))
    assert [tensor.data_ptr() for tensor in joint._memory()] == held
    assert states.states["state"].eq(1).all()


@pytest.mark.parametrize("kind", ["softmax", "gla"])
def test_gradients_need_a_growing_cache(kind: str) -> None:
    layer: Any = {"softmax": nn.SoftmaxAttention, "gla": nn.GatedLinearAttention}[kind](8, 2)
    cache = layer.new_cache(1, ROOM, static=True)
    with pytest.raises(
        ValueError, match=r"static cache is written in place, which gradients cannot follow; use torch.no"
    ):
        layer(torch.randn(1, 3, 8), cache=cache)
    assert cache.length == 0


def test_a_static_cache_needs_its_size() -> None:
    layer = nn.SoftmaxAttention(8, 2)
    with pytest.raises(ValueError, match=r"SoftmaxAttention.new_cache: static=True needs max_length.* got None"):
        layer.new_cache(1, static=True)
    with pytest.raises(ValueError, match=r"static=True needs max_length.* got 0"):
        layer.new_cache(1, 0, static=True)
