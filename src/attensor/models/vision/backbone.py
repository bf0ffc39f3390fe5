"""Hierarchical backbones: a stem, stages that halve the map, a head; stages map [B, rows, columns, C] to the same.

[B, colours, height, width] -> stem -> stages.0 -> .. -> stages.n -> norm -> mean over the cells -> head
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from attensor.models.vision.image_model import ImageModel, draw_linear, run

__all__ = ["Backbone", "ClassifierHead", "Stage"]


class Stage(nn.Module):
    """Blocks at one resolution, after what brings the map there; keys `downsample`, `blocks.{i}`.

    Args:
        blocks: each maps [B, rows, columns, C] to the same.
        downsample: maps [B, rows, columns, C'] to the layout of the blocks; None for no change.
    """

    def __init__(self, blocks: Iterable[nn.Module], *, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.downsample = nn.Identity() if downsample is None else downsample
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, rows, columns, C'] to [B, rows', columns', C]."""
        hidden_states = self.downsample(hidden_states)
        for block in self.blocks:
            hidden_states = run(block, hidden_states, self.grad_checkpointing)
        return hidden_states


class ClassifierHead(nn.Module):
    """Mean over the cells, an optional norm, a linear layer; keys `norm`, `fc`.

    Args:
        num_features: channels C.
        num_classes: logits; 0 for none.
        norm: of the mean.
        drop_rate: of the features in training.
    """

    def __init__(
        self, num_features: int, num_classes: int, *, norm: nn.Module | None = None, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.norm = nn.Identity() if norm is None else norm
        self.drop = nn.Dropout(drop_rate)
        self.fc: nn.Module = nn.Linear(num_features, num_classes) if num_classes else nn.Identity()
        draw_linear(self.fc)

    def forward(self, hidden_states: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, rows, columns, C] to [B, num_classes], or to [B, C] with `pre_logits`."""
        pooled: Tensor = self.drop(self.norm(hidden_states.mean((1, 2))))
        return pooled if pre_logits else self.fc(pooled)


class Backbone(ImageModel):
    """Stem, stages and head with all of timm's methods; `forward_features` is a map [B, C, rows, columns].

    A family writes its configuration, its stem and its blocks, and inherits from this.

    Args:
        stem: maps images [B, in_channels, height, width] to [B, rows, columns, C].
        stages: each maps [B, rows, columns, C] to the same layout; `Stage` or one with its own keys.
        head: `ClassifierHead`, or another with `fc` and the same call.
        channels: C after each stage; one more in front makes the stem's output the first map.
        reductions: pixels to a cell after each of these.
        in_channels: colours.
        norm: after the last stage.
    Raises:
        ValueError: the numbers of stages, channels and reductions disagree.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        head: nn.Module,
        *,
        channels: Sequence[int],
        reductions: Sequence[int],
        in_channels: int = 3,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if len(channels) - len(stages) not in (0, 1) or len(reductions) != len(channels):
            raise ValueError(
                f"{type(self).__name__}: {len(stages)} stages, but {len(channels)} channels and {len(reductions)} "
                "reductions; give one for each stage, or one more in front for the stem."
            )
        names = ["stem", *(f"stages.{i}" for i in range(len(stages)))][-len(channels) :]
        self.feature_info = [
            {"num_chs": width, "reduction": pixels, "module": name}
            for width, pixels, name in zip(channels, reductions, names)
        ]
        self.in_channels, self.num_features = in_channels, channels[-1]
        self.stem, self.stages = stem, nn.ModuleList(stages)
        self.norm = nn.Identity() if norm is None else norm
        self.head = head
        self.num_classes = getattr(head.fc, "out_features", 0)

    def embed(self, images: Tensor) -> Tensor:
        """The stem."""
        out: Tensor = self.stem(images)
        return out

    def parts(self) -> nn.ModuleList:
        """The stages."""
        return self.stages

    def normed(self, hidden_states: Tensor, *, is_last: bool) -> Tensor:
        """The norm fits the last stage alone."""
        out: Tensor = self.norm(hidden_states) if is_last else hidden_states
        return out

    def as_map(self, hidden_states: Tensor, images: Tensor) -> Tensor:
        """[B, rows, columns, C] to [B, C, rows, columns]."""
        return hidden_states.movedim(-1, 1)

    def as_features(self, hidden_states: Tensor) -> Tensor:
        """[B, rows, columns, C] to [B, C, rows, columns]."""
        return hidden_states.movedim(-1, 1)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, C, rows, columns] to [B, num_classes], or to what the last layer is given."""
        out: Tensor = self.head(features.movedim(1, -1), pre_logits=pre_logits)
        return out
