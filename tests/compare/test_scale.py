"""Several sizes of the model: the power law, the stability of the order, and the runs of all sizes in one folder."""

from __future__ import annotations

import io
import json
import math
import statistics
import sysconfig
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from rich.console import Console

from attensor.compare import Result
from attensor.compare.balance import parameter_count
from attensor.compare.comparison import compare
from attensor.compare.conclusions import conclusions
from attensor.compare.config import CompareConfig
from attensor.compare.ended import Ended
from attensor.compare.plan import SIZES, make_plan
from attensor.compare.scale import kendall, power_law, scale, scale_sentences
from attensor.compare.schema import schema
from attensor.compare.sizes import combined, compare_sizes

from .made_results import Truth, made_results
from .test_schema import MADE

DATA = str(Path(sysconfig.get_paths()["stdlib"]) / "json")
PARAMETERS = {"tiny": 100_000, "small": 1_000_000, "base": 12_000_000}


def test_an_exact_law_is_found_with_no_interval_left():
    points = [(n, 5 * n**-0.07) for n in (1e5, 1e5, 1e6, 3e7)]
    exponent, low, high = power_law(points)
    assert exponent == pytest.approx(-0.07, abs=1e-12)
    assert low == pytest.approx(high, abs=1e-9)


def test_the_interval_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    points = [(1e5, 2.1), (1e5, 2.15), (1e5, 2.13), (1e6, 1.9), (1e6, 1.93), (1e6, 1.99)]
    found = stats.linregress(*([math.log(v) for v in values] for values in zip(*points, strict=True)))
    half = stats.t.ppf(0.975, 4) * found.stderr
    assert power_law(points) == pytest.approx((found.slope, found.slope - half, found.slope + half))


@pytest.mark.parametrize("points", [[], [(10, 1.0)], [(10, 1.0), (10, 2.0)], [(10, 1.0), (20, 0.0), (30, 1.0)]])
def test_what_cannot_be_fitted_is_none(points):
    assert power_law(points) == (None, None, None)


def test_two_points_have_a_line_and_no_interval():
    exponent, low, high = power_law([(1e5, 2.0), (1e6, 1.0)])
    assert exponent == pytest.approx(math.log(0.5) / math.log(10))
    assert low is high is None


def test_kendall_is_that_of_scipy_and_one_for_one_order():
    stats = pytest.importorskip("scipy.stats")
    one = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.5}
    other = {"d": 2.0, "a": 1.0, "c": 9.0, "b": 3.0, "e": 0.0}
    expected = stats.kendalltau(list(one.values()), [other[name] for name in one]).statistic
    assert kendall(one, other) == pytest.approx(expected)
    assert kendall(one, one) == 1
    assert kendall(one, {name: -score for name, score in one.items()}) == -1
    assert kendall(one, {"a": 1.0}) is None


def made(size, gaps):
    """Results of one size whose scores fall with the parameters."""
    base = 8 * PARAMETERS[size] ** -0.1
    results = MADE | made_results(Truth(gaps, base=base, unit_sd=0.001, difficulty_sd=0.0, seed_sd=0.004))
    for row in results["mechanisms"]:
        row["parameters"] = PARAMETERS[size]
    results["plan"]["size"] = size
    return results | conclusions(results)


def test_the_field_has_all_sizes_and_the_order_between_them():
    gaps = [{"softmax": 0.0, "gla": 0.05, "linear": 0.4}, {"softmax": 0.05, "gla": 0.0, "linear": 0.4}]
    by_size = {"tiny": made("tiny", gaps[0]), "small": made("small", gaps[1])}
    found = scale(by_size, fit=True)
    assert found["sizes"] == ["tiny", "small"]
    assert found["rank_correlation"] == pytest.approx(1 / 3)  # of three pairs two stay and one turns
    row = found["rows"][1]
    assert row["name"] == "gla"
    assert [point["parameters"] for point in row["points"]] == [100_000, 1_000_000]
    assert row["points"][0]["score"] == by_size["tiny"]["mechanisms"][1]["score"]["mean"]
    assert row["low"] < row["exponent"] < row["high"] < 0
    # the law goes through the mean logarithms of both sizes
    means = [
        statistics.fmean(math.log(run["final"]["1x"]) for run in one["mechanisms"][1]["runs"])
        for one in by_size.values()
    ]
    assert row["exponent"] == pytest.approx((means[1] - means[0]) / math.log(10))
    first, second = scale_sentences(found, "bits per byte")
    assert first.startswith("From tiny to small the order changes (Kendall's tau 0.33)")
    assert second.startswith("gla gains most from size, bits per byte with the power -0.1")
    assert [row["exponent"] for row in scale(by_size, fit=False)["rows"]] == [None] * 3


def test_of_images_the_share_of_wrong_answers_is_fitted():
    by_size = {size: made(size, {"softmax": 0.0, "gla": 0.1}) for size in ("tiny", "small")}
    for place, results in enumerate(by_size.values()):
        results["quality"] = {**results["quality"], "metric": "accuracy", "lower_is_better": False}
        for row in results["mechanisms"]:
            for run in row["runs"]:
                run["final"]["1x"] = 1 - 0.3 * 10 ** (-0.2 * place)
    assert scale(by_size, fit=True)["rows"][0]["exponent"] == pytest.approx(-0.2)


