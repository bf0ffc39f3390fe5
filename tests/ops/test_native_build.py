"""The C++ kernels are built once, beside the calls, and kept; what goes wrong becomes a reason. Shown on one line."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from attensor.errors import BackendError
from attensor.ops._native import build, cache, compiler, loading
from attensor.ops._operator import OPERATORS, Implementation, Operator

REAL = compiler.compiler()

# the options hide what is not marked; a source is compiled for float and for double
ANSWER = """#define JOIN(real) answer_##real
#define NAME(real) JOIN(real)
extern "C" __attribute__((visibility("default"))) int NAME(ATTENSOR_REAL)() """
# unless it is hidden, the loader gives all libraries of a process the `kept` of the first one
HEADER = "inline int value() {{ static int kept = {}; return kept; }}"

# stands for the user's compiler: tells its version, or notes the compilation, does something and compiles
SCRIPT = """#!/bin/sh
if [ "$*" = --version ]; then echo {version}; exit; fi
case "$*" in *" -c "*) ;; *) echo linked >> "{log}";; esac
{before}
exec {real} "$@"
"""

# without attensor/ops/__init__.py, which would import torch
PROGRAM = """
import sys, types
from pathlib import Path
package = sys.modules["attensor.ops"] = types.ModuleType("attensor.ops")
package.__path__ = [{package!r}]
from attensor.ops._native import build
build.SOURCES = Path({sources!r})
"""


SHOW = "build.build()\nprint(build.library().answer_float())"


class Workshop:
    """Sources, a cache and a compiler in a folder of their own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sources, self.cache, self.script, self.log = (folder / name for name in ("src", "cache", "c++", "log"))
        (self.sources / "sum" / "cpp").mkdir(parents=True)
        (self.sources / "_native").mkdir()
        self.write("a.cpp", '#include "a.h"\n' + ANSWER + "{ return value(); }")
        self.write("a.h", HEADER.format(42))
        self.processes: list[subprocess.Popen[str]] = []
        self.set_compiler()
        monkeypatch.setattr(build, "SOURCES", self.sources)
        monkeypatch.setattr(loading, "ARGUMENTS", {})
        monkeypatch.setenv("ATTENSOR_CACHE", str(self.cache))
        monkeypatch.setenv("CXX", str(self.script))

    def write(self, name: str, text: str) -> None:
        folder = "_native" if name.endswith(".h") else "sum/cpp"
        (self.sources / folder / name).write_text(text + "\n")

    def set_compiler(self, version: str = "one", before: str = "") -> None:
        self.script.write_text(SCRIPT.format(version=version, before=before, log=self.log, real=" ".join(REAL or [])))
        self.script.chmod(0o755)

    def compilations(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def files(self) -> list[Path]:
        """All that is kept, without the lock that stays."""
        return [path for path in self.cache.rglob("*") if path.name != "building.lock"]

    def forget(self) -> None:
        """As if this process had asked for nothing yet."""
        for cached in (build._begun, build._key, build.why_not_by_default, build._warned, compiler.version):
            cached.cache_clear()

    def answer(self) -> int:
        """What the library returns, built if need be."""
        self.forget()
        build.build()
        assert build.why_not() is None
        answer: int = build.library().answer_float()
        assert build.library().answer_double() == answer
        return answer

    def reason(self) -> str:
        """Why there is no library, when one is asked for and when it is built."""
        self.forget()
        with pytest.raises(BackendError) as raised:
            build.build()
        reason = build.why_not()
        assert reason is not None
        with pytest.raises(BackendError) as refused:
            build.library()
        assert str(refused.value) == f"cpp back-end: {reason}"
        assert reason.startswith(str(raised.value))
        return str(raised.value)

    def start(
        self, program: str = "build.build()\nprint(build.library().answer_float())", **environment: str
    ) -> subprocess.Popen[str]:
        """`program` in a process of its own."""
        package = str(Path(build.__file__).parents[1])
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(package=package, sources=str(self.sources)) + program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        self.processes.append(process)
        return process


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    if REAL is None:
        pytest.skip("there is no C++ compiler")
    monkeypatch.setattr(build, "start", lambda: None)
    made = Workshop(tmp_path, monkeypatch)
    yield made
    made.forget()
    for process in made.processes:
        with process:  # waits, and closes its pipes
            process.kill()


def test_it_is_compiled_once_and_serves_later_processes(workshop):
    assert workshop.answer() == 42
    assert build.library() is build.library()
    assert workshop.answer() == 42
    other = workshop.start()
    assert other.communicate() == ("42\n", "")
    assert workshop.compilations() == 1
    assert workshop.files() == [Path(build.library()._name)]


def test_a_process_keeps_the_form_that_it_began_with_unless_the_other_is_demanded(workshop):
    workshop.forget()
    assert "not built yet: attensor doctor --build" in build.why_not()
    build.build()
    assert "not built yet" in build.why_not()
    assert build.why_not(demanded=True) is None
    assert build.library().answer_float() == 42
    workshop.forget()
    assert build.why_not() is None


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="there is no C++ compiler")
def test_the_first_call_goes_on_without_kernels_while_they_are_built_and_a_later_process_takes_them(tmp_path):
    """The product's own kernels in an empty cache, by a compiler that does not optimise."""
    compiler = tmp_path / "c++"
    go = tmp_path / "go"
    # compiles only when the first process is through, which therefore cannot have waited for it
    wait = f'[ "$*" = --version ] || while [ ! -e "{go}" ]; do sleep 0.1; done'
    compiler.write_text(f'#!/bin/bash\n{wait}\nexec {" ".join(REAL or [])} "${{@/-O3/-O0}}"\n')
    compiler.chmod(0o755)
    environment = os.environ | {"ATTENSOR_CACHE": str(tmp_path / "cache"), "CXX": str(compiler)}
    program = (
        "import torch, attensor.ops as ops\n"
        "q, k, v = torch.randn(3, 1, 40, 2, 8).unbind()\n"
        "for _ in range(2): ops.linear_attention(q, k, v)\n"
        "print(ops.kernels_form())"
    )

    def form() -> str:
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stderr == ""
        return done.stdout.strip()

    assert form() == "torch"
    go.touch()
    deadline = time.monotonic() + 120
    while form() == "torch":
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".lock", ".so"]


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


