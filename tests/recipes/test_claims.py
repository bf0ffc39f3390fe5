"""The claims page says what the kept verdicts say, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from attensor import recipes
from attensor.recipes._claims import CLAIMS_FOLDER, claims_page
from attensor.recipes._outcome import mark_of, outcome_of
from attensor.recipes._reproduce import save

ROOT = Path(__file__).parents[2]
FOUND: dict[str, Any] = {
    "schema": 2,
    "recipe": "gla",
    "paper": "arXiv:2312.06635",
    "claim": "a | b",
    "outcome": "partly",
    "quick": False,
    "checks": [
        {"text": "loss at most 0.5: 0.4", "passed": True, "interval": None, "bounds": [], "mark": "reached"},
        {"text": "recall 5: 4 ± 2", "passed": False, "interval": [2.0, 6.0], "bounds": [5.0], "mark": "not decided"},
    ],
    "figures": {"loss": "1.23 ± 0.02 (3 seeds)"},
    "charts": [],
    "command": "attensor reproduce gla",
    "created": "2026-11-23T01:02:03",
    "seconds": 186.0,
    "machine": {"processor": "a processor", "cores": 2},
    "torch": "2.13.0",
    "attensor": "0.1.0",
}


def test_a_row_has_the_claim_the_marks_the_verdict_and_the_date() -> None:
    page = claims_page([FOUND])
    assert "| [gla](#gla) | a \\| b | **partly** | 1 of 2 marks reached, 1 not decided | 2026-11-23 |" in page
    for part in (
        "## gla",
        "| recall 5: 4 ± 2 | **not decided** |",
        "| loss | 1.23 ± 0.02 (3 seeds) |",
        "3.1 minutes on a processor",
    ):
        assert part in page


def test_saving_keeps_the_verdict_and_renews_the_page(tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text(json.dumps(FOUND))
    to, page = tmp_path / "claims", tmp_path / "claims.md"
    save(tmp_path, Console(quiet=True), to=to, page=page)
    assert json.loads((to / "gla.json").read_text()) == FOUND
    assert page.read_text() == claims_page([FOUND])


def test_a_quick_run_is_not_saved(tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text(json.dumps({**FOUND, "quick": True}))
    with pytest.raises(ValueError, match="a quick run indicates and does not decide"):
        save(tmp_path, Console(quiet=True), to=tmp_path / "claims", page=tmp_path / "claims.md")
    assert not (tmp_path / "claims").exists()


def test_the_page_in_the_documentation_is_made_from_the_kept_verdicts() -> None:
    """`attensor reproduce NAME --save` writes both."""
    kept = [json.loads(path.read_text()) for path in sorted((ROOT / CLAIMS_FOLDER).glob("*.json"))]
    assert (ROOT / "docs" / "claims.md").read_text() == claims_page(kept)
    assert {found["recipe"] for found in kept} <= set(recipes.names())
    assert not any(found["quick"] for found in kept)


def test_the_kept_verdicts_follow_the_rule() -> None:
    for path in sorted((ROOT / CLAIMS_FOLDER).glob("*.json")):
        found = json.loads(path.read_text())
        marks = [mark_of(check["passed"], check["interval"], check["bounds"]) for check in found["checks"]]
        assert [check["mark"] for check in found["checks"]] == marks
        assert found["outcome"] == outcome_of(marks)
        # what could have come out otherwise names the mark that it is held against
        assert all(check["bounds"] for check in found["checks"] if check["interval"])
