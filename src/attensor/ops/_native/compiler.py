"""The user's own C++ compiler: which one, its version, and from sources to a shared library."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attensor.errors import BackendError

__all__ = ["OPTIONS", "compile_library", "compiler", "ends_with_signals", "version"]

# of `--version`, which an operator's first call waits for; of one unit, which takes seconds
_SECONDS_TO_ANSWER, _SECONDS_TO_COMPILE = 10.0, 600.0

_NATIVE = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
# hidden, because the loader would make two versions of the library share functions and their variables
OPTIONS = tuple(
    f"-std=c++20 -O3 {_NATIVE} -ffp-contract=fast -fno-math-errno -Wno-psabi -fvisibility=hidden -fPIC -pthread".split()
)


def compiler() -> list[str] | None:
    """The beginning of a command that compiles C++: $CXX with its options, else g++, else clang++; None without any."""
    wanted = os.environ.get("CXX", "").split()
    for program, *options in [wanted] if wanted else [["g++"], ["clang++"]]:
        path = shutil.which(program)
        if path is not None:
            return [path, *options]
    return None


@functools.cache
def version(command: tuple[str, ...]) -> str | None:
    """What `command --version` prints, or why it cannot be started; None where it gives no answer in time."""
    try:
        return _Compilers().run([*command, "--version"], {}, _SECONDS_TO_ANSWER).stdout
    except subprocess.TimeoutExpired:
        return None
    except OSError as error:
        return str(error)


@contextlib.contextmanager
def ends_with_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit in the block, so that it tidies up, where they would end the process."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread set handlers
        return
    taken = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def compile_library(command: list[str], sources: Sequence[Path], headers: Path, target: Path) -> None:
    """Compile every source once for float and once for double, as many at a time as there are cores, and link.

    Args:
        command: the compiler, as `compiler` gives it.
        sources: the files to compile; they use `ATTENSOR_REAL`.
        headers: folder of what they include besides their own.
        target: the library to write; its folder also takes objects and the compiler's temporary files.
    Raises:
        BackendError: the compiler fails, the message quotes its first error; or it takes too long.
        OSError: the compiler cannot be started.
    """

    pairs = [(source, real) for source in sources for real in ("float", "double")]
    objects = [target.with_name(f"{number}.o") for number in range(len(pairs))]
    commands = [
        [*command, *OPTIONS, f"-DATTENSOR_REAL={real}", "-I", str(headers), "-c", str(source), "-o", str(made)]
        for (source, real), made in zip(pairs, objects, strict=True)
    ]
    compilers = _Compilers()
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        list(pool.map(lambda unit: _checked(unit, target.parent, compilers), commands))
        _checked([*command, *OPTIONS, "-shared", "-o", str(target), *map(str, objects)], target.parent, compilers)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        compilers.end()  # an interruption does not wait for them
        raise
    finally:
        pool.shutdown()


class _Compilers:
    """Processes that run side by side, each in a group of its own with those that it starts, and end together."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[str]] = []
        self._is_over = False

    def run(
        self, command: Sequence[str], environment: dict[str, str], seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """What `command` says; its group is ended with TimeoutExpired where that takes more than `seconds`."""
        # messages in English: they are searched, and part of a key
        with subprocess.Popen(
            command,
            env=os.environ | {"LC_ALL": "C"} | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=0,
        ) as process:
            self._running.append(process)
            try:
                if self._is_over:
                    _end(process)
                printed = process.communicate(timeout=seconds)
                return subprocess.CompletedProcess(command, process.returncode, *printed)
            except BaseException:
                _end(process)
                raise
            finally:
                self._running.remove(process)

    def end(self) -> None:
        """End those that run, and those that are being started."""
        self._is_over = True
        for process in [*self._running]:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _checked(command: Sequence[str], temporary: Path, compilers: _Compilers) -> None:
    name = Path(command[0]).name
    try:
        done = compilers.run(command, {"TMPDIR": str(temporary)}, _SECONDS_TO_COMPILE)
    except subprocess.TimeoutExpired as error:
        raise BackendError(
            f"{name} has not compiled the C++ kernels in {error.timeout:g} s and was ended; set CXX to another compiler"
        ) from None
    if done.returncode == 0:
        return
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    # not the lines `in function ...` before the first error, nor the linker's last that only says that it failed
    errors = (line for line in lines if "error: " in line and not line.startswith("collect2"))
    complaint = textwrap.shorten(next(errors, lines[0]), 300)
    raise BackendError(f"{name} cannot compile the C++ kernels: {complaint}")