def test_a_source_that_does_not_compile_is_a_reason_and_is_not_tried_again_unasked(workshop):
    workshop.write("a.cpp", "template <class T> int f(T x) { return x.y; }\n" + ANSWER + "{ return f(1); }")
    assert workshop.reason().startswith(f"c++ cannot compile the C++ kernels: {workshop.sources}/sum/cpp/a.cpp:1:")
    assert "error: " in build.why_not()
    assert build.why_not().endswith("; attensor doctor --build tries again")
    assert workshop.compilations() == 0
    assert [path.name.partition("-")[0] for path in workshop.files()] == ["failed"]
    workshop.write("a.cpp", ANSWER + "{ return 42; }")
    assert workshop.answer() == 42


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("echo cannot find -lm >&2; echo collect2: error: ld failed >&2; exit 1", "kernels: cannot find -lm$"),
        ("exit 3", "kernels: exit status 3$"),
        ("exit 0", "cannot be built: .*No such file"),
        ('shift; while [ "$1" != -o ]; do shift; done; echo > "$2"; exit', "cannot be built: .*kernels.so"),
    ],
    ids=["linker", "silent", "writes nothing", "writes no library"],
)
def test_a_compiler_that_fails_is_a_reason(before, expected, workshop):
    workshop.set_compiler(before=before)
    assert re.search(expected, workshop.reason())
    assert not [path for path in workshop.files() if not path.name.startswith("failed-")]


def test_a_compiler_that_is_no_program_is_a_reason(workshop):
    workshop.script.write_bytes(b"\x7fELF, not really")
    assert "cannot be built: " in workshop.reason()


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
    assert cache._named_folder() == Path(expected)


def test_where_nothing_can_be_kept_nothing_is_built(workshop, monkeypatch):
    monkeypatch.setenv("ATTENSOR_CACHE", str(workshop.script / "below a file"))
    with pytest.warns(RuntimeWarning, match="operators run in PyTorch"):
        assert workshop.reason().startswith(f"{workshop.script} is no folder; remove it, or set ATTENSOR_CACHE")
    assert workshop.compilations() == 0


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


def test_two_processes_build_once(workshop):
    both = [workshop.start(), workshop.start()]
    assert [process.communicate(timeout=30)[0] for process in both] == ["42\n", "42\n"]
    assert workshop.compilations() == 1
    assert all(path.name.startswith("kernels-") for path in workshop.files())


def test_who_asks_while_it_is_built_is_told(workshop):
    workshop.set_compiler(before=f'while [ ! -e "{workshop.log}.go" ]; do sleep 0.02; done')
    process = workshop.start()
    wait_for(lambda: list(workshop.cache.glob("building-*")))
    workshop.forget()
    assert "are being built beside this process" in build.why_not()
    Path(f"{workshop.log}.go").touch()
    assert process.communicate(timeout=30)[0] == "42\n"


# compiles half of it, then hangs in a process of its own
HANGS = 'while [ "$1" != -o ]; do shift; done; echo half > "$2"; sleep 60 & echo $! > "{}"; wait'


def is_alive(process: str) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", process], capture_output=True, text=True, check=False).stdout
    return bool(state) and not state.startswith("Z")


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_passes_through_and_leaves_nothing(number, workshop):
    sleeper = Path(f"{workshop.log}.sleeper")
    workshop.set_compiler(before=HANGS.format(sleeper))
    # set anew, because a process started in the background ignores the signal
    process = workshop.start(
        "import signal\nsignal.signal(2, signal.default_int_handler)\nsignal.signal(1, signal.SIG_DFL)\nbuild.build()"
    )
    wait_for(lambda: sleeper.exists() and sleeper.read_text().endswith("\n"))
    process.send_signal(number)
    _, complaints = process.communicate(timeout=30)
    if number == signal.SIGINT:
        assert complaints.endswith("KeyboardInterrupt\n")
    else:
        assert (process.returncode, complaints) == (128 + number, "")
    wait_for(lambda: not is_alive(sleeper.read_text().strip()))
    assert workshop.files() == []
    workshop.set_compiler()
    assert workshop.answer() == 42


