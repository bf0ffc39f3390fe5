"""A process of a pool, `python -m attensor.lab.worker`: computes cells until its standard input ends.

A line of JSON asks for a cell: function, arguments, threads, kernels. The answer is a line with `result`, with `reason`
and `trace`, or with `stopped`, after any number of lines with an `event`. Answers go to a pipe of their own; what
anybody prints goes to the log, before this module has been imported too.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import traceback
from typing import IO, Any, NoReturn

import torch

import attensor
from attensor.errors import BackendError, Stopped
from attensor.lab.reason import reason
from attensor.lab.reporter import Reporter

__all__ = ["main", "taking_kernels"]


def main() -> NoReturn:
    """Serve until the other side closes, then end at once: a user's threads and exit handlers hold up nobody."""
    status = 0
    try:
        reporter = Reporter.take_pipe()
        for line in _take_stdin():
            _serve(reporter, **json.loads(line))
    except BrokenPipeError:
        pass
    except OSError as error:
        sys.stderr.write(f"the code closed the descriptors of its process, which cannot answer any more ({error})\n")
        status = 1
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(status)


def _take_stdin() -> IO[bytes]:
    """The requests; what anyone else reads from the standard input is empty."""
    requests = os.fdopen(os.dup(0), "rb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return requests


def _serve(reporter: Reporter, *, function: str, arguments: dict[str, Any], threads: int, kernels: str | None) -> None:
    torch.set_num_threads(threads)
    module, _, name = function.partition(":")
    try:
        with taking_kernels(kernels):
            result = getattr(importlib.import_module(module), name)(**arguments)
        # numbers that JSON does not have are a failure of this cell
        reporter.send({"result": result})
    except Stopped:
        reporter.send({"stopped": True})
    except BaseException as error:  # a cell may be the user's code, and fail in any way, sys.exit among them
        trace = traceback.format_exc()
        with contextlib.suppress(OSError, ValueError, AttributeError):  # it may have closed the standard error
            sys.stderr.write(trace)
        reporter.send({"reason": reason(error), "trace": trace})


def taking_kernels(form: str | None) -> contextlib.AbstractContextManager[None]:
    """A block in which operators take the C++ kernels ("cpp"), do not ("torch"), or choose (None).

    Raises:
        BackendError: the kernels are missing here.
    """
    if form == "torch":
        return attensor.backend("torch")
    if form == "cpp":
        from attensor.ops import kernels_form

        if kernels_form() != "cpp":
            raise BackendError(MISSING_KERNELS)
    return contextlib.nullcontext()


MISSING_KERNELS = "the C++ kernels that this run was started with are missing here; build them: attensor doctor --build"

if __name__ == "__main__":
    main()
