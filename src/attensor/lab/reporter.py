"""What a cell says while it is computed, and how it is asked to stop."""

from __future__ import annotations

import json
import os
import signal
import time
from types import FrameType
from typing import Any, ClassVar

__all__ = ["ANSWERS", "Reporter"]

# the environment variable that tells a pool's process on which descriptor it answers
ANSWERS = "ATTENSOR_ANSWERS"
_EVENT_SECONDS = 0.25


class Reporter:
    """One line of JSON an event on a pipe of its own; SIGTERM means: keep what there is and end.

    Args:
        descriptor: where the lines go; None keeps silent.
    """

    _of_this_process: ClassVar[Reporter | None] = None

    def __init__(self, descriptor: int | None = None) -> None:
        self._descriptor = descriptor
        self._last = 0.0
        self.stop = False

    @classmethod
    def take_pipe(cls) -> Reporter:
        """Answer on the pipe that whoever started this process listens to; what it starts itself does not get it."""
        descriptor = int(os.environ.pop(ANSWERS))
        os.set_inheritable(descriptor, False)
        cls._of_this_process = cls(descriptor)
        return cls._of_this_process

    @classmethod
    def current(cls) -> Reporter:
        """That of the cell under way, for a cell that looks at `stop`; a silent one outside of a pool's process.

        A cell that never asks for it is ended by SIGTERM at once.
        """
        reporter = cls._of_this_process
        if reporter is None:
            return cls()
        signal.signal(signal.SIGTERM, reporter._asked_to_stop)
        return reporter

    def event(self, **facts: Any) -> None:
        """Send an event.

        Raises:
            BrokenPipeError: whoever started this process is gone.
        """
        self.send({"event": facts})

    def progress(self, **facts: Any) -> None:
        """Send an event if the last one is long enough ago."""
        now = time.monotonic()
        if now - self._last >= _EVENT_SECONDS:
            self._last = now
            self.event(**facts)

    def send(self, message: dict[str, Any]) -> None:
        """Write one line, which may be longer than a pipe holds."""
        if self._descriptor is None:
            return
        # on a line of its own, whatever somebody else may have written there
        rest = f"\n{json.dumps(message, allow_nan=False)}\n".encode()
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def _asked_to_stop(self, signal_number: int, frame: FrameType | None) -> None:
        self.stop = True
