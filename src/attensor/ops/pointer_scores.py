r"""Scores of queries against keys that are themselves the output: a pointer at one place of the input.

    additive:  u_ij = sum_h w_h tanh(q_ih + k_jh)        bilinear:  u_ij = q_i^T W k_j

Nothing is scaled, masked or normalised here: which places are allowed is the caller's, before the softmax.
The additive form keeps one number for each pair, never one for each pair and channel: queries go in chunks, and the
backward pass computes the tanh again. Sizes: B batch, M queries, N keys, H channels; bilinear D and E channels.
Source: arXiv:1506.03134, equation 3; arXiv:1409.0473, appendix A.1.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._checks import check_float, checked, is_autocast
from attensor.ops._kernel import Tensors, differentiable, register
from attensor.ops._operator import Implementation, Operator, reference_of
from attensor.ops._precision import full_precision, working_dtype

__all__ = ["pointer_scores", "pointer_scores_reference"]

_NAME = "pointer_scores"
# numbers of a tile [pairs, H], by kind of device: what stays in a core's cache, and what fills a GPU
_TILE = {"cpu": 2**17, "cuda": 2**25}


@dataclass(frozen=True)
class Problem:
    """Arguments of `pointer_scores`, by the same names."""

    queries: Tensor
    keys: Tensor
    kind: str
    weight: Tensor | None
    chunk_size: int | None


@checked
def pointer_scores(
    queries: Tensor,
    keys: Tensor,
    *,
    kind: Literal["additive", "bilinear"] = "additive",
    weight: Tensor | None = None,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """How much each query points at each key; the softmax over the keys is the distribution over places.

    Args:
        queries: [B, M, H], any floating dtype; for `"additive"` already projected (W2 d of the paper).
        keys: [B, N, H], for `"additive"` already projected (W1 e), which is done once for all steps of a decoder.
        kind: `"additive"` or `"bilinear"`. Beams that share keys are queries of one row: no key is copied.
        weight: `"additive"`: [H], v of the paper, ones if None. `"bilinear"`: [D, E] between queries [B, M, D] and keys
            [B, N, E], the identity if None.
        chunk_size: queries of a row whose tanh are in memory together, additive alone; by the sizes if None.
        backend: `"reference"` or `"torch"`; the best available if None.
    Returns:
        [B, M, N] in the dtype of queries, computed in at least float32. Derivatives of any order; beyond the first they
        are those of the definition, with [B, M, N, H] in memory.
    Raises:
        ShapeError: sizes disagree.
        TypeError: dtypes differ or are not floating. ValueError: devices differ, a chunk below 1 or for `"bilinear"`.
    Cost: B M N H tanh and 2 B M N H operations, backward three times as many; memory B M N.
    Source: arXiv:1506.03134, equation 3.
    """
    _check(queries, keys, weight, kind, chunk_size)
    with full_precision(queries):
        found = _OPERATOR(Problem(queries, keys, kind, weight, chunk_size), backend)
    return found.to(queries.dtype)


pointer_scores_reference = reference_of(pointer_scores, "The sum over channels with all of them in memory.")


def _check(queries: Tensor, keys: Tensor, weight: Tensor | None, kind: str, chunk_size: int | None) -> None:
    for label, x in (("queries", queries), ("keys", keys), ("weight", weight)):
        if x is None:
            continue
        check_float(_NAME, label, x, queries, "queries")
        if x.dtype != queries.dtype and not is_autocast(queries.device.type):
            raise TypeError(
                f"{_NAME}: all tensors must share one floating dtype, got {label} {x.dtype} beside queries "
                f"{queries.dtype}; use .to(queries.dtype)."
            )
        if label != "weight" and x.ndim != 3:
            raise ShapeError(f"{_NAME}: {label} must be [B, number, channels], got {list(x.shape)}.")
    if queries.shape[0] != keys.shape[0]:
        raise ShapeError(
            f"{_NAME}: queries {list(queries.shape)} and keys {list(keys.shape)} must have the same batch size (first)."
        )
    _check_channels(queries, keys, weight, kind)
    if chunk_size is not None and (chunk_size < 1 or kind == "bilinear"):
        raise ValueError(
            f"{_NAME}: chunk_size must be at least 1, and is of kind 'additive' alone, got {chunk_size} for {kind!r}; "
            "leave it out."
        )


def _check_channels(queries: Tensor, keys: Tensor, weight: Tensor | None, kind: str) -> None:
    channels = [queries.shape[-1], keys.shape[-1]]
    if (kind == "additive" or weight is None) and channels[0] != channels[1]:
        raise ShapeError(
            f"{_NAME}: queries {list(queries.shape)} and keys {list(keys.shape)} must have the same channels (last); "
            "project them, or use kind='bilinear' with a weight."
        )
    wanted = channels if kind == "bilinear" else channels[:1]
    if weight is not None and list(weight.shape) != wanted:
        raise ShapeError(
            f"{_NAME}: weight must be {wanted} for kind {kind!r} beside queries {list(queries.shape)} and keys "
            f"{list(keys.shape)}, got {list(weight.shape)}."
        )


def _wide(x: Problem) -> tuple[Tensor, Tensor, Tensor | None]:
    dtype = working_dtype(x.queries, x.keys)
    return x.queries.to(dtype), x.keys.to(dtype), None if x.weight is None else x.weight.to(dtype)


def _define(x: Problem) -> Tensor:
    queries, keys, weight = _wide(x)
    if x.kind == "additive":
        return _sum(queries, keys, weight)
    return torch.einsum("bid,bjd->bij", queries if weight is None else queries @ weight, keys)


def _sum(queries: Tensor, keys: Tensor, weight: Tensor | None) -> Tensor:
    found = torch.tanh(queries[:, :, None] + keys[:, None])
    return (found if weight is None else found * weight).sum(-1)


def _torch(x: Problem) -> Tensor:
    queries, keys, weight = _wide(x)
    if x.kind == "bilinear":
        # the weight goes to the fewer of both sides
        if weight is not None and queries.shape[1] <= keys.shape[1]:
            queries = torch.matmul(queries, weight)
        elif weight is not None:
            keys = torch.matmul(keys, weight.mT)
        return torch.matmul(queries, keys.mT)
    one = queries.new_ones(1, queries.shape[-1]) if weight is None else weight[None]
    return _additive((queries, keys, one), x.chunk_size)[0]


def _tiles(queries: Tensor, keys: Tensor, chunk: int | None) -> Iterator[tuple[slice, slice]]:
    """Rows of the batch and queries of each whose pairs are computed together."""
    batch, count, channels = queries.shape
    pairs = max(1, _TILE.get(queries.device.type, 2**20) // max(1, keys.shape[1] * channels))
    chunk = min(chunk or pairs, max(count, 1))
    rows = max(1, pairs // chunk)
    for row in range(0, batch, rows):
        for start in range(0, count, chunk):
            yield slice(row, row + rows), slice(start, start + chunk)


def _run(queries: Tensor, keys: Tensor, weight: Tensor, chunk: int | None) -> Tensor:
    found = queries.new_empty(*queries.shape[:2], keys.shape[1])
    for rows, own in _tiles(queries, keys, chunk):
        bent = (queries[rows, own, None] + keys[rows, None]).tanh_()
        found[rows, own] = _products(bent, weight, rows)
    return found


def _products(bent: Tensor, weight: Tensor, rows: slice) -> Tensor:
    """Sums over channels, with one weight for all rows or one for each."""
    if len(weight) == 1:
        return torch.matmul(bent, weight[0])
    return torch.matmul(bent.flatten(1, 2), weight[rows, :, None]).view(bent.shape[:3])


def _run_backward(
    queries: Tensor, keys: Tensor, weight: Tensor, grad: Tensor, chunk: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    of_queries, of_keys = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (queries, keys))
    of_weight = queries.new_zeros(weight.shape)
    for rows, own in _tiles(queries, keys, chunk):
        bent = (queries[rows, own, None] + keys[rows, None]).tanh_()
        coming = grad[rows, own]
        sums = torch.matmul(coming.flatten(1)[:, None], bent.flatten(1, 2))[:, 0]
        if len(weight) == 1:
            of_weight[0] += sums.sum(0)
        else:
            of_weight[rows] += sums
        bent.square_().neg_().add_(1).mul_(coming[..., None])
        of_queries[rows, own] = bent.sum(2)
        of_keys[rows] += bent.sum(1)
    scale = weight[:, None]
    return of_queries * scale, of_keys * scale, of_weight


def _operations(queries: Any, keys: Any, *_: Any) -> int:
    """Of the weighted sums: a tanh and an addition of each pair and channel are not counted, as torch counts none."""
    count: int = 2 * queries[0] * queries[1] * keys[1] * queries[2]
    return count


_kernel = register(
    f"{_NAME}(Tensor queries, Tensor keys, Tensor weight, int? chunk_size) -> Tensor",
    _run,
    lambda queries, keys, *_: queries.new_empty(*queries.shape[:2], keys.shape[1]),
    flops=_operations,
    devices=("CompositeExplicitAutograd",),
)
_kernel_backward = register(
    f"{_NAME}_backward(Tensor queries, Tensor keys, Tensor weight, Tensor grad, int? chunk_size) "
    "-> (Tensor, Tensor, Tensor)",
    _run_backward,
    lambda *tensors: tuple(x.new_empty(x.shape) for x in tensors[:3]),
    flops=lambda *shapes: 3 * _operations(*shapes),  # the gradients of the weight, queries and keys
    devices=("CompositeExplicitAutograd",),
)


def _backward(
    tensors: Tensors, kept: tuple[Tensor, ...], grads: Tensors, options: Any, needs: tuple[bool, ...]
) -> Tensors:
    found = _kernel_backward(*tensors, grads[0], options)
    return tuple(x if needed else None for x, needed in zip(found, needs))


# (queries, keys, weight [1 or B, H]) to scores
_additive = differentiable(
    lambda tensors, options, keep: (_kernel(*tensors, options),),
    _backward,
    lambda tensors, options: (_sum(tensors[0], tensors[1], tensors[2][:, None, None]),),
    batch_dims=(0, 0, 0),
    out_dims=(0,),
)

_OPERATOR: Operator[Problem, Tensor] = Operator(
    _NAME,
    {"reference": Implementation(_define), "torch": Implementation(_torch)},
    device_of=lambda problem: problem.queries.device,
)
