"""Every recipe from its cells to its verdict, with two training steps and one seed: figures mean nothing here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from attensor import lab, recipes
from attensor.errors import DataError
from attensor.recipes._recipe import RecipeConfig

FEW = {"steps": 2, "rounds": 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_goes_from_cells_to_a_verdict(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, Any] = {}

    def in_this_process(
        folder: Path, function: Callable[..., Any], cells: Sequence[dict[str, Any]], **_: Any
    ) -> list[Any]:
        found = []
        for cell in cells:
            arguments = {key: FEW.get(key, value) for key, value in cell.items()}
            # other seeds take the results of the first
            key = repr((function, sorted((k, v) for k, v in arguments.items() if k != "seed")))
            if key not in known:
                known[key] = function(**arguments)
            found.append(known[key])
        return found

    monkeypatch.setattr(lab, "run_cells", in_this_process)
    try:
        verdict = recipes.find(name).run(RecipeConfig(tmp_path, quick=True))
    except DataError as error:  # graphs that no licence lets us bundle; its cells have tests on made ones
        pytest.skip(str(error))
    assert all(any(letter.isdigit() for letter in check.text) for check in verdict.checks)
    assert verdict.checks
    assert verdict.figures
