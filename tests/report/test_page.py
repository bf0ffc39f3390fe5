"""The page holds everything, asks nobody for anything, shows names as text, and survives whatever is missing."""

from __future__ import annotations

import copy
import json
import math
import re
import sys
from html.parser import HTMLParser

import pytest

from attensor.errors import MissingExtraError
from attensor.report import write_report
from attensor.report.document import json_in_script, render_document
from attensor.report.page import TEMPLATE, cost_rows, parts

from .sample_results import HOSTILE, sample_results


@pytest.fixture
def light(monkeypatch):
    """Pages without the 5 MB of plotly.js."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly.js */")


def render(results):
    return render_document(TEMPLATE, **parts(results))


class Tags(HTMLParser):
    """Collects tags with their attributes, and the text outside of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("kind", ["text", "images"])
def test_the_page_is_whole_and_loads_nothing(tmp_path, kind):
    path = tmp_path / "report.html"
    write_report(sample_results(kind), path)
    page = path.read_text(encoding="utf-8")
    assert 4e6 < len(page) < 7e6
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    parsed = Tags(page)
    assert not {"img", "iframe", "object", "embed", "base"} & {tag for tag, _ in parsed.tags}
    links = [attributes.get(key) for _, attributes in parsed.tags for key in ("src", "href") if key in attributes]
    assert links == ["data:,"]


def test_everything_the_user_asked_for_is_on_it(light):
    results = sample_results()
    text = Tags(render(results)).text
    for expected in (
        *results["answer"],
        "2.290 ± 0.011",
        "55,000",
        "8 MiB",
        "Imaginary 3000",
        "9.07 MiB",
        results["command"],
    ):
        assert expected in text
    assert "failed: LawError: it looks into the future" in text
    assert text.index("For quality take gla") < text.index("Results") < text.index("Quality during training")
    assert "interrupted" not in text
    assert "interrupted" in Tags(render(results | {"finished": False})).text


def test_names_never_become_markup(light):
    page = render(sample_results())
    parsed = Tags(page)
    assert "img" not in [tag for tag, _ in parsed.tags]
    assert not [key for _, attributes in parsed.tags for key in attributes if key.startswith("on")]
    assert [tag for tag, _ in parsed.tags].count("script") == page.count("</script>") == 3
    assert HOSTILE in parsed.text
    assert "</script><b>mine</b>" in parsed.text
    assert "<i>token 3</i>" in parsed.text


def test_json_cannot_leave_its_script():
    value = {"</script><!--": [math.nan, math.inf, 1.5, "<&>", None, (1, 2)]}
    text = json_in_script(value)
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"</script><!--": [None, None, 1.5, "<&>", None, [1, 2]]}


def paths_of(value, path=()):
    """The place of every value inside nested results."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from paths_of(value[key], (*path, key))
    elif isinstance(value, list):
        for i in range(min(len(value), 1)):
            yield from paths_of(value[i], (*path, i))


@pytest.mark.parametrize("kind", ["text", "images"])
def test_null_anywhere_in_a_mechanism_never_breaks_the_page(light, kind):
    """What was not measured is null: each field in turn, and a row that has only its name and its failure."""
    results = sample_results(kind)
    optional = [
        path
        for path in paths_of(results["mechanisms"][0])
        if path[-1] not in ("step", "length", "context", "learning_rate") and not isinstance(path[-1], int)
    ]
    assert len(optional) > 30
    # every page has one null in each of its good rows, so that fewer pages show them all
    good = [i for i, mechanism in enumerate(results["mechanisms"]) if mechanism["status"] == "ok"]
    for some in (optional[at : at + len(good)] for at in range(0, len(optional), len(good))):
        changed = copy.deepcopy(results)
        for i, path in zip(good, some, strict=False):
            place = changed["mechanisms"][i]
            for key in path[:-1]:
                place = place[key] or {}
            place[path[-1]] = None
        assert "Results" in render(changed)


def test_results_without_any_measurement_give_a_page_without_plots(light):
    results = sample_results()
    results["mechanisms"] = [{"name": "gla", "status": "failed", "reason": "killed"}]
    results["answer"] = []
    page = render(results)
    assert "failed: killed" in page
    assert "<script" not in page
    assert "gla" in render(results | {"mechanisms": results["mechanisms"] * 2})
    assert "Results" in render(results | {"mechanisms": []})


def test_an_unfinished_row_shows_both_its_numbers_and_its_reason(light):
    results = sample_results()
    results["mechanisms"][0] |= {"status": "unfinished", "reason": "stopped at step 200"}
    text = re.sub(r"\s+", " ", Tags(render(results)).text)
    assert "2.310 ± 0.011" in text
    assert "unfinished: stopped at step 200" in text


def test_formulas_stand_beside_what_was_measured():
    table = cost_rows(sample_results())
    assert table["length"] == "4,096 tokens"
    softmax = next(row for row in table["rows"] if row["look"].label == "softmax")
    assert softmax["flops_formula"] == "4·B·T²·H·K"
    assert softmax["exponents"] == ["1.98", "2.00", "0.98"]
    assert softmax["state"] == "8 MiB at 16k"
    assert softmax["stopped"] == ["stopped at 4096: 8192 would take too long"]
    flops = 4 * 4096**2 * 64
    assert softmax["numbers"][0] == "4,290"
    assert float(softmax["numbers"][2]) == pytest.approx(flops / 28.6 / 1e6, rel=0.01)


def test_names_that_are_no_utf8_are_written(light, tmp_path):
    results = sample_results()
    results["data"]["name"] = "bad \udcff name"
    write_report(results, tmp_path / "report.html")
    assert "bad ? name" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_page_and_no_rest(light, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def refuse(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_report(sample_results(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("module", ["jinja2", "plotly.offline"])
def test_a_missing_extra_is_named(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r'HTML report needs \w+.*pip install "attensor\[report\]"'):
        render(sample_results())
