r"""Rotary position embedding: a query and a key turn by angles proportional to their positions, in a row or a grid.

    angle(p, i) = p * base^(-2 i / D)                      i = 0 .. D/2 - 1
    (x_i, x_{i + D/2}) -> (x_i cos - x_{i + D/2} sin, x_i sin + x_{i + D/2} cos)

so that q_m . k_n depends on m - n only. On a grid one half of a head turns with the row, the other with the column:

    a_i = base^(-i / (D/4 - 1))                            i = 0 .. D/4 - 1, from 1 down to 1 / base, both included
    angles(row, column) = (row a_0, .., row a_{D/4-1}, column a_0, .., column a_{D/4-1})
    (x_{2i}, x_{2i+1}) -> (x_{2i} cos - x_{2i+1} sin, x_{2i+1} cos + x_{2i} sin)

Sizes: B batch, T tokens (cells row by row), H heads, D head width.
Source: arXiv:2104.09864, equation 34, with the two halves of a head paired (the layout of Llama's checkpoints); on a
grid arXiv:2411.07635 and its code, with neighbouring channels paired. Frequencies for contexts
longer than the trained ones: arXiv:2309.00071 (YaRN).
Tables are computed at each call: any size works, and there is no buffer to lose on the meta device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.nn._shapes import check_range
from attensor.ops._checks import check_cu_seqlens, check_float, check_integers, checked, checked_fields

__all__ = ["Frequencies", "Yarn", "grid_rotary_embedding", "rotary_embedding", "token_positions"]


@checked_fields
@dataclass(frozen=True)
class Frequencies:
    """Rotary positions whose pairs turn as they are told, for layers whose keys are those of several heads.

    Attributes:
        values: radians a token of each pair of channels; 0 for a pair that stays.
        gain: what turned channels are multiplied with.
        score_gain: what all scores are multiplied with.
    """

    values: tuple[float, ...]
    gain: float = 1.0
    score_gain: float = 1.0

    def __post_init__(self) -> None:
        check_range("Frequencies", above=0, gain=self.gain, score_gain=self.score_gain)
        object.__setattr__(self, "values", tuple(float(value) for value in self.values))  # JSON knows lists alone

    def frequencies(self, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Radians a token of each pair of channels: [width / 2].

        Raises:
            ValueError: there are other pairs than values.
        """
        if 2 * len(self.values) != width:
            raise ValueError(
                f"Frequencies: {len(self.values)} values turn {2 * len(self.values)} channels, got {width}; give one "
                "value for each pair."
            )
        return torch.tensor(self.values, device=device, dtype=dtype)


