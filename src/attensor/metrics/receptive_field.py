"""The effective receptive field: how strongly each pixel moves what a model finds in the middle of an image.

    field(p) = mean over images i and colours of |d (u_i . y_i) / d x_i,p|

y is the central cell of the output, a vector of C' channels, and u a random direction, another one for each image: the
sum over channels instead would be constant after a layer norm, whatever the pixels are. The mean size of such a
derivative is that of the column of the Jacobian, but for a factor that is the same for all pixels.
Source: arXiv:1701.04128, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._checks import check_float, check_tensor, checked

__all__ = ["ReceptiveField", "receptive_field"]


@dataclass(frozen=True)
class ReceptiveField:
    """Shares of the pixels in what moves the central cell.

    Attributes:
        shares: float64 [height, width], with the sum 1; zeros if nothing moves it.
        centre: row and column of the middle of that cell, in pixels, the first of which lies at 0.
    """

    shares: Tensor
    centre: tuple[float, float]

    @checked
    def beyond(self, radius: float) -> float:
        """Share of the pixels whose middle is farther from the centre than `radius` pixels, from 0 to 1."""
        down, right = (
            torch.arange(n, dtype=torch.float64) - middle for n, middle in zip(self.shares.shape, self.centre)
        )
        return float(self.shares[torch.hypot(down[:, None], right) > radius].sum())

    @checked
    def brightness(self, decades: float = 4.0) -> Tensor:
        """The logarithm of the shares for a picture: 1 for the largest, 0 where it is `decades` powers of ten less."""
        largest = self.shares.max()
        if not largest > 0:
            return torch.zeros_like(self.shares)
        return ((self.shares / largest).log10() / decades + 1).clamp(min=0)


@checked
def receptive_field(function: Callable[[Tensor], Tensor], images: Tensor, *, seed: int = 0) -> ReceptiveField:
    """The field of the central cell, the one below and right of the middle where a side is even.

    Args:
        function: [B, C, height, width] to a map [B, C', rows, columns], each image by itself; a model in evaluation.
        images: floating; the more, the smoother.
        seed: of the directions.
    Returns:
        Shares that are exactly 0 where no pixel of an image has an influence.
    Raises:
        ShapeError: images or map have another rank, or the map another batch.
        ValueError: the derivative is not finite.
    Cost: one forward and one backward pass.
    """
    check_float("receptive_field", "images", images, images, "images")
    if images.ndim != 4 or not images.numel() or images.is_meta:
        raise ShapeError(
            f"receptive_field: images must be [B, C, height, width] and not empty, got {list(images.shape)} "
            f"on {images.device}."
        )
    inputs = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        maps = function(inputs)
        check_tensor("receptive_field", "function", maps)
        if maps.ndim != 4 or maps.shape[0] != images.shape[0] or not maps.numel():
            raise ShapeError(
                f"receptive_field: function must return a map [{images.shape[0]}, C', rows, columns], got "
                f"{list(maps.shape)}; move channels of the last axis by .movedim(-1, 1)."
            )
        places = [side // 2 for side in maps.shape[2:]]
        middle = maps[:, :, places[0], places[1]]  # [B, C']
        directions = torch.randn(middle.shape, generator=torch.Generator().manual_seed(int(seed)), dtype=torch.float64)
        total = (middle * directions.to(middle)).sum()
        (gradient,) = torch.autograd.grad(total, inputs) if maps.requires_grad else (torch.zeros_like(inputs),)
    sizes = gradient.abs().double().mean((0, 1)).cpu()  # [height, width]
    whole = sizes.sum()
    if not whole.isfinite():
        raise ValueError("receptive_field: the derivative is not finite; look for NaN in images and weights.")
    centre = [(p + 0.5) * n / cells - 0.5 for p, n, cells in zip(places, images.shape[2:], maps.shape[2:])]
    return ReceptiveField(sizes / whole if whole > 0 else sizes, (centre[0], centre[1]))
