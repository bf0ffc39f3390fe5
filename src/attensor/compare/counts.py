"""The counts of a run's training text, which its models correct: made once, kept in its folder."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from attensor.data import TextData
from attensor.data.ngram import NGram, NGramCounts
from attensor.files import DamagedFileError, locked

__all__ = ["COUNTS_FILE", "FOLDS", "counted", "counts_bytes", "load_counts", "stored_counts"]

COUNTS_FILE = "counts.safetensors"
# bytes of an n-gram; with more, the counts say more and a model has less to add
ORDER = 5
FOLDS = 5
# of longer text, so many bytes are counted
_MOST_TEXT = 2**25


def counted(data: TextData) -> NGram:
    """The n-gram of the training side, which can leave out each of its folds."""
    folds = data.folds(FOLDS)
    return NGramCounts(data.train_text(folds, limit=_MOST_TEXT), order=ORDER, folds=FOLDS).smoothed()


def stored_counts(data: TextData, run: Path | None) -> NGram:
    """That of a run, from its folder; made and written first if it is not there. Without a folder, made.

    Raises:
        DamagedFileError: the file holds something else.
    """
    if run is None:
        return counted(data)
    path = run / COUNTS_FILE
    with locked(run, wait=True, name=".counts"):
        if not path.exists():
            counted(data).save(path)
    return load_counts(run)


def load_counts(run: Path) -> NGram:
    """What a run has in its folder.

    Raises:
        DamagedFileError: the file is not there, or holds something else.
    """
    path = run / COUNTS_FILE
    try:
        return NGram.load(path)
    except (SafetensorError, OSError, KeyError) as error:
        raise DamagedFileError(path, str(error)) from error


def counts_bytes(train_bytes: int) -> int:
    """About what the file takes."""
    return 6 * min(train_bytes, _MOST_TEXT) + 2_000_000
