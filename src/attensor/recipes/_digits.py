"""Small classifiers of generated images: the setting in which the recipes of image mixers compare.

Digits of 16 x 16 pixels at random places of 32 x 32 with noise; patches of 4, two blocks of 32 channels and two heads:

    x = x + conv3x3(x);  x = x + mixer(norm(x));  [x = x + local(norm(x))];  x = x + mlp(norm(x))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

from torch import Tensor, nn
from torch.nn import functional as F

from attensor.data.cluttered import ClutteredDigits
from attensor.models.blocks import MLP
from attensor.nn import LocalConcentration
from attensor.recipes._runs import trained
from attensor.train import TrainConfig

__all__ = ["HIDDEN_SIZE", "NUM_HEADS", "Block", "Classifier", "Images", "fit", "held_out_images"]

HIDDEN_SIZE, NUM_HEADS, NUM_BLOCKS, PATCH_SIZE, NUM_CLASSES = 32, 2, 2, 4, 10
BATCH_SIZE = 64
# the best of 3e-3, 1e-2 and 2e-2 for softmax attention, with which all others are compared (500 steps, one seed)
LEARNING_RATE = 1e-2


class Images(Protocol):
    """What generated images offer: batches of [B, C, height, width] with labels [B]."""

    def batch(self, step: int, *, seed: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """To train on: a pure function of the arguments."""
        ...

    def held_out_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images that are held out, once."""
        ...


class Block(nn.Module):
    """Positions by convolution, a mixer, a local concentration if asked for, an MLP; a residual around each."""

    def __init__(self, mixer: nn.Module, *, local_concentration: bool) -> None:
        super().__init__()
        self.cpe = nn.Conv2d(HIDDEN_SIZE, HIDDEN_SIZE, 3, padding=1, groups=HIDDEN_SIZE)
        self.norm1, self.attn = nn.LayerNorm(HIDDEN_SIZE), mixer
        self.local_mp: nn.Module | None = None
        if local_concentration:
            self.norm3, self.local_mp = nn.LayerNorm(HIDDEN_SIZE), LocalConcentration(HIDDEN_SIZE)
        self.norm2, self.mlp = nn.LayerNorm(HIDDEN_SIZE), MLP(HIDDEN_SIZE, 2 * HIDDEN_SIZE)

    def place(self, hidden_states: Tensor) -> Tensor:
        """[B, rows, columns, C] with positions."""
        out: Tensor = hidden_states + self.cpe(hidden_states.movedim(-1, 1)).movedim(1, -1)
        return out

    def mix(self, hidden_states: Tensor, *, with_local: bool = True) -> Tensor:
        """What mixer and local concentration (unless left out) add to [B, rows, columns, C]."""
        mixed: Tensor = self.attn(self.norm1(hidden_states))
        if self.local_mp is None or not with_local:
            return mixed
        concentrated: Tensor = self.local_mp(self.norm3(hidden_states + mixed))
        return mixed + concentrated

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, rows, columns, C] to the same."""
        placed = self.place(hidden_states)
        mixed = placed + self.mix(placed)
        out: Tensor = mixed + self.mlp(self.norm2(mixed))
        return out


class Classifier(nn.Module):
    """Patches, blocks around the mixers that `mixer` builds, the mean over the cells, ten logits."""

    def __init__(self, mixer: Callable[[], nn.Module], *, local_concentration: bool = False) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, HIDDEN_SIZE, PATCH_SIZE, stride=PATCH_SIZE)
        self.blocks = nn.ModuleList(Block(mixer(), local_concentration=local_concentration) for _ in range(NUM_BLOCKS))
        self.norm = nn.LayerNorm(HIDDEN_SIZE)
        self.head = nn.Linear(HIDDEN_SIZE, NUM_CLASSES)

    def inside(self, images: Tensor) -> Iterator[tuple[Block, Tensor]]:
        """Each block and what its mixer's norm is given, [B, rows, columns, C]."""
        hidden_states = self.patch_embed(images).movedim(1, -1)
        for block in self.blocks:
            yield cast("Block", block), cast("Block", block).place(hidden_states)
            hidden_states = block(hidden_states)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 1, height, width] to [B, 10]."""
        hidden_states = self.patch_embed(images).movedim(1, -1)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        logits: Tensor = self.head(self.norm(hidden_states).mean((1, 2)))
        return logits


def fit(
    model: nn.Module,
    *,
    seed: int,
    steps: int,
    data: Images | None = None,
    learning_rate: float = LEARNING_RATE,
    batch_size: int = BATCH_SIZE,
) -> dict[str, Any]:
    """Train in place: share of held-out images that are named rightly, at the end and after some steps.

    Args:
        model: images to logits.
        seed: of the order of the data; the caller has drawn the weights.
        steps: of the optimizer.
        data: cluttered digits if None.
        learning_rate: peak.
        batch_size: images of a step.
    Returns:
        `accuracy`; `curve`: [[step, accuracy], ..].
    """
    data = ClutteredDigits() if data is None else data
    held_out = list(data.held_out_batches(128))
    count = sum(len(labels) for _, labels in held_out)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return data.batch(step, seed=seed, batch_size=batch_size)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def accuracy(model: nn.Module) -> float:
        return sum(int((model(images).argmax(1) == labels).sum()) for images, labels in held_out) / count

    result = trained(model, batch, loss, accuracy, TrainConfig(steps, learning_rate, evaluations=5))
    return {"accuracy": result["score"], "curve": result["curve"]}


def held_out_images(count: int, *, image_size: int = 32) -> Tensor:
    """The first held-out images, [count, 1, image_size, image_size]."""
    return next(ClutteredDigits(image_size=image_size).held_out_batches(count))[0]
