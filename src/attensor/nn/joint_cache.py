"""Several caches that are one: of a layer with a recurrent state and a window, or of a stack of layers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from attensor.errors import ShapeError
from attensor.nn.cache import Cache
from attensor.ops._checks import checked

__all__ = ["JointCache"]


class JointCache(Cache):
    """Several caches of one layer, which see the same tokens.

    Args:
        parts: by name; changed through this cache or by what the layer hands them to.
    """

    def __init__(self, **parts: Cache) -> None:
        for name, part in parts.items():
            if not isinstance(part, Cache):
                raise TypeError(f"JointCache: {name} must be a Cache, got {type(part).__name__}; see layer.new_cache.")
        self.parts = parts
        self.can_crop = all(part.can_crop for part in parts.values())

    @property
    def length(self) -> int:
        """Tokens seen so far.

        Raises:
            ShapeError: the parts have not seen the same number.
        """
        lengths = {name: part.length for name, part in self.parts.items()}
        if len(set(lengths.values())) != 1:
            raise ShapeError(
                f"JointCache: parts must have seen the same tokens, got {lengths}; add them to every part."
            )
        return next(iter(lengths.values()))

    @length.setter
    def length(self, length: int) -> None:
        for part in self.parts.values():
            part.length = length

    @property
    def nbytes(self) -> int:
        """Bytes of what the next token needs, of all parts."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def first(self) -> Tensor:
        """[B], int64: how many tokens of padding each row begins with."""
        return next(iter(self.parts.values())).first

    @first.setter
    def first(self, first: Tensor) -> None:
        for part in self.parts.values():
            part.first = first

    def real(self, start: int, end: int) -> Tensor | None:
        """Which tokens from place `start` to `end` are not padding, see `Cache.real`."""
        return next(iter(self.parts.values())).real(start, end)

    @checked
    def make_static(self, max_length: int) -> None:
        """Make every part static, see `Cache.make_static`.

        Raises:
            ValueError: fewer than are held, or than one.
        """
        for part in self.parts.values():
            part.in_any_order = self.in_any_order
            part.make_static(max_length)
        self.max_length = max_length

    def check_crop(self, length: int) -> None:
        """Refuse what any part refuses.

        Raises:
            ValueError: see `Cache.crop`.
        """
        for part in self.parts.values():
            part.check_crop(length)

    def _crop(self, length: int) -> None:
        for part in self.parts.values():
            part.crop(length)

    def _make_room(self, max_length: int, held: Mapping[str, Tensor]) -> None:
        """Nothing: the parts do."""

    def _memory(self) -> list[Tensor]:
        return [tensor for part in self.parts.values() for tensor in part._memory()]

    def _check_room(self, length: int) -> None:
        for part in self.parts.values():
            part._check_room(length)

    def _tensors(self) -> dict[str, Tensor]:
        return {f"{name}.{n}": t for name, part in self.parts.items() for n, t in part._tensors().items()}

    def _sizes(self, name: str, length: int) -> list[int]:
        part, _, tensor = name.partition(".")
        return self.parts[part]._sizes(tensor, length)

    def _replace(self, held: Mapping[str, Tensor]) -> None:
        for name, part in self.parts.items():
            part._replace({tensor: held[f"{name}.{tensor}"] for tensor in part._tensors()})
