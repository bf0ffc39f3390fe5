"""Sizes of the Axial Transformer, and what its stacks may be."""

from __future__ import annotations

from dataclasses import dataclass

from attensor.nn._shapes import check_range, check_sizes
from attensor.ops._checks import checked_fields

__all__ = ["AxialTransformerConfig"]


@checked_fields
@dataclass(frozen=True)
class AxialTransformerConfig:
    """Sizes of an Axial Transformer.

    Attributes:
        image_size: H and W in pixels; the only size that the model takes.
        in_channels: C.
        num_levels: K values that a channel of a pixel may have.
        num_frames: T of a video; None for images.
        channels_as_rows: read the channels as further rows of one plane, all of the first, then all of the second,
            instead of by the exterior stack.
        hidden_size: D.
        num_heads: heads.
        mlp_hidden_size: channels inside the MLP.
        num_frame_layers: blocks that read earlier frames, a multiple of 3; 0 for images.
        num_exterior_layers: blocks that read earlier channels, an even number; 0 with one channel or
            `channels_as_rows`.
        num_outer_layers: blocks that read the rows above, an even number.
        num_inner_layers: blocks that read a pixel's own row.
        dropout: of what each branch of a block adds.
    Raises:
        ValueError: a number out of its range, or stacks that the kind of image has no use for.
    """

    image_size: tuple[int, int] = (32, 32)
    in_channels: int = 3
    num_levels: int = 256
    num_frames: int | None = None
    channels_as_rows: bool = False
    hidden_size: int = 1536
    num_heads: int = 16
    mlp_hidden_size: int = 1536
    num_frame_layers: int = 0
    num_exterior_layers: int = 8
    num_outer_layers: int = 8
    num_inner_layers: int = 8
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no model can be built of."""
        check_sizes(self, num_frame_layers=0, num_exterior_layers=0, num_outer_layers=0)
        check_range(name := type(self).__name__, 2, num_levels=self.num_levels)
        for layers, step in (("num_frame_layers", 3), ("num_exterior_layers", 2), ("num_outer_layers", 2)):
            count = getattr(self, layers)
            if count % step:
                raise ValueError(
                    f"{name}: {layers} must be a multiple of {step}, got {count}; choose another {layers}."
                )
        if self.num_exterior_layers and not self.has_exterior:
            raise ValueError(
                f"{name}: num_exterior_layers must be 0 with in_channels {self.in_channels} and channels_as_rows "
                f"{self.channels_as_rows}: there are no earlier channels to read, got {self.num_exterior_layers}."
            )
        if self.num_frame_layers and self.num_frames is None:
            raise ValueError(f"{name}: num_frame_layers must be 0 without num_frames, got {self.num_frame_layers}.")

    @property
    def has_exterior(self) -> bool:
        """Whether the channels are planes of their own, which a stack reads in turn."""
        return self.in_channels > 1 and not self.channels_as_rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: [C, H, W], or [T, C, H, W] of a video."""
        return (*(() if self.num_frames is None else (self.num_frames,)), self.in_channels, *self.image_size)
