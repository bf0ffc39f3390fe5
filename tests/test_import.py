"""What an import costs, told by what it loads; and that attensor works without any of its extras."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "sympy", "plotly", "sklearn", "PIL", "transformers", "einops")


def run(program: str) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_after(program: str) -> set[str]:
    """Which of the heavy libraries a fresh interpreter holds after `program`."""
    out = run(f"{program}\nimport sys\nprint('loaded:', *(name for name in {HEAVY} if name in sys.modules))")
    return set(out.rpartition("loaded:")[2].split())


def test_importing_attensor_loads_nothing() -> None:
    assert loaded_after("import attensor, attensor.catalogue, attensor.errors; dir(attensor)") == set()


def test_what_runs_in_one_process_does_not_load_what_is_for_several() -> None:
    out = run(
        "import sys, attensor.nn, attensor.ops, attensor.models.language\nprint('attensor.parallel' in sys.modules)"
    )
    assert out == "False\n"


def test_every_module_of_commands_loads_nothing() -> None:
    listed = "import importlib, pkgutil, attensor.commands as c\n"
    each = "[importlib.import_module(f'attensor.commands.{m.name}') for m in pkgutil.iter_modules(c.__path__)]"
    assert loaded_after(f"{listed}assert len({each}) > 4") == set()


def test_reading_the_cards_loads_nothing() -> None:
    assert loaded_after("from attensor.catalogue import cards; cards()") == set()


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"], ["list"], ["list", "--json"]], ids=str)
def test_the_command_line_starts_without_torch(arguments: list[str]) -> None:
    program = "import contextlib\nfrom attensor.cli import main\nwith contextlib.suppress(SystemExit):\n"
    assert loaded_after(f"{program}    main({arguments})") == set()


WITHOUT_EXTRAS = """
import sys

class Absent:
    names = {"plotly", "jinja2", "PIL", "sklearn", "numpy", "triton", "scipy"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import warnings
warnings.filterwarnings("ignore", "Failed to initialize NumPy")
"""


def test_operators_layers_and_models_need_no_extra() -> None:
    run(
        WITHOUT_EXTRAS + "import torch\n"
        "from attensor import catalogue, models, nn, ops\n"
        "import attensor.models.language, attensor.models.vision, attensor.bench, attensor.doctor, attensor.train\n"
        "q = torch.randn(1, 5, 2, 3)\n"
        "assert ops.linear_attention(q, q, q)[0].shape == q.shape\n"
        "for card in catalogue.mechanisms().values():\n"
        "    catalogue.load(card.layer)\n"
    )


@pytest.mark.parametrize(
    ("call", "extra"),
    [
        (
            "from attensor.report.document import write_document as w; w('r.html', 'attensor.report:report.html')",
            "report",
        ),
        ("from attensor.data import open_data; open_data('digits', minimum_bytes=1)", "vision"),
    ],
)
def test_what_needs_an_extra_names_it(call: str, extra: str) -> None:
    out = run(
        WITHOUT_EXTRAS + f"from attensor.errors import MissingExtraError\ntry:\n    {call}\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    assert f'pip install "attensor[{extra}]"' in out
