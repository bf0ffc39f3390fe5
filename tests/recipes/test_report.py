"""The page of a recipe: charts with all their points, every text literal, nothing loaded, readable on a phone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from attensor.recipes import Chart
from attensor.recipes._report import drawing, looks_of, write_report
from attensor.report.charts import View

from .test_claims import FOUND

HOSTILE = "</script><script>document.title='taken'</script> <b>%{x}</b>"
LINES = {
    "title": "Speed",
    "x": "tokens",
    "y": "µs",
    "series": {HOSTILE: [[1024, 5.0], [4096, 7.0]], "b": [[2048, 0.5]]},
}
# one grey pixel
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
PICTURE = {"title": "Fields", "text": HOSTILE, "tiles": [{"name": HOSTILE, "note": "0.5", "png": PIXEL}] * 5}
BARS = {"title": "Loss", "x": "seed", "y": "nats", "series": {"a": [[0, -0.1], [1, 0.2]]}, "bars": True}


def found(**changes: Any) -> dict[str, Any]:
    charts = [{**LINES, "log_x": True, "log_y": True}, BARS]
    texts = {"claim": HOSTILE, "figures": {HOSTILE: HOSTILE}}
    return {**FOUND, "charts": charts, "pictures": [PICTURE], **texts, **changes}


def drawn(chart: Chart) -> View:
    return drawing("c", chart, looks_of([chart])).views[0]


def test_a_series_looks_the_same_in_all_charts() -> None:
    first, second = Chart("t", "x", "y", {"a": [(1, 2)], "b": [(1, 3)]}), Chart("t", "x", "y", {"b": [(1, 2)]})
    looks = looks_of([first, second])
    (there,) = drawing("d", second, looks).looks
    assert there == drawing("c", first, looks).looks[1]


def test_a_line_chart_has_its_points_and_logarithmic_axes_at_powers_of_two() -> None:
    view = drawn(Chart(**LINES, log_x=True, log_y=True))
    assert [(series.kind, series.x, series.y) for series in view.data] == [
        ("line", [1024, 4096], [5.0, 7.0]),
        ("line", [2048], [0.5]),
    ]
    assert view.horizontal_axis.is_log
    assert view.vertical_axis.is_log
    assert view.horizontal_axis.texts == ["1k", "2k", "4k"]
    assert view.data[0].notes[1] == ["tokens: 4,100", "µs: 7"]


def test_points_that_a_logarithm_does_not_have_are_left_out() -> None:
    series = {"a": [(0.0, 1.0), (1.0, 0.0), (2.0, 3.0)], "b": [(1.0, -1.0)]}
    chart = Chart("t", "x", "y", series, log_x=True, log_y=True)
    made = drawing("c", chart, looks_of([chart]))
    assert [(one.x, one.y) for one in made.views[0].data] == [([2.0], [3.0])]
    assert [look.label for look in made.looks] == ["a"]


def test_bars_start_at_zero_and_stand_at_the_places_of_their_points() -> None:
    view = drawn(Chart(**BARS))
    assert [series.kind for series in view.data] == ["bars"]
    assert view.vertical_axis.low < -0.1 < 0 < 0.2 < view.vertical_axis.high
    assert view.horizontal_axis.ticks == [0, 1]
    assert view.horizontal_axis.low < -0.5 < 1.5 < view.horizontal_axis.high


def test_the_page_loads_nothing_and_shows_texts_literally(tmp_path: Path) -> None:
    write_report(found(), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    head = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "<script>document.title" not in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", head)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert [chart["title"] for chart in json.loads(data[1])["charts"]] == ["Speed", "Loss"]
    assert page.count(f"data:image/png;base64,{PIXEL}") == 5
    for part in (
        "gla: partly",
        "1 of 2 marks reached, 1 not decided",
        "recall 5: 4 ± 2",
        "attensor reproduce gla",
        "took 3.1 minutes",
    ):
        assert part in head


def test_a_page_without_charts_is_small(tmp_path: Path) -> None:
    write_report(found(charts=[], quick=True, pictures=[]), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert len(page) < 60_000
    assert "gla: a quick run indicates partly" in page


@pytest.mark.slow
def test_a_browser_draws_every_chart_asks_nobody_and_needs_no_sideways_scrolling(tmp_path: Path, chromium: str) -> None:
    from playwright.sync_api import sync_playwright

    write_report(found(), tmp_path / "report.html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for width, scheme in ((1280, "light"), (390, "dark")):
            requests: list[str] = []
            complaints: list[str] = []
            page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
            page.on("request", lambda request, to=requests: to.append(request.url))
            page.on("console", lambda message, to=complaints: to.append(message.text))
            page.on("pageerror", lambda error, to=complaints: to.append(str(error)))
            page.goto((tmp_path / "report.html").as_uri())
            page.wait_for_selector(".plot svg[role=img]")
            assert page.locator(".plot svg[role=img]").count() == 2
            overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            widths = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().width])")
            assert len(widths) == 5
            assert all(natural == 1 and shown > 100 for natural, shown in widths)
            assert overflow == 0
            assert page.title() == "attensor reproduce gla"
            page.close()
            assert len(requests) == 1
            assert complaints == []
        browser.close()
