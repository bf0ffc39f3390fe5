"""transformers' own tests of models, fetched once into the user's cache: `python -m tests.models.transformers_tests`.

The source archive on PyPI holds `tests/test_*.py` and no folder below. What those import from folders has a stand-in
here; the generation tests alone are worth more, and come from the release's tag on GitHub where that can be reached.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from types import ModuleType

import transformers

VERSION = transformers.__version__
PACKAGE = "tests_of_transformers"
NOT_FETCHED = (
    f"transformers {VERSION}'s own tests are not in the cache; fetch its source archive from PyPI by "
    "`python -m tests.models.transformers_tests` (`make test` does)"
)
NO_GENERATION = (
    f"transformers {VERSION}'s generation tests are not in its source archive, and GitHub was not to be reached; "
    "`python -m tests.models.transformers_tests` tries again (`make test` does)"
)
_GENERATION = "generation/test_utils.py"
_ADDRESS = f"https://raw.githubusercontent.com/huggingface/transformers/v{VERSION}/tests/{_GENERATION}"
_STAND_IN = "# not in the source archive\n"
_STAND_INS = {
    "__init__.py": "",
    _GENERATION: "class GenerationTesterMixin:\n    pass\n",
    # all of them slow tests, which transformers leaves out as well unless RUN_SLOW is set
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n\nExportGenerateTesterMixin = ExportTesterMixin\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


def cache() -> Path:
    """Where the tests of this version are kept, beside the kernels."""
    for variable, below in (("ATTENSOR_CACHE", "."), ("XDG_CACHE_HOME", "attensor")):
        if os.environ.get(variable):
            return Path(os.environ[variable], below, f"transformers-{VERSION}").expanduser().absolute()
    return Path.home() / ".cache" / "attensor" / f"transformers-{VERSION}"


def load(name: str) -> ModuleType:
    """A module of the fetched tests, such as `test_modeling_common`."""
    if str(cache()) not in sys.path:
        sys.path.append(str(cache()))
    return importlib.import_module(f"{PACKAGE}.{name}")


def is_fetched() -> bool:
    return (cache() / PACKAGE / "test_modeling_common.py").exists()


def has_generation() -> bool:
    return is_fetched() and not (cache() / PACKAGE / _GENERATION).read_text().startswith(_STAND_IN)


def fetch() -> None:
    """Fill the cache; again only for what was not to be had before.

    Raises:
        CalledProcessError, TimeoutExpired: pip finds no source archive of this version.
    """
    if not is_fetched():
        _unpack_archive()
    if not has_generation():
        try:
            with urllib.request.urlopen(_ADDRESS, timeout=20) as answer:
                _write(_GENERATION, answer.read().decode())
        except (urllib.error.URLError, TimeoutError) as error:
            print(f"{_ADDRESS}: {error}", file=sys.stderr)


def _unpack_archive() -> None:
    """`tests/test_*.py` of the archive that pip finds, where its own configuration says."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
    with tempfile.TemporaryDirectory() as folder:
        options = ["--disable-pip-version-check", "--retries", "1", "--timeout", "20", "--dest", folder]
        subprocess.run([*command, *options, f"transformers=={VERSION}"], check=True, timeout=180)
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as members:
            paths = {member: Path(member.name) for member in members if member.isfile()}
            found = {
                path.name: members.extractfile(member).read().decode()  # type: ignore[union-attr]
                for member, path in paths.items()
                if len(path.parts) == 3 and path.parts[1] == "tests"
            }
    for name, text in _STAND_INS.items():
        _write(name, _STAND_IN + text)
    # last what tells that all is there
    for name, text in sorted(found.items(), key=lambda item: item[0] == "test_modeling_common.py"):
        _write(name, text)


def _write(name: str, text: str) -> None:
    """Whole or not at all, for nobody else to change; what it imports from `tests` is the package it is in here."""
    path = cache() / PACKAGE / name
    for folder in (cache(), cache() / PACKAGE, path.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text.replace("from tests.", f"from {PACKAGE}."))
    Path(file.name).replace(path)


if __name__ == "__main__":
    try:
        fetch()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as failed:
        print(f"transformers {VERSION}'s own tests were not to be had and are skipped: {failed}", file=sys.stderr)
    else:
        print(f"transformers {VERSION}'s own tests: {cache()}")
