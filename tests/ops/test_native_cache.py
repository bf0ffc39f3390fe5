"""What is not the user's own in the kernels' folder, or no such library, is refused, said once, never waited for."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tests.ops import test_native_build
from tests.ops.test_native_build import Workshop

from attensor.errors import BackendError
from attensor.ops._native import build, cache, compiler

workshop = test_native_build.workshop  # the fixture

# asks unasked, again, on demand, and for the library; prints the reasons and the warnings
ASK = """
import json, warnings
from attensor.errors import BackendError
build.start = lambda: None
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    reasons = {build.why_not(), build.why_not(), build.why_not(demanded=True)}
    try:
        build.library()
    except BackendError as error:
        reasons.add(str(error).removeprefix("cpp back-end: "))
print(json.dumps([list(reasons), [str(each.message) for each in said]]))
"""

# with a kernel to be found in the library
PAIR = """
import ctypes
from attensor.ops._native import loading
@loading.argument_of("pair")
class Pair(ctypes.Structure):
    _fields_ = (("a", ctypes.c_int64), ("b", ctypes.c_double))
"""

HOSTILE = """#include <cstdio>
__attribute__((constructor)) static void act() {{ std::fclose(std::fopen("{}", "w")); }}"""

KERNELS = """#include <cstddef>
static const long long sizes[] = {{16, {}}};
extern "C" {{
int attensor_pair_float() {{ return 1; }}
int attensor_pair_double() {{ return 1; }}
const long long* attensor_pair_layout_float() {{ return sizes; }}
const long long* attensor_pair_layout_double() {{ return sizes; }}
}}"""

OTHER = 12345  # neither root nor who runs this


def compiled(source: str, folder: Path) -> bytes:
    """A library of `source`."""
    (folder / "library.cpp").write_text(source + "\n")
    made = folder / "library.so"
    subprocess.run(
        [*(compiler.compiler() or []), "-shared", "-fPIC", "-o", made, folder / "library.cpp"], check=True, timeout=60
    )
    return made.read_bytes()


def key() -> str:
    return build._key(tuple(build._command()), build.SOURCES)


def plant(workshop: Workshop, content: bytes) -> Path:
    """A file in the place where the workshop's library is looked for."""
    workshop.cache.mkdir(mode=0o700)
    path = workshop.cache / build._name(key(), content)
    path.write_bytes(content)
    path.chmod(0o644)
    return path


def answer(workshop: Workshop, program: str) -> str:
    """What a process of its own prints."""
    out, complaints = workshop.start(program).communicate(timeout=60)
    assert complaints == ""
    return out


def refusal(workshop: Workshop, program: str = ASK) -> str:
    """The one reason that a process gets, which it is warned of once."""
    (reason,), (warning,) = json.loads(answer(workshop, program))
    assert warning == f"attensor: operators run in PyTorch, slower: {reason}"
    return reason


def give_away(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, OTHER, OTHER)


def put_a_link(path: Path) -> None:
    path.symlink_to(path.rename(path.parent.parent / "elsewhere"))


def put_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


