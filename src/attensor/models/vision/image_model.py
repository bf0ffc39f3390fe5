"""timm's methods, written once: features, intermediate maps, classifier, checkpointing, pruning.

A model states what is its own (`embed`, `parts`, `normed`, `as_map`, `forward_head`) and inherits the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attensor.errors import ShapeError
from attensor.nn._shapes import check_input, check_range
from attensor.ops._checks import checked

__all__ = ["FeatureExtractor", "FeatureInfo", "ImageModel", "draw_layer", "draw_linear", "run"]


class ImageModel(nn.Module):
    """Base of image models in timm's conventions.

    A subclass sets `num_classes`, `num_features` (channels that the classifier is given), `in_channels`, and
    `feature_info`: `{"num_chs", "reduction", "module"}` for each map of `forward_intermediates`, which are one a part,
    or one more at the front for what `embed` returns. `usual` is the preset that stands for the family in comparisons.
    """

    usual: ClassVar[str | None] = None
    classifier = "head.fc"  # name of the last layer
    num_classes: int
    num_features: int
    in_channels: int
    feature_info: list[dict[str, Any]]
    grad_checkpointing = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Let the constructor refuse arguments of another kind than annotated."""
        super().__init_subclass__(**options)
        if inspect.isfunction(constructor := vars(cls).get("__init__")):
            cls.__init__ = checked(constructor)  # type: ignore[method-assign]

    def embed(self, images: Tensor) -> Tensor:
        """Hidden states in the model's own layout from [B, colours, height, width]."""
        raise NotImplementedError

    def parts(self) -> nn.ModuleList:
        """What the hidden states go through in turn: blocks or stages."""
        raise NotImplementedError

    def normed(self, hidden_states: Tensor, *, is_last: bool) -> Tensor:
        """Hidden states after a part, normed; `is_last` for the last part, where a norm may fit that alone."""
        raise NotImplementedError

    def as_map(self, hidden_states: Tensor, images: Tensor) -> Tensor:
        """Hidden states as a map [B, C, rows, columns]."""
        raise NotImplementedError

    def as_features(self, hidden_states: Tensor) -> Tensor:
        """Hidden states as `forward_features` returns them."""
        return hidden_states

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward_features` returned to logits [B, num_classes], or to what the last layer is given."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the classes.

        Args:
            images: [B, in_channels, height, width].
        Returns:
            [B, num_classes]; the pooled features when `num_classes` is 0.
        Raises:
            ShapeError: another rank or number of colours.
        """
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Normed hidden states before pooling, in timm's layout for this kind of model."""
        hidden_states = self._embed(images)
        for part in self.parts():
            hidden_states = run(part, hidden_states, self.grad_checkpointing)
        return self.as_features(self.normed(hidden_states, is_last=True))

    @checked
    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps after some parts, with or without the features that `forward_features` returns.

        Args:
            images: [B, in_channels, height, width].
            indices: which of `feature_info`: a list (negative counts from the end), the last so many, or all if None.
            norm: apply the last norm where it fits.
            stop_early: with `intermediates_only`, do not run what comes after the last wanted map.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: return the maps alone.
        Returns:
            Maps [B, channels, rows, columns] in the order of the parts; or the features and those.
        Raises:
            ValueError: an index without a map, or another format.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"{type(self).__name__}: output_fmt must be 'NCHW' or 'NHWC', got {str(output_fmt)!r}.")
        wanted, parts = self._wanted(indices), self.parts()
        last = len(self.feature_info) - 1
        before = last + 1 - len(parts)  # 1 where the stem counts as the first map
        hidden_states = self._embed(images)
        seen = {0: hidden_states} if before else {}
        for index, part in enumerate(parts, before):
            if stop_early and intermediates_only and index > max(wanted):
                break
            hidden_states = run(part, hidden_states, self.grad_checkpointing)
            seen[index] = hidden_states
        chosen = [self.normed(seen[i], is_last=i == last) if norm else seen[i] for i in wanted]
        maps = [self.as_map(one, images) for one in chosen]
        maps = maps if output_fmt == "NCHW" else [one.movedim(1, -1) for one in maps]
        return maps if intermediates_only else (self.as_features(self.normed(hidden_states, is_last=True)), maps)

    @checked
    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = None, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps `indices` do not need: later parts, the classifier; returns their numbers."""
        wanted = self._wanted(indices)
        keep = max(wanted) + 1
        if prune_head or keep < len(self.feature_info):
            self.head: nn.Module = nn.Identity()
        if prune_norm or keep < len(self.feature_info):
            self.norm: nn.Module = nn.Identity()
        del self.parts()[keep - (len(self.feature_info) - len(self.parts())) :]
        del self.feature_info[keep:]
        self.num_features = self.feature_info[-1]["num_chs"]
        return wanted

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.get_submodule(self.classifier)

    @checked
    def reset_classifier(self, num_classes: int) -> None:
        """A new last layer for `num_classes`; 0 leaves the pooled features as the output."""
        check_range(self, 0, num_classes=num_classes)
        reference = next(self.parameters())
        layer: nn.Module = nn.Identity()
        if num_classes:
            layer = nn.Linear(self.num_features, num_classes, device=reference.device, dtype=reference.dtype)
            draw_linear(layer)
        parent, _, name = self.classifier.rpartition(".")
        setattr(self.get_submodule(parent), name, layer.train(self.training))
        self.num_classes = num_classes

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that should not decay: what the parts say of theirs; vectors never should."""
        found: set[str] = set()
        for prefix, module in self.named_modules():
            if prefix and hasattr(module, "no_weight_decay"):
                theirs = cast("Callable[[], set[str]]", module.no_weight_decay)
                found |= {f"{prefix}.{name}" for name in theirs()}
        return found

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Forget what is inside blocks and compute it again in the backward pass; batch norms see each batch twice."""
        for module in self.modules():
            if hasattr(module, "grad_checkpointing"):
                setattr(module, "grad_checkpointing", enable)  # noqa: B010 - a module's attribute has no type

    @classmethod
    def fitted(cls, config: Any, state_dict: Mapping[str, Tensor]) -> Any:
        """The configuration with sizes that the weights know better; the same for most families."""
        return config

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a published layout, renamed and resized to this model; the same if they are so already."""
        return dict(state_dict)

    def _embed(self, images: Tensor) -> Tensor:
        check_input(self, "images", images, next(self.parameters(), None))
        if images.dim() != 4 or images.shape[1] != self.in_channels or 0 in images.shape[2:]:
            raise ShapeError(
                f"{type(self).__name__}: images must be [B, {self.in_channels}, height, width], got "
                f"{list(images.shape)}."
            )
        return self.embed(images)

    def _wanted(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.feature_info)
        chosen: Sequence[int] = range(count)
        if isinstance(indices, Sequence):
            chosen = indices
        elif indices is not None:
            chosen = chosen[-int(indices) :] if 0 < indices <= count else ()
        if not chosen or not all(-count <= i < count for i in chosen):
            raise ValueError(
                f"{type(self).__name__}: out_indices must be numbers of {count} maps, {-count} to {count - 1}, "
                f"or how many of the last ones, got {indices}."
            )
        return sorted({i % count for i in chosen})


class FeatureInfo:
    """Channels and strides of the maps of a `FeatureExtractor`, as timm gives them to necks and detectors."""

    def __init__(self, info: Sequence[Mapping[str, Any]]) -> None:
        self.info = list(info)

    def channels(self) -> list[int]:
        """Channels of each map."""
        return [one["num_chs"] for one in self.info]

    def reduction(self) -> list[int]:
        """Pixels of the image to a cell of each map, along one axis."""
        return [one["reduction"] for one in self.info]


class FeatureExtractor(nn.Module):
    """A model cut down to its maps: [B, colours, height, width] to a list of [B, channels, rows, columns].

    Args:
        model: pruned in place of what the maps do not need.
        out_indices: which maps, as in `forward_intermediates`; all if None.
    """

    @checked
    def __init__(self, model: ImageModel, out_indices: int | Sequence[int] | None = None) -> None:
        super().__init__()
        self.out_indices = model.prune_intermediate_layers(out_indices, prune_norm=True)
        self.feature_info = FeatureInfo([model.feature_info[i] for i in self.out_indices])
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps, finest first."""
        maps: list[Tensor] = self.model.forward_intermediates(images, self.out_indices, intermediates_only=True)
        return maps


def run(module: nn.Module, hidden_states: Tensor, is_checkpointed: bool) -> Tensor:
    """`module(hidden_states)`; checkpointed in training when asked, unless the module does so within itself."""
    if is_checkpointed and torch.is_grad_enabled() and not hasattr(module, "grad_checkpointing"):
        return cast("Tensor", checkpoint(module, hidden_states, use_reentrant=False))
    return cast("Tensor", module(hidden_states))


def draw_linear(module: nn.Module) -> None:
    """Truncated normal of 0.02 for the weights of a linear layer and zero for its bias; others as they are."""
    if isinstance(module, nn.Linear):
        draw_layer(module)


def draw_layer(module: nn.Module) -> None:
    """The same for the weights and biases of linear layers and of convolutions."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
