"""The page in a real browser: it asks nobody, logs nothing, fits on a phone and on paper, and is labelled."""

from __future__ import annotations

import io
import re
import unicodedata

import pytest

from .conftest import SIZES, opened
from .sample_results import CASES, HOSTILE

pytestmark = pytest.mark.slow

TEXT_SIZES = """[...document.querySelectorAll('main *')].filter(e => [...e.childNodes].some(
  n => n.nodeType === 3 && n.textContent.trim())).map(e => parseFloat(getComputedStyle(e).fontSize))"""
SMALL_TARGETS = """[...document.querySelectorAll('button, select, input, summary, a')].filter(e => e.checkVisibility())
  .map(e => [e.outerHTML.slice(0, 80), e.getBoundingClientRect()]).filter(([, r]) => r.width < 44 || r.height < 44)
  .map(([text, r]) => `${text} ${r.width}x${r.height}`)"""
UNNAMED = """[...document.querySelectorAll(
  'button, select, input, summary, a, [role=img], [role=region], [role=group]')]
  .filter(e => e.checkVisibility() && !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length))
  .map(e => e.outerHTML.slice(0, 90))"""
# labels of a plot that leave their SVG, and pairs that cover each other
BAD_LABELS = """[...document.querySelectorAll('.plot svg[role=img]')].flatMap(svg => {
  const outer = svg.getBoundingClientRect(), bad = [];
  const boxes = [...svg.querySelectorAll('text.label, text.tick')].map(t => [t.textContent, t.getBoundingClientRect()]);
  boxes.forEach(([text, a], i) => {
    if (a.left < outer.left - 1 || a.right > outer.right + 1 || a.top < outer.top - 1 || a.bottom > outer.bottom + 1)
      bad.push('outside: ' + text);
    for (const [other, b] of boxes.slice(i + 1))
      if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)
        bad.push(text + ' over ' + other);
  });
  return bad; })"""


@pytest.mark.parametrize("device", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_every_page_fits_and_no_label_covers_another(browser, folder, case, device):
    with opened(browser, folder / f"{case}.html", device, "dark" if device == "phone" else "light") as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[device][0]
        assert page.evaluate(BAD_LABELS) == []
        for plot in page.locator(".plot").all():
            assert plot.locator("path.point").count() >= 2


def test_all_charts_are_there(page):
    assert page.locator(".plot").count() == 8


def test_text_is_large_enough_to_read(page):
    assert min(page.evaluate(TEXT_SIZES)) >= 12


def test_fingers_find_what_they_press(pages):
    page = pages["phone"]
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert page.evaluate(SMALL_TARGETS) == []
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = false })")


def test_everything_has_a_name(page):
    assert page.evaluate(UNNAMED) == []


def test_a_plot_says_what_it_shows_and_has_its_numbers_in_a_table(page, press):
    for chart in page.locator("section.chart").all():
        picture = chart.locator(".plot svg[role=img]")
        assert chart.locator("h2").text_content() in picture.get_attribute("aria-label")
        summary = page.locator("#" + picture.get_attribute("aria-describedby")).text_content()
        assert re.search(r"against .*mechanisms\. (Lowest|On the Pareto front)", summary)
    chart = page.locator("#length")
    press(chart.locator("summary"))
    rows = chart.locator(".numbers tbody tr")
    rows.first.wait_for()
    assert rows.count() == 7 * 3 + 5
    assert "2.290" in chart.locator(".numbers").text_content()
    assert "Lowest" in chart.locator("caption").text_content()
    press(chart.locator("summary"))


def test_hostile_names_are_text(page):
    assert page.locator("img").count() == 0
    assert page.locator(".quality .name", has_text=HOSTILE).count() == 1
    assert page.locator("#pareto .keys .name", has_text=HOSTILE).count() == 1
    label = page.locator("#length .label", has_text="<img src=x")
    assert label.count() == 1


def test_there_is_no_form_and_nothing_that_sends(page):
    assert page.locator("form, iframe, object, embed, [action], [formaction], input[type=file]").count() == 0
    assert page.get_by_text(re.compile("share|upload|cloud", re.IGNORECASE)).count() == 0


