"""The page holds everything, asks nobody for anything, shows names as text, and survives whatever is missing."""

from __future__ import annotations

import base64
import copy
import hashlib
import itertools
import json
import math
import re
import sys
from html.parser import HTMLParser

import pytest

from attensor.compare.conclusions import conclusions
from attensor.errors import MissingExtraError
from attensor.report import write_report
from attensor.report.document import json_in_script, render_document
from attensor.report.page import TEMPLATE, parts

from .sample_findings import WITHHELD
from .sample_results import CASES, HOSTILE, sample_results


def render(results):
    return render_document(TEMPLATE, **parts(results))


class Tags(HTMLParser):
    """Collects tags with their attributes, and the text outside of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside = ""
        self.raw: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside:
            self.raw.append((self.inside, data))
        else:
            self.text += data


@pytest.mark.parametrize("case", CASES)
def test_the_page_is_whole_small_and_loads_nothing(tmp_path, case):
    path = tmp_path / "report.html"
    write_report(sample_results(**CASES[case]), path)
    page = path.read_text(encoding="utf-8")
    assert len(page) < (1.5e6 if case == "many" else 0.6e6)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    parsed = Tags(page)
    assert not {"img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in parsed.tags}
    loaded = [attributes.get("src") for _, attributes in parsed.tags if "src" in attributes]
    linked = [attributes["href"] for tag, attributes in parsed.tags if tag == "link"]
    assert (loaded, linked) == ([], ["data:,"])
    # links lead to parts of the page or to papers, and tell nobody where the reader came from
    for attributes in (attributes for tag, attributes in parsed.tags if tag == "a"):
        assert attributes["href"].startswith("#") or attributes["href"].startswith("https://arxiv.org/abs/")
        assert attributes["href"].startswith("#") or attributes["rel"] == "noopener noreferrer"


def test_the_policy_allows_the_pages_own_script_and_style_and_nothing_else():
    parsed = Tags(render(sample_results()))
    (policy,) = [a["content"] for tag, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    hashes = {
        tag: "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
        for tag, text in parsed.raw
    }
    assert rules == {
        "default-src": "'none'",
        "script-src": hashes["script"],
        "style-src": hashes["style"],
        "img-src": "data:",
        "form-action": "'none'",
        "base-uri": "'none'",
    }
    assert not [a for _, a in parsed.tags if "style" in a]
    # nothing that sends or loads is in the script at all
    script = parsed.raw[-1][1]
    assert not re.search(r"fetch\(|XMLHttpRequest|sendBeacon|WebSocket|import\(|eval\(|Function\(|innerHTML", script)
    assert not re.search(r"plotly|cloud|upload", script, re.IGNORECASE)


def test_everything_the_reader_asked_for_is_on_it():
    results = sample_results()
    text = Tags(render(results)).text
    for expected in (
        *results["answer"],
        *("2.290 ± 0.015", "55,000", "8 KiB", "Imaginary 3000", "9.07 MiB", results["command"]),
        *("fe0ee26aa0", "g++ 12.2.0", "linear_attention cpp", "attensor-compare 3", "9f86d081"),
        *("Python before 3.14 has no zstd", "stopped at 4096: 8192 would take about 3 s a call"),
        *("reference: Back-off n-gram, three bytes of context", "changes the order"),
    ):
        assert expected in text
    assert "failed: LawError: it looks into the future" in text
    order = ["Best quality", "ruleequal tokens", "In words", "Results", "Quality against cost", "Cost at your"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert "interrupted" not in text
    assert "interrupted" in Tags(render(results | {"finished": False})).text


def test_a_withheld_ranking_is_said_before_anything_else():
    text = Tags(render(sample_results(withheld=True))).text
    assert text.index(f"{WITHHELD}.") < text.index("Best quality")
    assert "About 12 more minutes" in text
    assert "Not decided" in text


def test_names_never_become_markup():
    page = render(sample_results(skills=True, scale=True))
    parsed = Tags(page)
    assert "img" not in [tag for tag, _ in parsed.tags]
    assert not [key for _, attributes in parsed.tags for key in attributes if key.startswith("on")]
    assert [tag for tag, _ in parsed.tags].count("script") == page.count("</script>") == 2
    assert HOSTILE in parsed.text
    assert "</script><b>mine</b>" in parsed.text
    assert "<i>token 3</i>" in parsed.text


def test_ids_are_unique_and_everything_pointed_at_is_there():
    for case in CASES.values():
        tags = Tags(render(sample_results(**case))).tags
        ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        pointers = [a[key] for _, a in tags for key in ("aria-labelledby", "aria-controls", "for") if key in a]
        pointers += [a["href"][1:] for tag, a in tags if tag == "a" and a["href"].startswith("#")]
        assert set(pointers) <= set(ids)


def test_symbols_of_every_formula_are_explained():
    results = sample_results(count=25)
    tags = Tags(render(results))
    used = set(re.findall(r"\b[A-Z]\b", " ".join(str(m["formula"]) for m in results["mechanisms"] if m["formula"])))
    assert used == set("BTHKVMWF")
    assert set(parts(results)["sized"]["symbols"]) == used
    assert "features of a query or key" in tags.text


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


def without(results, path):
    """A copy in which the value at `path` is null."""
    changed = copy.deepcopy(results)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = None
    return changed


@pytest.mark.parametrize("kind", ["text", "images"])
def test_null_anywhere_in_a_mechanism_never_breaks_the_page(kind):
    """What was not measured is null: each field in turn."""
    results = sample_results(kind)
    optional = [path for path in paths_of(results["mechanisms"][0]) if not isinstance(path[-1], int)]
    assert len(optional) > 50
    # every page has one null in each of its good rows, so that fewer pages show them all
    good = [i for i, mechanism in enumerate(results["mechanisms"]) if mechanism["status"] == "ok"]
    for some in (optional[at : at + len(good)] for at in range(0, len(optional), len(good))):
        changed = results
        for i, path in zip(good, some, strict=False):
            try:
                changed = without(changed, ("mechanisms", i, *path))
            except (KeyError, TypeError, IndexError):  # this row does not have it
                continue
        assert "Results" in render(changed)


def test_null_anywhere_else_never_breaks_the_page():
    results = sample_results(count=3, skills=True, scale=True)
    known = [path for path in paths_of(results) if path[0] != "mechanisms" and not isinstance(path[-1], int)]
    assert len(known) > 90
    # one of each part at a time, so that fewer pages show them all
    by_part = itertools.groupby(known, key=lambda path: path[0])
    columns = itertools.zip_longest(*(list(paths) for _, paths in by_part))
    for some in columns:
        changed = results
        for path in filter(None, some):
            changed = without(changed, path)
        assert "Results" in render(changed)


def test_results_without_any_measurement_give_a_page_without_plots():
    results = sample_results()
    results["mechanisms"] = [{"name": "gla", "status": "failed", "reason": "killed"}]
    results |= {"answer": [], "verdict": [], "ranking": None, "speedup": None}
    page = render(results)
    assert "failed: killed" in page
    assert 'class="plot"' not in page
    assert "gla" in render(results | {"mechanisms": results["mechanisms"] * 2})
    assert "Results" in render(results | {"mechanisms": []})


def test_an_unfinished_row_shows_both_its_numbers_and_its_reason():
    results = sample_results()
    results["mechanisms"][0] |= {"status": "unfinished", "reason": "stopped at step 200"}
    text = re.sub(r"\s+", " ", Tags(render(results)).text)
    assert "2.310 ± 0.015" in text
    assert "unfinished: stopped at step 200" in text


def test_names_that_are_no_utf8_are_written(tmp_path):
    results = sample_results()
    results["data"]["name"] = "bad \udcff name"
    write_report(results, tmp_path / "report.html")
    assert "bad ? name" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_page_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def refuse(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_report(sample_results(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "old"


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r'HTML report needs jinja2.*pip install "attensor\[report\]"'):
        render(sample_results())


@pytest.mark.parametrize("case", CASES)
def test_the_conclusions_of_a_comparison_have_their_place(case):
    """What the statistics really write, over the same rows."""
    results = sample_results(**CASES[case])
    found = conclusions(results)
    page = re.sub(r"\s+", " ", Tags(render(results | found)).text)
    said = [one["sentence"] for one in found["verdict"]]
    for sentence in found["answer"]:
        assert (sentence in page) == (sentence not in said)
    assert ".." not in page.replace("...", "")
    assert found["verdict"][0]["case"] == "quality"
    for one in found["verdict"]:
        assert one["code"] in page
        assert one["price"] in page
        # its heading says the rest, and the answer does not say it again
        assert one["sentence"] not in page
        assert one["sentence"].partition(": ")[2][1:] in page
    assert "ruleequal tokens" in page
    size = "test200 images" if case == "images" else "test1.14 MiB in 42 files"
    assert size in page