OF_ALL = {
    "writable by all": (lambda path: path.chmod(path.stat().st_mode | 0o002), "can be written by others; chmod go-w"),
    "of another user": (give_away, f"belongs to another user, uid {OTHER}; remove it"),
}
OF_FOLDER = OF_ALL | {
    "writable by the group": (lambda path: path.chmod(path.stat().st_mode | 0o020), "can be written by others; chmod"),
    "a link": (put_a_link, "is no "),
}
OF_FILES = OF_FOLDER | {
    "a pipe": (put_a_pipe, "is no regular file; remove it"),
    "a folder": (put_a_folder, "is no regular file; remove it"),
}
PLACES = {"above": OF_ALL, "folder": OF_FOLDER, "library": OF_FILES, "lock": OF_FILES, "failed": OF_FILES}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A library that makes a file when it is loaded, and that file."""
    folder = tmp_path_factory.mktemp("hostile")
    if compiler.compiler() is None:
        pytest.skip("there is no C++ compiler")
    return compiled(HOSTILE.format(folder / "executed"), folder), folder / "executed"


@pytest.mark.parametrize(("place", "fault"), [(place, fault) for place, faults in PLACES.items() for fault in faults])
def test_what_is_not_the_users_own_is_refused(place, fault, hostile, workshop, tmp_path, monkeypatch):
    content, executed = hostile
    workshop.cache = tmp_path / "above" / "cache"
    workshop.cache.parent.mkdir()
    monkeypatch.setenv("ATTENSOR_CACHE", str(workshop.cache))
    paths = {
        "above": workshop.cache.parent,
        "folder": workshop.cache,
        "library": plant(workshop, content),
        "lock": workshop.cache / "building.lock",
        "failed": workshop.cache / f"failed-{key()}",
    }
    if place in ("lock", "failed"):
        paths["library"].unlink()
        paths[place].touch(0o644)
    act, said = PLACES[place][fault]
    act(paths[place])
    reason = refusal(workshop)
    assert reason.startswith(f"{paths[place]} {said}")
    assert reason.endswith(", or set ATTENSOR_CACHE to a folder of your own")
    assert not executed.exists()
    if place == "failed":  # in the way of nobody who builds on demand
        assert workshop.answer() == 42
        return
    with pytest.raises(BackendError) as raised:
        build.build()
    assert str(raised.value) == reason
    assert workshop.compilations() == 0


LIBRARIES = {
    "sound": (lambda folder: compiled(KERNELS.format("0, 8"), folder), None),
    "without the kernel": (lambda folder: compiled("", folder), "has no kernel pair for float; "),
    "of another layout": (
        lambda folder: compiled(KERNELS.format("8, 0"), folder),
        "C++ and Python disagree on what pair takes from a on; ",
    ),
    "cut short": (lambda folder: compiled(KERNELS.format("0, 8"), folder)[:5000], "is cut short; "),
    "empty": (lambda _: b"", "file too short; "),
    "no library": (lambda _: b"not one " * 999, "invalid ELF header; "),
}


@pytest.mark.skipif(sys.platform != "linux", reason="the words are those of Linux")
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_that_is_not_ours_is_refused(library, workshop, tmp_path):
    make, said = LIBRARIES[library]
    path = plant(workshop, make(tmp_path))
    if said is None:
        assert answer(workshop, PAIR + ASK) == "[[null], []]\n"
    else:
        reason = refusal(workshop, PAIR + ASK)
        assert reason.startswith(f"the C++ kernels cannot be loaded: {path}")
        assert f"{said}remove the file, or set ATTENSOR_CACHE" in reason


def test_a_folder_above_may_be_a_link_or_the_groups_and_all_that_is_made_is_the_users(workshop, tmp_path, monkeypatch):
    """With the umask that hides nothing."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real").chmod(0o775)
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setenv("ATTENSOR_CACHE", str(tmp_path / "link" / "new" / "cache"))
    show = "import os\nos.umask(0)\nbuild.build()\nprint(build.library().answer_float())"
    assert answer(workshop, show) == answer(workshop, show) == "42\n"
    assert workshop.compilations() == 1
    workshop.set_compiler(version="two", before="exit 3")
    assert answer(workshop, "import os\nos.umask(0)\ntry: build.build()\nexcept Exception: print(1)") == "1\n"
    new = tmp_path / "real" / "new"
    modes = {path.name.partition("-")[0]: stat.S_IMODE(path.stat().st_mode) for path in (new, *new.rglob("*"))}
    assert modes == {"new": 0o700, "cache": 0o700, "kernels": 0o755, "failed": 0o644, "building.lock": 0o644}
    assert "exit status 3; attensor doctor --build tries again" in json.loads(answer(workshop, ASK))[0][0]


def test_a_failure_in_no_known_letters_and_a_user_who_is_not_there_are_reasons(workshop, monkeypatch):
    workshop.cache.mkdir(mode=0o700)
    (workshop.cache / f"failed-{key()}").write_bytes(b"no \xff")
    (workshop.cache / f"failed-{key()}").chmod(0o644)
    assert json.loads(answer(workshop, ASK)) == [["no \ufffd; attensor doctor --build tries again"], []]
    monkeypatch.setenv("ATTENSOR_CACHE", "~nobody-of-that-name/cache")
    assert refusal(workshop).startswith("ATTENSOR_CACHE names no folder: ")
    with pytest.raises(BackendError, match="ATTENSOR_CACHE names no folder"):
        cache.kernels_folder()


@pytest.mark.slow
def test_operators_go_on_in_torch_and_the_doctor_names_the_reason(workshop):
    """The product's own kernels, in a folder that others can write."""
    workshop.cache.mkdir()
    workshop.cache.chmod(0o777)
    program = (
        "import torch\n"
        "from attensor import doctor, ops\n"
        "q, k, v = torch.randn(3, 1, 7, 2, 5).unbind()\n"
        "for _ in range(2): out, _ = ops.linear_attention(q, k, v)\n"
        "torch.testing.assert_close(out, ops.linear_attention_reference(q, k, v)[0])\n"
        "print(ops.kernels_form(), dict(doctor.facts())['C++ kernels'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    reason = f"{workshop.cache} can be written by others; chmod go-w"
    assert done.stdout.startswith(f"torch none: {reason}")
    assert done.stderr.count("RuntimeWarning") == done.stderr.count(reason) == 1
