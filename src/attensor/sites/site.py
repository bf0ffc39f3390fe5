"""One attention of a model: what every adapter answers, and how a layer takes its place and leaves it again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from attensor.nn import Heads
from attensor.sites.weights import AttentionWeights, write

__all__ = ["AttentionSite", "Call"]

_KEPT = "_attensor_replaced"  # in the dictionary of what replaces: neither moved, saved nor trained with the model


@dataclass
class Call:
    """What a module was called with.

    Attributes:
        hidden_states: [B, T, C], the residual stream as the attention receives it, after any norm before it.
        options: arguments by name.
    """

    hidden_states: Tensor
    options: Mapping[str, Any] = field(default_factory=dict)


class AttentionSite(ABC):
    """One attention of a model.

    Attributes:
        model: the whole model.
        name: path of the module in it, as in `model.named_modules()`.
        kind: library of the module: `"transformers"`, `"timm"`, `"torch"` or `"attensor"`.
    """

    kind: ClassVar[str]
    slot: ClassVar[str] = ""  # path, from the module, of what a layer stands in for

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model, self.name = model, name

    @classmethod
    @abstractmethod
    def fits(cls, model: nn.Module, module: nn.Module) -> bool:
        """Whether a module is an attention of this kind, in its own shape or replaced."""

    @property
    def module(self) -> nn.Module:
        """What stands in the model now."""
        return self.model.get_submodule(self.name)

    @property
    def path(self) -> str:
        """Path of what a layer replaces."""
        return _join(self.name, self.slot)

    @property
    def is_replaced(self) -> bool:
        """Whether a layer stands in for the original."""
        return _KEPT in vars(self.model.get_submodule(self.path))

    @property
    def layer(self) -> nn.Module | None:
        """The layer that stands in for the original; None while that is there."""
        held = self.model.get_submodule(self.path)
        return cast("nn.Module", getattr(held, "layer", held)) if self.is_replaced else None

    @property
    def original(self) -> nn.Module:
        """The module of the library, also while a layer stands in for it (with the weights that it had)."""
        return self._original(self.slot)

    def weights(self) -> AttentionWeights:
        """The projections, as they compute now; they share the model's memory.

        Raises:
            ValueError: the attention has parts that projections do not say, such as norms of queries; or a layer stands
                there that has no `to_attention`.
        """
        layer = self.layer
        if layer is None:
            return self._read()
        back: Any = getattr(layer, "to_attention", None)
        if back is None:
            raise ValueError(f"{self.name}: {type(layer).__name__} has no to_attention; restore the original first.")
        return cast("AttentionWeights", back())

    def replace(self, layer: nn.Module) -> None:
        """Let a layer of attensor do the attention; what the module was is kept aside until `restore`.

        Raises:
            ValueError: a layer that cannot be called here.
        """
        parts = self._parts(layer)
        if self.is_replaced:
            self.restore()
        kept = {path: self.model.get_submodule(_join(self.name, path)) for path in parts}
        for path, part in parts.items():
            part.train(kept[path].training)
            self._put(path, part)
        vars(parts[self.slot])[_KEPT] = kept

    def stand_in(self, layer: nn.Module) -> nn.Module:
        """A module that is called as the original at `path`, and lets the layer do it; the model stays as it is."""
        return self._parts(layer)[self.slot]

    def restore(self, weights: AttentionWeights | None = None) -> None:
        """Put the original back, bit for bit, on the device and in the dtype that it had.

        Args:
            weights: projections that it shall have from now on; its own if None.
        Raises:
            ValueError, ShapeError: weights that the original has no place for; nothing is changed then.
        """
        held = self.model.get_submodule(self.path)
        kept: dict[str, nn.Module] | None = vars(held).get(_KEPT)
        if kept is None:
            return
        if weights is not None:
            write(self.name, self._read(), weights)
        for path, part in kept.items():
            part.train(held.training)
            self._put(path, part)

    @abstractmethod
    def _read(self) -> AttentionWeights:
        """Projections of the original, views of its parameters."""

    @abstractmethod
    def _parts(self, layer: nn.Module) -> dict[str, nn.Module]:
        """What stands where while the layer is there, by path from the module; `slot` is among them."""

    @abstractmethod
    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Sort the arguments of the module."""

    @abstractmethod
    def heads(self, call: Call) -> Heads:
        """Queries, keys and values [B, T, heads, width] of a call as scores are made of them, projected once more."""

    @abstractmethod
    def scores(self, call: Call) -> tuple[float, Tensor | None, bool]:
        """Scale of the scores, mask [B or 1, 1, Tq, Tk] (bool or added) or None, and whether the future is hidden."""

    @property
    def has_map(self) -> bool:
        """Whether outputs are averages of values, whose weights `attention_map` gives."""
        return True

    def attention_map(self, call: Call, heads: Heads) -> Tensor:
        """Weights [B, H, Tq, Tk] of a call and its heads; zeros in rows that see nothing.

        Raises:
            ValueError: there is no such map.
        """
        return _softmax_map(heads.q, heads.k, *self.scores(call))

    @property
    @abstractmethod
    def projection(self) -> nn.Module | None:
        """The module of the output projection; None where it is no module that is called."""

    def _original(self, path: str) -> nn.Module:
        kept = vars(self.model.get_submodule(self.path)).get(_KEPT, {})
        return cast("nn.Module", kept.get(path) or self.model.get_submodule(_join(self.name, path)))

    def _put(self, path: str, part: nn.Module) -> None:
        parent, _, child = _join(self.name, path).rpartition(".")
        setattr(self.model.get_submodule(parent), child, part)

    def __repr__(self) -> str:
        layer = self.layer
        return f"{type(self).__name__}({self.name!r}, {type(self.original if layer is None else layer).__name__})"

    @classmethod
    def at(cls, model: nn.Module, name: str) -> Self:
        """The site of a module by its path."""
        return cls(model, name)


def _join(*paths: str) -> str:
    return ".".join(path for path in paths if path)


def _softmax_map(q: Tensor, k: Tensor, scale: float, mask: Tensor | None, is_causal: bool) -> Tensor:
    """[B, H, Tq, Tk]."""
    k = k.repeat_interleave(q.shape[2] // k.shape[2], 2)
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("bihc,bjhc->bhij", q.to(wide), k.to(wide)) * scale
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights: Tensor = scores.softmax(-1).nan_to_num(0.0)
    return weights.to(q.dtype)