@checked_fields
@dataclass(frozen=True)
class Yarn:
    """Rotary positions stretched for longer contexts: slow pairs turn `factor` times slower, fast ones as before.

    Attributes:
        factor: how much longer the context becomes.
        original_length: tokens that were trained on.
        base: of the frequencies that were trained.
        beta_fast, beta_slow: pairs that turn more often than beta_fast over the original length stay, those that turn
            less often than beta_slow are stretched whole, those between in part.
        mscale, mscale_all_dim: how far scores are sharpened with the length, see `gain` and `score_gain`.
    Source: arXiv:2309.00071, equations 17 to 25, with the corners rounded outwards as in DeepSeek's and Llama's code.
    """

    factor: float
    original_length: int
    base: float = 10_000.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    def __post_init__(self) -> None:
        check_range("Yarn", above=0, factor=self.factor, original_length=self.original_length, beta_slow=self.beta_slow)
        check_range("Yarn", above=1, base=self.base)
        check_range("Yarn", self.beta_slow, beta_fast=self.beta_fast)  # equal ones: Kimi K2

    def frequencies(self, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Radians a token of each pair of channels: [width / 2]."""
        pairs = torch.arange(width // 2, device=device, dtype=dtype)
        trained = float(self.base) ** (-2 * pairs / width)

        def pair_that_turns(times: float) -> float:
            return width * math.log(self.original_length / (2 * math.pi * times)) / (2 * math.log(self.base))

        first = max(math.floor(pair_that_turns(self.beta_fast)), 0)
        last = min(math.ceil(pair_that_turns(self.beta_slow)), width - 1)
        stretched = ((pairs - first) / max(last - first, 1e-3)).clamp(0, 1)
        return trained * (1 - stretched) + trained / self.factor * stretched

    @property
    def gain(self) -> float:
        """What turned channels are multiplied with."""
        return self._sharper(self.mscale) / self._sharper(self.mscale_all_dim)

    @property
    def score_gain(self) -> float:
        """What all scores are multiplied with (DeepSeek)."""
        return self._sharper(self.mscale_all_dim) ** 2

    def _sharper(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@checked
def token_positions(
    tokens: int,
    *,
    offset: int = 0,
    first: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    device: torch.device,
) -> Tensor:
    """Positions of consecutive tokens; each packed sequence starts again at 0.

    Args:
        tokens: how many.
        offset: place of the first one (what a cache already holds).
        first: [B], place of each row's first real token, whose position is 0; 0 for all rows if None.
        cu_seqlens: [N + 1], where packed sequences start and end.
        device: of the result.
    Returns:
        [tokens], int64; with `first` [B, tokens], and 0 at the padding before it.
    Raises:
        ShapeError: first is not [B], or cu_seqlens does not rise from 0 to `tokens`.
        TypeError, ValueError: not of integers, a negative number, cu_seqlens beside offset or first.
    """
    check_range("token_positions", 0, 2**62, tokens=tokens, offset=offset)
    if cu_seqlens is not None:
        check_integers("token_positions", "cu_seqlens", cu_seqlens, cu_seqlens)
        _check_numbers("cu_seqlens", cu_seqlens, device)
    positions = torch.arange(tokens, device=device)
    if cu_seqlens is None:
        positions = positions + offset
        if first is not None:
            _check_first(first)
            _check_numbers("first", first, device)
        return positions if first is None else (positions - first.to(device)[:, None]).clamp(min=0)
    if first is not None or not (isinstance(offset, int) and offset == 0):
        raise ValueError("token_positions: cu_seqlens has no past: leave offset and first out.")
    check_cu_seqlens("token_positions", cu_seqlens, cu_seqlens.new_empty(1, tokens), label="tokens")
    starts = cu_seqlens.to(device=device, dtype=torch.int64)
    return positions - starts[torch.searchsorted(starts, positions, right=True) - 1]


@checked
def rotary_embedding(
    x: Tensor, positions: Tensor, *, base: float | Frequencies | Yarn = 10_000.0, interleaved: bool = False
) -> Tensor:
    """Turn every head of x by its token's position; O(B T H D).

    Args:
        x: [B, T, H, D], D even.
        positions: [T] or [B, T], integers.
        base: the slowest pair turns once in about `2 pi base` tokens; or the frequencies, stretched or one by one.
        interleaved: neighbours (x_2i, x_2i+1) are pairs (the paper, DeepSeek), not the two halves of a head.
    Returns:
        [B, T, H, D] in x's dtype; angles are computed in at least float32.
    Raises:
        ShapeError: another rank, an odd width, or positions of other tokens.
        TypeError, ValueError: x is not floating point, positions are no integers or elsewhere, or base is not positive.
    """
    name = "rotary_embedding"
    _check_heads(name, x, 2, 1.0 if isinstance(base, Frequencies | Yarn) else base)
    check_integers(name, "positions", positions, x, "x")
    if positions.shape != x.shape[1:2] and positions.shape != x.shape[:2]:
        raise ShapeError(
            f"{name}: positions must be [T] or [B, T] for x [B, T, H, D] = {list(x.shape)}, got "
            f"{list(positions.shape)}; use nn.token_positions."
        )
    dtype = torch.promote_types(x.dtype, torch.float32)
    half = x.shape[-1] // 2
    if isinstance(base, Frequencies | Yarn):
        frequencies, gain = base.frequencies(x.shape[-1], x.device, dtype), base.gain
    else:
        frequencies, gain = float(base) ** (-torch.arange(half, device=x.device, dtype=dtype) / half), 1.0
    angles = (positions.to(dtype)[..., None] * frequencies)[..., None, :]  # [T, 1, D/2] or [B, T, 1, D/2]
    cos, sin = angles.cos() * gain, angles.sin() * gain
    if interleaved:
        first, second = torch.unflatten(x.to(dtype), -1, (half, 2)).unbind(-1)
        return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2).to(x.dtype)
    first, second = x.to(dtype).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


@checked
def grid_rotary_embedding(x: Tensor, space: tuple[int, int], *, base: float = 10_000.0) -> Tensor:
    """Turn every head of x by the row and the column of its cell; O(B T H D).

    Args:
        x: [B, T, H, D], the cells of the grid row by row; D a multiple of 4.
        space: height and width of the grid, height * width = T.
        base: the slowest pair turns once in about `2 pi base` rows or columns.
    Returns:
        [B, T, H, D] in x's dtype; angles are computed in at least float32.
    Raises:
        ShapeError: another rank, a width that is no multiple of 4, or a grid of other cells.
        TypeError, ValueError: x is not floating point, or base is not positive.
    """
    height, width = space
    _check_heads("grid_rotary_embedding", x, 4, base)
    if height < 0 or width < 0 or height * width != x.shape[1]:
        raise ShapeError(
            f"grid_rotary_embedding: space must be height and width with height * width = {x.shape[1]} tokens of x, "
            f"got {space}."
        )
    dtype = torch.promote_types(x.dtype, torch.float32)
    frequencies = float(base) ** -torch.linspace(0, 1, x.shape[-1] // 4, device=x.device, dtype=dtype)
    rows = torch.arange(height, device=x.device, dtype=dtype)[:, None, None] * frequencies
    columns = torch.arange(width, device=x.device, dtype=dtype)[:, None] * frequencies
    turned_by = [rows.expand(height, width, -1), columns.expand(height, width, -1)]
    angles = torch.cat(turned_by, dim=-1).flatten(0, 1)[:, None]  # [T, 1, D/2]
    cos, sin = angles.cos(), angles.sin()
    even, odd = torch.unflatten(x.to(dtype), -1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)


def _check_heads(name: str, x: Tensor, multiple: int, base: float) -> None:
    """Refuse x that is not [B, T, H, D] of floating numbers, D a positive multiple."""
    check_float(name, "x", x, x, "x")
    check_range(name, above=0, base=base)
    if x.ndim != 4 or x.shape[3] % multiple or not x.shape[3]:
        raise ShapeError(
            f"{name}: x must be [B, T, H, D] with D a multiple of {multiple}, got {list(x.shape)}; choose heads of "
            "another width."
        )


def _check_numbers(argument: str, x: Tensor, device: torch.device) -> None:
    if x.is_meta and torch.device(device).type != "meta":
        raise ValueError(f"token_positions: {argument} must hold numbers, got a meta tensor; use one on {device}.")


def _check_first(first: Tensor) -> None:
    check_integers("token_positions", "first", first, first)
    if first.ndim != 1:
        raise ShapeError(f"token_positions: first must be [B], got {list(first.shape)}; it has one entry for each row.")
