"""Every plot shows the numbers of the results, and each mechanism looks the same everywhere."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attensor.report.charts import pareto_front
from attensor.report.plots import charts

from .sample_results import sample_results


def by_name(results):
    return {chart.name: chart for chart in charts(results)}


def views(chart, label):
    return [view for view in chart.views if view.label == label]


def series(view, group):
    (found,) = [one for one in view.data if one.group == group]
    return found


def names(results):
    return {f"m{i}": mechanism["name"] for i, mechanism in enumerate(results["mechanisms"])}


@pytest.mark.parametrize("count", [3, 8, 25])
def test_text_has_all_plots(count):
    results = sample_results(count=count, skills=True, scale=True)
    expected = ["pareto", "curves", "length", "cost", "decode", "skills", "scale", "pilots"]
    assert list(by_name(results)) == expected
    assert list(by_name(sample_results(count=count))) == [n for n in expected if n not in ("skills", "scale")]


def test_images_neither_decode_nor_have_lengths():
    images = by_name(sample_results("images"))
    assert list(images) == ["pareto", "curves", "cost", "pilots"]
    assert {view.label for view in images["pareto"].views} == {"training", "layer time", "layer memory"}
    assert images["cost"].views[0].horizontal_axis.title == "length in cells"


def test_a_mechanism_has_one_look_in_all_charts():
    looks = defaultdict(set)
    results = sample_results(count=25, skills=True, scale=True)
    for chart in charts(results):
        groups = {one.group for view in chart.views for one in view.data} - {""}
        assert groups == {look.group for look in chart.looks}
        for look in chart.looks:
            looks[look.group].add(look)
    assert len(looks) == 24
    assert all(len(look) == 1 for look in looks.values())


def test_every_view_is_whole():
    """Points are within the axes or left of them, notes are one for each point, a summary says what there is."""
    for kind in ("text", "images"):
        for chart in charts(sample_results(kind, skills=True, scale=True)):
            for view in chart.views:
                assert len(view.summary) > 30
                for one in (one for one in view.data if one.group):
                    assert len(one.x) == len(one.y) == len(one.notes) > 0
                    assert len(one.low) == len(one.high) in (0, len(one.x))
                    assert min(one.x) >= view.horizontal_axis.low
                    assert max(one.x) <= view.horizontal_axis.high
                    assert view.vertical_axis.low <= one.y[-1] <= view.vertical_axis.high


def test_curves_show_the_mean_in_a_band_of_the_seeds():
    results = sample_results()
    runs = results["mechanisms"][5]["runs"]
    tokens, seconds, whole = by_name(results)["curves"].views
    line = series(tokens, "m5")
    points = list(zip(*(run["curve"] for run in runs), strict=True))[1:]
    assert line.x == pytest.approx([at[0]["tokens"] for at in points])
    assert line.y == pytest.approx([sum(p["score"] for p in at) / 3 for at in points])
    assert line.low == pytest.approx([min(p["score"] for p in at) for at in points])
    assert line.high == pytest.approx([max(p["score"] for p in at) for at in points])
    assert series(seconds, "m5").x == pytest.approx([at[0]["seconds"] for at in points])
    assert whole.vertical_axis.high > 8 > tokens.vertical_axis.high


def test_chance_and_references_are_lines_wherever_scores_are():
    """The nearest one is in sight, which does not squeeze the curves; chance at 8 is not."""
    results = sample_results()
    for name in ("pareto", "curves", "length", "pilots"):
        view = by_name(results)[name].views[0]
        assert {text for _, text in view.levels} == {
            *("chance 8.000", "unigram 4.610", "2-gram 3.520", "4-gram 2.360", "lzma 2.090")
        }
        assert view.vertical_axis.low < 2.36 < view.vertical_axis.high < 4.61
    images = by_name(sample_results("images"))["pareto"].views[0]
    assert "chance 10.0 %" in {text for _, text in images.levels}


def test_the_score_against_length_has_its_intervals():
    line = series(by_name(sample_results())["length"].views[0], "m0")
    assert line.x == [128, 256, 512]
    assert line.y == pytest.approx([2.31, 2.66, 3.15])
    assert line.low[0] < line.y[0] < line.high[0]
    assert "gla overtakes <img" in by_name(sample_results())["length"].text


def test_cost_and_decode_show_their_rows_and_the_exponents():
    results = sample_results()
    softmax = results["mechanisms"][0]
    made = by_name(results)["cost"].views
    keys = ("forward_backward_ms", "forward_ms", "peak_bytes", "flops")
    for view, key in zip(made, keys, strict=True):
        line = series(view, "m0")
        assert line.x == [row["length"] for row in softmax["cost"]]
        assert line.y == [row[key] for row in softmax["cost"]]
    assert [series(view, "m0").detail for view in made] == ["n^2.00", "n^1.98", "n^0.98", ""]
    assert series(made[1], "m0").high == [row["forward_quartiles"][1] for row in softmax["cost"]]
    latency, state, batches, generation = by_name(results)["decode"].views
    single = [row for row in softmax["decode"] if row["batch"] == 1]
    assert series(latency, "m0").y == [row["ms_per_token"] for row in single]
    assert series(state, "m0").y == [row["state_bytes"] for row in single]
    assert series(batches, "m0").x == [1, 8, 32]
    assert series(generation, "m0").y == [row["tokens_per_second"] for row in softmax["generation"]]


def test_the_pareto_plot_follows_length_and_rule():
    results = sample_results()
    softmax = results["mechanisms"][0]
    chart = by_name(results)["pareto"]
    measured = [view for view in views(chart, "layer time") if view.length <= 4096]
    found = {(view.length, view.rule): series(view, "m0") for view in measured}
    assert found[128, "tokens"].y == [2.31]
    assert found[4096, "tokens"].y == found[512, "tokens"].y
    assert found[512, "tokens"].y == pytest.approx([3.15])
    assert found[512, "tokens"].x == [softmax["cost"][1]["forward_backward_ms"]]
    assert found[512, "time"].y == [softmax["score_equal_time"]["mean"]]
    assert {rule for _, rule in found} == {"tokens", "time"}


def test_quality_against_cost_marks_the_front():
    view = by_name(sample_results())["pareto"].views[0]
    front, *rest = view.data
    points = [(one.x[0], one.y[0]) for one in rest]
    assert list(zip(front.x, front.y, strict=True)) == pareto_front(points, lower_is_better=True)
    assert (1e6 / 55_000, 2.29) in points
    assert "On the Pareto front: gla, scalar-gated" in view.summary or "gla" in view.summary


def test_the_chosen_learning_rate_is_larger():
    view = by_name(sample_results())["pilots"].views[0]
    line = series(view, "m5")
    assert line.x == [1e-3, 3e-3, 9e-3]
    assert line.large == [2]


def test_skills_have_a_view_each_and_chance_in_it():
    results = sample_results(skills=True)
    chart = by_name(results)["skills"]
    assert [view.label for view in chart.views][:2] == ["Associative recall", "Selective copying"]
    parity = views(chart, "Parity")[0]
    assert parity.levels == [(0.5, "chance 50 %")]
    assert parity.horizontal_axis.texts == ["1x", "6x"]
    row = next(r for r in results["skills"]["tasks"][0]["rows"] if r["name"] == "gla")
    recall = series(chart.views[0], "m5")
    assert (recall.x, recall.y) == ([row["state_bytes"]], [row["score"]])


def test_scale_shows_points_and_exponents():
    results = sample_results(scale=True)
    line = series(by_name(results)["scale"].views[0], "m5")
    assert line.x == [130_000, 800_000, 5_000_000]
    assert line.detail == "N^-0.060"
    assert "0.86" in by_name(results)["scale"].text


numbers = st.floats(0.001, 1e3)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30), st.booleans())
def test_the_front_is_what_no_point_beats(points, lower_is_better):
    sign = 1 if lower_is_better else -1

    def beats(a, b):
        return a[0] <= b[0] and sign * a[1] <= sign * b[1] and a != b

    expected = {p for p in points if not any(beats(q, p) for q in points)}
    front = pareto_front(points, lower_is_better=lower_is_better)
    assert set(front) == expected
    assert front == sorted(front)
