"""A cache gives back what was put in, in order, and can be reordered, cropped, exported and imported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attensor.errors import ShapeError
from attensor.nn import JointCache, StateCache, TokenCache

B, H, K, V = 3, 2, 5, 7
STATE = {"state": (H, K, V)}


def tokens(length: int, seed: int = 0, batch: int = B) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, length, H, K, dtype=torch.float64, generator=generator),
        torch.randn(batch, length, H, V, dtype=torch.float64, generator=generator),
    )


SIZES = {"keys": (H, K), "values": (H, V)}


def new(window: int | None = None, max_length: int | None = None) -> TokenCache:
    return TokenCache(B, SIZES, windows=window, max_length=max_length, dtype=torch.float64)


def append(cache: TokenCache, k: Tensor, v: Tensor) -> list[Tensor]:
    held = cache.append(keys=k, values=v)
    return [held["keys"], held["values"]]


@pytest.mark.parametrize("recorded", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("max_length", [None, 4, 40])
@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_append_gives_all_that_new_tokens_may_see(window: int | None, max_length: int | None, recorded: bool) -> None:
    k, v = tokens(23)
    cache = new(window, max_length)
    end = 0
    with torch.set_grad_enabled(recorded):
        for piece in (1, 1, 5, 1, 1, 1, 1, 9, 1, 1, 1):
            start, end = end, end + piece
            keys, values = append(cache, k[:, start:end], v[:, start:end])
            first = 0 if window is None else max(0, start - window + 1)
            assert torch.equal(keys, k[:, first:end])
            assert torch.equal(values, v[:, first:end])
            held = end if window is None else min(end, window)
            assert cache.nbytes == 8 * B * held * H * (K + V)
    assert cache.length == 23


def test_a_window_bounds_the_memory_itself() -> None:
    """Also after a long prompt, whose tokens pass through the cache at once."""
    cache = new(window=4)
    with torch.no_grad():
        append(cache, *tokens(1000))
        for seed in range(20):
            append(cache, *tokens(1, seed))
    assert cache._buffers["keys"].storage.untyped_storage().nbytes() <= 8 * B * 2 * 4 * H * K


def test_appending_moves_each_token_a_bounded_number_of_times() -> None:
    """Room grows by doubling: 1000 single tokens cause at most 11 reallocations."""
    cache, k, v = new(), *tokens(1000)
    addresses = set()
    with torch.no_grad():
        for t in range(1000):
            append(cache, k[:, t : t + 1], v[:, t : t + 1])
            addresses.add((cache._buffers["keys"].storage.data_ptr(), cache._buffers["keys"].storage.shape[1]))
    assert len({room for _, room in addresses}) <= 11


def test_gradients_pass_through_the_past() -> None:
    k, v = (t.requires_grad_() for t in tokens(6))
    cache = new()
    seen = [append(cache, k[:, :4], v[:, :4]), append(cache, k[:, 4:], v[:, 4:])]
    weights = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None, None]
    sum((keys * weights[: keys.shape[1]]).sum() for keys, _ in seen).backward()
    twice = torch.where(torch.arange(6) < 4, 2.0, 1.0).double()[:, None, None]
    torch.testing.assert_close(k.grad, (weights * twice).expand_as(k))


def test_reorder_repeats_and_drops_rows() -> None:
    k, v = tokens(4)
    cache = new()
    append(cache, k, v)
    index = torch.tensor([2, 0, 2, 1])
    cache.reorder(index)
    more_k, more_v = tokens(1, seed=1, batch=4)
    keys, values = append(cache, more_k, more_v)
    assert torch.equal(keys, torch.cat([k[index], more_k], 1))
    assert torch.equal(values, torch.cat([v[index], more_v], 1))


@pytest.mark.parametrize("window", [None, 10])
def test_crop_forgets_the_end(window: int | None) -> None:
    k, v = tokens(8)
    cache = new(window)
    with torch.no_grad():
        append(cache, k[:, :6], v[:, :6])
        exported = cache.state_dict()
        cache.crop(2)
        assert cache.length == 2
        keys, _ = append(cache, k[:, 6:], v[:, 6:])
    assert torch.equal(keys, torch.cat([k[:, :2], k[:, 6:]], 1))
    assert torch.equal(exported["keys"], k[:, :6])  # an export is not written over


def test_crop_refuses_what_a_window_has_dropped() -> None:
    cache = new(window=4, max_length=20)
    with torch.no_grad():
        append(cache, *tokens(6))
    with pytest.raises(ValueError, match=r"last 4 of 6 tokens.*length 5"):
        cache.crop(5)
    cache.crop(6)
    assert cache.nbytes == 8 * B * 4 * H * (K + V)
    cache.crop(0)
    assert (cache.length, cache.nbytes) == (0, 0)
    assert torch.equal(append(cache, *tokens(3))[0], tokens(3)[0])


@pytest.mark.parametrize("length", [-1, 7])
def test_crop_refuses_lengths_that_are_not_there(length: int) -> None:
    cache = new()
    append(cache, *tokens(6))
    with pytest.raises(ValueError, match=rf"\[0, 6\], got {length}"):
        cache.crop(length)


@pytest.mark.parametrize("window", [None, 4])
def test_contents_travel_through_safetensors(window: int | None, tmp_path: Path) -> None:
    k, v = tokens(9)
    cache, other = new(window), new(window)
    append(cache, k[:, :7], v[:, :7])
    save_file(cache.state_dict(), tmp_path / "cache.safetensors")
    other.load_state_dict(load_file(tmp_path / "cache.safetensors"))
    assert (other.length, other.nbytes) == (cache.length, cache.nbytes)
    for got, expected in zip(append(other, k[:, 7:], v[:, 7:]), append(cache, k[:, 7:], v[:, 7:]), strict=True):
        assert torch.equal(got, expected)


def test_contents_of_another_layer_are_refused() -> None:
    cache = new()
    append(cache, *tokens(3))
    with pytest.raises(ShapeError, match=r"keys must be \[3, 3, 2, 6\] after 3 tokens, got \[3, 3, 2, 5\]"):
        TokenCache(B, {**SIZES, "keys": (H, K + 1)}).load_state_dict(cache.state_dict())
    with pytest.raises(ShapeError, match=r"must hold \['first', 'length', 'state'\]"):
        StateCache(B, STATE).load_state_dict(cache.state_dict())


def test_tokens_of_another_batch_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"keys must be \[3, 1, 2, 5\], got \[4, 1, 2, 5\].*batch_size=4"):
        append(new(), *tokens(1, batch=4))


def test_lower_precision_storage_returns_the_given_dtype() -> None:
    cache = TokenCache(B, SIZES, dtype=torch.bfloat16)
    keys, values = append(cache, *tokens(3))
    assert keys.dtype == values.dtype == torch.float64
    assert cache.nbytes == 2 * B * 3 * H * (K + V)


def test_a_state_starts_at_zero_in_at_least_float32() -> None:
    for asked, kept in ((None, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        cache = StateCache(B, STATE, dtype=asked)
        assert cache.states["state"].dtype == kept
        assert cache.states["state"].shape == (B, H, K, V)
        assert not cache.states["state"].any()


def test_a_state_starts_where_it_is_told_and_goes_back_there() -> None:
    cache = StateCache(B, STATE, start={"state": -1.5})
    assert (cache.states["state"] == -1.5).all()
    cache.update(3, state=torch.zeros(B, H, K, V))
    cache.crop(0)
    assert (cache.states["state"] == -1.5).all()


def test_a_state_reorders_exports_and_forgets_all_or_nothing() -> None:
    cache, other = StateCache(B, STATE), StateCache(1, STATE)
    state = torch.randn(B, H, K, V, generator=torch.Generator().manual_seed(0))
    cache.update(5, state=state)
    assert cache.nbytes == 4 * B * H * K * V
    other.load_state_dict(cache.state_dict())
    assert other.length == 5
    other.reorder(torch.tensor([1, 1]))
    assert torch.equal(other.states["state"], state[[1, 1]])
    other.crop(5)
    with pytest.raises(ValueError, match=r"5 tokens cannot be unwound to 2"):
        other.crop(2)
    other.crop(0)
    assert other.length == 0
    assert not other.states["state"].any()


def test_tensors_that_disagree_are_refused() -> None:
    """Three keys and two values are no past of anything, appended or loaded."""
    (k, v), cache = tokens(3), new()
    with pytest.raises(ShapeError, match=r"values must be \[3, 3, 2, 7\], got \[3, 2, 2, 7\]; all tensors have"):
        append(cache, k, v[:, :2])
    with pytest.raises(ShapeError, match=r"tensors must be \['keys', 'values'\], got \['keys'\]"):
        cache.append(keys=k)
    assert cache.length == 0
    append(cache, k, v)
    exported = cache.state_dict()
    for name, wrong in (("values", v[:, :2]), ("keys", k[:2]), ("length", torch.tensor(4))):
        with pytest.raises(ShapeError, match="TokenCache"):
            new().load_state_dict({**exported, name: wrong})


def test_each_tensor_may_have_a_window_of_its_own() -> None:
    cache = TokenCache(B, SIZES, windows={"values": 2}, dtype=torch.float64)
    k, v = tokens(5)
    with torch.no_grad():
        append(cache, k[:, :4], v[:, :4])
        keys, values = append(cache, k[:, 4:], v[:, 4:])
    assert torch.equal(keys, k)
    assert torch.equal(values, v[:, 3:])
    assert not cache.can_crop
    with pytest.raises(ValueError, match="last 2 of 5 tokens of values"):
        cache.crop(4)
    assert torch.equal(cache.state_dict()["keys"], k)


@pytest.mark.parametrize("kind", ["tokens", "states", "joint"])
def test_padding_travels_with_the_rows(kind: str) -> None:
    def make() -> TokenCache | StateCache | JointCache:
        parts = {"tokens": new(), "states": StateCache(B, STATE)}
        return JointCache(**parts) if kind == "joint" else parts[kind]

    def advance(cache: TokenCache | StateCache | JointCache) -> None:
        for part in cache.parts.values() if isinstance(cache, JointCache) else (cache,):
            if isinstance(part, TokenCache):
                append(part, *tokens(4))
            else:
                part.update(4, state=part.states["state"] + torch.arange(B)[:, None, None, None])

    cache = make()
    assert cache.real(0, 4) is None
    cache.first = torch.tensor([0, 3, 1])
    advance(cache)
    assert cache.real(0, 4).tolist() == [[True] * 4, [False] * 3 + [True], [False] + [True] * 3]
    assert cache.real(3, 5) is None
    cache.reorder(torch.tensor([1, 1, 0]))
    assert cache.first.tolist() == [3, 3, 0]
    other = make()
    other.load_state_dict(cache.state_dict())
    assert (other.length, other.first.tolist(), other.nbytes) == (4, [3, 3, 0], cache.nbytes)
    if kind == "tokens":
        other.crop(2)
        assert other.first.tolist() == [2, 2, 0]
    other.crop(0)
    assert other.real(0, 1) is None
    with pytest.raises(ShapeError, match=r"first must be \[B\] = \[3\], got \[2\]"):
        other.first = torch.tensor([1, 2])


def test_a_joint_cache_is_cropped_as_a_whole_or_not_at_all() -> None:
    cache = JointCache(tokens=new(), states=StateCache(B, STATE))
    append(cache.parts["tokens"], *tokens(4))
    with pytest.raises(ShapeError, match=r"must have seen the same tokens, got \{'tokens': 4, 'states': 0\}"):
        _ = cache.length
    cache.parts["states"].update(4)
    with pytest.raises(ValueError, match="cannot be unwound to 2"):
        cache.crop(2)
    assert cache.parts["tokens"].length == 4
    assert not cache.can_crop
    cache.crop(0)
    assert (cache.length, cache.parts["tokens"].length) == (0, 0)
