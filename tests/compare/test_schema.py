"""The schema of results.json: valid itself, kept by what is written, and the page about it says the same."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest

from attensor.compare.conclusions import conclusions
from attensor.compare.result import PROTOCOL, SCHEMA
from attensor.compare.schema import schema
from tests.report.sample_results import sample_results

from .made_results import Truth, made_results

ROOT = Path(__file__).parents[2]
MADE = {"attensor": "0.1.0", "torch": "2.13.0", "created": "2026-11-28T12:00:00", "command": "attensor compare"}
MADE["provenance"] = dict.fromkeys(
    ("git_commit", "python", "system", "compiler", "packages", "backends", "data_sha256")
)


@pytest.fixture
def validator():
    validators = pytest.importorskip("jsonschema").validators
    kind = validators.validator_for(schema())
    kind.check_schema(schema())
    return kind(schema())


def faults(validator, results):
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(results)]


@pytest.mark.parametrize("kind", ["text", "images"])
@pytest.mark.parametrize("count", [3, 25])
def test_results_of_all_kinds_keep_the_schema(kind, count, validator):
    assert faults(validator, sample_results(kind, count, skills=True, scale=True)) == []


def test_conclusions_keep_the_schema(validator):
    results = made_results(Truth({"softmax": 0.0, "gla": 0.002, "linear": 0.4}))
    assert faults(validator, MADE | results | conclusions(results)) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda r: r.update(schema=1), "schema: "),
        (lambda r: r["protocol"].update(version=2), "protocol/version: "),
        (lambda r: r["mechanisms"][1].update(status="good"), "mechanisms/1/status: "),
        (lambda r: r["mechanisms"][0].pop("score"), "mechanisms/0: 'score' is a required"),
        (lambda r: r["mechanisms"][0]["score"].update(mean="2.1"), "mechanisms/0/score/mean: "),
        (lambda r: r["ranking"].update(groups=["softmax"]), "ranking/groups/0: "),
        (lambda r: r["mechanisms"][0]["runs"][0].update(units=["x"]), "mechanisms/0/runs/0/units/0: "),
    ],
)
def test_what_breaks_the_schema_is_found(change, fault, validator):
    results = copy.deepcopy(sample_results())
    change(results)
    assert any(found.startswith(fault) for found in faults(validator, results))


def test_the_numbers_of_the_schema_are_those_that_are_read():
    assert schema()["properties"]["schema"]["const"] == SCHEMA
    assert {k: v["const"] for k, v in schema()["properties"]["protocol"]["properties"].items()} == PROTOCOL


def test_every_field_has_its_meaning():
    def bare(node, path):
        for name, field in node.get("properties", {}).items():
            if not field.get("description"):
                yield f"{path}.{name}"
            yield from bare(field, f"{path}.{name}")
        if "items" in node:
            yield from bare(node["items"], f"{path}[]")

    whole = schema()
    nodes = {"": whole, **whole["$defs"]}
    assert [field for path, node in nodes.items() for field in bare(node, path)] == []


def test_the_page_is_made_from_the_schema():
    """`python tools/results_schema.py` writes it."""
    spec = importlib.util.spec_from_file_location("results_schema", ROOT / "tools" / "results_schema.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text("utf-8") == module.page()
