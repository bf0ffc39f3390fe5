r"""What stands around the recurrence: features, weights on the keys, denominators, positions.

    out_i = scale sum_j <P f(q_i), P f(w_j k_j)> v_j / (max(sum_j <f(q_i), f(w_j k_j)>, minimum) + eps)

with f the feature map, w the key weighting, P the position map and the sums over the keys that a query sees, decayed.
Every member is the same recurrence on other queries, keys and values: the denominator is one more value that is 1.
Source: arXiv:2006.16236, equations 4 to 7 (features, denominator); arXiv:2411.07635, equation 7 (weights on the keys);
arXiv:2104.09864, section 3.3 (positions in the numerator only).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from attensor.ops.feature_maps import resolve_feature_map
from attensor.ops.linear_attention.segments import Segments

__all__ = ["Denominator", "FeatureMap", "Form", "KeyWeighting"]

FeatureMap = str | Callable[[Tensor], Tensor]
KeyWeighting = Literal["global-query"]
Core = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor]]


class Denominator(NamedTuple):
    """Divide each output by the sum of its weights, `max(sum, minimum) + eps`.

    Attributes:
        minimum: smaller sums are raised to it; L2ViT takes 100. No gradient flows where that happens.
        eps: added to the sum; RALA takes 1e-6 with a minimum of 0.
    """

    minimum: float = 1e-6
    eps: float = 0.0

    def of(self, sums: Tensor) -> Tensor:
        """The divisors for sums of weights of any shape."""
        clamped = sums.clamp_min(self.minimum)
        return clamped + self.eps if self.eps else clamped


class Form(NamedTuple):
    """The options of one call that are not the recurrence's own."""

    feature_map: FeatureMap | None
    position_map: Callable[[Tensor], Tensor] | None
    denominator: Denominator | None
    kv_weighting: KeyWeighting | None

    def around(
        self,
        core: Core,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        initial_state: Tensor | None,
        cu_seqlens: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """Output [B, T, H, V] in v's dtype and the final state.

        Args:
            core: (q, k, v, initial_state, scale) -> (out, state), the recurrence.
            q, k, v, initial_state, cu_seqlens, scale: as in the public function.
        """
        dtype = torch.promote_types(torch.promote_types(q.dtype, v.dtype), torch.float32)
        features = resolve_feature_map(self.feature_map) if self.feature_map is not None else _identity
        queries, keys, values = features(q.to(dtype)), features(k.to(dtype)), v.to(dtype)
        if self.kv_weighting is not None:
            keys = _weigh_by_global_query(queries, keys, q.shape[-1] ** -0.5, cu_seqlens)
            values = values.repeat_interleave(keys.shape[2] // values.shape[2], 2)
        turn = self.position_map or _identity
        if self.denominator is None:
            out, state = core(turn(queries), turn(keys), values, initial_state, scale)
            return out.to(v.dtype), state
        if self.position_map is None:
            # the sum of the weights is what a value of 1 comes out as
            both, state = core(queries, keys, F.pad(values, (0, 1), value=1.0), initial_state, 1.0)
            out, sums = both[..., :-1], both[..., -1:]
        else:
            out, state = core(turn(queries), turn(keys), values, None, 1.0)
            sums, _ = core(queries, keys, torch.ones_like(values[..., :1]), None, 1.0)
        return (scale * out / self.denominator.of(sums)).to(v.dtype), state

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing around the recurrence."""
        return all(option is None for option in self)


def _identity(x: Tensor) -> Tensor:
    return x


def _weigh_by_global_query(queries: Tensor, keys: Tensor, scale: float, cu_seqlens: Tensor | None) -> Tensor:
    """n w_j K_j with w = softmax_j(scale mean_i(Q_i) . K_j) over the n tokens of each sequence, [B, T, H, M].

    The weights of a sequence average to 1. Source: arXiv:2411.07635, equations 5 to 7.
    """
    keys = keys.repeat_interleave(queries.shape[2] // keys.shape[2], 2)
    segments = Segments(keys, cu_seqlens)
    scores = scale * (segments.mean(queries) * keys).sum(-1, keepdim=True)  # [B, T, H, 1]
    weights = (scores - segments.maximum(scores)).exp()
    return keys * (weights / segments.mean(weights))
