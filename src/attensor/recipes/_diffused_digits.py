"""A small diffusion of handwritten digits of 8 x 8 pixels: the setting in which transformers that draw compare."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.models.vision.diffusion import Diffusion
from attensor.models.vision.dit import DiT, DiTConfig
from attensor.nn import load_balance_loss
from attensor.recipes._runs import trained
from attensor.train import TrainConfig

__all__ = ["config_of", "train_diffusion", "write_samples"]

SIDE, CLASSES, HEADS, BLOCKS = 8, 10, 8, 3
# with 2e-3 or half of the batch 600 steps do not reach what the best linear denoiser tells wrongly, 0.119
BATCH_SIZE, LEARNING_RATE, BALANCE = 128, 4e-3, 0.01
HELD_OUT, DRAWN = 297, 5  # digits, and images of each class
GUIDANCE, SAMPLING_STEPS = 1.5, 50
_DIFFUSION = Diffusion()

Batch = tuple[Tensor, Tensor, int]


def config_of(active: int | None, shared: int | None = None) -> DiTConfig:
    """Of a model with so many of 8 heads; None for attention without routers."""
    return DiTConfig(
        image_size=(SIDE, SIDE),
        in_channels=1,
        hidden_size=64,
        num_heads=(HEADS,) * BLOCKS,
        num_shared=None if shared is None else (shared,) * BLOCKS,
        num_active=None if active is None else (active,) * BLOCKS,
        mlp_ratio=3.0,
        num_classes=CLASSES,
        learns_variance=False,
    )


def train_diffusion(config: DiTConfig, *, seed: int, steps: int) -> dict[str, Any]:
    """Train one: what it tells wrongly of held-out noise, its digits, and how many a classifier of real ones names so.

    Returns:
        `loss`, `curve`, `right` (a share) and `samples`: levels from 0 to 255 of 10 classes in turn, row by row.
    """
    torch.manual_seed(seed)
    model = DiT(config)
    images, labels = _digits()

    def batch(step: int) -> Batch:
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        chosen = torch.randint(len(labels) - HELD_OUT, (BATCH_SIZE,), generator=generator)
        return images[chosen], labels[chosen], step

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        generator = torch.Generator().manual_seed(7_000_003 * seed + batch[2])
        return _DIFFUSION.loss(model, *batch[:2], generator=generator) + BALANCE * load_balance_loss(model)

    def score(model: nn.Module) -> float:
        generator = torch.Generator().manual_seed(0)
        parts = [_DIFFUSION.loss(model, images[-HELD_OUT:], labels[-HELD_OUT:], generator) for _ in range(8)]
        return float(torch.stack(parts).mean())

    found = trained(model, batch, loss, score, TrainConfig(steps, LEARNING_RATE, evaluations=5))
    drawn, right = _draw(model.eval(), seed)
    return {"loss": found["score"], "curve": found["curve"], "right": right, "samples": drawn}


def _draw(model: DiT, seed: int) -> tuple[list[int], float]:
    from sklearn.linear_model import LogisticRegression

    images, labels = _digits()
    wanted = torch.arange(CLASSES).repeat(DRAWN)
    generator = torch.Generator().manual_seed(seed)
    drawn = _DIFFUSION.sample(
        lambda images, timesteps, labels: model.guided(images, timesteps, labels, GUIDANCE),
        wanted,
        (1, SIDE, SIDE),
        steps=SAMPLING_STEPS,
        generator=generator,
    ).clamp(-1, 1)
    judge = LogisticRegression(max_iter=1000).fit(images[:-HELD_OUT].flatten(1).numpy(), labels[:-HELD_OUT].numpy())
    named = torch.from_numpy(judge.predict(drawn.flatten(1).numpy()))
    levels: list[int] = ((drawn + 1) * 127.5).round().to(torch.uint8).flatten().tolist()
    return levels, float((named == wanted).double().mean())


def write_samples(samples: dict[str, list[int]], path: Path) -> None:
    """A picture of the digits of some models, one below the other: a column a class, five rows a model."""
    from PIL import Image

    whole = torch.tensor(list(samples.values()), dtype=torch.uint8).view(-1, CLASSES, SIDE, SIDE)
    apart = F.pad(whole, (1, 1, 1, 1), value=96)
    picture = apart.transpose(1, 2).flatten(2, 3).flatten(0, 1).repeat_interleave(4, 0).repeat_interleave(4, 1)
    Image.fromarray(picture.numpy()).save(path)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """Images from -1 to 1 and labels, in an order of their own."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(pixels).float().view(-1, 1, SIDE, SIDE) / 8 - 1
    return images[order], torch.from_numpy(labels).long()[order]
