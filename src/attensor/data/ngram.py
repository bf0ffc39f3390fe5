r"""Back-off n-grams over bytes: how often each byte followed the few before it, made smooth.

    p_n(b | h) = max(c(h b) - D, 0) / c(h) + rest(h) p_{n-1}(b | h without its first byte),     p_0 = 1 / 256

c counts in the longest context; below it, the number of different bytes that stood before. D is one of three discounts,
for counts of 1, 2 and more, from the counts of counts; rest(h) is what they took. A context that was never seen leaves
everything to the next shorter one.

Text is cut into folds. For each of them there is a second set of probabilities, exactly those of the text without it,
so that a model can be trained on the text that was counted.

Sizes: F folds and, as the last of them, all of the text; G different n-grams; C different contexts.
Source: Chen and Goodman, "An empirical study of smoothing techniques for language modeling" (1999), section 3
(modified Kneser-Ney, interpolated). Of Python's standard library, with 1 to 5 bytes, it needs 4.51, 3.43, 2.60, 2.07
and 1.87 bits a byte; the same counts after Witten and Bell need 4.51, 3.43, 2.59, 2.08 and 1.92.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attensor.files import atomic_path

__all__ = ["NGram", "NGramCounts"]

# bits of a key that hold the fold; the n bytes lie above them
_FOLD_BITS = 3
_MOST_FOLDS = 2**_FOLD_BITS
_MOST_BYTES = 7
# bytes that are counted at once: about 200 MB of memory
_AT_ONCE = 4_000_000
_LEAST_DISCOUNT = 0.1


@dataclass(frozen=True)
class _Level:
    """All n-grams of one n.

    Attributes:
        contexts: int64 [C], ascending, the earliest byte in the highest place.
        first: int64 [C + 1]: where the bytes that follow each context begin.
        symbols: uint8 [G]: these bytes, ascending.
        own: float32 [F + 1, G]: the first term of p_n; 0 for what stands in that fold only.
        rest: float32 [F + 1, C]: the weight of p_{n-1}.
    """

    contexts: Tensor
    first: Tensor
    symbols: Tensor
    own: Tensor
    rest: Tensor


class _Part(NamedTuple):
    """Text of one fold; `is_beginning` unless it continues the part before it."""

    text: bytes
    fold: int
    is_beginning: bool


class NGramCounts:
    """How often each sequence of 1 to `order` bytes stands in a text, for each fold.

    Args:
        text: stretches with the fold of each; no sequence runs from one into the next.
        order: longest sequence, 1 to 7.
        folds: 1 to 8.
    Raises:
        ValueError: an order or a number of folds beyond these.
    Cost: a second for 8 MB on one core (one sort of the text, the rest of what differs); memory 300 MB, and while it is
        made smooth 300 bytes for each different sequence.
    """

    def __init__(self, text: Iterable[tuple[bytes, int]], *, order: int, folds: int) -> None:
        if not (1 <= order <= _MOST_BYTES and 1 <= folds <= _MOST_FOLDS):
            raise ValueError(
                f"NGramCounts: order must be 1 to {_MOST_BYTES} and folds 1 to {_MOST_FOLDS}, got {order} and {folds}."
            )
        self.order, self.folds = order, folds
        empty = torch.empty(0, dtype=torch.int64)
        keys, counts = empty, empty
        # sequences at the beginning of a stretch have no longer one that ends with them
        beginnings: list[list[int]] = [[] for _ in range(order + 1)]
        for block in _blocks(text, order):
            for part in block:
                for length in range(1, min(order, len(part.text) + 1)) if part.is_beginning else ():
                    beginnings[length].append(int.from_bytes(part.text[:length], "big") << _FOLD_BITS | part.fold)
            new, new_counts = torch.unique_consecutive(_keys(block, order).sort().values, return_counts=True)
            keys, counts = _summed(torch.cat([keys, new]), torch.cat([counts, new_counts]))
        self._levels = [(keys, counts)]
        self._beginnings = [torch.tensor(found, dtype=torch.int64) for found in beginnings]
        for length in range(order - 1, 0, -1):
            own = self._beginnings[length]
            keys = torch.cat([keys & ((1 << 8 * length + _FOLD_BITS) - 1), own])
            keys, counts = _summed(keys, torch.cat([counts, torch.ones_like(own)]))
            self._levels.insert(0, (keys, counts))

    def smoothed(self, order: int | None = None) -> NGram:
        """The n-gram of `order` bytes, by default of as many as were counted."""
        order = self.order if order is None else order
        levels: list[_Level] = []
        longer: tuple[Tensor, Tensor] | None = None
        for length in range(order, 0, -1):
            grams, counts = self._without_each_fold(*self._levels[length - 1])
            if longer is not None:
                # a beginning counts as one more byte that stood before
                keys = torch.unique(self._beginnings[length])
                starts = self._without_each_fold(keys, torch.ones_like(keys))
                counts = _different_before(grams, longer, starts, length)
            longer = grams, counts
            levels.insert(0, _level(grams, counts))
        return NGram(levels)

    def _without_each_fold(self, keys: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Different sequences [G], and their counts without each fold, and in all: [F + 1, G]."""
        grams, index = torch.unique_consecutive(keys >> _FOLD_BITS, return_inverse=True)
        found = torch.zeros(self.folds + 1, len(grams), dtype=torch.int64)
        found[keys & (_MOST_FOLDS - 1), index] = counts
        total = found.sum(0)
        found = total - found
        return grams, found


