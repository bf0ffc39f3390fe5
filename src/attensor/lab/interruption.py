"""Ctrl-C while processes work: the first lets them finish what they are at, the second ends everything."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interruption", "interrupts_blocked"]

# `timeout` and some shells signal a process and then its group, which is one request
_SAME_REQUEST_SECONDS = 0.5


class Interruption:
    """Ctrl-C, SIGTERM and a closed terminal inside the block: the first asks for a stop, the second ends at once.

    A signal that is ignored already stays so: under nohup, or after `&` in a script, Ctrl-C means another job.
    """

    def __init__(self) -> None:
        self.requested = False
        self._second_from = 0.0
        self.processes: list[subprocess.Popen[bytes]] = []

    @contextmanager
    def listening(self) -> Iterator[Interruption]:
        """Handle the signals until the block ends; outside of the main thread, which alone may, leave them."""
        may = threading.current_thread() is threading.main_thread()
        asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if may else ()
        before = {s: signal.signal(s, self._on_signal) for s in asked if signal.getsignal(s) is not signal.SIG_IGN}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if time.monotonic() < self._second_from:
                return
            for process in self.processes:
                process.kill()
            raise KeyboardInterrupt
        self.requested = True
        self._second_from = time.monotonic() + _SAME_REQUEST_SECONDS
        for process in self.processes:
            process.terminate()


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """While a process is started: it inherits what is blocked, so that Ctrl-C reaches it through us alone."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
