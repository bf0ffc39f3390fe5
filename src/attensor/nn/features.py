"""Feature maps with something to hold: a fixed random projection, or weights that are learned.

As modules they are what `linear_attention` takes as `feature_map`: [B, T, heads, K] -> [B, T, heads, M].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.errors import ShapeError
from attensor.nn._shapes import check_range, check_room
from attensor.ops._checks import check_float, check_tensor, checked
from attensor.ops.feature_maps import PositiveRandomFeatures, random_projection

__all__ = ["LearnedFeatures", "RandomFeatures"]


class RandomFeatures(nn.Module):
    """Positive random features, whose products estimate exp(q . k / sqrt(K)): softmax attention without its cost.

    The projection is drawn once and saved with the weights, so that training and evaluation use the same.

    Args:
        key_dim: K.
        num_features: M; K if None.
        normalize: queries and keys are divided by their lengths first, which bounds the error of the estimate.
        device: of the projection.
        dtype: of the projection; float32 at least when computing.
    Source: arXiv:2009.14794, equation 7; normalised: arXiv:2106.12566.
    """

    projection: Tensor

    @checked
    def __init__(
        self,
        key_dim: int,
        num_features: int | None = None,
        *,
        normalize: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.normalize = normalize
        check_range(self, 1, key_dim=key_dim, num_features=num_features)
        check_room(self, (num_features or key_dim) * key_dim, key_dim=key_dim, num_features=num_features)
        self.register_buffer("projection", torch.empty(1, num_features or key_dim, key_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projection anew."""
        if not self.projection.is_meta:
            _, features, key_dim = self.projection.shape
            self.projection.copy_(random_projection(1, features, key_dim))

    reset_own_parameters = reset_parameters

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H, K] to [B, T, H, M] in at least float32."""
        return PositiveRandomFeatures(self.projection, normalize=self.normalize)(x)

    def queries(self, x: Tensor) -> Tensor:
        """Features of queries, see `PositiveRandomFeatures.queries`."""
        return PositiveRandomFeatures(self.projection, normalize=self.normalize).queries(x)

    def extra_repr(self) -> str:
        """Options, for `print(layer)`."""
        return f"num_features={self.projection.shape[1]}, normalize={self.normalize}"


class LearnedFeatures(nn.Module):
    """softmax(W x) beside softmax(-W x): 2 M positive features that training makes as sharp as it needs.

    Args:
        key_dim: K.
        num_features: rows M of W; K if None. W starts as the identity, cut off or filled up with zeros.
        device, dtype: of the weight.
    Source: arXiv:2402.04347 (Hedgehog), equation 6, in its form with a softmax over the features.
    """

    @checked
    def __init__(
        self,
        key_dim: int,
        num_features: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_range(self, 1, key_dim=key_dim, num_features=num_features)
        check_room(self, (num_features or key_dim) * key_dim, key_dim=key_dim, num_features=num_features)
        self.key_dim = key_dim
        self.proj = _Linear(key_dim, num_features or key_dim, bias=False, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the identity."""
        nn.init.eye_(self.proj.weight)

    reset_own_parameters = reset_parameters

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H, K] to [B, T, H, 2 M] in at least float32."""
        check_tensor(name := "LearnedFeatures", "x", x)
        check_float(name, "x", x, getattr(self.proj, "weight", x), "the weight")  # a quantised one may have none
        if not x.ndim or x.shape[-1] != self.key_dim:
            raise ShapeError(f"{name}: x must be [B, T, H, {self.key_dim}], got {list(x.shape)}.")
        projected = self.proj(x.to(torch.promote_types(x.dtype, torch.float32)))
        return torch.cat([projected.softmax(-1), (-projected).softmax(-1)], -1)


class _Linear(nn.Linear):
    """Computed in the dtype of its input, which is that of the features, whatever the weight is stored in."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))
