r"""Block attention: the grid is cut into blocks, and tokens attend inside their block only.

    window   block = the tokens of one P1 x .. x Pr box                      local
    grid     block = one token of every cell of a G1 x .. x Gr subdivision   spread over the whole map
    axial    block = the line along one axis                                 one axis at a time

All three are one regrouping (a reshape and a permutation) around one dense attention, and the regrouping undone.

Sizes: B batch, X1..Xr space (r = 1, 2, 3), H query heads, Hkv key/value heads, K key dim, V value dim, S tokens in a
block.
Source: arXiv:2204.01697, section 3.2 (window, grid); arXiv:1912.12180, section 3.1 (axial).
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._checks import check_broadcast, check_qkv, check_same_space
from attensor.ops._dispatch import Operator
from attensor.ops.softmax_attention import softmax_attention, softmax_attention_reference

__all__ = ["block_attention", "block_attention_reference"]

_NAME = "block_attention"


class _Axis(NamedTuple):
    """How one axis is cut: its padded length is places * blocks; a token has a block, and a place inside the block."""

    length: int
    places: int
    blocks: int
    places_outside: bool  # token = place * blocks + block (grid), else block * places + place (window)

    @property
    def padded(self) -> int:
        return self.places * self.blocks


def block_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pattern: str,
    block_size: int | tuple[int, ...] | None = None,
    axis: int | None = None,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Dense attention under a mask made of coordinates: tokens see each other when they are in one block.

    Same arguments and result as `block_attention`; O(n^2) in the number of tokens n.
    """
    space = q.shape[1:-2]
    axes = _cut(space, pattern, block_size, axis)
    together = torch.ones((), dtype=torch.bool, device=q.device)
    place = torch.zeros((), dtype=torch.long, device=q.device)
    for index, cut in enumerate(axes):
        x = torch.arange(cut.length, device=q.device).view([-1 if i == index else 1 for i in range(len(space))])
        x = x.expand(space).flatten()
        block, inside = (x % cut.blocks, x // cut.blocks) if cut.places_outside else (x // cut.places, x % cut.places)
        together = together & (block[:, None] == block)
        place = place * cut.places + inside
    if is_causal:
        together = together & (place <= place[:, None])
    mask = together
    if attn_mask is not None:
        of_pairs = attn_mask[:, place[:, None], place]  # [H, n, n]
        is_bool = attn_mask.dtype == torch.bool
        mask = of_pairs & together if is_bool else of_pairs.masked_fill(~together, float("-inf"))
    q, k, v = (t.flatten(1, -3) for t in (q, k, v))
    out = softmax_attention_reference(q, k, v, attn_mask=mask, scale=scale)
    return torch.unflatten(cast(Tensor, out), 1, space)


def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pattern: str,
    block_size: int | tuple[int, ...] | None = None,
    axis: int | None = None,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attention inside blocks of the grid: O(n S (K + V)) a head for n tokens, in time.

    Args:
        q: [B, *space, H, K], one to three space axes, any floating dtype.
        k: [B, *space, Hkv, K]; Hkv divides H.
        v: [B, *space, Hkv, V].
        pattern: `"window"`, `"grid"` or `"axial"`, see the top of this file.
        block_size: window: size of a window; grid: number of cells, which is the size of a block as well. One integer
            for all axes, or one for each. Sizes that do not divide the space are padded at its end (right, bottom) with
            tokens that nobody sees; the cells of a grid are counted on the padded size.
        axis: axial: the space axis along which tokens attend, 0 the first; negative counts from the last.
        is_causal: axial only: a token sees itself and those before it on its line.
        attn_mask: [H, S, S] or broadcasting to it, S = tokens in a block in row-major order; bool (True = attend) or
            floating (added to the scores, differentiable: a relative position bias). The same for every block.
        scale: multiplies q k; `K ** -0.5` if None.
        backend: `"reference"` or `"torch"`; the best available if None.
    Returns:
        [B, *space, H, V] in v's dtype; 0 where a query may attend to nothing.
    Raises:
        ShapeError: sizes disagree, or block_size does not fit the number of axes.
        ValueError: an unknown pattern, or an argument that the pattern does not have.
    Source: arXiv:2204.01697, section 3.2; arXiv:1912.12180, section 3.1.
    """
    check_qkv(_NAME, q, k, v, space_dims=(1, 2, 3))
    check_same_space(_NAME, q, k)
    axes = _cut(q.shape[1:-2], pattern, block_size, axis)
    if is_causal and pattern != "axial":
        raise ValueError(f'{_NAME}: is_causal has a meaning along one axis only; use pattern="axial", got {pattern!r}.')
    if attn_mask is not None:
        tokens = prod([cut.places for cut in axes])
        check_broadcast(_NAME, "attn_mask", attn_mask, (q.shape[-2], tokens, tokens))
        attn_mask = attn_mask.expand(q.shape[-2], tokens, tokens)
    run = _OPERATOR.choose(backend, q.device)
    out: Tensor = run(
        q,
        k,
        v,
        pattern=pattern,
        block_size=block_size,
        axis=axis,
        is_causal=is_causal,
        attn_mask=attn_mask,
        scale=scale,
    )
    return out


def _torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pattern: str,
    block_size: int | tuple[int, ...] | None,
    axis: int | None,
    is_causal: bool,
    attn_mask: Tensor | None,
    scale: float | None,
) -> Tensor:
    axes = _cut(q.shape[1:-2], pattern, block_size, axis)
    mask = attn_mask
    if any(cut.padded != cut.length for cut in axes):
        mask = _with_padding(_real_tokens(axes, q.device), attn_mask).repeat(q.shape[0], 1, 1, 1)
    q_blocks, k_blocks, v_blocks = (_to_blocks(t, axes) for t in (q, k, v))
    out = softmax_attention(
        q_blocks, k_blocks, v_blocks, attn_mask=mask, is_causal=is_causal, scale=scale, backend="torch"
    )
    return _from_blocks(out, axes, q.shape[0])


_OPERATOR = Operator(_NAME, {"reference": block_attention_reference, "torch": _torch})


def _cut(
    space: tuple[int, ...], pattern: str, block_size: int | tuple[int, ...] | None, axis: int | None
) -> tuple[_Axis, ...]:
    rank = len(space)
    if pattern in ("window", "grid"):
        if block_size is None or axis is not None:
            raise ValueError(
                f'{_NAME}: pattern="{pattern}" needs block_size and no axis, got block_size={block_size}, axis={axis}.'
            )
        sizes = (block_size,) * rank if isinstance(block_size, int) else tuple(block_size)
        if len(sizes) != rank or min(sizes) < 1:
            raise ShapeError(
                f"{_NAME}: block_size must be {rank} positive integers, one for each space axis of q, or "
                f"one for all, got {block_size}."
            )
        return tuple(_Axis(n, size, -(-n // size), pattern == "grid") for n, size in zip(space, sizes))
    if pattern == "axial":
        if axis is None or block_size is not None or not -rank <= axis < rank:
            raise ValueError(
                f'{_NAME}: pattern="axial" needs axis in [{-rank}, {rank - 1}] (among the space axes) and '
                f"no block_size, got axis={axis}, block_size={block_size}."
            )
        return tuple(_Axis(n, n, 1, False) if i == axis % rank else _Axis(n, 1, n, False) for i, n in enumerate(space))
    raise ValueError(f'{_NAME}: pattern must be "window", "grid" or "axial", got {pattern!r}.')


def _to_blocks(x: Tensor, axes: tuple[_Axis, ...]) -> Tensor:
    """[B, *space, H, D] -> [B * blocks, S, H, D]."""
    rank = len(axes)
    after = [size for cut in reversed(axes) for size in (0, cut.padded - cut.length)]
    if any(after):
        x = F.pad(x, [0, 0, 0, 0, *after])
    sizes = [n for cut in axes for n in ((cut.places, cut.blocks) if cut.places_outside else (cut.blocks, cut.places))]
    block_dims = [1 + 2 * i + cut.places_outside for i, cut in enumerate(axes)]
    place_dims = [2 + 2 * i - cut.places_outside for i, cut in enumerate(axes)]
    x = x.reshape(x.shape[0], *sizes, *x.shape[-2:])
    x = x.permute(0, *block_dims, *place_dims, 1 + 2 * rank, 2 + 2 * rank)
    return x.reshape(-1, prod([cut.places for cut in axes]), *x.shape[-2:])


def _from_blocks(x: Tensor, axes: tuple[_Axis, ...], batch: int) -> Tensor:
    """The inverse of `_to_blocks`, padding cropped."""
    rank = len(axes)
    x = x.reshape(batch, *[cut.blocks for cut in axes], *[cut.places for cut in axes], *x.shape[-2:])
    order = [
        dim
        for i, cut in enumerate(axes)
        for dim in ((1 + rank + i, 1 + i) if cut.places_outside else (1 + i, 1 + rank + i))
    ]
    x = x.permute(0, *order, 1 + 2 * rank, 2 + 2 * rank)
    x = x.reshape(batch, *[cut.padded for cut in axes], *x.shape[-2:])
    for i, cut in enumerate(axes):
        x = x.narrow(1 + i, 0, cut.length)
    return x


def _real_tokens(axes: tuple[_Axis, ...], device: torch.device) -> Tensor:
    """[blocks, S] bool: False where the padding is."""
    real = torch.ones([1, *[cut.length for cut in axes], 1, 1], dtype=torch.bool, device=device)
    return _to_blocks(real, axes)[..., 0, 0]


def _with_padding(real: Tensor, attn_mask: Tensor | None) -> Tensor:
    """[blocks, 1 or H, 1 or S, S]: the mask of every block with the padded keys closed."""
    keys = real[:, None, None, :]
    if attn_mask is None:
        return keys
    return keys & attn_mask if attn_mask.dtype == torch.bool else attn_mask.masked_fill(~keys, float("-inf"))
