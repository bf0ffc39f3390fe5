"""`python -m attensor` is `attensor`.

Only what is certainly there already is imported before the current folder has left the path, and nothing of attensor
before Ctrl-C has a handler: torch takes a second to import, and its C++ code swallows a KeyboardInterrupt.
"""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Run the command line and return the exit code; Ctrl-C gives 130, at any moment."""
    from attensor.processes import without_current_folder

    sys.path[:] = without_current_folder(sys.path)

    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    from attensor.cli import main as command_line

    try:
        return command_line()
    finally:
        if signal.getsignal(signal.SIGINT) is _interrupted:  # all is done but the end of Python itself
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _interrupted(number: int, frame: object) -> None:
    """Leave at once until torch is there, since nothing has been written; then as usual."""
    torch = sys.modules.get("torch")
    if torch is None or getattr(torch.__spec__, "_initializing", False):
        os._exit(130)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
