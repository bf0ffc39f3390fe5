"""Grid layers against masks written out, at sizes that fit their windows badly."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attensor
from attensor.nn import AxialAttention, NeighborhoodAttention, RelativePositionBias, WindowGridAttention

B, C, H = 2, 12, 3
VARIANTS = {
    "neighborhood": (lambda: NeighborhoodAttention(C, H, window_size=3, dtype=torch.float64), (5, 7)),
    "neighborhood 1-D": (lambda: NeighborhoodAttention(C, H, window_size=4, dilation=2, dtype=torch.float64), (11,)),
    "neighborhood 3-D": (
        lambda: NeighborhoodAttention(C, H, window_size=(2, 3, 9), is_causal=(True, False, False), dtype=torch.float64),
        (3, 4, 5),
    ),
    "neighborhood strided": (lambda: NeighborhoodAttention(C, H, window_size=4, stride=2, dtype=torch.float64), (6, 5)),
    "neighborhood biased": (
        lambda: NeighborhoodAttention(C, H, window_size=(3, 4), dilation=2, relative_bias=True, dtype=torch.float64),
        (7, 8),
    ),
    "neighborhood completed": (
        lambda: NeighborhoodAttention(
            C, H, window_size=3, dilation=3, relative_bias=True, padding="visible", dtype=torch.float64
        ),
        (5, 10),
    ),
    "neighborhood cut": (
        lambda: NeighborhoodAttention(
            C, H, window_size=(3, 8), relative_bias=True, border="truncate", dtype=torch.float64
        ),
        (5, 7),
    ),
    "window": (lambda: WindowGridAttention(C, H, block_size=3, dtype=torch.float64), (5, 7)),
    "grid": (lambda: WindowGridAttention(C, H, block_size=3, layer_index=1, dtype=torch.float64), (5, 7)),
    "block beyond": (lambda: WindowGridAttention(C, H, block_size=7, dtype=torch.float64), (2, 9)),
    "row": (lambda: AxialAttention(C, H, dtype=torch.float64), (5, 7)),
    "column causal": (lambda: AxialAttention(C, H, layer_index=1, is_causal=True, dtype=torch.float64), (5, 7)),
    "axial 3-D": (lambda: AxialAttention(C, H, layer_index=2, dtype=torch.float64), (2, 3, 5)),
}
EVERY = pytest.mark.parametrize("variant", VARIANTS)


def build(variant: str) -> tuple[nn.Module, Tensor]:
    make, space = VARIANTS[variant]
    layer = make()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layer, torch.randn(B, *space, C, dtype=torch.float64)


def dense(layer: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """Attention of every cell to every cell under a mask [n, n] or [H, n, n], with the layer's projections."""
    q, k, v = layer.qkv(x.flatten(1, -2)).unflatten(-1, (3, H, C // H)).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return layer.proj(out.transpose(1, 2).flatten(2)).view(x.shape)


def pairs(space: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    cells = list(itertools.product(*map(range, space)))
    return list(itertools.product(cells, cells))


def mask_of(space: tuple[int, ...], together: list[bool]) -> Tensor:
    n = torch.Size(space).numel()
    return torch.tensor(together).view(n, n)


@EVERY
def test_equals_the_definition(variant: str) -> None:
    layer, x = build(variant)
    fast = layer(x)
    with attensor.backend("reference"):
        torch.testing.assert_close(fast, layer(x), rtol=1e-10, atol=1e-10)


def test_a_window_of_three_shifts_inwards_at_the_border() -> None:
    layer, x = build("neighborhood")
    space = x.shape[1:-1]

    def near(i: int, j: int, n: int) -> bool:
        first = min(max(i - 1, 0), n - 3)
        return first <= j < first + 3

    mask = mask_of(space, [all(near(i, j, n) for i, j, n in zip(a, b, space)) for a, b in pairs(space)])
    torch.testing.assert_close(layer(x), dense(layer, x, mask), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("variant", ["neighborhood biased", "neighborhood completed", "neighborhood cut"])
def test_neighbourhoods_with_relative_biases(variant: str) -> None:
    """Also in a grid smaller than a window that is completed by zeros, which are seen."""
    layer, x = build(variant)
    windows, dilation = (layer._per_axis(value, 2) for value in (layer.window_size, layer.dilation))
    needed = [w * d if layer.border == "shift" else 0 for w, d in zip(windows, dilation)]
    space = tuple(max(n, more) for n, more in zip(x.shape[1:-1], needed))
    whole = torch.zeros(B, *space, C, dtype=x.dtype)
    whole[:, : x.shape[1], : x.shape[2]] = x

    def step(i: int, j: int, n: int, window: int, d: int) -> int | None:
        """The entry of the table along an axis, or None where the key is not seen."""
        if (i - j) % d:
            return None
        size = len(range(i % d, n, d))
        first = i // d - window // 2
        if layer.border == "shift":
            first = min(max(first, 0), size - window)
        return j // d - i // d + window - 1 if first <= j // d < first + window else None

    mask = torch.full((H, len(pairs(space))), float("-inf"), dtype=x.dtype)
    for at, (a, b) in enumerate(pairs(space)):
        entry = [step(*axis) for axis in zip(a, b, space, windows, dilation)]
        if None not in entry:
            mask[:, at] = layer.rpb[:, entry[0], entry[1]]
    expected = dense(layer, whole, mask.view(H, -1, space[0] * space[1]))[:, : x.shape[1], : x.shape[2]]
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)
    grads = [torch.autograd.grad((out * out).sum(), [*layer.parameters()]) for out in (layer(x), expected)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-10)


def test_a_window_that_shrinks_uses_the_middle_of_its_table() -> None:
    torch.manual_seed(0)
    wide, narrow = (
        NeighborhoodAttention(C, H, window_size=w, relative_bias=True, dtype=torch.float64) for w in ((7, 5), (4, 5))
    )
    narrow.load_state_dict({**wide.state_dict(), "rpb": wide.rpb.detach()[:, 3:10]})
    x = torch.randn(B, 4, 6, C, dtype=torch.float64)
    torch.testing.assert_close(wide(x), narrow(x), rtol=0, atol=1e-14)
    assert wide.no_weight_decay() == {"rpb"}
    with pytest.raises(ValueError, match=r"hidden_states must be \[B, .*, C\]"):
        wide(x.flatten(1, 2))
    assert NeighborhoodAttention(C, H, window_size=(7,), relative_bias=True).rpb.shape == (H, 13)


@pytest.mark.parametrize("variant", ["window", "grid", "block beyond"])
def test_blocks_with_relative_biases(variant: str) -> None:
    layer, x = build(variant)
    space = x.shape[1:-1]
    sides = [min(layer.block_size, n) for n in space]
    blocks = [-(-n // side) for n, side in zip(space, sides)]
    table, offset = layer.rel_pos.relative_position_bias_table, layer.block_size - 1
    mask = torch.full((H, len(pairs(space))), float("-inf"), dtype=x.dtype)
    for at, (a, b) in enumerate(pairs(space)):
        if variant != "grid":
            block, place = (tuple(divmod(i, side) for i, side in zip(cell, sides)) for cell in (a, b))
        else:
            block, place = (tuple(divmod(i, count)[::-1] for i, count in zip(cell, blocks)) for cell in (a, b))
        if [i for i, _ in block] == [i for i, _ in place]:
            down, right = (there - here + offset for (_, here), (_, there) in zip(block, place))
            mask[:, at] = table[:, down, right]
    n = torch.Size(space).numel()
    torch.testing.assert_close(layer(x), dense(layer, x, mask.view(H, n, n)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("layer_index", "is_causal", "axis"), [(0, False, 1), (1, False, 0), (2, True, 1), (3, True, 0)]
)
def test_rows_and_columns_take_turns(layer_index: int, is_causal: bool, axis: int) -> None:
    layer = AxialAttention(C, H, layer_index=layer_index, is_causal=is_causal, dtype=torch.float64)
    x = torch.randn(B, 4, 5, C, dtype=torch.float64)
    lines = [a[1 - axis] == b[1 - axis] and (not is_causal or b[axis] <= a[axis]) for a, b in pairs((4, 5))]
    torch.testing.assert_close(layer(x), dense(layer, x, mask_of((4, 5), lines)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("space", "axis"), [((4, 5), 0), ((4, 5), 1), ((2, 4, 3), 1), ((2, 3, 4), 2), ((4, 1, 2), 0)])
@pytest.mark.parametrize("pieces", [(1, 1, 1, 1), (4,), (3, 1), (1, 2, 1)], ids=str)
def test_lines_in_pieces_are_the_whole(space: tuple[int, ...], axis: int, pieces: tuple[int, ...]) -> None:
    """Rows of the cache are the lines of all images; what is exported and imported between pieces goes on."""
    layer = AxialAttention(C, H, axis=axis, is_causal=True, dtype=torch.float64)
    x, place = torch.randn(B, *space, C, dtype=torch.float64), 1 + axis
    length = space[axis]
    sizes = list(pieces) if length == 4 else [1, length - 1]
    lines = B * x[0, ..., 0].numel() // length
    cache, found = layer.new_cache(lines, length), []
    for piece in x.split(sizes, place):
        exported, cache = cache.state_dict(), layer.new_cache(lines)
        cache.load_state_dict(exported)
        found.append(layer(piece, cache=cache))
    torch.testing.assert_close(torch.cat(found, place), layer(x), rtol=1e-12, atol=1e-12)
    assert cache.length == length
    other = AxialAttention(C, H, layer_index=len(space) - 1 - axis, is_causal=True, dtype=torch.float64)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x), layer(x), rtol=0, atol=0)


def test_cells_that_pad_the_beginning_of_lines_are_not_seen() -> None:
    layer = AxialAttention(C, H, axis=1, is_causal=True, dtype=torch.float64)
    x = torch.randn(B, 3, 5, C, dtype=torch.float64)
    cache = layer.new_cache(B * 3)
    cache.first = torch.tensor([2, 0, 0, 0, 2, 0])
    out = layer(x, cache=cache)
    torch.testing.assert_close(out[0, 0, 2:], layer(x[:1, :1, 2:])[0, 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out[1, 2], layer(x)[1, 2], rtol=1e-12, atol=1e-12)


def test_axes_and_caches_of_something_else_are_refused() -> None:
    layer, x = AxialAttention(C, H, axis=0, is_causal=True), torch.randn(B, 4, 5, C)
    with pytest.raises(ValueError, match=r"AxialAttention: cache must have the 10 rows of hidden_states, got 8"):
        layer(x, cache=layer.new_cache(B * 4))
    with pytest.raises(TypeError, match="a TokenCache of another layer"):
        layer(x, cache=AxialAttention(C, 4, is_causal=True).new_cache(B * 5))
    with pytest.raises(ValueError, match="AxialAttention: with is_causal=False every token changes all outputs"):
        AxialAttention(C, H).new_cache(3)
    with pytest.raises(TypeError, match="of another layer"):
        AxialAttention(C, H)(x, cache=layer.new_cache(B * 5))
    for cache in (None, AxialAttention(C, H, is_causal=True).new_cache(2)):
        with pytest.raises(ValueError, match="AxialAttention: axis must be below the 2 of this grid, got 2"):
            AxialAttention(C, H, axis=2, is_causal=True)(x, cache=cache)
    assert AxialAttention(C, H, axis=2)(x[:, None]).shape == (B, 1, 4, 5, C)


@pytest.mark.parametrize(
    ("space", "same_as"),
    [
        ((2, 3), {"window_size": (2, 3)}),  # a window beyond the grid sees all of it
        ((9, 9), {"window_size": 5}),  # the dilation no longer fits and shrinks to 1
        ((12, 15), {"window_size": 5, "dilation": (2, 3), "stride": 1}),
    ],
)
def test_a_neighbourhood_shrinks_to_what_fits(space: tuple[int, int], same_as: dict[str, object]) -> None:
    layer = NeighborhoodAttention(C, H, window_size=5, dilation=3, dtype=torch.float64)
    other = NeighborhoodAttention(C, H, **same_as, dtype=torch.float64)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(B, *space, C, dtype=torch.float64)
    assert torch.equal(layer(x), other(x))
    assert layer.cost_sizes(space) == other.cost_sizes(space)


def test_relative_biases_count_from_query_to_key() -> None:
    bias = RelativePositionBias(2, 3, dtype=torch.float64)
    got = bias(2, 3)
    assert got.shape == (2, 6, 6)
    for (query, (a, b)), (key, (x, y)) in itertools.product(enumerate(itertools.product(range(2), range(3))), repeat=2):
        assert torch.equal(got[:, query, key], bias.relative_position_bias_table[:, x - a + 2, y - b + 2])


@EVERY
def test_weights_travel_and_are_drawn_anew(variant: str) -> None:
    layer, x = build(variant)
    other, _ = build(variant)
    assert not torch.allclose(layer(x), other(x))
    other.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(layer(x), other(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    with torch.device("meta"):
        empty = VARIANTS[variant][0]()
    filled = empty.to_empty(device="cpu")
    for tensor in filled.state_dict().values():
        tensor.fill_(float("nan"))
    filled.reset_parameters()
    assert filled(x).isfinite().all()


@EVERY
def test_sizes_are_checked(variant: str) -> None:
    layer, x = build(variant)
    who = type(layer).__name__
    with pytest.raises(ValueError, match=rf"{who}: hidden_states must end in hidden_size = 12 channels.*movedim"):
        layer(x.movedim(-1, 1))
    with pytest.raises(ValueError, match=rf"{who}: hidden_states must be \[B, .*, C\].*got \[2, 12\]"):
        layer(x.flatten(1, -2)[:, 0])
    with pytest.raises(ValueError, match=rf"{who}: hidden_size 12 is not a multiple of num_heads 5"):
        type(layer)(C, 5)
    assert "hidden_size=12, num_heads=3" in repr(layer)


def test_options_are_checked() -> None:
    for options in ({"window_size": 0}, {"dilation": (1, 0)}, {"stride": -1}):
        (name,) = options
        with pytest.raises(ValueError, match=f"NeighborhoodAttention: {name} must be at least 1"):
            NeighborhoodAttention(C, H, **options)
    with pytest.raises(ValueError, match=r"options for 3 axes \(3, 3, 3\), but the grid has 2"):
        NeighborhoodAttention(C, H, window_size=(3, 3, 3))(torch.zeros(B, 5, 5, C))
    with pytest.raises(ValueError, match=r"one for each of one to three axes, got \(3, 2\), \(1,\), 1, False"):
        NeighborhoodAttention(C, H, window_size=(3, 2), dilation=(1,))
    with pytest.raises(ValueError, match='padding="visible" is for windows that are shifted'):
        NeighborhoodAttention(C, H, border="truncate", padding="visible")
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        WindowGridAttention(C, H, block_size=0)


@pytest.mark.parametrize("layer_index", [0, 1], ids=["window", "grid"])
def test_visible_padding_is_zeros_before_the_projections(layer_index: int) -> None:
    """As in Swin's and DaViT's code: blocks are whole, and completed by cells that are attended to."""
    torch.manual_seed(0)
    hidden, visible = (
        attensor.nn.WindowGridAttention(
            12, 3, block_size=4, layer_index=layer_index, padding=padding, dtype=torch.float64
        )
        for padding in ("hidden", "visible")
    )
    visible.load_state_dict(hidden.state_dict())
    x = torch.randn(2, 6, 3, 12, dtype=torch.float64)
    whole = torch.zeros(2, 8, 4, 12, dtype=torch.float64)
    whole[:, :6, :3] = x
    torch.testing.assert_close(visible(x), hidden(whole)[:, :6, :3], rtol=0, atol=1e-12)
    assert (visible(x) - hidden(x)).abs().max() > 1e-3
    torch.testing.assert_close(visible(whole), hidden(whole), rtol=0, atol=1e-12)
