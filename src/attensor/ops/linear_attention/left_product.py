r"""Lightning attention 1: the left product (Q K^T * M) V in tiles, O(T^2 (K + V)) operations and O(T) memory.

The baseline of lightning attention 2's claim, and its equal in results: M_ij = exp((i - j) log_decay) for i >= j in one
sequence. For a block of rows from i0 on, the weights of the keys before it are products of exp((i - i0) log_decay) and
exp((i0 - j) log_decay), both at most 1; only the diagonal block needs a mask.

Source: arXiv:2307.14995, section 3.2 (LA-1); backward: arXiv:2405.17381, appendix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from attensor.ops.linear_attention.segments import Segments

__all__ = ["left_product"]


def left_product(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    segments: Segments,
    block: int,
) -> tuple[Tensor, Tensor]:
    """Output [B, T, H, V] and final states [B or N, H, K, V], unscaled.

    Args:
        q, k, v: [B, T, H, K or V], equal heads, in the working dtype.
        log_decay: [H]; None is 0.
        initial_state: [B or N, H, K, V] or None.
        segments: the sequences of the tokens.
        block: rows of a tile.
    """
    log_decay = q.new_zeros(q.shape[2]) if log_decay is None else log_decay.to(q.dtype)
    sequence = None if segments.cu_seqlens is None else segments.index
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    out = _LeftProduct.apply(*heads_first, log_decay, sequence, block).transpose(1, 2)  # type: ignore[no-untyped-call]
    position = segments.position[:, None]
    state = segments.state(k * _decay(segments.last_position()[:, None] - position, log_decay)[..., None], v)
    if initial_state is not None:
        initial = initial_state.to(state.dtype)
        out = out + segments.read(q * _decay(position + 1, log_decay)[..., None], initial)
        lengths = position.new_tensor(segments.tokens) if segments.cu_seqlens is None else segments.lengths[:-1, None]
        state = state + initial * _decay(lengths, log_decay)[..., None, None]
    return out, state


class _LeftProduct(torch.autograd.Function):
    """(Q K^T * M) V for [B, H, T, ...]; forward and backward hold one row block of weights at a time."""

    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, sequence: Tensor | None, block: int) -> Tensor:
        """Row block by row block."""
        tiles = _tiles(q, k, log_decay, sequence, block)
        return torch.cat([v[:, :, :0], *(weights @ v[:, :, :last] for _, last, weights in tiles)], 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Only the inputs are kept."""
        *tensors, ctx.block = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """dQ = P K, dK = P^T Q and dV = A^T dO, with A = Q K^T * M and P = dO V^T * M."""
        q, k, v, log_decay, sequence = ctx.saved_tensors
        grad_qs, grad_k, grad_v = [q[:, :, :0]], torch.zeros_like(k), torch.zeros_like(v)
        attended = _tiles(q, k, log_decay, sequence, ctx.block)
        changed = _tiles(grad, v, log_decay, sequence, ctx.block)
        for (first, last, a), (_, _, p) in zip(attended, changed, strict=True):
            grad_qs.append(p @ k[:, :, :last])
            grad_k = _add_to_first(grad_k, p.mT @ q[:, :, first:last])
            grad_v = _add_to_first(grad_v, a.mT @ grad[:, :, first:last])
        grad_q = torch.cat(grad_qs, 2)
        # d(log decay of token t) = sum_{i >= t} (q_i dq_i - k_i dk_i); token i appears in i + 1 of these sums
        place = torch.arange(1, q.shape[2] + 1, device=q.device, dtype=q.dtype)
        grad_decay = ((q * grad_q - k * grad_k).sum(-1) * place).sum((0, 2))
        return grad_q, grad_k, grad_v, grad_decay, None, None


def _tiles(
    rows: Tensor, columns: Tensor, log_decay: Tensor, sequence: Tensor | None, block: int
) -> Iterator[tuple[int, int, Tensor]]:
    """(first, last, weights [B, H, last - first, last] = rows_i . columns_j M_ij, j < last) of each block of rows."""
    tokens = rows.shape[2]
    index = torch.arange(tokens, device=rows.device)
    for first in range(0, tokens, block):
        last = min(first + block, tokens)
        own = index[first:last]
        to_block = _decay(first - index[:first, None], log_decay).mT[..., None]  # [H, first, 1]
        in_block = _decay(own[:, None] - first, log_decay).mT[..., None]  # [H, last - first, 1]
        before = (rows[:, :, first:last] * in_block) @ (columns[:, :, :first] * to_block).mT
        distance = own[:, None] - own
        mask = _decay(distance[..., None], log_decay).movedim(-1, 0).tril()
        weights = torch.cat([before, (rows[:, :, first:last] @ columns[:, :, first:last].mT) * mask], -1)
        if sequence is not None:
            weights = weights * (sequence[first:last, None] == sequence[:last])
        yield first, last, weights


def _decay(distance: Tensor, log_decay: Tensor) -> Tensor:
    """exp(distance log_decay) [..., H]; 1 where the distance is not positive, also for a log decay of -inf."""
    return torch.where(distance > 0, distance * log_decay, 0.0).exp()


def _add_to_first(x: Tensor, change: Tensor) -> Tensor:
    """x with its first tokens (dimension 2) changed; a new tensor, so that vmap may hand in unbatched ones."""
    count = change.shape[2]
    return torch.cat([x[:, :, :count] + change, x[:, :, count:]], 2)
