"""What the page does when it is used: one choice of length and rule, sorting, legend, sizes, copies, keys."""

from __future__ import annotations

import csv
import io
import re

import pytest

from attensor.report.numbers import DASH

from .conftest import SIZES, opened
from .sample_results import HOSTILE, sample_results

pytestmark = pytest.mark.slow

PAGE_SIZE = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"


def column(page, title):
    """Texts of the cells of mechanisms and references under a heading, from the top."""
    heads = page.locator("#table thead th").all_text_contents()
    (place,) = [i for i, head in enumerate(heads) if head.strip().startswith(title)]
    script = "(rows, i) => rows.filter(r => r.cells.length > 3).map(r => r.cells[i].textContent.trim())"
    return page.locator("#table tbody tr").evaluate_all(script, place)


def shown_groups(page, chart):
    """Groups whose series stand out."""
    script = "all => all.filter(g => g.dataset.group && !g.classList.contains('faded')).map(g => g.dataset.group)"
    return set(page.locator(f"#{chart} .plot g.series").evaluate_all(script))


def place_of(page, chart, group):
    return page.locator(f"#{chart} .plot g[data-group={group}] path.point").first.get_attribute("transform")


def test_one_selector_drives_table_plot_and_verdict(page):
    before = place_of(page, "pareto", "m0")
    assert column(page, "bits per byte")[1] == "2.290 ± 0.015"
    page.locator("#at-length").select_option("512")
    assert "bits per byte at 512" in page.locator("#table thead").text_content()
    assert "2.194 ± 0.029" in column(page, "bits per byte")
    assert any(text.endswith("KiB") for text in column(page, "state at 512"))
    assert place_of(page, "pareto", "m0") != before
    lines = page.locator(".verdict .line").all_text_contents()
    assert "read at 512 tokens (4x): gla, 2.194 ± 0.029" in lines[0]
    assert lines[1] == ""
    assert "512 tokens (4x) of context one layer decodes fastest" in lines[2]
    page.locator("#at-length").select_option("128")
    assert page.locator(".verdict .line").first.text_content() == ""
    assert place_of(page, "pareto", "m0") == before


def test_the_switch_turns_to_equal_time_and_back(page, press):
    equal_time = page.locator("[data-rule=time]")
    press(equal_time)
    assert equal_time.get_attribute("aria-pressed") == "true"
    assert "equal time" in page.locator("#table thead").text_content()
    results = sample_results()
    first = min((m for m in results["mechanisms"] if m["score"]), key=lambda m: m["score_equal_time"]["mean"])
    assert column(page, "place")[1] == "1"
    assert first["name"] in page.locator("#table tbody tr").nth(1).text_content()
    assert "Under equal time" in page.locator(".verdict .line").first.text_content()
    press(page.locator("[data-rule=tokens]"))
    assert column(page, "place")[1:3] == ["1=", "1="]


def test_headings_sort_and_sort_back(page, press):
    rate = page.locator("th[data-key=train_tokens_per_second] .sort")
    press(rate)
    numbers = [int(text.replace(",", "")) for text in column(page, "tokens/s") if text]
    assert numbers == sorted(numbers, reverse=True)
    assert page.locator("th[data-key=train_tokens_per_second]").get_attribute("aria-sort") == "descending"
    press(rate)
    assert [int(text.replace(",", "")) for text in column(page, "tokens/s") if text] == numbers[::-1]
    # what failed and what has no number stays below
    assert page.locator("#table tbody tr").last.get_attribute("class") == "failed"
    press(page.locator("th[data-key=score] .sort"))
    scores = [float(text.split()[0]) for text in column(page, "bits per byte") if text[0].isdigit()]
    assert scores == sorted(scores)


def test_references_and_ties_are_marked(page):
    names = page.locator("#table tr.reference .name").all_text_contents()
    assert names == ["lzma", "4-gram", "2-gram", "unigram", "zstd"]
    assert column(page, "place")[1:4] == ["1=", "1=", "3"]


def test_a_heading_explains_itself_by_a_press(page, press):
    help_button, note = page.locator("th[data-key=speedup] .help"), page.locator("#help-speedup")
    assert not note.is_visible()
    # whoever cannot see it hears it with the button
    described = page.locator("#" + help_button.get_attribute("aria-describedby"))
    assert described.text_content().startswith("How much longer softmax")
    press(help_button)
    note.wait_for()
    assert note.text_content().startswith("speed-up How much longer softmax")
    press(help_button)
    note.wait_for(state="hidden")