@pytest.mark.parametrize(
    "attempt",
    [
        "fetch('https://example.org/')",
        "new Promise((_, no) => { const i = new Image(); i.onerror = no; i.src = 'https://example.org/a.png' })",
        "new Promise((_, no) => { const s = document.createElement('script'); s.onerror = no;"
        " s.src = 'https://example.org/a.js'; document.body.append(s) })",
    ],
)
def test_the_policy_stops_what_would_send(browser, folder, attempt):
    """Whatever came to run in the page could not carry its numbers away."""
    page = browser.new_context().new_page()
    sent = []
    page.on("requestfinished", lambda request: sent.append(request.url))
    page.goto((folder / "three.html").as_uri())
    refused = page.evaluate(
        f"new Promise(done => {{ addEventListener('securitypolicyviolation', e => done(e.blockedURI));"
        f" try {{ {attempt}.catch?.(() => {{}}) }} catch {{}} }})"
    )
    assert refused.startswith("https://example.org")
    # a form made by hand goes nowhere either
    page.evaluate(
        "const f = document.createElement('form'); f.action = 'https://example.org/f';"
        " document.body.append(f); f.submit()"
    )
    page.wait_for_timeout(200)
    assert page.url.startswith("file:")
    assert [url for url in sent if "example.org" in url] == []
    page.context.close()


def test_the_theme_follows_the_reader(pages):
    page = pages["desktop"]
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 20, 24)"
    page.emulate_media(color_scheme="light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 249)"


def test_tables_scroll_in_their_own_box_and_keep_the_names(pages):
    page = pages["phone"]
    box = page.locator("#results .scroll")
    assert box.evaluate("e => e.scrollWidth > e.clientWidth")
    box.evaluate("e => { e.scrollLeft = 200 }")
    assert page.locator(".quality .name").first.bounding_box()["x"] >= 0
    box.evaluate("e => { e.scrollLeft = 0 }")


def test_the_table_of_formulas_is_never_cut(page):
    """It needs no scrolling sideways, on a phone as on a screen."""
    box = page.locator("#size .scroll")
    assert box.evaluate("e => e.scrollWidth <= e.clientWidth")


@pytest.mark.parametrize("case", ["usual", "many"])
def test_paper_shows_all_of_every_chart_and_table(browser, folder, case):
    with opened(browser, folder / f"{case}.html", "desktop", "dark") as page:
        # the width between the margins of A4, in CSS pixels
        page.set_viewport_size({"width": 703, "height": 1000})
        page.emulate_media(media="print")
        page.wait_for_timeout(200)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        wide = "[...document.querySelectorAll('.plot svg[role=img], table')].filter(e => e.checkVisibility())"
        wide += ".map(e => e.getBoundingClientRect()).filter(r => r.left < -1 || r.right > innerWidth + 1).length"
        assert page.evaluate(wide) == 0
        assert page.evaluate(BAD_LABELS) == []
        assert page.locator(".controls, .copy, #csv, .help").evaluate_all("es => es.every(e => !e.checkVisibility())")
        boxes = "es => es.filter(e => e.checkVisibility()).map(e => getComputedStyle(e).overflow)"
        assert set(page.locator(".scroll").evaluate_all(boxes)) == {"visible"}


def test_the_pdf_holds_all_of_the_page(browser, folder):
    """Verdicts, every cell of the table with the references, every plot with its names, and no page without end."""
    pypdf = pytest.importorskip("pypdf")
    with opened(browser, folder / "usual.html", "desktop") as page:
        file = io.BytesIO(page.pdf(prefer_css_page_size=True))
        page.emulate_media(media="print")
        # titles of columns stand before the cells, as buttons are not printed
        expected = page.locator("#table th[data-title]").evaluate_all("heads => heads.map(e => e.dataset.title)")
        for what in ("#table td", ".verdict .use, .verdict .sentence, .trust dd", ".reasons li", ".chart h2, #run h2"):
            expected += page.locator(what).all_text_contents()
        expected += [one.text_content() for one in page.locator(".name").all() if one.is_visible()]
        expected += page.locator(".plot text.label, .plot text.title, .plot text.tick").all_text_contents()
    pages = pypdf.PdfReader(file).pages
    text = squeezed("".join(page.extract_text() for page in pages))
    assert len(expected) > 300
    assert [part for part in expected if squeezed(part) not in text] == []
    assert 4 <= len(pages) <= 9


def squeezed(text):
    """Without spaces, which a PDF does not have where a line ends, and without ligatures."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text))
