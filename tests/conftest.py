"""One thread and the same random numbers for every test; a browser, a signal and processes for those that need them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

# Without a GPU Triton's kernels run in its interpreter, which has to be known before triton or attensor is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

torch.set_num_threads(1)

# Found counterexamples belong into a test of their own; the search itself repeats from run to run.
settings.register_profile("attensor", deadline=None, derandomize=True, database=None)
settings.load_profile("attensor")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # other tests run the same lines, and inductor takes half as long again while they are counted
        if item.name.startswith("test_compiles_with_inductor"):
            item.add_marker("no_cover")


NO_CHROMIUM = "there is no Chromium; get it by `apt-get install chromium` (`make test` does, as root on Debian)"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    yield  # the closing lines come last
    left_out = sum(NO_CHROMIUM in str(report.longrepr) for report in terminalreporter.stats.get("skipped", ()))
    if left_out:
        terminalreporter.write_line(f"{left_out} tests of pages in a browser were left out: {NO_CHROMIUM}", yellow=True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a browser; without one the test is skipped."""
    return shutil.which("chromium") or pytest.skip(NO_CHROMIUM)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C and hanging up as in a terminal, here and below: a job begun by nohup or `&` passes on to ignore them."""
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGHUP, hang_up)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`subprocess.Popen` for text and in a process group of its own, which ends with the test, failed or not."""
    started: list[subprocess.Popen[str]] = []

    def popen(command: list[str], **options: Any) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(command, text=True, start_new_session=True, **options))
        return started[-1]

    yield popen
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with process:  # waits, and closes its pipes
            pass


@pytest.fixture(params=["cpp", "torch"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """A back-end of `linear_attention` on a CPU; C++ as what is taken unasked, because other operators have none."""
    # here, because the interpreter has to be set above
    import attensor
    from attensor.ops._native.compiler import compiler
    from attensor.ops._operator import OPERATORS

    if request.param == "cpp":
        if compiler() is None:
            pytest.skip("there is no C++ compiler")
        assert OPERATORS["linear_attention"].best(torch.device("cpu")) == "cpp"
        yield "cpp"
    else:
        with attensor.backend(request.param):
            yield request.param
