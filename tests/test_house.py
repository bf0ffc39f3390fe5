"""The house's figures, on a house of four rooms."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PROGRAM = Path(__file__).parents[1] / "tools" / "house.py"

ROOMS = {
    "__init__.py": "from house.kitchen import cook as cook\n",
    "kitchen.py": """
from typing import TYPE_CHECKING, overload
__all__ = ["Oven", "cook"]
@overload
def cook(a, b, c, d, e, f): ...
def cook(a, b=1, /, *rest, c, **others):
    from house._cellar import fetch
    def inner(a, b, c, d, e, f, g): ...
    return fetch(a)
class Oven:
    def heat(self, to, *, slowly): ...
    @staticmethod
    def size(width): ...
    def _door(self): ...
if TYPE_CHECKING:
    @triton.jit(debug=True)
    def kernel(a, b, c, d, e, f, g, h): ...
""",
    "_cellar.py": "from house.hall import walk\n__all__ = ['fetch']\ndef fetch(x):\n    return walk(walk(x))\n",
    "hall.py": "import house\nTYPE_CHECKING = False\nif TYPE_CHECKING:\n    import house.kitchen\n"
    "__all__ = ['walk']\ndef walk(x):\n" + "    x += 1\n" * 40 + "    return x\n",
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("attensor_house", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["attensor_house"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def house(tmp_path: Path) -> Path:
    for name, text in ROOMS.items():
        (tmp_path / "house").mkdir(exist_ok=True)
        (tmp_path / "house" / name).write_text(text)
    return tmp_path / "house"


def test_arguments_lines_and_who_may_call(tool: ModuleType, house: Path) -> None:
    found = {f.place: f for f in tool.functions(tool.modules(house))}
    assert {place.removeprefix("house."): (f.arguments, f.is_public) for place, f in found.items()} == {
        "kitchen.cook": (5, True),
        "kitchen.cook.inner": (7, False),
        "kitchen.Oven.heat": (2, True),
        "kitchen.Oven.size": (1, True),
        "kitchen.Oven._door": (0, False),
        "kitchen.kernel": (8, False),
        "_cellar.fetch": (1, False),
        "hall.walk": (1, True),
    }
    assert [place for place, f in found.items() if f.is_kernel] == ["house.kitchen.kernel"]
    assert [place for place, f in found.items() if f.lines > tool.LONGEST_FUNCTION] == ["house.hall.walk"]


def test_circles_count_imports_inside_functions_and_none_for_type_checkers(tool: ModuleType, house: Path) -> None:
    assert tool.circles(tool.modules(house)) == [["house", "house._cellar", "house.hall", "house.kitchen"]]
    (house / "__init__.py").write_text("")
    assert tool.circles(tool.modules(house)) == []


def test_moves_between_files(tool: ModuleType, house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(house.parent)
    from house import cook  # type: ignore[import-not-found]

    cook(1, c=2)
    files = tool.files_called(lambda: cook(1, c=2), house)
    assert files == ["kitchen.py", "_cellar.py", "hall.py", "hall.py"]
    assert tool.moves(files) == 3


def test_the_figures_of_this_house(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each goal has its row, and each call the files that it needs at least."""
    import attensor

    source = Path(attensor.__file__).parent
    monkeypatch.setattr(tool, "CALLS", 3)
    rows = [*tool.static_rows(source, tool.modules(source)), *tool.call_rows(source), *tool.size_rows(source)]
    found = {row.measure: row.found for row in rows}
    assert found["src lines, Python and C++"] > 10_000
    assert found["most arguments, public"] >= 7
    for form in ("default", "torch"):
        assert 2 <= found[f"one call, {form}: Python files"] <= found[f"one call, {form}: moves between files"]