class NGram:
    """Probabilities of the next byte after those before it in a window.

    Tensors are on the CPU, or where `to` has brought them; nothing here has a gradient.
    """

    def __init__(self, levels: list[_Level]) -> None:
        self._levels = levels
        # after one byte: all 256 x 256 at once
        width = 256 if len(levels) > 1 else 1
        before = torch.arange(width, device=levels[0].contexts.device)[:, None]
        columns = range(len(levels[0].rest))
        self._short = torch.stack([self._interpolated(before, torch.full_like(before, c), 0) for c in columns])

    @property
    def order(self) -> int:
        """The longest sequence, in bytes."""
        return len(self._levels)

    def log_probabilities(self, before: Tensor, folds: Tensor | int | None = None) -> Tensor:
        """Logarithms of the probability of every byte after each byte of a window and those before that.

        Args:
            before: int64 [B, T], windows of bytes.
            folds: whose text is left out: that of each byte that is predicted, int64 [B, T], or one for all; None
                takes all of the text.
        Returns:
            float32 [B, T, 256], in nats.
        """
        if not isinstance(folds, Tensor):
            folds = torch.full_like(before, len(self._short) - 1 if folds is None else folds)
        return self._interpolated(before, folds, 2).log_().view(*before.shape, 256)

    def to(self, device: str | torch.device) -> NGram:
        """The same on another device."""
        return NGram([_Level(*(getattr(level, f.name).to(device) for f in fields(_Level))) for level in self._levels])

    def save(self, path: Path) -> None:
        """Write a safetensors file, atomically."""
        tensors = {
            f"{i}.{f.name}": getattr(level, f.name) for i, level in enumerate(self._levels) for f in fields(_Level)
        }
        with atomic_path(path) as temporary:
            save_file(tensors, temporary)

    @classmethod
    def load(cls, path: Path) -> NGram:
        """Read what `save` wrote; its tensors stay on the disk until they are used."""
        tensors = load_file(path)
        order = len({name.partition(".")[0] for name in tensors})
        return cls([_Level(*(tensors[f"{i}.{f.name}"] for f in fields(_Level))) for i in range(order)])

    def _interpolated(self, before: Tensor, columns: Tensor, shortest: int) -> Tensor:
        """Probabilities [B T, 256] after windows [B, T] by levels from `shortest` on, below it from the table."""
        columns = columns.flatten()
        if shortest:
            last = before.flatten() if len(self._levels) > 1 else torch.zeros_like(columns)
            found = self._short.view(-1, 256).index_select(0, columns * self._short.shape[1] + last)
        else:
            found = torch.full((before.numel(), 256), 1 / 256, device=before.device)
        context = torch.zeros_like(before)
        for length, level in enumerate(self._levels if shortest else self._levels[:2]):
            if length:
                context = context + (_shifted(before, length - 1) << 8 * (length - 1))
            if length >= shortest and before.shape[1] >= length:
                _add(found.view(*before.shape, 256), context, columns.view_as(before), level, length)
        return found


def _add(found: Tensor, context: Tensor, columns: Tensor, level: _Level, length: int) -> None:
    """One step of the formula, in place, for [B, T, 256] and contexts [B, T] of `length` bytes."""
    place = torch.searchsorted(level.contexts, context).clamp_(max=len(level.contexts) - 1)
    is_known = level.contexts[place] == context
    is_known[:, : max(length - 1, 0)] = False
    found *= torch.where(is_known, level.rest[columns, place], 1.0)[..., None]
    row = is_known.flatten().nonzero().squeeze(1)
    place, column = place.flatten()[row], columns.flatten()[row]
    start = level.first[place]
    count = level.first[place + 1] - start
    which = torch.arange(len(row), device=row.device).repeat_interleave(count)
    entry = torch.arange(len(which), device=row.device) + (start - count.cumsum(0) + count)[which]
    target = row[which] * 256 + level.symbols[entry]
    own = level.own.view(-1).index_select(0, (column * len(level.symbols))[which] + entry)
    found.view(-1).index_add_(0, target, own)


