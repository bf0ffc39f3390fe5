"""The C++ kernels are compiled once and kept; whatever goes wrong becomes a reason. Shown on a library of one line."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from attensor.errors import BackendError
from attensor.ops._dispatch import OPERATORS, Operator
from attensor.ops.cpp import build, compiler

REAL = compiler.compiler()

# the options hide what is not marked
ANSWER = 'extern "C" __attribute__((visibility("default"))) int answer() '
# unless it is hidden, the loader gives all libraries of a process the `kept` of the first one
HEADER = "inline int value() {{ static int kept = {}; return kept; }}"

# stands for the user's compiler: tells its version, or notes the compilation, does something and compiles
SCRIPT = """#!/bin/sh
if [ "$*" = --version ]; then echo {version}; exit; fi
echo compiled >> "{log}"
{before}
exec {real} "$@"
"""

# without attensor/ops/__init__.py, which would import torch
PROGRAM = """
import sys, types
from pathlib import Path
package = sys.modules["attensor.ops"] = types.ModuleType("attensor.ops")
package.__path__ = [{package!r}]
from attensor.ops.cpp import build
build.SOURCES = Path({sources!r})
"""


class Workshop:
    """Sources, a cache and a compiler in a folder of their own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sources, self.cache, self.script, self.log = (folder / name for name in ("src", "cache", "c++", "log"))
        self.sources.mkdir()
        self.write("a.cpp", '#include "a.h"\n' + ANSWER + "{ return value(); }")
        self.write("a.h", HEADER.format(42))
        self.set_compiler()
        monkeypatch.setattr(build, "SOURCES", self.sources)
        monkeypatch.setenv("ATTENSOR_CACHE", str(self.cache))
        monkeypatch.setenv("CXX", str(self.script))

    def write(self, name: str, text: str) -> None:
        (self.sources / name).write_text(text + "\n")

    def set_compiler(self, version: str = "one", before: str = "") -> None:
        self.script.write_text(SCRIPT.format(version=version, before=before, log=self.log, real=" ".join(REAL or [])))
        self.script.chmod(0o755)

    def compilations(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def files(self) -> list[Path]:
        return list(self.cache.rglob("*"))

    def answer(self) -> int:
        """What the library returns, as if this process had not asked for it yet."""
        build._attempt.cache_clear()
        assert build.why_not() is None
        answer: int = build.library().answer()
        return answer

    def reason(self) -> str:
        """Why there is no library, as if this process had not asked for it yet."""
        build._attempt.cache_clear()
        reason = build.why_not()
        assert reason is not None
        with pytest.raises(BackendError) as raised:
            build.library()
        assert str(raised.value) == f"cpp back-end: {reason}"
        return reason

    def start(self, program: str = "print(build.library().answer())", **environment: str) -> subprocess.Popen[str]:
        """`program` in a process of its own."""
        package = str(Path(build.__file__).parents[1])
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(package=package, sources=str(self.sources)) + program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    if REAL is None:
        pytest.skip("there is no C++ compiler")
    yield Workshop(tmp_path, monkeypatch)
    build._attempt.cache_clear()


def test_it_is_compiled_once_and_serves_later_processes(workshop, capfd):
    assert workshop.answer() == 42
    assert capfd.readouterr().err == "attensor: compiling its CPU kernels, once on this machine ...\n"
    assert build.library() is build.library()
    assert workshop.answer() == 42
    other = workshop.start()
    assert other.communicate() == ("42\n", "")
    assert workshop.compilations() == 1
    assert workshop.files() == [Path(build.library()._name)]
    assert capfd.readouterr().err == ""


CHANGES = {
    "a source": lambda workshop, patch: workshop.write("a.cpp", ANSWER + "{ return 43; }"),
    "a header": lambda workshop, patch: workshop.write("a.h", HEADER.format(43)),
    "one more source": lambda workshop, patch: workshop.write("b.cpp", ""),
    "the compiler": lambda workshop, patch: workshop.set_compiler(version="two"),
    "the processor": lambda workshop, patch: patch.setattr(build, "_processor", lambda: "another"),
    "the options": lambda workshop, patch: patch.setattr(build, "OPTIONS", ("-O0",)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_built_anew_after_a_change_of(change, workshop, monkeypatch):
    assert workshop.answer() == 42
    CHANGES[change](workshop, monkeypatch)
    assert workshop.answer() == (43 if change in ("a source", "a header") else 42)
    assert workshop.compilations() == 2


def test_a_source_that_does_not_compile_is_a_reason_and_is_tried_once(workshop):
    workshop.write("a.cpp", "template <class T> int f(T x) { return x.y; }\n" + ANSWER + "{ return f(1); }")
    assert workshop.reason().startswith(f"c++ cannot compile the C++ kernels: {workshop.sources}/a.cpp:1:")
    assert "error: " in build.why_not()
    assert workshop.compilations() == 1
    assert workshop.files() == []


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("echo cannot find -lm >&2; echo collect2: error: ld failed >&2; exit 1", "kernels: cannot find -lm$"),
        ("exit 3", "kernels: exit status 3$"),
        ("exit 0", "cannot be built or loaded: .*No such file"),
        ('shift; while [ "$1" != -o ]; do shift; done; echo > "$2"; exit', "cannot be built or loaded: .*kernels-.*so"),
    ],
    ids=["linker", "silent", "writes nothing", "writes no library"],
)
def test_a_compiler_that_fails_is_a_reason(before, expected, workshop):
    workshop.set_compiler(before=before)
    assert re.search(expected, workshop.reason())
    assert not [path for path in workshop.files() if path.suffix != ".so"]


def test_a_compiler_that_is_no_program_is_a_reason(workshop):
    workshop.script.write_bytes(b"\x7fELF, not really")
    assert "cannot be built or loaded: " in workshop.reason()
    assert workshop.files() == []


def test_without_a_compiler_it_says_what_to_install(workshop, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "g++-of-the-future")
    advice = "install g++ (Debian: apt-get install g++) or set CXX"
    assert workshop.reason() == f"no C++ compiler: CXX is 'g++-of-the-future', which is not found; {advice}"
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert workshop.reason() == f"no C++ compiler: {advice}"
    assert workshop.files() == []


def test_windows_is_refused(workshop, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert workshop.reason() == "the C++ kernels do not support Windows"
    assert workshop.compilations() == 0


def test_the_compiler_is_the_one_asked_for_else_gcc_else_clang(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("clang++", "g++", "mine"):
        monkeypatch.delenv("CXX", raising=False)
        (tmp_path / name).touch(0o755)
        assert compiler.compiler() == [str(tmp_path / ("g++" if name == "mine" else name))]
    monkeypatch.setenv("CXX", "mine -m64")
    assert compiler.compiler() == [str(tmp_path / "mine"), "-m64"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ATTENSOR_CACHE": "/a", "XDG_CACHE_HOME": "/x"}, "/a"),
        ({"ATTENSOR_CACHE": "~/a"}, "/home/me/a"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/attensor"),
        ({"ATTENSOR_CACHE": ""}, "/home/me/.cache/attensor"),
    ],
)
def test_where_it_is_kept(environment, expected, monkeypatch):
    for name in ("ATTENSOR_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/me"} | environment).items():
        monkeypatch.setenv(name, value)
    assert build._folder() == Path(expected)


def test_where_nothing_can_be_kept_it_lives_as_long_as_the_process(workshop, tmp_path):
    (tmp_path / "temporary").mkdir()
    known = {"ATTENSOR_CACHE": str(workshop.script / "below a file"), "TMPDIR": str(tmp_path / "temporary")}
    process = workshop.start("print(build.library().answer(), build.library()._name)", **known)
    answer, _, path = process.communicate()[0].partition(" ")
    assert answer == "42"
    assert Path(path).is_relative_to(tmp_path / "temporary")
    assert list((tmp_path / "temporary").iterdir()) == []


DAMAGES = {
    "emptied": lambda sound: b"",
    "cut short": lambda sound: sound[: len(sound) // 2],
    "altered": lambda sound: sound.replace(b"ELF", b"elf"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_library_is_replaced(damage, workshop):
    assert workshop.answer() == 42
    path = Path(build.library()._name)
    sound = path.read_bytes()
    path.unlink()  # not written over, because this process has it loaded
    path.write_bytes(DAMAGES[damage](sound))
    for _ in range(2):
        # in another process, because a library cut short can kill the one that calls it
        assert workshop.start().communicate()[0] == "42\n"
        assert workshop.compilations() == 2
    assert all(path.read_bytes() == sound for path in workshop.files())


def test_two_processes_may_build_at_once(workshop):
    # each waits until the other compiles too
    workshop.set_compiler(before=f'while [ "$(wc -l < "{workshop.log}")" -lt 2 ]; do sleep 0.02; done')
    both = [workshop.start(), workshop.start()]
    assert [process.communicate(timeout=30)[0] for process in both] == ["42\n", "42\n"]
    assert workshop.compilations() == 2
    assert all(path.name.startswith("kernels-") for path in workshop.files())
    assert workshop.answer() == 42
    assert workshop.compilations() == 2


def test_an_interruption_passes_through_and_leaves_nothing(workshop):
    workshop.set_compiler(before='shift; while [ "$1" != -o ]; do shift; done; echo half > "$2"; exec sleep 60')
    # set anew, because a process started in the background ignores the signal
    process = workshop.start("import signal\nsignal.signal(2, signal.default_int_handler)\nbuild.why_not()")
    deadline = time.monotonic() + 30
    while not any(path.suffix == ".so" for path in workshop.files()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1].endswith("KeyboardInterrupt\n")
    assert workshop.files() == []
    workshop.set_compiler()
    assert workshop.answer() == 42


@pytest.fixture
def operator():
    known = {"reference": lambda x: x + 1, "torch": lambda x: x + 2, "cpp": lambda x: x + 3}
    yield Operator("example", known)
    del OPERATORS["example"]


@pytest.fixture
def processor_known():
    """Inductor asks the compiler once in a process what the processor can do: not one that fails, for later tests."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    pick_vec_isa()


@pytest.mark.usefixtures("processor_known")
@pytest.mark.parametrize(("before", "taken", "reason"), [("", 3.0, None), ("exit 3", 2.0, "exit status 3")])
def test_torch_compile_takes_what_an_eager_call_takes(before, taken, reason, workshop, operator):
    workshop.set_compiler(before=before)
    build._attempt.cache_clear()
    torch.compiler.reset()  # what was compiled before holds what was true before
    compiled = torch.compile(
        lambda x: operator.choose(None, x.device)(x) * operator.choose("torch", x.device)(x),
        fullgraph=True,
        backend="eager",
    )
    # the first call builds while it is traced
    assert compiled(torch.zeros(())).item() == taken * 2
    assert workshop.compilations() == 1
    assert operator.choose(None, torch.device("cpu"))(torch.zeros(())).item() == taken
    why = operator.why_not("cpp", torch.device("cpu"))
    assert why is None if reason is None else why.endswith(reason)
    assert operator.why_not("cpp", torch.device("cuda")) == "cpp kernels run on a CPU, the tensors are on cuda"


def test_an_import_compiles_nothing_and_an_eager_call_needs_no_torch_compile(workshop):
    program = (
        "import pathlib, sys\n"
        "import attensor.ops, attensor.ops.cpp.build as build\n"
        f"build.SOURCES, log = pathlib.Path({str(workshop.sources)!r}), pathlib.Path({str(workshop.log)!r})\n"
        "import torch\n"
        "example = attensor.ops.Operator('example', {'cpp': list, 'torch': tuple})\n"
        "assert not log.exists()\n"
        "assert example.best(torch.device('cpu')) == 'cpp'\n"
        "assert log.exists()\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
