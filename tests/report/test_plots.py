"""Every plot is what plotly accepts, shows the numbers of the results, and each mechanism looks the same everywhere."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attensor.report.charts import identities, log_axis, pareto_front, plot_text, size_axis
from attensor.report.numbers import rounded, short
from attensor.report.plots import charts

from .sample_results import sample_results


def by_name(results):
    return {chart.name: chart for chart in charts(results)}


def lines(view, group):
    return [t for t in view.data if t.get("legendgroup") == group and "hovertemplate" in t]


@pytest.mark.parametrize("kind", ["text", "images"])
def test_plotly_accepts_every_view(kind):
    """Its own validation knows every property and its values."""
    for chart in charts(sample_results(kind)):
        for view in chart.views:
            figure = go.Figure(data=view.data, layout=view.layout)
            assert len(figure.data) == len(view.data) > 0


def test_text_has_all_plots_and_images_do_not_decode():
    names = ["curves", "pareto", "cost", "decode", "pilots"]
    assert list(by_name(sample_results())) == names
    images = by_name(sample_results("images"))
    assert list(images) == [name for name in names if name != "decode"]
    assert [view.label for view in images["pareto"].views] == ["training time"]
    assert images["cost"].views[0].layout["xaxis"]["title"]["text"] == "length in cells"


def test_a_mechanism_has_one_colour_and_marker_of_its_own():
    looks = defaultdict(set)
    for chart in charts(sample_results()):
        for trace in (trace for view in chart.views for trace in view.data if "legendgroup" in trace):
            looks[trace["legendgroup"]].add((trace["marker"]["color"], trace["marker"]["symbol"]))
        for key in (key for view in chart.views for key in view.keys):
            assert {key.colour} == {colour for colour, _ in looks[key.group]}
    assert len(looks) == 7
    assert all(len(look) == 1 for look in looks.values())
    assert len(set.union(*looks.values())) == 7
    many = identities([{"name": str(i)} for i in range(56)])
    assert len({(one.colour, one.marker) for one in many}) == 56


def test_every_group_has_a_key_and_every_key_a_group():
    for chart in charts(sample_results()):
        for view in chart.views:
            groups = {trace["legendgroup"] for trace in view.data if "legendgroup" in trace}
            assert groups == {key.group for key in view.keys}


def test_curves_show_the_mean_in_a_band_of_the_seeds():
    results = sample_results()
    runs = results["mechanisms"][5]["runs"]
    tokens, seconds = by_name(results)["curves"].views
    (line,) = lines(tokens, "m5")
    points = list(zip(runs[0]["curve"], runs[1]["curve"], strict=True))[1:]
    assert line["x"] == pytest.approx([a["tokens"] for a, _ in points])
    assert line["y"] == pytest.approx([(a["score"] + b["score"]) / 2 for a, b in points])
    assert lines(seconds, "m5")[0]["x"] == pytest.approx([a["seconds"] for a, _ in points])
    (area,) = [t for t in tokens.data if t.get("fill") and t["legendgroup"] == "m5"]
    half = len(area["y"]) // 2
    assert area["y"][:half] == pytest.approx([min(a["score"], b["score"]) for a, b in points])
    assert area["y"][half:][::-1] == pytest.approx([max(a["score"], b["score"]) for a, b in points])


def test_cost_and_decode_show_their_rows_and_the_exponents():
    results = sample_results()
    softmax = results["mechanisms"][0]
    both, forward, memory = by_name(results)["cost"].views
    for view, key in ((both, "forward_backward_ms"), (forward, "forward_ms"), (memory, "peak_bytes")):
        (line,) = lines(view, "m0")
        assert line["x"] == [row["length"] for row in softmax["cost"]]
        assert line["y"] == [row[key] for row in softmax["cost"]]
    details = [{key.group: key.detail for key in view.keys}["m0"] for view in (both, forward, memory)]
    assert details == ["n^2.00", "n^1.98", "n^0.98"]
    latency, state = by_name(results)["decode"].views
    assert lines(latency, "m0")[0]["y"] == [row["ms_per_token"] for row in softmax["decode"]]
    assert lines(state, "m0")[0]["y"] == [row["state_bytes"] for row in softmax["decode"]]


def test_quality_against_cost_marks_the_front():
    view = by_name(sample_results())["pareto"].views[0]
    front = view.data[0]
    points = {(t["x"][0], t["y"][0]) for t in view.data[1:]}
    assert set(zip(front["x"], front["y"], strict=True)) == set(pareto_front(list(points), lower_is_better=True))
    assert (1e6 / 55_000, 2.29) in points


def test_the_chosen_learning_rate_is_larger():
    view = by_name(sample_results())["pilots"].views[0]
    (line,) = lines(view, "m5")
    assert line["x"] == [1e-3, 3e-3, 1e-2]
    assert line["marker"]["size"][2] > line["marker"]["size"][0] == line["marker"]["size"][1]


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


@given(st.lists(st.floats(1e-4, 1e6), min_size=1, max_size=9))
def test_ticks_of_log_axes_have_room(values):
    span = math.log(max(values) / min(values))
    for make, form in ((log_axis, rounded), (size_axis, short)):
        ticks = make([max(v, 1) for v in values] if make is size_axis else values, form)["tickvals"]
        gaps = [math.log(b / a) for a, b in itertools.pairwise(ticks)]
        assert all(gap > span / 12 for gap in gaps)
        assert len(ticks) <= 15
    if span > 0.5:
        assert len(log_axis(values, rounded)["tickvals"]) >= 2


def test_names_are_literal_in_plots():
    assert plot_text("<b>%{x}</b> & co") == "&lt;b&gt;&#37;{x}&lt;/b&gt; &amp; co"
    assert len(identities([{"name": "x" * 99}])[0].label) == 48
