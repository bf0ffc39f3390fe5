"""The page in a real browser: it asks nobody, logs nothing, answers the pointer, and fits on a phone."""

from __future__ import annotations

import contextlib

import pytest

from attensor.report import write_report

from .sample_results import HOSTILE, sample_results

pytestmark = pytest.mark.slow

_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
_SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    for kind in ("text", "images"):
        write_report(sample_results(kind), folder / f"{kind}.html")
    return folder


@pytest.fixture(scope="module")
def pages(browser, folder):
    """The report of a text comparison on both devices. Tests share them, and put back what they change."""
    with contextlib.ExitStack() as stack:
        yield {device: stack.enter_context(opened(browser, folder / "text.html", device)) for device in _SIZES}


@pytest.fixture(params=list(_SIZES))
def device(request):
    return request.param


@pytest.fixture
def page(pages, device):
    return pages[device]


@contextlib.contextmanager
def opened(browser, path, device, scheme="light"):
    """A page; when it is closed, nothing may have been requested, logged or asked."""
    width, height = _SIZES[device]
    is_phone = device == "phone"
    options = {"is_mobile": is_phone, "has_touch": is_phone, "color_scheme": scheme}
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    page = context.new_page()
    requests, troubles = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: (troubles.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.goto(path.as_uri())
    page.wait_for_function(
        "document.querySelectorAll('.plot .xtitle').length === document.querySelectorAll('.plot').length"
    )
    yield page
    page.wait_for_timeout(100)
    context.close()
    assert requests == [path.as_uri()]
    assert troubles == []


def press(page, locator):
    """A finger where there is a touch screen, else the mouse: plotly ignores fingers once it has met a mouse."""
    is_touch = page.evaluate("matchMedia('(pointer: coarse)').matches")
    locator.tap() if is_touch else locator.click()


def point_at_first_mark(page, chart):
    """What the hover label of the first mark says."""
    plot = page.locator(f"#{chart} .plot")
    plot.scroll_into_view_if_needed()
    mark = plot.locator(".trace path.point").first.bounding_box()
    place = mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2
    is_touch = page.evaluate("matchMedia('(pointer: coarse)').matches")
    page.touchscreen.tap(*place) if is_touch else page.mouse.move(*place)
    label = plot.locator(".hovertext")
    label.wait_for(timeout=10_000)
    return label.text_content()


def visible_groups(page, chart):
    """Groups of the traces that plotly draws."""
    script = (
        "id => document.querySelector(`#${id} .plot`)._fullData.filter(t => t.visible === true).map(t => t.legendgroup)"
    )
    return {group for group in page.evaluate(script, chart) if group}


def test_every_plot_is_drawn_and_stays_inside_the_page(page):
    assert page.locator(".plot").count() == 5
    for plot in page.locator(".plot").all():
        assert plot.locator(".trace path.point").count() > 3
        box = plot.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= page.viewport_size["width"]
    widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1]


def test_text_is_large_enough_to_read(page):
    sizes = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => [...e.childNodes].some("
        "n => n.nodeType === 3 && n.textContent.trim())).map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 12


def test_pointing_at_a_mark_shows_its_numbers(page):
    text = point_at_first_mark(page, "pareto")
    assert "gla" in text
    assert "2.290 bits per byte" in text
    assert "18.2 s" in text


def test_the_legend_isolates_and_brings_back(page):
    """One press shows one mechanism on unchanged axes, in every view; a second one shows all again."""
    ranges = (
        "id => { const l = document.querySelector(`#${id} .plot`)._fullLayout; return [l.xaxis.range, l.yaxis.range] }"
    )
    for chart in ("curves", "cost"):
        everything, axes = visible_groups(page, chart), page.evaluate(ranges, chart)
        assert len(everything) == 7
        key = page.locator(f"#{chart} .keys button", has_text="scalar-gated")
        press(page, key)
        assert visible_groups(page, chart) == {"m4"}
        assert page.evaluate(ranges, chart) == axes
        assert key.get_attribute("aria-pressed") == "true"
        for view in (1, 0):
            press(page, page.locator(f"#{chart} .switch button").nth(view))
            assert visible_groups(page, chart) == {"m4"}
        press(page, key)
        assert visible_groups(page, chart) == everything


def test_the_switch_changes_the_axes(page):
    title = page.locator("#curves .xtitle")
    assert title.text_content() == "training tokens seen"
    press(page, page.locator("#curves .switch button", has_text="by time"))
    assert title.text_content() == "training time"
    press(page, page.locator("#curves .switch button", has_text="by tokens"))
    assert title.text_content() == "training tokens seen"


def test_hostile_names_are_text(page):
    assert page.locator("img").count() == 0
    assert page.locator(".quality .name", has_text=HOSTILE).count() == 1
    key = page.locator("#pareto .keys button", has_text=HOSTILE)
    press(page, key)
    assert HOSTILE in point_at_first_mark(page, "pareto")
    press(page, key)


def test_tables_scroll_in_their_own_box_and_keep_the_names(pages):
    page = pages["phone"]
    box = page.locator(".scroll").first
    assert box.evaluate("e => e.scrollWidth > e.clientWidth")
    box.evaluate("e => { e.scrollLeft = 200 }")
    assert page.locator(".quality .name").first.bounding_box()["x"] >= 0


def test_images_have_their_own_page_in_the_dark(browser, folder, device):
    with opened(browser, folder / "images.html", device, "dark") as page:
        assert page.locator(".plot").count() == 4
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 20, 24)"
        page.emulate_media(color_scheme="light")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 249)"
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
