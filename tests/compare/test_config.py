"""Options that cannot work are refused by name, before anything is imported or opened."""

from __future__ import annotations

import subprocess
import sys

import pytest

from attensor.compare.config import CompareConfig, parse_budget


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("3m", 180), ("1h", 3600), ("2m30s", 150), ("45", 45), ("1.5h", 5400)]
)
def test_budgets(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "3 m", "-3m", "0s", "3d"])
def test_no_budget(text):
    with pytest.raises(ValueError, match=r"--budget .*write a time such as 90s, 3m or 1h"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 1}, "--seeds 1: at least 2"),
        ({"seeds": 10**12}, "--seeds 1000000000000: at most 1000"),
        ({"steps": 10, "budget": "3m"}, "--steps and --budget exclude each other"),
        ({"skills": "soon"}, "--skills .soon.: write a time such as 90s"),
        ({"learning_rates": ()}, "--learning-rates"),
        ({"learning_rates": (1e-3, -1.0)}, "--learning-rates"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"max_length": -1}, "--max-length -1"),
    ],
    ids=str,
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        CompareConfig(**options)


def test_reading_the_options_loads_no_torch():
    """So that --help is quick."""
    code = "import sys, attensor.compare.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
