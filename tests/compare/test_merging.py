"""Results of several runs as one: what is pooled, what stands apart, and what is refused."""

from __future__ import annotations

import copy
import json
import math
import statistics

import numpy
import pytest

from attensor import cli
from attensor.compare import Result, merge
from attensor.compare.conclusions import conclusions
from attensor.compare.schema import schema
from attensor.report.plots.quality import quality_curves

from .made_results import Truth, made_results
from .test_schema import MADE

ONE = {"processor": "Imaginary 3000", "cores": 2, "threads": 1, "device": "cpu", "dtype": "float32"}
OTHER = ONE | {"processor": "Imaginary 9000", "cores": 64}
TRUTH = Truth({"softmax": 0.0, "gla": 0.03, "linear": 0.4}, seeds=6)


@pytest.fixture
def whole():
    """All that the parts are taken from: three mechanisms, six seeds, one machine."""
    return MADE | made_results(TRUTH, 3)


@pytest.fixture
def part(whole, tmp_path):
    """Write a run with these mechanisms and seeds; changes at the top as dotted keys."""

    def written(name, mechanisms, seeds, machine=ONE, **changes):
        results = copy.deepcopy(whole)
        results["machine"] = machine
        results["plan"]["seeds"] = list(seeds)
        results["mechanisms"] = [row for row in results["mechanisms"] if row["name"] in mechanisms]
        for row in results["mechanisms"]:
            row["runs"] = [run for run in row["runs"] if run["seed"] in seeds]
        for place, change in changes.items():
            results[place] = results.get(place, {}) | change
        folder = tmp_path / name
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(results | conclusions(results)))
        return folder

    return written


def named(result):
    return {row["name"]: row for row in result.rows}


def test_the_parts_of_a_run_merge_to_the_whole(part, whole, tmp_path):
    """Seeds pooled and mechanisms side by side: scores and conclusions are those of the run that nobody divided."""
    parts = [
        part("a", ("softmax", "gla"), (0, 1, 2)),
        part("b", ("softmax", "gla"), (3, 4, 5)),
        part("c", ("linear",), range(6)),
    ]
    result = merge(*parts, out=tmp_path / "all")
    undivided = whole | conclusions(whole)
    for row in undivided["mechanisms"]:
        merged = named(result)[row["name"]]
        assert [run["seed"] for run in merged["runs"]] == list(range(6))
        for key in ("score", "score_2x", "score_4x", "score_equal_time", "cost", "decode", "seconds_per_step"):
            assert merged[key] == row[key], key
    for key in ("ranking", "verdict", "speedup", "crossings"):
        assert result.results[key] == undivided[key]
    assert [one["seeds"] for one in result.results["merged"]] == [[0, 1, 2], [3, 4, 5], list(range(6))]
    assert Result.load(tmp_path / "all").results == result.results
    assert (tmp_path / "all" / "results.csv").read_text().count("\n") == 4


def test_files_of_models_are_found_from_the_new_folder(part, tmp_path):
    a, b = part("a", ("softmax",), (0, 1)), part("b", ("gla",), (0, 1))
    result = merge(a, b, out=tmp_path / "deep" / "all")
    found = {row["name"]: (result.path / row["runs"][0]["checkpoint"]).resolve() for row in result.rows}
    assert found == {"softmax": a / "softmax/seed-0.safetensors", "gla": b / "gla/seed-0.safetensors"}


def test_times_of_two_machines_are_never_in_one_table(part, tmp_path):
    """Those of the machine that measured more of the mechanisms are shown, the others kept apart with a reason."""
    a = part("a", ("linear",), (0, 1, 2), OTHER)
    b = part("b", ("softmax", "gla"), (0, 1, 2))
    rows = named(result := merge(a, b, out=tmp_path / "all"))
    assert result.results["machine"] == ONE
    assert [rows[name]["machine"] for name in ("softmax", "gla", "linear")] == [1, 1, None]
    linear = rows["linear"]
    assert linear["cost"] == linear["decode"] == []
    assert linear["seconds_per_step"] is linear["score_equal_time"] is None
    assert "another machine" in linear["missing"]["cost"]
    assert linear["score"]["mean"] > 2
    (elsewhere,) = linear["measured"]
    assert elsewhere["machine"] == 0
    assert len(elsewhere["cost"]) == 4
    assert "another machine" in linear["missing"]["score_equal_time"]
    # seconds stay with their machine, and no plot has those of two
    assert [run["machine"] for row in rows.values() for run in row["runs"]] == [0] * 3 + [1] * 6
    (by_time,) = [view for view in quality_curves(result.results).views if view.label == "by time"]
    (by_tokens,) = [view for view in quality_curves(result.results).views if view.label == "by tokens"]
    assert (len(by_time.data), len(by_tokens.data)) == (2, 3)


