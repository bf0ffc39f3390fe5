"""The C++ kernels as one shared library: compiled when first needed, then kept for later processes.

It is kept in `$ATTENSOR_CACHE`, else `$XDG_CACHE_HOME/attensor`, else `~/.cache/attensor`, as `kernels-KEY-CONTENT.so`:
KEY is a digest of all that decides what is built (sources, compiler, options, processor), CONTENT one of the file.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from attensor.errors import BackendError
from attensor.ops.cpp.compiler import OPTIONS, compile_library, compiler, version

__all__ = ["SOURCES", "library", "why_not"]

SOURCES = Path(__file__).parent

# lines of /proc/cpuinfo that tell two processors apart
_IDENTITY = ("flags", "Features", "model name", "CPU implementer", "CPU part")


def library() -> ctypes.CDLL:
    """The kernels, loaded; built first if this machine has none yet, which takes a while.

    Returns:
        The library; it lies at `library()._name`.
    Raises:
        BackendError: it cannot be had; the message gives the reason that `why_not` gives.
    """
    found = _attempt(SOURCES)
    if isinstance(found, str):
        raise BackendError(f"cpp back-end: {found}")
    return found


def why_not() -> str | None:
    """The reason why the kernels cannot be had here, or None when they can. Builds them if need be, once a process."""
    found = _attempt(SOURCES)
    return found if isinstance(found, str) else None


@functools.cache  # failures too: the next call must not wait for the compiler again
def _attempt(sources: Path) -> ctypes.CDLL | str:
    """The library, or the reason why there is none."""
    if platform.system() == "Windows":
        return "the C++ kernels do not support Windows"
    command = compiler()
    if command is None:
        wanted = os.environ.get("CXX")
        missing = f"CXX is {wanted!r}, which is not found; " if wanted else ""
        return f"no C++ compiler: {missing}install g++ (Debian: apt-get install g++) or set CXX"
    try:
        key, folder = _key(command, sources), _folder()
        return _load_kept(key, folder) or ctypes.CDLL(str(_build(command, sources, key, folder)))
    except BackendError as error:
        return str(error)
    except (OSError, RuntimeError) as error:
        return f"the C++ kernels cannot be built or loaded: {error}"


def _load_kept(key: str, folder: Path) -> ctypes.CDLL | None:
    # whatever is wrong with a kept library, a new one takes its place
    with suppress(OSError):
        for path in folder.glob(f"kernels-{key}-*.so"):
            # a file that was cut short loads, and kills the process when it is used
            if path.name == _name(key, path):
                return ctypes.CDLL(str(path))
    return None


def _build(command: list[str], sources: Path, key: str, folder: Path) -> Path:
    print("attensor: compiling its CPU kernels, once on this machine ...", file=sys.stderr, flush=True)  # noqa: T201
    # within the folder, because only there a file can be moved to its place in one step
    with tempfile.TemporaryDirectory(prefix="building-", dir=_writable(folder)) as work:
        made = Path(work, "kernels.so")
        compile_library(command, sorted(sources.glob("*.cpp")), made)
        with made.open("rb") as file:
            os.fsync(file.fileno())
        return made.replace(made.parents[1] / _name(key, made))


def _key(command: list[str], sources: Path) -> str:
    digest = hashlib.sha256(repr((command, OPTIONS, version(command), _processor())).encode())
    for file in sorted([*sources.glob("*.cpp"), *sources.glob("*.h")]):
        digest.update(repr((file.name, file.read_bytes())).encode())
    return digest.hexdigest()[:16]


def _name(key: str, file: Path) -> str:
    return f"kernels-{key}-{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}.so"


def _processor() -> str:
    with suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0]
        lines = [line for line in first.splitlines() if line.startswith(_IDENTITY)]
        if lines:
            return "\n".join(lines)
    return f"{platform.machine()} {platform.processor()}"


def _folder() -> Path:
    for variable, below in (("ATTENSOR_CACHE", "."), ("XDG_CACHE_HOME", "attensor")):
        if os.environ.get(variable):
            return Path(os.environ[variable], below).expanduser().absolute()
    return Path.home() / ".cache" / "attensor"


def _writable(folder: Path) -> Path:
    """`folder`, or one for this process alone where that cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="attensor-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