def _shifted(before: Tensor, by: int) -> Tensor:
    """[B, T], each byte `by` places later; zeros come in."""
    return torch.nn.functional.pad(before[:, : before.shape[1] - by], (by, 0)) if by < before.shape[1] else 0 * before


def _blocks(text: Iterable[tuple[bytes, int]], order: int) -> Iterator[list[_Part]]:
    """Stretches, long ones cut, in groups of about `_AT_ONCE` bytes."""
    block: list[_Part] = []
    held = 0
    for stretch, fold in text:
        for start in range(0, len(stretch), _AT_ONCE):
            # a part begins with the end of the one before it, where its first sequences begin
            part = stretch[max(0, start - order + 1) : start + _AT_ONCE]
            block.append(_Part(part, fold, start == 0))
            held += len(part)
            if held >= _AT_ONCE:
                yield block
                block, held = [], 0
    if block:
        yield block


def _keys(block: list[_Part], order: int) -> Tensor:
    """Each sequence of `order` bytes inside one part, as a number with its fold."""
    symbols = torch.frombuffer(bytearray().join(part.text for part in block), dtype=torch.uint8).long()
    sizes = torch.tensor([len(part.text) for part in block])
    of_part = torch.arange(len(block)).repeat_interleave(sizes)
    key = symbols << _FOLD_BITS
    for earlier in range(1, order):
        key[earlier:] += symbols[: len(symbols) - earlier] << 8 * earlier + _FOLD_BITS
    key += torch.tensor([part.fold for part in block])[of_part]
    return key[torch.arange(len(symbols)) - (sizes.cumsum(0) - sizes)[of_part] >= order - 1]


def _summed(keys: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Different keys, ascending, and the sum of the counts of each."""
    keys, order = keys.sort()
    found, index = torch.unique_consecutive(keys, return_inverse=True)
    return found, torch.zeros_like(found).index_add_(0, index, counts[order])


def _level(grams: Tensor, counts: Tensor) -> _Level:
    """Discounted counts [F + 1, G] of sequences [G], divided by those of their contexts."""
    contexts, index, sizes = torch.unique_consecutive(grams >> 8, return_inverse=True, return_counts=True)
    discounts = torch.stack([_discounts(column) for column in counts])
    taken = discounts.gather(1, counts.clamp(max=3))
    sums = [torch.zeros(len(counts), len(contexts), dtype=torch.float64) for _ in range(2)]
    total, rest = (sums[i].index_add_(1, index, values) for i, values in enumerate((counts.double(), taken)))
    own = (counts - taken) / total[:, index].clamp(min=1)
    rest = torch.where(total > 0, rest / total.clamp(min=1), 1.0)
    first = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    return _Level(contexts, first, (grams & 255).byte(), own.float(), rest.float())


def _discounts(counts: Tensor) -> Tensor:
    """What is taken from counts of 0, 1, 2 and more: float64 [4]."""
    one, two, three, four = counts.clamp(max=5).bincount(minlength=6)[1:5].tolist()
    if not (one and two and three):
        return torch.tensor([0.0, 0.5, 0.5, 0.5], dtype=torch.float64)
    ratio = one / (one + 2 * two)
    found = [i - (i + 1) * ratio * above / of for i, of, above in ((1, one, two), (2, two, three), (3, three, four))]
    # of unusual texts the estimates may be negative; something must be left for what was not seen
    return torch.tensor([0.0, *(max(_LEAST_DISCOUNT, discount) for discount in found)], dtype=torch.float64)


def _different_before(
    grams: Tensor, longer: tuple[Tensor, Tensor], starts: tuple[Tensor, Tensor], length: int
) -> Tensor:
    """How many different bytes stood before each sequence [G] of `length` bytes: [F + 1, G]."""
    found = torch.zeros(len(longer[1]), len(grams), dtype=torch.int64)
    for others, counts in (longer, starts):
        index = torch.searchsorted(grams, others & ((1 << 8 * length) - 1))
        found.index_add_(1, index, (counts > 0).long())
    return found
