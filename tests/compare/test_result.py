"""A result as rows, CSV, frame and notebook cell; and the comparison from Python."""

from __future__ import annotations

import csv
import inspect
import io
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import attensor.compare
from attensor.compare import Result, columns, python
from attensor.compare.conclusions import conclusions
from attensor.compare.config import CompareConfig
from attensor.compare.ended import Ended
from attensor.errors import MissingExtraError

from .made_results import Truth, made_results

HOSTILE = "<img src=x onerror=alert(1)>"


def made(**changes):
    results = made_results(Truth({"softmax": 0.0, "gla": 0.002, "linear": 0.4}), 0, **changes)
    return results | conclusions(results)


@pytest.fixture
def result(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(made()))
    return Result.load(tmp_path)


def test_importing_the_package_loads_nothing():
    code = "import sys, attensor.compare; dir(attensor.compare); assert 'torch' not in sys.modules, 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_and_its_file_load_alike(result, tmp_path):
    again = Result.load(tmp_path / "results.json")
    assert again.results == result.results
    assert again.path == result.path == tmp_path
    assert [row["name"] for row in result.rows] == ["softmax", "gla", "linear"]
    assert result.answer == result.results["answer"]
    assert str(result) == "\n".join(result.answer)
    assert "3 mechanisms, not decided" in repr(result)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there are no results"),
        ("{", "is damaged"),
        ("[]", "it is no comparison"),
        ('{"schema": 1, "mechanisms": []}', "is of schema 1, and this attensor reads 2"),
        ('{"schema": 2, "protocol": {"name": "attensor-compare", "version": 4}, "mechanisms": []}', "another protocol"),
    ],
)
def test_what_cannot_be_read_is_refused(content, message, tmp_path):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Result.load(tmp_path)


def test_ties_share_a_place_and_a_withheld_ranking_has_none():
    rows = {row["name"]: row for row in columns.flat_rows(made())}
    assert rows["softmax"]["place"] == rows["gla"]["place"] == 1
    assert rows["linear"]["place"] == 2
    busy = {row["name"]: row for row in columns.flat_rows(made(gla={"load": 3.0}))}
    assert [row["place"] for row in busy.values()] == [None] * 3


def test_the_table_agrees_with_the_rows(result):
    table = list(csv.DictReader(io.StringIO(columns.csv_text(result.results))))
    assert [line["name"] for line in table] == [row["name"] for row in result.rows]
    for line, row in zip(table, result.rows, strict=True):
        assert float(line["score"]) == row["score"]["mean"]
        assert float(line["score_4x_high"]) == row["score_4x"]["high"]
        assert int(line["cost_length"]) == max(entry["length"] for entry in row["cost"])
        longest = max((d for d in row["decode"] if d.get("batch", 1) == 1), key=lambda d: d["context"])
        assert float(line["decode_ms"]) == longest["ms_per_token"]
        assert int(line["seeds"]) == 3
        assert line["machine"] == "Imaginary 3000 (cpu)"


def test_nothing_known_of_a_row_is_nothing_in_the_table():
    results = {"mechanisms": [{"name": "a"}]}
    (row,) = columns.flat_rows(results)
    assert {name for name, value in row.items() if value is not None} == {"name", "seeds"}
    assert columns.csv_text(results).splitlines()[1].startswith("a,,")


def test_the_csv_opens_in_pandas_with_its_types(result, tmp_path):
    pandas = pytest.importorskip("pandas")
    result.rows[1]["score"] = None
    result.rows[1]["at_edge"] = None
    frame = pandas.read_csv(result.save_csv(tmp_path / "table.csv"), dtype_backend="numpy_nullable")
    types = {"text": "string", "integer": "Int64", "number": "Float64", "boolean": "boolean"}
    for column in columns.COLUMNS:
        if frame[column.name].notna().any():
            found = frame[column.name]
            # a column of whole numbers may be read as such
            assert types[column.kind] == str(found.dtype) or (found.dropna() == found.dropna().round()).all()
    assert pandas.isna(frame.loc[1, "score"])


def test_a_frame_has_the_types_though_values_are_missing(result):
    pandas = pytest.importorskip("pandas")
    result.rows[1]["parameters"] = None
    frame = result.to_frame()
    assert frame["parameters"].dtype == pandas.Int64Dtype()
    assert frame["at_edge"].dtype == pandas.BooleanDtype()
    assert frame.sort_values("score")["name"].tolist()[-1] == "linear"


def test_without_pandas_the_message_says_how_to_get_it(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install pandas"):
        result.to_frame()


def test_a_cell_shows_ties_verdict_and_no_markup_of_others():
    results = made(gla={"name": HOSTILE, "title": HOSTILE})
    html = Result(results, Path("/runs/<b>"))._repr_html_()
    assert "<img" not in html
    assert "&lt;img src=x" in html
    assert html.count("<td>1 =</td>") == 2
    assert "cannot be told apart by these seeds" in html
    assert "<b>" not in html


def test_a_cell_of_a_notebook_shows_the_table(result, tmp_path, monkeypatch):
    shells = pytest.importorskip("IPython.core.interactiveshell")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    shell = shells.InteractiveShell.instance()
    try:
        done = shell.run_cell(f"import attensor.compare\nattensor.compare.Result.load({str(result.path)!r})")
        data, _ = shell.display_formatter.format(done.result)
    finally:
        shells.InteractiveShell.clear_instance()
    assert data["text/html"] == result._repr_html_()
    assert data["text/plain"] == repr(result)


def test_the_options_of_python_are_those_of_the_command_line():
    shown = inspect.signature(attensor.compare.run).parameters
    assert list(shown) == [field.name for field in fields(CompareConfig)]
    assert all(shown[field.name].default == field.default for field in fields(CompareConfig))
    with pytest.raises(TypeError, match=r"no option 'mechanism'. Did you mean mechanisms\?"):
        attensor.compare.run(mechanism="gla")


@pytest.fixture
def asked(result, monkeypatch):
    """What `run` hands to the comparison: (config, command)."""
    seen = []

    def compare(config, *, command):
        seen.append((config, command))
        return result.path

    monkeypatch.setattr(python, "compare", compare)
    return seen


def test_python_values_are_what_the_command_line_would_have_given(asked, tmp_path):
    found = attensor.compare.run(tmp_path, mechanisms=["gla", "softmax"], budget=90, learning_rates=[0.01], seeds=4)
    config, command = asked[0]
    assert config == CompareConfig(
        data=str(tmp_path), mechanisms="gla,softmax", budget="90s", learning_rates=(0.01,), seeds=4
    )
    assert command.startswith(f"attensor.compare.run(data={tmp_path!r}, mechanisms=['gla', 'softmax'], budget=90")
    assert [row["name"] for row in found.rows] == ["softmax", "gla", "linear"]


@pytest.mark.parametrize("is_interrupted", [True, False])
def test_a_stop_says_how_to_go_on_and_a_failure_gives_the_reasons(is_interrupted, result, monkeypatch):
    def compare(config, *, command):
        raise Ended(result.path, is_interrupted=is_interrupted)

    monkeypatch.setattr(python, "compare", compare)
    if is_interrupted:
        with pytest.raises(KeyboardInterrupt, match=r"run\(resume='.*Result\.load\("):
            attensor.compare.run()
    else:
        assert attensor.compare.run().rows == result.rows
