"""The end of a comparison that is not whole."""

from __future__ import annotations

from pathlib import Path

__all__ = ["Ended"]

INTERRUPTED = 130
ALL_FAILED = 1


class Ended(SystemExit):
    """A comparison was stopped, or no mechanism could be trained; the status is for the shell.

    Attributes:
        folder: of the run.
        is_interrupted: by the user; else no mechanism could be trained.
    """

    def __init__(self, folder: Path, *, is_interrupted: bool) -> None:
        super().__init__(INTERRUPTED if is_interrupted else ALL_FAILED)
        self.folder = folder
        self.is_interrupted = is_interrupted
