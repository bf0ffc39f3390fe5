"""The user's own C++ compiler: which one, its version, and from sources to a shared library."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import textwrap
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
        return _run([*command, "--version"], {}).stdout
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

    def compiled(unit: tuple[int, Path, str]) -> str:
        number, source, real = unit
        made = target.with_name(f"{number}.o")
        _checked(
            [*command, *OPTIONS, f"-DATTENSOR_REAL={real}", "-I", headers, "-c", source, "-o", made], target.parent
        )
        return str(made)

    pairs = [(source, real) for source in sources for real in ("float", "double")]
    units = [(number, *pair) for number, pair in enumerate(pairs)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, units))
    _checked([*command, *OPTIONS, "-shared", "-o", target, *objects], target.parent)


def _checked(command: Sequence[str | Path], temporary: Path) -> None:
    done = _run([*map(str, command)], {"TMPDIR": str(temporary)})
    if done.returncode == 0:
        return
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    # not the lines `in function ...` before the first error, nor the linker's last that only says that it failed
    errors = (line for line in lines if "error: " in line and not line.startswith("collect2"))
    complaint = textwrap.shorten(next(errors, lines[0]), 300)
    raise BackendError(f"{Path(command[0]).name} cannot compile the C++ kernels: {complaint}")


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    # messages in English: they are searched, and part of a key
    environment = os.environ | {"LC_ALL": "C"} | environment
    return subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
