r"""Diffusion of images: noise is added in small steps, a model learns to tell it, and sampling takes it away again.

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise,   a_t = prod_(s <= t) (1 - beta_s)
    sampling: x_0' = (x_t - sqrt(1 - a_t) e) / sqrt(a_t),   x_s = sqrt(a_s) x_0' + sqrt(1 - a_s) e

Source: arXiv:2006.11239 (the loss), arXiv:2010.02502, equation 12 with sigma = 0 (sampling in fewer steps).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.nn._shapes import check_range

__all__ = ["Diffusion"]


class Diffusion:
    """A schedule of noise, linear in beta from 1e-4 to 0.02 over 1000 steps, and as steep over fewer.

    Args:
        steps: of noise.
    Attributes:
        kept: [steps], a_t in float64.
    Raises:
        ValueError: fewer than 21 steps, whose last beta would be 1 or more.
    """

    def __init__(self, steps: int = 1000) -> None:
        check_range("Diffusion", 21, steps=steps)
        scale = 1000 / steps
        betas = torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64)
        self.steps, self.kept = steps, torch.cumprod(1 - betas, 0)

    def noised(self, images: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """Images [B, C, height, width] after `timesteps` [B] steps of noise."""
        kept = self.kept.to(images.device)[timesteps].to(images.dtype)[:, None, None, None]
        return kept.sqrt() * images + (1 - kept).sqrt() * noise

    def loss(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Mean square of what the model tells wrongly of noise at random steps.

        Args:
            model: (images, timesteps, labels) -> noise, with or without channels for the variance behind it.
            images: [B, C, height, width], from -1 to 1.
            labels: [B].
            generator: of steps and noise.
        """
        device = images.device
        timesteps = torch.randint(self.steps, labels.shape, device=device, generator=generator)
        noise = torch.randn(images.shape, device=device, dtype=images.dtype, generator=generator)
        told = model(self.noised(images, timesteps, noise), timesteps, labels)
        return F.mse_loss(told[:, : images.shape[1]], noise)

    @torch.no_grad()
    def sample(
        self,
        model: Callable[[Tensor, Tensor, Tensor], Tensor],
        labels: Tensor,
        size: Sequence[int],
        *,
        steps: int = 50,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Images of classes, made of noise.

        Args:
            model: as in `loss`; with guidance `lambda *given: dit.guided(*given, scale)`.
            labels: [B].
            size: channels, height and width.
            steps: passes of the model.
            generator: of the noise.
        Returns:
            [B, channels, height, width].
        Raises:
            ValueError: more steps than there are of noise, or none.
        """
        check_range("Diffusion.sample", 1, self.steps + 1, steps=steps)
        images = torch.randn(len(labels), *size, device=labels.device, generator=generator)
        times = torch.linspace(self.steps - 1, 0, steps).round().long().tolist()
        for time, following in zip(times, [*times[1:], None]):
            timesteps = torch.full_like(labels, time)
            noise = model(images, timesteps, labels)[:, : size[0]]
            kept, then = float(self.kept[time]), 1.0 if following is None else float(self.kept[following])
            clean = ((images - (1 - kept) ** 0.5 * noise) / kept**0.5).clamp(-1.5, 1.5)
            noise = (images - kept**0.5 * clean) / (1 - kept) ** 0.5
            images = then**0.5 * clean + (1 - then) ** 0.5 * noise
        return images
