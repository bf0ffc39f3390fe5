"""The C++ kernels of all operators as one shared library: built beside the program, kept for later processes.

It is kept in the folder of `cache.py` as `kernels-KEY-CONTENT.so`: KEY is a digest of all that decides what is built
(sources, compiler, options, processor), CONTENT one of the file.
A call never waits for a compiler: where nothing is kept yet, a process of its own builds it (`start`), this process
goes on without, and later ones take it. `attensor doctor --build` and `python -m attensor.ops._native` wait for it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Literal

from attensor.errors import BackendError
from attensor.ops._native.cache import INSTEAD, alone, is_held, kernels_folder, open_in_folder, own_file
from attensor.ops._native.compiler import OPTIONS, compile_library, compiler, ends_with_signals, version
from attensor.ops._native.loading import load
from attensor.processes import python_command

__all__ = ["SOURCES", "build", "kernels_form", "library", "why_not", "why_not_by_default"]

SOURCES = Path(__file__).parents[1]  # each operator's kernels are in its own folder `cpp`

# lines of /proc/cpuinfo that tell two processors apart
_IDENTITY = ("flags", "Features", "model name", "CPU implementer", "CPU part")


def library() -> ctypes.CDLL:
    """The kernels, loaded.

    Raises:
        BackendError: there are none here; the message gives the reason that `why_not` gives.
    """
    found = _begin()
    found = _look() if isinstance(found, str) else found
    if isinstance(found, str):
        raise BackendError(f"cpp back-end: {found}")
    return found


def why_not(demanded: bool = False) -> str | None:
    """The reason why this process does not take the kernels, or None when it does.

    Args:
        demanded: count kernels too that were finished after the process began without.
    """
    found = _begin()
    if demanded and isinstance(found, str):
        found = _look()
    return found if isinstance(found, str) else None


def kernels_form() -> Literal["cpp", "torch"]:
    """`"cpp"` where this process takes the C++ kernels on a CPU, else `"torch"`; the same at every call."""
    return "torch" if why_not() else "cpp"


@functools.cache
def why_not_by_default() -> str | None:
    """The reason why this process does not take the kernels unasked; the same at every call.

    The first question decides for the process, so that its numbers do not depend on when a build is finished; it also
    starts one where nothing is kept.
    """
    return why_not()


def build() -> Path:
    """Build the kernels now, unless they are kept already: units in parallel, seconds to a minute.

    Returns:
        The library.
    Raises:
        BackendError: it cannot be built; with the reason, which is kept too: nobody tries again unasked.
    """
    command = _command()
    if isinstance(command, str):
        raise BackendError(command)
    try:
        key, folder = _key(tuple(command), SOURCES), kernels_folder()
        with ends_with_signals(), alone(folder):
            return _kept(key, folder) or _compile(command, key, folder)
    except OSError as error:
        raise BackendError(f"the C++ kernels cannot be built: {error}") from error


def start() -> None:
    """Build them in a process of its own, which outlives this one and is not interrupted with it."""
    command, environment = python_command("attensor.ops._native")
    with suppress(OSError):
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        process.returncode = 0  # nobody waits for it, and nobody shall be warned of that


def _begin() -> ctypes.CDLL | str:
    with _ASKING:  # the cache alone would let threads that come together look, and build, one by one
        return _begun()


@functools.cache  # what a process begins with, it keeps
def _begun() -> ctypes.CDLL | str:
    found = _look()
    if found == _NOT_BUILT:
        start()
        return f"{_NOT_BUILT}; a build has been started beside this process, which goes on without them"
    return found


_ASKING = threading.Lock()
_NOT_BUILT = "the C++ kernels are not built yet: attensor doctor --build builds them"
_LOADED: dict[Path, ctypes.CDLL] = {}


def _look() -> ctypes.CDLL | str:
    """The kept library, or the reason why there is none; what is wrong with the cache is warned of once."""
    command = _command()
    if isinstance(command, str):
        return command
    try:
        key, folder = _key(tuple(command), SOURCES), kernels_folder()
        path = _kept(key, folder)
        if path is not None:
            return _LOADED.get(path) or _LOADED.setdefault(path, load(path))
        if is_held(folder):
            return "C++ kernels are being built beside this process; later ones take them"
        failed = own_file(folder / f"failed-{key}")
        if failed is None:
            return _NOT_BUILT
        return f"{failed.decode(errors='replace')}; attensor doctor --build tries again"
    except BackendError as error:
        return _warned(str(error))
    except OSError as error:
        return _warned(f"the C++ kernels cannot be loaded: {error}; remove the file, {INSTEAD}")


@functools.cache
def _warned(reason: str) -> str:
    warnings.warn(f"attensor: operators run in PyTorch, slower: {reason}", RuntimeWarning, stacklevel=2)
    return reason


def _command() -> list[str] | str:
    """How to compile, or why nothing can be compiled."""
    if platform.system() == "Windows":
        return "the C++ kernels do not support Windows"
    command = compiler()
    if command is not None:
        return command
    wanted = os.environ.get("CXX")
    missing = f"CXX is {wanted!r}, which is not found; " if wanted else ""
    return f"no C++ compiler: {missing}install g++ (Debian: apt-get install g++) or set CXX"


def _kept(key: str, folder: Path) -> Path | None:
    # a file that was cut short is none: it may load, and kills the process when it is used
    paths = folder.glob(f"kernels-{key}-*.so")
    return next((path for path in paths if path.name == _name(key, own_file(path) or b"")), None)


def _compile(command: list[str], key: str, folder: Path) -> Path:
    failed = folder / f"failed-{key}"
    work = folder / f"building-{key}"  # within the folder, because only there a file can be moved in one step
    with suppress(OSError):
        failed.unlink()  # not written over later: it may be a pipe, of which nobody reads
    try:
        work.mkdir(mode=0o700)
        made = work / "kernels.so"
        compile_library(command, _files("*.cpp"), SOURCES / "_native", made)
        load(made)  # what does not load shall not be kept
        made.chmod(0o755)  # whatever the umask
        with made.open("rb") as file:
            os.fsync(file.fileno())
        return made.replace(folder / _name(key, made.read_bytes()))
    except (OSError, BackendError) as error:
        reason = str(error) if isinstance(error, BackendError) else f"the C++ kernels cannot be built: {error}"
        with suppress(OSError), open(failed, "x", opener=open_in_folder) as file:
            file.write(reason)
        raise BackendError(reason) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _files(pattern: str) -> list[Path]:
    return sorted([*SOURCES.glob(f"*/cpp/{pattern}"), *SOURCES.glob(f"_native/{pattern}")])


@functools.cache
def _key(command: tuple[str, ...], sources: Path) -> str:
    answer = version(command)
    if answer is None:
        raise BackendError(f"{command[0]} --version gives no answer; set CXX to another compiler")
    digest = hashlib.sha256(repr((command, OPTIONS, answer, _processor())).encode())
    for file in (*_files("*.cpp"), *_files("*.h")):
        digest.update(repr((file.name, file.read_bytes())).encode())
    return digest.hexdigest()[:16]


def _name(key: str, content: bytes) -> str:
    return f"kernels-{key}-{hashlib.sha256(content).hexdigest()[:16]}.so"


def _processor() -> str:
    with suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0]
        lines = [line for line in first.splitlines() if line.startswith(_IDENTITY)]
        if lines:
            return "\n".join(lines)
    return f"{platform.machine()} {platform.processor()}"
