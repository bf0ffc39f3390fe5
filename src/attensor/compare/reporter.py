"""What a worker says while it works, and how it is asked to stop."""

from __future__ import annotations

import json
import os
import signal
import time
from types import FrameType
from typing import Any

__all__ = ["Reporter"]

_EVENT_SECONDS = 0.25


class Reporter:
    """One line of JSON an event on a pipe of its own; SIGTERM means: write a checkpoint and end.

    Args:
        descriptor: where the lines go.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._last = 0.0
        self.stop = False

    @classmethod
    def take_stdout(cls) -> Reporter:
        """Keep the standard output for events; what anyone else prints goes to the standard error, the log."""
        descriptor = os.dup(1)
        os.dup2(2, 1)
        reporter = cls(descriptor)
        signal.signal(signal.SIGTERM, reporter._asked_to_stop)
        return reporter

    def event(self, **facts: Any) -> None:
        """Send an event.

        Raises:
            BrokenPipeError: whoever started this worker is gone.
        """
        os.write(self._descriptor, (json.dumps(facts) + "\n").encode())

    def progress(self, **facts: Any) -> None:
        """Send an event if the last one is long enough ago."""
        now = time.monotonic()
        if now - self._last >= _EVENT_SECONDS:
            self._last = now
            self.event(**facts)

    def _asked_to_stop(self, signal_number: int, frame: FrameType | None) -> None:
        self.stop = True
