"""The effective receptive field: closed forms, exact zeros where a stack of layers cannot see, errors that repair."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.errors import ShapeError
from attensor.metrics.receptive_field import ReceptiveField, receptive_field
from attensor.nn import NeighborhoodAttention, SoftmaxAttention, WindowGridAttention

WIDTH = 6


def averaged(layers: int, stride: int = 1):
    """Averages over 3 x 3 cells, one after the other."""
    kernel = torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64)

    def run(x: Tensor) -> Tensor:
        for _ in range(layers):
            x = F.conv2d(x, kernel, padding=1, stride=stride)
        return x

    return run


def stacked(*layers: nn.Module):
    """Layers of maps with the channels last."""
    model = nn.Sequential(*layers).double().eval()
    return lambda x: model(x.movedim(1, -1)).movedim(-1, 1)


def reached(function, rows: int, columns: int) -> Tensor:
    field = receptive_field(function, torch.randn(2, WIDTH, rows, columns, dtype=torch.float64))
    return field.shares > 0


def box(rows: int, columns: int, down: range, right: range) -> Tensor:
    inside = torch.zeros(rows, columns, dtype=torch.bool)
    inside[down.start : down.stop, right.start : right.stop] = True
    return inside


@pytest.mark.parametrize(
    ("layers", "line"), [(1, [1, 1, 1]), (2, [1, 2, 3, 2, 1]), (3, [1, 3, 6, 7, 6, 3, 1])], ids=str
)
def test_averages_one_after_the_other_have_the_field_of_their_convolution(layers: int, line: list[int]) -> None:
    """Central row 6 of 13 and column 8 of 17."""
    field = receptive_field(averaged(layers), torch.randn(3, 1, 13, 17, dtype=torch.float64))
    profile = torch.tensor(line, dtype=torch.float64) / 3**layers
    expected = torch.zeros(13, 17, dtype=torch.float64)
    expected[6 - layers : 7 + layers, 8 - layers : 9 + layers] = profile[:, None] * profile
    torch.testing.assert_close(field.shares, expected)
    assert field.centre == (6.0, 8.0)


def test_shares_beyond_a_radius_are_those_of_the_rings() -> None:
    field = receptive_field(averaged(1), torch.randn(1, 1, 7, 5, dtype=torch.float64))
    for radius, share in ((0.0, 8 / 9), (1.0, 4 / 9), (1.5, 0.0)):
        assert field.beyond(radius) == pytest.approx(share)
    # the cell of rows 2 and 3 of eight, two pixels a cell: row 4 and 5, whose middle is 4.5
    assert receptive_field(averaged(1, stride=2), torch.randn(1, 1, 8, 6, dtype=torch.float64)).centre == (4.5, 2.5)


def test_a_stack_of_windows_is_blind_beyond_them_and_a_global_layer_is_not() -> None:
    """Exact zeros outside of what the layers can see, and none inside: maps of 12 x 15 cells, the middle is 6, 7."""
    rows, columns = 12, 15
    near = [NeighborhoodAttention(WIDTH, 2, window_size=3, dilation=d) for d in (1, 2)]
    assert torch.equal(reached(stacked(*near[:1]), rows, columns), box(rows, columns, range(5, 8), range(6, 9)))
    seen = reached(stacked(*near), rows, columns)
    # three steps in all, of one and of two cells: every one from -3 to 3
    assert torch.equal(seen, box(rows, columns, range(3, 10), range(4, 11)))
    windows = [WindowGridAttention(WIDTH, 2, block_size=3, pattern="window") for _ in range(2)]
    assert torch.equal(reached(stacked(*windows), rows, columns), box(rows, columns, range(6, 9), range(6, 9)))
    grid = WindowGridAttention(WIDTH, 2, block_size=3, pattern="grid")
    assert reached(stacked(windows[0], grid), 9, 9).all()
    # on a larger map the grid meets every fourth row and fifth column, and the windows around these
    expected = torch.zeros(rows, columns, dtype=torch.bool)
    expected[torch.tensor([0, 1, 2, 6, 7, 8, 9, 10, 11])[:, None], torch.tensor([0, 1, 2, 6, 7, 8, 12, 13, 14])] = True
    assert torch.equal(reached(stacked(windows[0], grid), rows, columns), expected)
    everything = SoftmaxAttention(WIDTH, 2, is_causal=False, rotary_base=None)
    assert reached(stacked(everything), rows, columns).all()
    assert reached(stacked(*near, everything), rows, columns).all()


def test_a_norm_at_the_end_leaves_a_field() -> None:
    """The sum over the channels of a layer norm is constant; its derivative would be rounding alone."""
    kernels, images = torch.randn(WIDTH, 1, 3, 3), torch.randn(4, WIDTH, 7, 9)

    def run(x: Tensor) -> Tensor:
        filtered = F.conv2d(x, kernels.to(x), padding=1, groups=WIDTH)
        return F.layer_norm(filtered.movedim(1, -1), (WIDTH,)).movedim(-1, 1)

    single, double = (receptive_field(run, images.to(dtype)).shares for dtype in (torch.float32, torch.float64))
    torch.testing.assert_close(single, double, rtol=1e-4, atol=1e-6)


def test_the_field_is_that_of_the_jacobian() -> None:
    """With many images of the same kind, the mean size is that of the Jacobian's columns, here a linear map."""
    weights = torch.randn(WIDTH, 1, 5, 7, dtype=torch.float64)
    images = torch.randn(4000, 1, 5, 7, dtype=torch.float64)
    field = receptive_field(lambda x: F.conv2d(x, weights), images)
    norms = weights[:, 0].square().sum(0).sqrt()
    torch.testing.assert_close(field.shares, norms / norms.sum(), rtol=0.1, atol=0)


def test_brightness_is_a_logarithm_that_ends() -> None:
    shares = torch.tensor([[1.0, 0.1, 1e-2], [1e-4, 1e-7, 0.0]], dtype=torch.float64)
    found = ReceptiveField(shares, (0.0, 0.0)).brightness(decades=4)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.75, 0.5], [0.0, 0.0, 0.0]], dtype=torch.float64))
    assert not ReceptiveField(torch.zeros(2, 3), (0.0, 0.0)).brightness().any()


def test_nothing_is_moved_by_what_is_not_looked_at() -> None:
    field = receptive_field(lambda x: torch.ones(2, 3, 4, 5), torch.randn(2, 1, 8, 10))
    assert not field.shares.any()
    assert field.beyond(0.0) == 0.0


def test_what_is_no_map_is_refused() -> None:
    images = torch.randn(2, 1, 8, 9)
    with pytest.raises(ShapeError, match=r"receptive_field: images must be \[B, C, height, width\].* got \[2, 1, 8\]"):
        receptive_field(averaged(1), images[..., 0])
    with pytest.raises(ShapeError, match=r"function must return a map \[2, C', rows, columns\], got \[2, 72\]"):
        receptive_field(lambda x: x.flatten(1), images)
    with pytest.raises(ValueError, match="the derivative is not finite"):
        receptive_field(lambda x: x * float("nan"), images)
