"""The Axial Transformer: exact likelihoods of images and videos, pixel by pixel, at a cost far below attention to all.

    model = AxialTransformer(AxialTransformer.presets["axial_digits"])
    model.training_loss(levels).backward()            levels: integers [B, C, H, W] from 0 to K - 1
    model.bits_per_dim(levels)
    model.sample(16, given=half)                      -1 where a pixel is to be drawn

Order of the pixels: frames, in each the channels, in each the rows from the top, in each the columns from the left.
What each of these steps is told is written in `axial_stacks`. Sizes: B images, T frames, C channels, H rows, W columns,
K levels, D hidden size.
Source: arXiv:1912.12180, section 3, and its official code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.errors import ShapeError
from attensor.models.folder import configured, load_model, read_config, save_model
from attensor.models.vision.axial_config import AxialTransformerConfig as AxialTransformerConfig
from attensor.models.vision.axial_names import from_tensorflow
from attensor.models.vision.axial_sampling import Drawing, Method, draw_images
from attensor.models.vision.axial_stacks import Exterior, Frames, Plane
from attensor.nn._shapes import check_range
from attensor.ops._checks import checked, is_readable

__all__ = ["AxialTransformer", "AxialTransformerConfig"]

# standard deviation of a normal distribution that is cut off at two of its own
_CUT_NORMAL = 0.87962566103423978
_NOTES = "notes"


class AxialTransformer(nn.Module):
    """Autoregressive model of images of one size: O(D (H + W)) a pixel in attention, with all earlier pixels in reach.

    Dimensions count every channel of every pixel; likelihoods are natural logarithms, losses bits. At first all levels
    are equally likely: the loss of a new model is log2 K.

    Args:
        config: sizes.
    """

    tiny: ClassVar[AxialTransformerConfig] = AxialTransformerConfig(
        image_size=(3, 4), num_levels=5, hidden_size=12, num_heads=3, mlp_hidden_size=14,
        num_exterior_layers=2, num_outer_layers=2, num_inner_layers=1,
    )  # fmt: skip
    presets: ClassVar[dict[str, AxialTransformerConfig]] = {
        "axial_imagenet32": AxialTransformerConfig(dropout=0.04),
        "axial_imagenet64": AxialTransformerConfig(image_size=(64, 64), hidden_size=2048, mlp_hidden_size=2048),
        "axial_digits": AxialTransformerConfig(
            image_size=(8, 8), in_channels=1, num_levels=17, hidden_size=48, num_heads=4, mlp_hidden_size=48,
            num_exterior_layers=0, num_outer_layers=4, num_inner_layers=2,
        ),
    }  # fmt: skip

    @checked
    def __init__(self, config: AxialTransformerConfig) -> None:
        super().__init__()
        self.config = config
        height = config.image_size[0]
        self.frames = None if config.num_frames is None else Frames(config)
        self.exterior = Exterior(config) if config.has_exterior else None
        self.plane = Plane(config, height * config.in_channels if config.channels_as_rows else height)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw everything anew: what blocks add, and the logits, are next to zero at first."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                is_last = name.endswith((".attn.proj", ".mlp.fc2", "plane.head"))
                _scale_variance(module, 1e-10 if is_last else 1.0)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        for name, parameter in self.named_parameters():
            if ".pos_" in name or name == "plane.embed.weight":
                nn.init.normal_(parameter, std=5.0 / math.sqrt(self.config.hidden_size))

    @checked
    def forward(self, images: Tensor) -> Tensor:
        """Logits of every dimension, each from those before it.

        Args:
            images: integers [B, C, H, W], or [B, T, C, H, W] of a video, from 0 to K - 1.
        Returns:
            [*images, K].
        Raises:
            ShapeError: another shape. ValueError: levels that are not there. TypeError: no integers.
        Cost: of multi-channel images the whole model once a channel.
        """
        frames, context = self._read(images)
        planes = range(self.config.in_channels if self.config.has_exterior else 1)
        logits = [self._logits(frames, frames.new_full((frames.shape[0],), number), context) for number in planes]
        return torch.cat(logits, 1).view(*images.shape, self.config.num_levels)

    def training_loss(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Bits a dimension, an estimate without bias: of each image, or frame, one channel that is drawn.

        Args:
            images: as of `forward`.
            generator: of the choice of channels; PyTorch's own if None.
        Returns:
            [], to be minimised.
        """
        frames, context = self._read(images)
        count, device = frames.shape[0], frames.device if generator is None else generator.device
        channel = torch.zeros(count, dtype=torch.int64, device=frames.device)
        if self.exterior is not None:
            channels = self.config.in_channels
            channel = torch.randint(channels, (count,), generator=generator, device=device).to(frames.device)
            targets = frames[torch.arange(count, device=frames.device), channel]
        else:
            targets = frames
        logits = self._logits(frames, channel, context).flatten(0, -2)
        return F.cross_entropy(logits, targets.flatten()) / math.log(2)

    def log_likelihood(self, images: Tensor) -> Tensor:
        """Natural logarithm of the probability of each image, [B], at least float32; arguments as of `forward`."""
        logits = self(images)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
        surprise = F.cross_entropy(logits, images.long().flatten(), reduction="none")
        return -surprise.view(images.shape).flatten(1).sum(1)

    def bits_per_dim(self, images: Tensor) -> Tensor:
        """Bits that each image takes, over its dimensions: [B]; arguments as of `forward`."""
        return -self.log_likelihood(images) / (math.prod(self.config.shape) * math.log(2))

    @checked
    def sample(
        self,
        count: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        given: Tensor | None = None,
        method: Method = "cached",
        on_row: Callable[[int, int], None] = lambda done, total: None,
    ) -> Tensor:
        """Images drawn from the model, or the missing parts of given ones; in evaluation mode, without gradients.

        Args:
            count: images.
            temperature: of the noise; 1 draws from the model, 0 takes the most likely level each time.
            generator: of the noise; PyTorch's own if None. It is used alike by all methods, and for given pixels too.
            given: integers [count, *shape] or [*shape] with `config.shape`: known levels, and -1 where one is to be
                drawn. A level is drawn from those before it; what is given after it is kept, but not known to it.
            method: way of computing, see `axial_sampling`: the samples are the same.
            on_row: called with the rows that are done, and all there are.
        Returns:
            int64 [count, *shape].
        Raises:
            ShapeError, TypeError, ValueError: a number out of range, or another `given`.
        """
        check_range(name := "AxialTransformer.sample", 0, count=count, temperature=temperature)
        images = self._given(name, count, given)
        was_training = self.training
        self.eval()
        try:
            draw_images(self, images, Drawing(method, temperature, generator, on_row))
        finally:
            self.train(was_training)
        return images

    def quantize(self, images: Tensor) -> Tensor:
        """Levels of images with values from -1 to 1, as the data of `attensor.data` have them: int64, same shape."""
        return ((images + 1) / 2 * (self.config.num_levels - 1)).round().long().clamp(0, self.config.num_levels - 1)

    def no_weight_decay(self) -> set[str]:
        """Names of embeddings and positions."""
        return {name for name, _ in self.named_parameters() if ".pos_" in name or name == "plane.embed.weight"}

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """Two images that the model takes."""
        shape = (2, *self.config.shape)
        return {"images": torch.arange(math.prod(shape)).view(shape) * 7 % self.config.num_levels}

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the official TensorFlow code under our names; the same if they are so already."""
        if any("/" in name for name in state_dict):
            return from_tensorflow(state_dict)
        return dict(state_dict)

    def save(self, folder: str | Path, notes: Mapping[str, Any] | None = None) -> None:
        """Write `model.safetensors` and `config.json`; a file of either name is replaced, whole or not at all.

        Args:
            folder: made when it is not there.
            notes: how it was trained, for instance: put into `config.json`, not read by `load`.
        """
        noted = {} if notes is None else {_NOTES: dict(notes)}
        save_model(Path(folder), self, {**asdict(self.config), **noted})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The model that `save` wrote, on the CPU, in evaluation mode.

        Raises:
            FileNotFoundError: no such files. ValueError: another model's, or damaged.
        """
        folder = Path(folder)
        found = read_config(folder, [cls.__name__])
        options = {name: value for name, value in found.items() if name not in ("model", _NOTES)}
        config = configured(
            lambda: AxialTransformerConfig(**options | {"image_size": tuple(options["image_size"])}), folder,
            cls.__name__,
        )  # fmt: skip
        return load_model(lambda: cls(config), folder)

    def _read(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Frames [B T, C, H, W] with what each is told of those before it, [B T, H, W, D]; images as they are, None."""
        self._check("AxialTransformer: images", images, least=0)
        images = images.long()
        if self.frames is None:
            return images, None
        return images.flatten(0, 1), self.frames(images).flatten(0, 1)

    def _check(self, what: str, images: Tensor, *, least: int) -> None:
        shape, levels = self.config.shape, self.config.num_levels
        if images.shape[1:] != shape:
            raise ShapeError(f"{what} must be [B, {', '.join(map(str, shape))}], got {list(images.shape)}.")
        if images.is_floating_point() or images.is_complex() or images.dtype == torch.bool:
            raise TypeError(f"{what} must be integers, got {images.dtype}; use model.quantize(images).")
        if is_readable(images) and images.numel():
            low, high = (int(x) for x in images.aminmax())
            if low < least or high >= levels:
                raise ValueError(
                    f"{what} must be {least} .. {levels - 1}, got {low} .. {high}; num_levels is {levels}."
                )

    def _logits(self, frames: Tensor, channel: Tensor, context: Tensor | None) -> Tensor:
        """Of one channel of each frame [B, H, W, K], or of all, [B, C H, W, K], where channels are rows."""
        condition = self.condition(frames, channel, context)
        if self.exterior is not None:
            frames = frames[torch.arange(frames.shape[0], device=frames.device), channel][:, None]
        out: Tensor = self.plane(frames.flatten(1, 2), condition)
        return out

    def condition(self, frames: Tensor, channel: Tensor, context: Tensor | None) -> Tensor | None:
        """What is known beside the planes `channel` [B], one of each frame; `context` tells of earlier frames."""
        if self.exterior is not None:
            out: Tensor = self.exterior(frames, channel, context)
            return out
        return None if context is None else context.repeat(1, self.config.in_channels, 1, 1)

    def _given(self, name: str, count: int, given: Tensor | None) -> Tensor:
        shape = (count, *self.config.shape)
        if given is None:
            return torch.full(shape, -1, device=self.plane.pos_h.device)
        given = given[None] if given.dim() == len(shape) - 1 else given
        self._check(f"{name}: given", given, least=-1)
        if len(given) not in (1, count):
            raise ShapeError(f"{name}: given must be of 1 or count = {count} images, got {len(given)}.")
        return given.to(self.plane.pos_h.device, torch.int64, copy=True).expand(shape).contiguous()


def _scale_variance(module: nn.Linear | nn.Conv2d, scale: float) -> None:
    """TensorFlow's `variance_scaling`: outputs of the variance `scale` for inputs of 1; the bias is zero."""
    deviation = math.sqrt(scale / module.weight[0].numel()) / _CUT_NORMAL
    nn.init.trunc_normal_(module.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
