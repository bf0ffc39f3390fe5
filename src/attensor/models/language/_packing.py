"""The names by which transformers' collators and models tell that a row holds several sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.models.language._padding import require

__all__ = ["last_token_last", "packed_boundaries"]


def packed_boundaries(
    attention_mask: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    seq_idx: Tensor | None = None,
    position_ids: Tensor | None = None,
    **_: Any,
) -> Tensor | None:
    """Boundaries [N + 1] of sequences packed into one row; None if nothing tells of several.

    Args:
        attention_mask: [B, T] or longer, true or 1 for real tokens; only their positions count.
        cu_seqlens, cu_seq_lens_q, cu_seq_lens_k: the boundaries themselves; the same, where two are given.
        seq_idx: [1, T], the number of each token's sequence.
        position_ids: [1, T], which start again with each sequence. A compiled graph takes none that do.
    Raises:
        ValueError: boundaries that differ; several sequences in a row of several rows, or beside padding.
    """
    bounds = _given_boundaries(cu_seqlens=cu_seqlens, cu_seq_lens_q=cu_seq_lens_q, cu_seq_lens_k=cu_seq_lens_k)
    if bounds is not None:
        return bounds
    if seq_idx is not None:
        return _boundaries("seq_idx", seq_idx.diff(dim=-1) != 0, seq_idx)
    if position_ids is None or position_ids.shape[-1] < 2:
        return None
    if attention_mask is None or attention_mask.dim() != 2 or attention_mask.shape[1] < position_ids.shape[-1]:
        return _boundaries("position_ids", position_ids.diff(dim=-1) <= 0, position_ids)
    mask = attention_mask[:, -position_ids.shape[-1] :].bool()
    if not torch.compiler.is_compiling() and mask.all():
        return _boundaries("position_ids", position_ids.diff(dim=-1) <= 0, position_ids)
    before = torch.where(mask, position_ids, -1).cummax(-1).values[..., :-1]
    again = mask[..., 1:] & (position_ids[..., 1:] <= before)
    require(~again.any(), "position_ids must not start again in a row that has padding; leave out the padding.")
    return None


def _given_boundaries(**named: Tensor | None) -> Tensor | None:
    """The boundaries that are given, the same by all names."""
    given = {name: bounds for name, bounds in named.items() if bounds is not None}
    if not given:
        return None
    (first, bounds), *others = given.items()
    for name, other in others:
        message = f"{name} must be the boundaries that {first} tells, as tokens attend to their own sequence alone."
        if other.shape != bounds.shape:
            raise ValueError(message)
        require((other == bounds).all(), message)
    return bounds


def last_token_last(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a model, real tokens moved to the end of rows that end in padding: there `generate` reads logits.

    Args:
        inputs: `input_ids` [B, T] or `inputs_embeds` [B, T, C], and `attention_mask` [B, tokens before + T] if any.
    """
    mask = inputs.get("attention_mask")
    name = "input_ids" if inputs.get("inputs_embeds") is None else "inputs_embeds"
    tokens = inputs[name]
    if mask is None or mask.dim() != 2 or tokens.shape[1] < 2 or mask[:, -1].all():
        return inputs
    before, new = mask.tensor_split([mask.shape[1] - tokens.shape[1]], dim=1)
    new, order = new.sort(dim=1, stable=True)
    moved = tokens[torch.arange(len(tokens), device=tokens.device)[:, None], order]
    return {**inputs, name: moved, "attention_mask": torch.cat([before, new], 1)}


def _boundaries(name: str, begins: Tensor, ids: Tensor) -> Tensor | None:
    """The boundaries of one row, from which of its tokens but the first begin a sequence."""
    message = f"{name} must hold one sequence a row, or be [1, T] and not compiled; got {list(ids.shape)} with several"
    message += "; pack the sequences into one row, or give their boundaries as cu_seqlens."
    if torch.compiler.is_compiling() or begins.shape[:-1].numel() != 1:
        require(~begins.any(), message)
        return None
    starts = begins.flatten().nonzero().squeeze(1) + 1
    return F.pad(F.pad(starts, (1, 0)), (0, 1), value=ids.shape[-1]) if len(starts) else None