@pytest.mark.parametrize("hangs_at", ["the version", "a source"])
def test_a_compiler_that_hangs_is_ended_with_all_it_started_and_is_a_reason(hangs_at, workshop, monkeypatch):
    sleeper = Path(f"{workshop.log}.sleeper")
    if hangs_at == "the version":
        monkeypatch.setattr(compiler, "_SECONDS_TO_ANSWER", 0.5)
        workshop.script.write_text(f'#!/bin/sh\nsleep 60 & echo $! > "{sleeper}"; wait\n')
        with pytest.warns(RuntimeWarning, match="operators run in PyTorch") as said:
            reason = workshop.reason()
        assert len(said) == 1
        assert reason == f"{workshop.script} --version gives no answer; set CXX to another compiler"
    else:
        monkeypatch.setattr(compiler, "_SECONDS_TO_COMPILE", 0.5)
        workshop.set_compiler(before=HANGS.format(sleeper))
        # this process's own build, and what later ones are told
        assert "c++ has not compiled the C++ kernels in 0.5 s and was ended; set CXX to another" in workshop.reason()
        assert [path.name.partition("-")[0] for path in workshop.files()] == ["failed"]
    wait_for(lambda: not is_alive(sleeper.read_text().strip()))


def test_threads_that_come_together_start_one_build(workshop, monkeypatch):
    started = []
    monkeypatch.setattr(build, "start", lambda: started.append(1))
    workshop.forget()
    together = threading.Barrier(3)

    def ask(_: int) -> str | None:
        together.wait(timeout=30)
        return build.why_not()

    with ThreadPoolExecutor(3) as pool:
        reasons = set(pool.map(ask, range(3)))
    assert len(reasons) == len(started) == 1


def test_what_an_ended_build_left_is_removed_by_the_next(workshop):
    left = workshop.cache / "building-of-another-compiler"
    (left / "below").mkdir(parents=True)
    workshop.cache.chmod(0o700)
    (left / "0.o").write_text("half")
    assert workshop.answer() == 42
    assert workshop.files() == [Path(build.library()._name)]


def test_a_build_beside_the_program_executes_no_module_of_the_current_folder(workshop, tmp_path):
    here, executed = tmp_path / "here", tmp_path / "executed"
    here.mkdir()
    for name in ("ctypes", "random", "attensor"):
        (here / f"{name}.py").write_text(f"open({str(executed)!r}, 'w')\n")
    workshop.set_compiler(before="exit 3")  # of the product's own kernels
    # an empty path is the current folder
    path = f"{Path(build.__file__).parents[3]}{os.pathsep}"
    process = workshop.start(f"import os\nos.chdir({str(here)!r})\nbuild.start()", PYTHONPATH=path)
    assert process.communicate(timeout=60) == ("", "")
    wait_for(lambda: executed.exists() or list(workshop.cache.glob("failed-*")))
    assert not executed.exists()


@pytest.fixture
def operator():
    forms = {"reference": lambda x: x + 1, "torch": lambda x: x + 2, "cpp": lambda x: x + 3}
    yield Operator("example", {name: Implementation(run) for name, run in forms.items()}, lambda x: x.device)
    del OPERATORS["example"]


@pytest.fixture
def processor_known():
    """Inductor asks the compiler once in a process what the processor can do: not one that fails, for later tests."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    pick_vec_isa()


@pytest.mark.usefixtures("processor_known")
@pytest.mark.parametrize("is_built", [True, False])
def test_torch_compile_takes_what_an_eager_call_takes(is_built, workshop, operator):
    if is_built:
        build.build()
    workshop.forget()
    torch.compiler.reset()  # what was compiled before holds what was true before
    compiled = torch.compile(lambda x: operator(x) * operator(x, "torch"), fullgraph=True, backend="eager")
    taken = 3.0 if is_built else 2.0
    assert compiled(torch.zeros(())).item() == taken * 2
    assert operator(torch.zeros(())).item() == taken
    assert workshop.compilations() == is_built


@pytest.mark.slow
def test_an_import_looks_for_no_kernels_and_an_eager_call_needs_no_torch_compile(workshop):
    program = (
        "import sys, torch, attensor.ops, attensor.ops._native.build as build\n"
        "asked = []\n"
        "build.compiler = lambda: asked.append(1)\n"
        "example = attensor.ops.Operator('example', {'cpp': attensor.ops.Implementation(list)}, lambda x: x.device)\n"
        "assert not asked\n"
        "example.why_not('cpp', torch.device('cpu'))\n"
        "assert asked\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
