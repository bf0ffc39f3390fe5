r"""Rank-augmented linear attention: keys weighted by a global query, outputs multiplied by a projection of the input.

    [q, k, v, o] = W x        Q = elu(q) + 1,  K = elu(k) + 1
    w_j = softmax_j(K^-1/2 mean_i(Q_i) . K_j)
    y_i = sum_j w_j (R Q_i . R K_j) v_j / (sum_j w_j (Q_i . K_j) + eps)        R: rotation by row and column
    out = W' ((y + lepe(v)) * o)                                               lepe: 5 x 5 convolution per channel

Its twin, of the coarse stages of the published models, has y_i = sum_j softmax_j(K^-1/2 R q_i . R k_j) v_j instead.

Source: arXiv:2411.07635, equations 5 to 9.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from attensor.nn._shapes import head_dim
from attensor.nn.mixer import Heads, Mixer
from attensor.nn.rotary import grid_rotary_embedding
from attensor.ops import Denominator, kernel_attention, softmax_attention
from attensor.ops.feature_maps import resolve_feature_map

__all__ = ["RankAugmentedLinearAttention", "rank_augmented_features"]

_EPS = 1e-6  # of the authors' code, on the mean over the cells


class RankAugmentedLinearAttention(Mixer):
    """Every cell of an image sees all cells at linear cost, with two additions that lift the rank of the output.

    Cost O(cells * C^2 / heads) for the attention, O(cells^2 * C) for the softmax twin. No causal form: the weights of
    the keys depend on every query.
    Keys and shapes of the state_dict are the published ones: `qkvo.{weight [4 C, C, 1, 1], bias}` (rows q, k, v, o,
    each by head), `lepe.{weight [C, 1, 5, 5], bias}`, `proj.{weight [C, C, 1, 1], bias}`. The options switch parts off,
    for ablations; without the gate `qkvo` has 3 C rows.

    Args:
        hidden_size: channels C of input and output.
        num_heads: heads H; C / H is a multiple of 4 when there is a rotation.
        attention: `"linear"`, or `"softmax"`, the twin with the same keys and shapes: weights of one load into the
            other, and mean something else there.
        kv_weighting: multiply keys by the weights of the global query (the rank of the summed keys and values); the
            twin has none.
        output_gate: multiply the output by a linear projection of the input, without activation (its own rank).
        rotary: turn queries and keys by their row and column, of linear attention in the numerator only.
        lepe: add a 5 x 5 convolution of the values, channel by channel.
        device, dtype: of the parameters.
    Raises:
        ValueError: heads do not divide the channels, or heads that cannot be turned.
    Source: arXiv:2411.07635, section 3.
    """

    ranks = (4,)

    shown = (*Mixer.shown, "attention", "kv_weighting", "output_gate", "rotary")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        attention: Literal["linear", "softmax"] = "linear",
        kv_weighting: bool = True,
        output_gate: bool = True,
        rotary: bool = True,
        lepe: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size, self.num_heads = hidden_size, num_heads
        self.head_dim = head_dim(self, hidden_size, num_heads)
        if rotary and self.head_dim % 4:
            raise ValueError(
                "RankAugmentedLinearAttention: rotation by row and column needs heads of a multiple of 4 channels, got "
                f"hidden_size {hidden_size} / num_heads {num_heads} = {self.head_dim}; change them or set rotary=False."
            )
        self.attention, self.kv_weighting = attention, kv_weighting
        self.output_gate, self.rotary = output_gate, rotary
        projected = (4 if output_gate else 3) * hidden_size
        self.qkvo = nn.Conv2d(hidden_size, projected, 1, device=device, dtype=dtype)
        self.lepe = None
        if lepe:
            self.lepe = nn.Conv2d(
                hidden_size, hidden_size, 5, padding=2, groups=hidden_size, device=device, dtype=dtype
            )
        self.proj = nn.Conv2d(hidden_size, hidden_size, 1, device=device, dtype=dtype)

    def project(self, hidden_states: Tensor) -> Heads:
        """[B, height, width, C] to queries, keys and values [B, height, width, H, D], and the gate [.., C] or None."""
        projected = self.qkvo(hidden_states.movedim(-1, 1)).movedim(1, -1)
        q, k, v, *gate = projected.split(self.hidden_size, dim=-1)
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)) for x in (q, k, v))
        return Heads(q, k, v, gate=gate[0] if gate else None)

    def merge(self, out: Tensor, heads: Heads) -> Tensor:
        """Convolution of the values, gate and output projection: [B, height, width, H, D] to [B, height, width, C]."""
        mixed = out.flatten(-2)
        if self.lepe is not None:
            mixed = mixed + self.lepe(heads.v.flatten(-2).movedim(-1, 1)).movedim(1, -1)
        if heads.gate is not None:
            mixed = mixed * heads.gate
        merged: Tensor = self.proj(mixed.movedim(-1, 1)).movedim(1, -1)
        return merged

    def attend(self, heads: Heads) -> Tensor:
        """The attention itself, before convolution and gate: [B, height, width, H, D]."""
        q, k, v, *_ = heads
        space = (q.shape[1], q.shape[2])
        q, k, v = (x.flatten(1, 2) for x in (q, k, v))
        turn = partial(grid_rotary_embedding, space=space) if self.rotary else None
        if self.attention == "softmax":
            turned = (q, k) if turn is None else (turn(q), turn(k))
            return torch.unflatten(softmax_attention(*turned, v), 1, space)
        queries, keys = rank_augmented_features(q, k, is_weighted=self.kv_weighting)
        out, _ = kernel_attention(
            queries,
            keys / keys.shape[1],  # a mean over the cells, so that the constant does not depend on their number
            v.to(keys.dtype),
            is_causal=False,
            position_map=turn,
            denominator=Denominator(eps=_EPS),
        )
        return torch.unflatten(out.to(v.dtype), 1, space)


def rank_augmented_features(q: Tensor, k: Tensor, *, is_weighted: bool = True) -> tuple[Tensor, Tensor]:
    """Features elu + 1 of queries and keys; those of keys weighted by their agreement with the mean query.

    Key j of n is multiplied by n w_j with w = softmax_j(D ** -0.5 mean_i(Q_i) . K_j): on average by 1.

    Args:
        q, k: [B, n, H, D].
        is_weighted: whether keys are weighted.
    Returns:
        both [B, n, H, D], in at least float32.
    Source: arXiv:2411.07635, equations 5 to 7.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    positive = resolve_feature_map("elu+1")
    queries, keys = (positive(x.to(dtype)) for x in (q, k))
    if is_weighted:
        scores = q.shape[-1] ** -0.5 * (queries.mean(1, keepdim=True) * keys).sum(-1, keepdim=True)
        keys = keys * (keys.shape[1] * scores.softmax(1))
    return queries, keys
