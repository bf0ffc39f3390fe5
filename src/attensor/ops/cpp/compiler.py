"""The user's own C++ compiler: which one, its version, and one command from sources to a shared library."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import textwrap
from collections.abc import Sequence
from pathlib import Path

from attensor.errors import BackendError

__all__ = ["OPTIONS", "compile_library", "compiler", "version"]

_NATIVE = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
# hidden, because the loader would make two versions of the library share functions and their variables
OPTIONS = tuple(
    f"-std=c++20 -O3 {_NATIVE} -ffp-contract=fast -fno-math-errno -Wno-psabi "
    "-fvisibility=hidden -fPIC -shared -pthread".split()
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


def compile_library(command: list[str], sources: Sequence[Path], target: Path) -> None:
    """Compile and link in one command.

    Args:
        command: the compiler, as `compiler` gives it.
        sources: the files to compile.
        target: the library to write; its folder also takes the compiler's own temporary files.
    Raises:
        BackendError: the compiler fails; the message quotes its first error.
        OSError: the compiler cannot be started.
    """
    done = _run([*command, *OPTIONS, "-o", str(target), *map(str, sources)], {"TMPDIR": str(target.parent)})
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