def test_the_rows_on_top_are_those_of_the_largest_and_keep_the_schema():
    jsonschema = pytest.importorskip("jsonschema")
    by_size = {size: made(size, {"softmax": 0.0, "gla": 0.1}) for size in ("tiny", "small", "base")}
    results = combined(by_size, {"created": "then", "command": "attensor"}, is_whole=True, fit=True)
    jsonschema.validate(results, schema())
    row, largest = results["mechanisms"][0], by_size["base"]["mechanisms"][0]
    assert row["score"] == largest["score"]
    assert row["runs"][0]["checkpoint"] == f"base/{largest['runs'][0]['checkpoint']}"
    assert results["scale"]["rank_correlation"] == 1
    assert "From tiny to base the order stays the same (Kendall's tau 1.00)." in results["answer"]


@pytest.fixture
def asked():
    """A comparison of one size that only writes made results: (its function, what it was asked)."""
    seen = []

    def compare_one(config, *, console, command, into):
        seen.append((config, into))
        folder = Path(config.resume) if into is None else into
        folder.mkdir(exist_ok=True)
        (folder / "plan.json").touch()
        results = made(folder.name, {"softmax": 0.0, "gla": 0.1})
        (folder / "results.json").write_text(json.dumps(results))
        if len(seen) == 1:
            raise Ended(folder, is_interrupted=True)
        return folder

    return compare_one, seen


def test_a_stop_keeps_the_sizes_there_are_and_goes_on_with_the_rest(asked, tmp_path):
    """The largest comes first; the others take its steps, and all of them length and batch of the smallest."""
    compare_one, seen = asked
    config = CompareConfig(data=DATA, mechanisms="softmax,gla", size="small,tiny", fit=True, out=str(tmp_path))
    more = {"console": Console(file=io.StringIO()), "command": "attensor compare"}
    with pytest.raises(Ended) as stopped:
        compare_sizes(config, tmp_path, compare_one, **more)
    folder = stopped.value.folder
    result = Result.load(folder)
    assert result.results["scale"]["sizes"] == ["small"]
    assert not result.results["finished"]
    assert result.answer[-1] == f"Continue with: attensor compare --resume {folder}"
    with pytest.raises(ValueError, match="leave out --seeds 7"):
        compare_sizes(CompareConfig(resume=str(folder), seeds=7), folder, compare_one, **more)
    compare_sizes(CompareConfig(resume=str(folder)), folder, compare_one, **more)
    assert [into for _, into in seen] == [folder / "small", None, folder / "tiny"]
    first, again, smallest = (config for config, _ in seen)
    assert (first.size, first.steps, first.length, first.batch_size) == ("small", None, 128, smallest.batch_size)
    assert again == CompareConfig(resume=str(folder / "small"))
    assert (smallest.size, smallest.steps, smallest.budget, smallest.length) == ("tiny", 400, None, 128)
    assert Result.load(folder).results["finished"]
    assert Result.load(folder).results["scale"]["sizes"] == ["tiny", "small"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "tiny,huge"}, "--size 'tiny,huge': give one of tiny, small, base"),
        ({"size": ""}, "--size '': give one of"),
        ({"fit": True}, "--fit needs at least two sizes"),
        ({"size": "tiny,tiny", "fit": True}, "--fit needs at least two sizes"),
    ],
)
def test_sizes_that_do_not_go_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CompareConfig(**options)


def test_each_size_has_several_times_the_parameters_of_the_one_before():
    counts = []
    for size in SIZES:
        config = CompareConfig(data=DATA, mechanisms="linear", size=size, device="cpu")
        plan = make_plan(config, created="then", command="attensor compare")
        with torch.device("meta"):
            model = plan.task.build(plan, plan.mixers(plan.subjects[0]), plan.reference_mlp_size)
        counts.append(parameter_count(model))
    assert len(counts) == 3
    assert all(larger > 5 * smaller for smaller, larger in pairwise(counts))


@pytest.mark.slow
def test_two_sizes_from_beginning_to_end(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "small", (160, 3, 4))
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # two threads wait for each other while other tests take the cores
    text, shown = tmp_path / "text.txt", io.StringIO()
    text.write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}, and so on.\n" for i in range(300)))
    config = CompareConfig(
        data=str(text), mechanisms="linear", size="tiny,small", fit=True, steps=4, seeds=2, length=16, batch_size=2,
        max_length=128, learning_rates=(6e-3,), counts=False, out=str(tmp_path / "runs"), device="cpu",
    )  # fmt: skip
    result = Result.load(compare(config, console=Console(file=shown, width=160)))
    rows = result.results["scale"]["rows"]
    assert [row["name"] for row in rows] == ["linear"]
    assert all(row["points"][1]["parameters"] > 5 * row["points"][0]["parameters"] for row in rows)
    assert all(row["exponent"] is not None for row in rows)
    assert all((result.path / run["checkpoint"]).is_file() for row in result.rows for run in row["runs"])
    assert all((result.path / size / "report.html").is_file() for size in ("tiny", "small", "."))
    assert "Size tiny, 2 of 2" in shown.getvalue()
