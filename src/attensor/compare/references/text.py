"""Text: n-grams, which see of the test what the models see, and compressors, which see more."""

from __future__ import annotations

import bz2
import importlib
import lzma
import math
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from attensor.compare.references.reference import Reference
from attensor.data import TextData
from attensor.data.ngram import NGram, NGramCounts

__all__ = ["text_references"]

# of the training text, for the counts and for the compressors that remember most
_MOST_TEXT = 2**25
_LZMA_TEXT = 2**24
_ZSTD_TEXT = 7 * 2**20
# the window of zlib, and a block of bz2
_ZLIB_TEXT = 2**15
_BZ2_BLOCK = 900_000
_LONGEST = 5
_ROWS_AT_ONCE = 64


def text_references(data: TextData, windows: Tensor) -> list[Reference]:
    """n-grams of 1 to 5 bytes, which see of the test what the models see, and compressors, which see more.

    Args:
        data: its training side is learned from.
        windows: int64 [windows, T + 1]: all but the first byte of each is predicted.
    Returns:
        Bits a byte.
    Cost: for 10 MB of training text about 15 s, most of it lzma's, and 0.5 GB; of more than 32 MiB, so many are taken.
    """
    folds = data.folds(1)
    stretches = list(data.train_text(folds, limit=_MOST_TEXT))
    counts = NGramCounts(stretches, order=_LONGEST, folds=1)
    rows = []
    for order in range(1, _LONGEST + 1):
        title = "bytes counted alone" if order == 1 else f"back-off n-gram of {order} bytes ({order - 1} of context)"
        name = "unigram" if order == 1 else f"{order}-gram"
        rows.append(Reference(name, title, _bits(counts.smoothed(order), windows)))
    train = b"".join(text for text, _ in stretches)
    test = bytes(windows[:, 1:].flatten().tolist())
    return rows + [compressor(train, test) for compressor in (_zlib, _bz2, _lzma, _zstd)]


def _bits(model: NGram, windows: Tensor) -> float:
    total = 0.0
    for part in torch.split(windows, _ROWS_AT_ONCE):
        scores = model.log_probabilities(part[:, :-1]).flatten(0, 1)
        total += float(functional.nll_loss(scores, part[:, 1:].flatten(), reduction="sum"))
    return total / (windows[:, 1:].numel() * math.log(2))


def _zlib(train: bytes, test: bytes) -> Reference:
    compressor = zlib.compressobj(9, zdict=train[-_ZLIB_TEXT:])
    size = len(compressor.compress(test)) + len(compressor.flush())
    return Reference("zlib", "zlib level 9, after 32 KB of the training text", 8 * size / len(test))


def _bz2(train: bytes, test: bytes) -> Reference:
    before = train[-max(1, _BZ2_BLOCK - len(test)) :]
    title = f"bz2 level 9, in one block with {_size(before)} of the training text"
    return Reference("bz2", title, _added(bz2.compress, before, test))


def _lzma(train: bytes, test: bytes) -> Reference:
    before = train[-_LZMA_TEXT:]
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2 * _LZMA_TEXT}]
    score = _added(lambda text: lzma.compress(text, lzma.FORMAT_RAW, filters=filters), before, test)
    return Reference("lzma", f"lzma preset 6, after {_size(before)} of the training text", score)


def _zstd(train: bytes, test: bytes) -> Reference:
    title = "zstd level 19"
    try:
        zstd: Any = importlib.import_module("compression.zstd")
    except ImportError:
        return Reference("zstd", title, None, "only Python 3.14 and later have it in the standard library")
    before = train[-_ZSTD_TEXT:]
    score = _added(lambda text: zstd.compress(text, level=19), before, test)
    return Reference("zstd", f"{title}, after {_size(before)} of the training text", score)


def _added(compress: Callable[[bytes], bytes], before: bytes, test: bytes) -> float:
    """Bits that a byte of the test adds to what comes before it."""
    return 8 * (len(compress(before + test)) - len(compress(before))) / len(test)


def _size(text: bytes) -> str:
    return f"{len(text) / 1e6:.1f} MB" if len(text) >= 1e5 else f"{len(text) / 1e3:.1f} KB"
