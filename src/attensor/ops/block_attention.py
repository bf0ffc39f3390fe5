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

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from attensor.ops._blocks import Axis, axes_of, from_blocks, to_blocks
from attensor.ops._checks import check_broadcast, check_devices, check_qkv, checked, scale_of
from attensor.ops._operator import Implementation, Operator, reference_of
from attensor.ops.softmax_attention import softmax_attention
from attensor.ops.softmax_attention.reference import additive_mask, dense

__all__ = ["block_attention", "block_attention_reference"]

_NAME = "block_attention"


@dataclass(frozen=True)
class Problem:
    """Arguments of `block_attention`, by the same names."""

    q: Tensor
    k: Tensor
    v: Tensor
    pattern: str
    block_size: int | tuple[int, ...] | None
    axis: int | None
    is_causal: bool
    attn_mask: Tensor | None
    scale: float | None

    @property
    def axes(self) -> tuple[Axis, ...]:
        """How each axis of the grid is cut; raises as `block_attention`."""
        return axes_of(_NAME, self.q.shape[1:-2], self.pattern, self.block_size, self.axis)


@checked
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
    problem = Problem(q, k, v, pattern, block_size, axis, is_causal, attn_mask, scale)
    _check(problem)
    return _OPERATOR(problem, backend)


block_attention_reference = reference_of(block_attention, "Dense attention under a mask made of coordinates: O(n^2).")


def _check(x: Problem) -> None:
    check_qkv(_NAME, x.q, x.k, x.v, space_dims=(1, 2, 3), same_space=True)
    check_devices(_NAME, x.q, attn_mask=x.attn_mask)
    axes = x.axes
    if x.is_causal and x.pattern != "axial":
        raise ValueError(
            f'{_NAME}: is_causal has a meaning along one axis only; use pattern="axial", got {x.pattern!r}.'
        )
    if x.attn_mask is not None:
        tokens = prod([cut.places for cut in axes])
        check_broadcast(_NAME, "attn_mask", x.attn_mask, (x.q.shape[-2], tokens, tokens))


def _define(problem: Problem) -> Tensor:
    """Dense attention: tokens see each other when they are in one block."""
    q, k, v = problem.q, problem.k, problem.v
    space, device = q.shape[1:-2], q.device
    axes = problem.axes
    together = torch.ones((), dtype=torch.bool, device=device)
    place = torch.zeros((), dtype=torch.long, device=device)
    for index, cut in enumerate(axes):
        x = torch.arange(cut.length, device=device).view([-1 if i == index else 1 for i in range(len(space))])
        x = x.expand(space).flatten()
        block, inside = (x % cut.blocks, x // cut.blocks) if cut.places_outside else (x // cut.places, x % cut.places)
        together = together & (block[:, None] == block)
        place = place * cut.places + inside
    if problem.is_causal:
        together = together & (place <= place[:, None])
    mask, attn_mask = together, problem.attn_mask
    if attn_mask is not None:
        tokens = prod([cut.places for cut in axes])
        of_pairs = attn_mask.expand(q.shape[-2], tokens, tokens)[:, place[:, None], place]  # [H, n, n]
        is_bool = attn_mask.dtype == torch.bool
        mask = of_pairs & together if is_bool else of_pairs.masked_fill(~together, float("-inf"))
    q, k, v = (t.flatten(1, -3) for t in (q, k, v))
    out, _ = dense(q, k, v, additive_mask(q, k, False, mask, None), scale_of(q, problem.scale))
    return torch.unflatten(out, 1, space)


def _torch(problem: Problem) -> Tensor:
    q, k, v, mask, axes = problem.q, problem.k, problem.v, problem.attn_mask, problem.axes
    if not all(cut.is_whole for cut in axes):
        mask = _closed(axes, mask, q)
    q_blocks, k_blocks, v_blocks = (to_blocks(t, axes) for t in (q, k, v))
    out = softmax_attention(
        q_blocks, k_blocks, v_blocks, attn_mask=mask, is_causal=problem.is_causal, scale=problem.scale, backend="torch"
    )
    return from_blocks(out, axes, q.shape[0])


_OPERATOR: Operator[Problem, Tensor] = Operator(
    _NAME,
    {
        "reference": Implementation(_define),
        "torch": Implementation(_torch),
    },
)


def _closed(axes: tuple[Axis, ...], attn_mask: Tensor | None, q: Tensor) -> Tensor:
    """[B * blocks, 1 or H, 1 or S, S]: the mask of every block with the padded keys closed."""
    real = torch.ones([*q.shape[:-2], 1, 1], dtype=torch.bool, device=q.device)
    keys = to_blocks(real, axes)[:, None, None, :, 0, 0]
    if attn_mask is None:
        return keys
    return keys & attn_mask if attn_mask.dtype == torch.bool else attn_mask.masked_fill(~keys, float("-inf"))