def test_an_explanation_moves_nothing_and_stands_below_its_heading(page, press):
    """Also of a heading at the edge of the window, and of one that is scrolled with the table."""
    edge = page.evaluate("document.documentElement.clientWidth")
    for key in ("place", "parameters"):
        help_button, note = page.locator(f"th[data-key={key}] .help"), page.locator(f"#help-{key}")
        press(help_button)
        note.wait_for()
        box, head, size = note.bounding_box(), help_button.bounding_box(), page.evaluate(PAGE_SIZE)
        assert size[0] == edge
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= edge
        assert 0 <= box["y"] - head["y"] - head["height"] <= 8
        page.evaluate("scrollBy(0, 40)")
        assert note.bounding_box()["y"] == pytest.approx(box["y"] - 40, abs=1)
        page.evaluate("scrollBy(0, -40)")
        page.keyboard.press("Escape")
        note.wait_for(state="hidden")
        assert help_button.bounding_box() == head
        assert page.evaluate(PAGE_SIZE) == size
    page.locator("#results .scroll").evaluate("e => { e.scrollLeft = 0 }")


def test_one_explanation_at_a_time_with_the_title_of_the_choice(page, press):
    notes = page.locator(".help-text:popover-open")
    for key in ("place", "score"):
        press(page.locator(f"th[data-key={key}] .help"))
        assert notes.evaluate_all("all => all.map(e => e.id)") == [f"help-{key}"]
    page.locator("#at-length").select_option("512")
    assert page.locator("#help-score strong").text_content() == "bits per byte at 512"
    page.locator("#at-length").select_option("128")
    press(page.locator("h1"))
    assert notes.count() == 0


def test_the_legend_selects_several_names_in_all_charts(page, press):
    everything = shown_groups(page, "curves")
    assert len(everything) == 7
    for name in ("gla", "linear"):
        press(page.locator("#curves .key", has_text=re.compile(f"^{name}$")))
    for chart in ("curves", "pareto", "cost", "decode", "skills"):
        assert shown_groups(page, chart) == {"m5", "m2"}
        assert page.locator(f"#{chart} .key[aria-pressed=true]").all_text_contents() == ["linear", "gla"]
    assert page.locator("#table tr.faded").count() == 6
    press(page.locator("#cost .key", has_text=re.compile("^gla$")))
    assert shown_groups(page, "curves") == {"m2"}
    # another view keeps the selection
    press(page.locator("#curves .switch button", has_text="by time"))
    assert shown_groups(page, "curves") == {"m2"}
    press(page.locator("#curves .switch button", has_text="by tokens"))
    press(page.locator("#pareto .key.all"))
    assert shown_groups(page, "curves") == everything
    assert page.locator("#table tr.faded").count() == 0


def test_pointing_at_a_mark_shows_its_numbers(page, press):
    press(page.locator("#pareto .key", has_text=re.compile("^gla$")))
    mark = page.locator("#pareto g[data-group=m5] path.point").first
    mark.scroll_into_view_if_needed()
    press(mark)
    text = page.locator("#pareto .tip.shown").text_content()
    for expected in ("gla", "2.290 ± 0.015 bits per byte", "18.2 s"):
        assert expected in text
    press(page.locator("#pareto .key.all"))
    assert page.locator(".tip.shown").count() == 0


def test_a_view_changes_the_axes(page, press):
    title = page.locator("#curves text.title")
    assert title.text_content() == "training tokens seen"
    press(page.locator("#curves .switch button", has_text="by time"))
    assert title.text_content() == "training time"
    press(page.locator("#curves .switch button", has_text="by tokens"))


def test_a_plot_is_read_by_keys(pages):
    page = pages["desktop"]
    page.locator("#length .plot svg[role=img]").focus()
    tip = page.locator("#length .tip")
    page.keyboard.press("ArrowRight")
    assert "gla" in tip.text_content()
    assert "128 tokens (1x)" in tip.text_content()
    page.keyboard.press("ArrowRight")
    assert "256 tokens (2x)" in tip.text_content()
    page.keyboard.press("ArrowDown")
    assert "scalar-gated" in tip.text_content()
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_everything_works_by_keys(pages):
    page = pages["desktop"]
    page.locator("#at-length").focus()
    page.keyboard.press("ArrowDown")
    assert "bits per byte at 256" in page.locator("#table thead").text_content()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.locator("[data-rule=time]").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert page.locator("[data-rule=tokens]").get_attribute("aria-pressed") == "true"
    page.locator("th[data-key=parameters] .sort").focus()
    page.keyboard.press("Enter")
    assert page.locator("th[data-key=parameters]").get_attribute("aria-sort") == "ascending"
    page.locator("th[data-key=score] .sort").press("Enter")
    key = page.locator("#cost .key", has_text=re.compile("^gla$"))
    key.focus()
    page.keyboard.press("Space")
    assert shown_groups(page, "curves") == {"m5"}
    # the focus stays on the key that was pressed
    assert page.evaluate("document.activeElement.textContent") == "gla"
    page.keyboard.press("Space")
    assert len(shown_groups(page, "curves")) == 7