def test_equal_time_needs_one_machine_that_trained_all(part, whole, tmp_path):
    """Seeds from two machines: the pace is that of one, the curves are those of all seeds."""
    for row, pace in zip(whole["mechanisms"], (0.01, 0.02, 0.015), strict=True):
        row["seconds_per_step"] = pace
    a = part("a", tuple(TRUTH.gaps), (0, 1, 2))
    for row in whole["mechanisms"]:
        row["seconds_per_step"] = 0.3
        for run in row["runs"]:
            for point in run["curve"]:
                point["seconds"] *= 7
    b = part("b", tuple(TRUTH.gaps), (3, 4, 5), OTHER)
    rows = named(result := merge(a, b, out=tmp_path / "all"))
    assert [row["seconds_per_step"] for row in rows.values()] == [0.01, 0.02, 0.015]
    # softmax is the fastest and stands where it ended, gla half as far
    assert rows["softmax"]["score_equal_time"] == rows["softmax"]["score"]
    curves = [run["curve"] for run in rows["gla"]["runs"]]
    assert len(curves) == 6
    ends = [run["final"]["1x"] - run["curve"][-1]["score"] for run in rows["gla"]["runs"]]
    halves = [numpy.interp(math.log(204_800), *log_points(curve)) for curve in curves]
    assert rows["gla"]["score_equal_time"]["mean"] == pytest.approx(statistics.fmean(map(sum, zip(halves, ends))))
    assert result.results["ranking"]["equal_time"]["seconds"] == pytest.approx(4.0)
    (by_time,) = [view for view in quality_curves(result.results).views if view.label == "by time"]
    assert max(max(series.x) for series in by_time.data) == pytest.approx(4.0)


def log_points(curve):
    return [math.log(point["tokens"]) for point in curve], [point["score"] for point in curve]


def test_merged_results_merge_again(part, tmp_path):
    a, b = part("a", ("softmax", "gla"), (0, 1)), part("b", ("softmax", "gla"), (2, 3), OTHER)
    c = part("c", ("softmax", "gla", "linear"), (4, 5), OTHER)
    first = merge(a, b, out=tmp_path / "ab")
    assert first.results["machine"] == ONE
    steps = merge(tmp_path / "ab", c, out=tmp_path / "abc")
    at_once = merge(a, b, c, out=tmp_path / "at-once")
    for result in (steps, at_once):
        assert [one["path"] for one in result.results["merged"]] == [str(a), str(b), str(c)]
        assert result.results["machine"] == OTHER
        assert [len(row["measured"]) for row in result.rows] == [3, 3, 1]
    assert steps.results["ranking"] == at_once.results["ranking"]
    assert steps.rows == at_once.rows


def test_the_same_seed_counts_once_when_it_is_the_same_run(part, tmp_path):
    a, b = part("a", ("softmax", "gla"), (0, 1)), part("b", ("softmax", "linear"), (0, 1))
    assert len(named(merge(a, b, out=tmp_path / "all"))["softmax"]["runs"]) == 2


def test_the_same_seed_with_another_score_is_refused(part, tmp_path):
    a, b = part("a", ("softmax", "gla"), (0, 1)), part("b", ("softmax", "gla"), (0, 1))
    results = json.loads((b / "results.json").read_text())
    results["mechanisms"][1]["runs"][1]["final"]["1x"] += 0.01
    (b / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"seed 1 of gla is in two runs .* --first-seed 2 or more"):
        merge(a, b, out=tmp_path / "all")
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"test_bytes": 5}}, r"data: test_bytes \d+ and 5\. They learned from different data"),
        ({"provenance": {"data_sha256": "ab"}}, "the digest of the data None and 'ab'"),
        ({"plan": {"steps": 401}}, r"plan: steps 400 and 401\. .*--steps"),
        ({"plan": {"hidden_size": 96}}, "plan: hidden_size 64 and 96"),
        ({"plan": {"rule": "time"}}, "plan: rule 'tokens' and 'time'"),
        ({"machine": {"dtype": "bfloat16"}}, "number format 'float32' and 'bfloat16'"),
        ({"quality": {"chance": 7.0}}, "metric: chance 8.0 and 7.0"),
        ({"protocol": {"version": 1}}, "another protocol"),
    ],
)
def test_what_differs_is_named(changes, message, part, tmp_path):
    a, b = part("a", ("softmax",), (0, 1)), part("b", ("gla",), (0, 1), **changes)
    with pytest.raises(ValueError, match=message):
        merge(a, b, out=tmp_path / "all")


def test_another_model_of_the_same_name_is_refused(part, whole, tmp_path):
    a = part("a", ("softmax", "gla"), (0, 1))
    whole["mechanisms"][1]["parameters"] += 1
    with pytest.raises(ValueError, match="gla is not the same in both"):
        merge(a, part("b", ("gla",), (2, 3)), out=tmp_path / "all")


def test_two_chosen_learning_rates_are_both_named(part, whole, tmp_path):
    a = part("a", ("softmax", "gla"), (0, 1))
    whole["mechanisms"][1]["learning_rate"] = 0.5
    row = named(merge(a, part("b", ("softmax", "gla"), (2, 3)), out=tmp_path / "all"))["gla"]
    assert row["learning_rate"] is None
    assert "and 0.5, each the best" in row["missing"]["learning_rate"]


def test_merged_results_keep_the_schema(part, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    a, b = part("a", ("softmax", "gla"), (0, 1)), part("b", ("softmax", "linear"), (2, 3), OTHER)
    jsonschema.validate(merge(a, b, out=tmp_path / "all").results, schema())


def test_the_command_writes_the_report(part, tmp_path, capsys):
    a, b = part("a", ("softmax", "gla"), (0, 1)), part("b", ("softmax", "gla"), (2, 3))
    assert cli.main(["merge", str(a), str(b), "--out", str(tmp_path / "all")]) == 0
    assert f"Results: {tmp_path / 'all' / 'results.json'}" in capsys.readouterr().out
    assert (tmp_path / "all" / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "give at least two runs"),
        (["a", "nowhere"], "there are no results"),
        (["a", "b", "--out", "a"], "is there already, and not empty"),
    ],
)
def test_what_cannot_be_merged_is_one_line(words, message, part, tmp_path, monkeypatch, capsys):
    part("a", ("softmax",), (0, 1)), part("b", ("gla",), (0, 1))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["merge", *words, *([] if "--out" in words else ["--out", "all"])]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err
