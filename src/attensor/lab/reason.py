"""Why a cell failed, in one line."""

from __future__ import annotations

import signal
import traceback
from pathlib import Path

import torch

from attensor.errors import BackendError, DataError, Diverged, LawError, plain

__all__ = ["death", "is_out_of_memory", "reason"]

_LOG_LINES = 3


def reason(error: BaseException) -> str:
    """The error's first line; where it was raised too, unless it was written for the user."""
    first_line = plain(str(error).strip().partition("\n")[0])
    if is_out_of_memory(error):
        return f"out of memory: {first_line}"
    if isinstance(error, LawError | DataError | BackendError | Diverged):
        return first_line
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"({plain(Path(frame.filename).name)}, line {frame.lineno})"
    if isinstance(error, SystemExit):
        return f"the code ended the process by sys.exit({first_line}) {place}"
    return " ".join(
        filter(None, [f"{type(error).__name__}:" if first_line else type(error).__name__, first_line, place])
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; PyTorch's CPU allocator raises a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and ("allocate memory" in str(error) or "not enough memory" in str(error))


def death(status: int, log: Path | None) -> str:
    """How a process ended that gave no answer, with the last lines of its log."""
    if status == -signal.SIGKILL:
        return "the process was killed by the system, most likely because memory ran out"
    lines = [] if log is None else [x for x in log.read_text(errors="replace").splitlines() if x.strip(" ^~")]
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    said = " | ".join(plain(line.strip()) for line in lines[-_LOG_LINES:])
    return ": ".join(filter(None, [f"the process ended with {how}", said]))