def test_the_csv_holds_the_numbers_of_the_table(pages):
    page = pages["desktop"]
    with page.expect_download() as download:
        page.locator("#csv").click()
    with open(download.value.path(), newline="", encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(io.StringIO(file.read()))}
    results = sample_results()
    assert float(rows["gla"]["score"]) == pytest.approx(2.29)
    assert float(rows["gla"]["peak_bytes"]) == results["mechanisms"][5]["cost"][0]["peak_bytes"]
    assert rows["gla"]["length"], rows["gla"]["rule"] == ("128", "tokens")
    assert rows["lzma"]["kind"] == "reference"
    assert rows[HOSTILE]["kind"] == "mechanism"
    assert rows["my_file.py:Leaky"]["status"].startswith("failed: LawError")
    assert rows["my_file.py:Leaky"]["score"] == ""


def test_a_spreadsheet_takes_no_name_for_a_formula(browser, folder):
    # a second table would listen to the same buttons: not in a page that others share
    with opened(browser, folder / "usual.html", "desktop") as page:
        line = page.evaluate(
            "(() => { const r = new Results({ ...JSON.parse(document.getElementById('data').textContent).table });"
            " r.data.rows[0].name = '=1+1'; return r.csv().split('\\r\\n')[1] })()"
        )
    assert line.startswith("'=1+1,")


def test_cost_at_the_readers_size_is_that_of_the_formulas(page):
    sizes = {"width": 1024, "layers": 24, "heads": 16, "batch": 3, "length": 8192}
    for key, value in sizes.items():
        page.locator(f"#size-{key}").fill(str(value))
    rows = {
        row.locator(".name").text_content(): row.locator("output").all_text_contents()
        for row in page.locator("#size-table tbody tr").all()
    }
    t, h, k = 8192, 16, 64
    flops = 24 * 2 * 3 * t**2 * h * 2 * k
    assert rows["softmax"][0] == f"{flops / 1e12:.3g} TFLOP"
    assert rows["softmax"][1] == f"{24 * 4 * 3 * t * h * 2 * k / 2**30:.3g} GiB"
    assert rows["gla"][1] == f"{24 * 4 * 3 * h * k * k / 2**20:.3g} MiB"
    # the window is the mechanism's own: its measured size, which can be changed
    window = page.locator("[data-symbol=W]")
    assert window.input_value() == "48"
    window.fill("96")
    assert page.locator("tr", has=window).locator("output").nth(1).text_content() == "54 MiB"
    window.fill("48")
    page.locator("#size-heads").fill("7")
    assert "heads: must divide the width 1024" in page.locator("#size-error").text_content()
    assert set(page.locator("#size-table output").all_text_contents()) == {DASH}
    page.locator("#size-batch").fill("0")
    assert "batch: must be a whole number from 1" in page.locator("#size-error").text_content()
    for key, value in {"width": 64, "layers": 2, "heads": 2, "batch": 1, "length": 4096}.items():
        page.locator(f"#size-{key}").fill(str(value))
    assert page.locator("#size-error").text_content() == ""


def test_code_is_copied(browser, folder):
    with opened(browser, folder / "usual.html", "desktop") as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.locator("button.copy").first.click()
        page.get_by_text("Copied").first.wait_for()
        assert page.evaluate("navigator.clipboard.readText()").startswith("from attensor import nn\nlayer = nn.Gated")


def test_a_link_opens_its_card(page, press):
    press(page.locator("#table tr[data-group=m5] a", has_text="card"))
    card = page.locator("#cards details[open]")
    card.locator("pre").wait_for()
    assert "GatedLinearAttention" in card.text_content()
    press(card.locator("summary"))


@pytest.mark.parametrize("device", SIZES)
def test_images_have_a_length_in_cells_and_no_decoding(browser, folder, device, press):
    with opened(browser, folder / "images.html", device) as page:
        assert page.locator(".plot").count() == 4
        assert page.locator("#size-table thead th").count() == 4
        before = place_of(page, "cost", "m0")
        press(page.locator("#cost .switch button", has_text="peak memory"))
        assert place_of(page, "cost", "m0") != before
