"""What all caches know: length, padding, rows, files, and how to be of fixed size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.nn._shapes import check_range
from attensor.ops._checks import check_integers, check_tensor, checked, is_readable

__all__ = ["Cache"]

_PLACE = ("length", "first")


class Cache(ABC):
    """The past of `batch_size` sequences that have the same length, padding at their beginning included.

    Attributes:
        can_crop: whether `crop` may go back to any earlier length.
        in_any_order: its layer reads what is held for one token in whatever order: a static cache need not sort it.
        max_length: room of a static cache; None of one that grows.
        fits: identity of the layer that it is known to fit; 0 if of none.
    """

    fits: int = 0
    can_crop: bool = True
    in_any_order: bool = False
    max_length: int | None = None
    _length: int = 0
    _seen: Tensor | None = None  # []: the length of a static cache, a number that no graph is specialised on
    _first: Tensor | None = None  # [B]; None as long as no row begins with padding
    _last_padded: int | None = 0  # the largest of `first`, known without asking the device; None until it is asked

    @property
    def length(self) -> int:
        """Tokens seen so far.

        A compiled graph must not hold the length of a static cache, which changes. Places are counted backwards there:
        the next token always has place `max_length`, and `first` moves down instead. Only differences count.
        """
        if self._seen is None or self.max_length is None:
            return self._length
        return self.max_length if torch.compiler.is_compiling() else int(self._seen)

    @length.setter
    def length(self, length: int) -> None:
        if self._seen is None:
            self._length = length
        else:
            self._seen.fill_(length)

    @property
    def is_static(self) -> bool:
        """Whether its size is fixed, see `make_static`."""
        return self.max_length is not None

    @property
    def first(self) -> Tensor:
        """[B], int64: how many tokens of padding each row begins with: its first real token's place."""
        if self._first is None:
            return self._any.new_zeros(self.batch_size, dtype=torch.int64)
        return self._first - self._behind()

    @first.setter
    def first(self, first: Tensor) -> None:
        check_tensor(name := type(self).__name__, "first", first)
        check_integers(name, "first", first, first)
        if first.is_meta and not self._any.is_meta:
            raise ValueError(f"{name}: first must hold numbers, got a meta tensor; use one on {self.device}.")
        if first.shape != (self.batch_size,):
            raise ShapeError(f"{name}: first must be [B] = [{self.batch_size}], got {list(first.shape)}.")
        self._first = first.to(device=self._any.device, dtype=torch.int64) + self._behind()
        self._last_padded = None
        self._learn_padding()

    @property
    def batch_size(self) -> int:
        """Rows."""
        return self._any.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the contents live."""
        return self._any.device

    def is_like(self, other: Cache) -> bool:
        """Whether both are of one kind, with the same names and sizes but for rows and tokens."""
        if type(self) is not type(other) or self._tensors().keys() != other._tensors().keys():
            return False
        most = 2**62  # tokens, so that a window shows
        return all(self._sizes(name, most) == other._sizes(name, most) for name in self._tensors())

    @property
    def nbytes(self) -> int:
        """Bytes of what the next token needs (room reserved for later tokens is not counted)."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def real(self, start: int, end: int) -> Tensor | None:
        """Which tokens from place `start` to `end` are not padding: [B, end - start], bool; None if all are.

        In a compiled graph that was told of padding the tensor is returned even where all are: nothing can be asked.
        """
        self._learn_padding()
        if self._first is None or (self._last_padded is not None and start >= self._last_padded):
            return None
        return torch.arange(start, end, device=self._first.device) >= self.first[:, None]

    def sizes(self, length: int) -> dict[str, list[int]]:
        """Name -> size of each tensor of the contents after so many tokens, without the batch."""
        return {name: self._sizes(name, length) for name in self._tensors()}

    def state_dict(self) -> dict[str, Tensor]:
        """The contents as contiguous tensors, `length` and `first` included, ready for safetensors."""
        # copies: the cache goes on writing into its own memory
        held = {n: t.detach().clone(memory_format=torch.contiguous_format) for n, t in self._tensors().items()}
        return {"length": torch.tensor(self.length), "first": self.first.clone(), **held}

    @checked
    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take over contents exported by `state_dict` of a cache of the same layer; the batch size may differ.

        Raises:
            ShapeError: names or sizes are not those of this cache, or the tensors disagree with each other.
        """
        expected = self._tensors()
        names = {*_PLACE, *expected}
        if set(state_dict) != names:
            raise ShapeError(f"{type(self).__name__}: state_dict must hold {sorted(names)}, got {sorted(state_dict)}.")
        length, held = int(state_dict["length"]), {name: state_dict[name].clone() for name in expected}
        for name, tensor in held.items():
            fixed = [len(state_dict["first"]), *self._sizes(name, length)]
            if list(tensor.shape) != fixed:
                raise ShapeError(
                    f"{type(self).__name__}: {name} must be {fixed} after {length} tokens, got {list(tensor.shape)}; "
                    "was it exported by another layer?"
                )
        self._check_room(length)
        self.length = length
        self._replace(held)
        self.first = state_dict["first"]

    @checked
    def reorder(self, index: Tensor) -> None:
        """Row i becomes what row `index[i]` was; rows may repeat or vanish (beam search).

        Args:
            index: [new batch size], integers.
        Raises:
            ShapeError, TypeError, ValueError: another rank, no integers, rows that are not there (seen on a CPU).
        """
        check_integers(name := f"{type(self).__name__}.reorder", "index", index, index)
        if index.is_meta and not self._any.is_meta:
            raise ValueError(f"{name}: index must hold numbers, got a meta tensor; use one on {self.device}.")
        if index.ndim != 1:
            raise ShapeError(f"{name}: index must be [new batch size], got {list(index.shape)}.")
        if is_readable(index):
            check_range(name, 0, self.batch_size, index=tuple(index.tolist()))
        first = None if self.real(0, 1) is None else self.first
        self._replace({n: t.index_select(0, index.to(t.device)) for n, t in self._tensors().items()})
        if first is not None:
            self.first = first[index.to(first.device)]

    @checked
    def crop(self, length: int) -> None:
        """Forget everything after the first `length` tokens.

        Raises:
            ValueError: longer than the contents, or the contents no longer allow it; nothing is forgotten then.
        """
        self.check_crop(length)
        self._crop(length)
        self.length = length
        if self.real(0, 1) is not None:
            self.first = self.first.clamp(max=length)

    @checked
    def check_crop(self, length: int) -> None:
        """Refuse what `crop` refuses, and change nothing.

        Raises:
            ValueError: see `crop`.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"{type(self).__name__}.crop: length must be in [0, {self.length}], got {length}.")

    @checked
    def make_static(self, max_length: int) -> None:
        """From now on hold room for `max_length` tokens and write into it: a compiled step is one graph at any length.

            layer(prompt, cache=cache)
            cache.make_static(max_length=1024)
            step = torch.compile(layer, fullgraph=True, dynamic=False)
            step(next_token, cache=cache)                           # compiled once for all steps

        What is held stays; do it after the prompt, which is then read at the cost of its own length. A static cache is
        for inference, and one of all tokens ends at `max_length`; windows and states go on. A static one can be given
        another room in the same way.

        Args:
            max_length: tokens in all, padding and those held already included.
        Raises:
            ValueError: fewer than are held, or than one.
        """
        held, first, length = self._tensors(), self.first, self.length
        if max_length < max(length, 1):
            raise ValueError(
                f"{type(self).__name__}.make_static: max_length must be at least {max(length, 1)}, the tokens that are "
                f"held, got {max_length}; count the prompt and what shall follow it."
            )
        self.max_length, self._seen = max_length, torch.tensor(length, device=self.device)
        self._first, self._last_padded = first.clone(), None
        self._make_room(max_length, held)
        fixed = (self._seen, *self._memory()) if self.device.type == "cuda" else ()
        for tensor in fixed:  # graphs of CUDA write into them where they are
            torch._dynamo.mark_static_address(tensor)

    def _behind(self) -> Tensor | int:
        """By how much places of a compiled graph are ahead of the true ones, taken from them: see `length`."""
        if self._seen is None or self.max_length is None or not torch.compiler.is_compiling():
            return 0
        return self._seen - self.max_length

    def _advance(self, tokens: int) -> None:
        """So many more tokens have been seen."""
        if self._seen is None:
            self._length += tokens
        else:
            self._seen.add_(tokens)

    @abstractmethod
    def _check_room(self, length: int) -> None:
        """Refuse a length that a static cache of all tokens has no room for."""

    def _check_inference(self, **new: Tensor) -> None:
        """Refuse to write what gradients are recorded of over what they need."""
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in new.values()):
            raise ValueError(
                f"{type(self).__name__}: a static cache is written in place, which gradients cannot follow; use "
                "torch.no_grad(), or a cache without make_static() for training."
            )

    def _learn_padding(self) -> None:
        """Look once how far padding reaches: outside of compiled graphs, which would have to stop for it.

        A static cache always tells what is real, as its room is not filled.
        """
        if self._first is None or self._last_padded is not None or torch.compiler.is_compiling() or self.is_static:
            return
        self._last_padded = int(self._first.max()) if self._first.numel() else 0
        if not self._last_padded:
            self._first = None

    @property
    def _any(self) -> Tensor:
        return next(iter(self._tensors().values()))

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """What is held, by name; the batch is the first dimension."""

    @abstractmethod
    def _sizes(self, name: str, length: int) -> list[int]:
        """Sizes that a tensor has after so many tokens, without the batch."""

    @abstractmethod
    def _replace(self, held: Mapping[str, Tensor]) -> None:
        """Hold these tensors instead."""

    @abstractmethod
    def _crop(self, length: int) -> None:
        """Forget; `check_crop` has allowed it."""

    @abstractmethod
    def _make_room(self, max_length: int, held: Mapping[str, Tensor]) -> None:
        """Hold these tensors in memory of constant size."""

    @abstractmethod
    def _memory(self) -> list[Tensor]:
        """That memory."""
