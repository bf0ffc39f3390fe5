"""The user's own C++ compiler: which one, its version, and from sources to a shared library."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import textwrap
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attensor.errors import BackendError

__all__ = ["OPTIONS", "compile_library", "compiler", "version"]

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


def version(command: list[str]) -> str:
    """What `command --version` prints, or why it cannot be started."""
    try:
        with _start([*command, "--version"], {}) as process:
            return process.communicate()[0]
    except OSError as error:
        return str(error)


def compile_library(command: list[str], sources: Sequence[Path], headers: Path, target: Path) -> None:
    """Compile every source once for float and once for double, as many at a time as there are cores, and link.

    Args:
        command: the compiler, as `compiler` gives it.
        sources: the files to compile; they use `ATTENSOR_REAL`.
        headers: folder of what they include besides their own.
        target: the library to write; its folder also takes objects and the compiler's temporary files.
    Raises:
        BackendError: the compiler fails; the message quotes its first error.
        OSError: the compiler cannot be started.
    """

    pairs = [(source, real) for source in sources for real in ("float", "double")]
    objects = [target.with_name(f"{number}.o") for number in range(len(pairs))]
    commands = [
        [*command, *OPTIONS, f"-DATTENSOR_REAL={real}", "-I", str(headers), "-c", str(source), "-o", str(made)]
        for (source, real), made in zip(pairs, objects, strict=True)
    ]
    running: list[subprocess.Popen[str]] = []
    is_over = threading.Event()
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        list(pool.map(lambda unit: _checked(unit, target.parent, running, is_over), commands))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        is_over.set()  # an interruption does not wait for compilers, those that are being started included
        for process in running:
            process.kill()
        raise
    finally:
        pool.shutdown()
    _checked([*command, *OPTIONS, "-shared", "-o", str(target), *map(str, objects)], target.parent, running, is_over)


def _checked(
    command: Sequence[str], temporary: Path, running: list[subprocess.Popen[str]], is_over: threading.Event
) -> None:
    with _start(command, {"TMPDIR": str(temporary)}) as process:
        running.append(process)
        if is_over.is_set():
            process.kill()
        _, complaints = process.communicate()
    if process.returncode == 0:
        return
    lines = complaints.strip().splitlines() or [f"exit status {process.returncode}"]
    # not the lines `in function ...` before the first error, nor the linker's last that only says that it failed
    errors = (line for line in lines if "error: " in line and not line.startswith("collect2"))
    complaint = textwrap.shorten(next(errors, lines[0]), 300)
    raise BackendError(f"{Path(command[0]).name} cannot compile the C++ kernels: {complaint}")


def _start(command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    # messages in English: they are searched, and part of a key
    return subprocess.Popen(
        command,
        env=os.environ | {"LC_ALL": "C"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
