"""What the reader's choice changes: places, cells, verdict lines; and what stands beside them, the trust strip."""

from __future__ import annotations

import pytest

from attensor.report.choices import Choice, choices, default_choice, places
from attensor.report.numbers import DASH
from attensor.report.reading import lengths, nearest, score_at
from attensor.report.standings import standings
from attensor.report.verdicts import trust, verdicts

from .sample_results import sample_results


def cells(results, key, choice):
    """Name -> cell of a column."""
    table = standings(results)
    (column,) = [column for column in table["columns"] if column["key"] == key]
    found = column["cells"][choice.key if column["turns"] else ""]
    return {row["name"]: cell for row, cell in zip(table["rows"], found, strict=True)}


def test_lengths_begin_with_those_of_the_scores():
    results = sample_results()
    assert lengths(results) == [128, 256, 512, 1024, 2048, 4096, 8192, 16384]
    assert default_choice(results) == Choice(128, "tokens")
    assert len(choices(results)) == 16
    assert lengths(sample_results("images")) == [256, 512, 1024, 2048, 4096, 8192, 16384]
    for mechanism in results["mechanisms"]:
        mechanism["score_equal_time"] = None
    assert {choice.rule for choice in choices(results)} == {"tokens"}


def test_a_score_is_read_at_the_longest_length_that_was_measured():
    results = sample_results()
    softmax = results["mechanisms"][0]
    assert score_at(results, softmax, 256, "tokens") == (softmax["score_2x"], 256)
    assert score_at(results, softmax, 300, "tokens") == (softmax["score_2x"], 256)
    assert score_at(results, softmax, 16384, "tokens") == (softmax["score_4x"], 512)
    assert score_at(results, softmax, 512, "time") == (softmax["score_equal_time"], 128)
    softmax["score_2x"] = None
    assert score_at(results, softmax, 256, "tokens") == (softmax["score"], 128)


def test_the_nearest_row_is_at_most_twice_off():
    rows = [{"length": 256}, {"length": 1024}]
    assert nearest(rows, "length", 400) == rows[0]
    assert nearest(rows, "length", 600) == rows[1]
    assert nearest(rows, "length", 128) == rows[0]
    assert nearest(rows, "length", 100) == {}
    assert nearest([], "length", 100) == nearest(None, "length", 1) == nearest(rows, "length", None) == {}


def test_places_are_those_of_the_test_where_it_was_made():
    results = sample_results()
    found = places(results, Choice(128, "tokens"))
    assert (found["gla"], found["scalar-gated"], found["softmax"]) == ((1, True), (1, True), (3, False))
    by_time = places(results, Choice(128, "time"))
    assert by_time == {group[0]: (i + 1, False) for i, group in enumerate(results["ranking"]["equal_time"]["groups"])}
    assert places(sample_results(withheld=True), Choice(128, "tokens")) == {}
    assert places(sample_results(withheld=True), Choice(512, "tokens")) == {}


def test_places_elsewhere_are_tied_where_intervals_overlap():
    results = sample_results(count=3)
    for mechanism, (low, high) in zip(results["mechanisms"], [(2.0, 2.2), (2.1, 2.4), (2.3, 2.5)], strict=True):
        mechanism["score_4x"] = {"mean": (low + high) / 2, "spread": 0.1, "low": low, "high": high}
    # the third overlaps the second, but not the first of the group
    expected = {"softmax": (1, True), "sliding-window": (1, True), "linear": (3, False)}
    assert places(results, Choice(512, "tokens")) == expected
    results["quality"]["lower_is_better"] = False
    expected = {"linear": (1, True), "sliding-window": (1, True), "softmax": (3, False)}
    assert places(results, Choice(512, "tokens")) == expected


def test_cells_follow_the_choice_and_the_best_is_marked():
    results = sample_results()
    gla = results["mechanisms"][5]
    assert cells(results, "score", Choice(128, "tokens"))["gla"] == ["2.290 ± 0.015", 2.29, True]
    assert cells(results, "score", Choice(512, "tokens"))["gla"][0] == "2.194 ± 0.029"
    assert cells(results, "score", Choice(128, "time"))["gla"][1] == gla["score_equal_time"]["mean"]
    assert cells(results, "forward_ms", Choice(1024, "tokens"))["gla"][1] == gla["cost"][2]["forward_ms"]
    at = cells(results, "state_bytes", Choice(16384, "tokens"))
    assert at["softmax"][:2] == ["8 MiB", 512 * 16384]
    assert [name for name, cell in at.items() if cell[2]] == [n for n, c in at.items() if c[1] == 8192]
    assert cells(results, "forward_ms", Choice(16384, "tokens"))["softmax"] == [DASH, None, False]
    assert cells(results, "place", Choice(128, "tokens"))["gla"][0] == "1="
    assert cells(results, "learning_rate", Choice(128, "tokens"))["linear"][0] == "0.001 (edge)"
    assert not any(cell[2] for cell in cells(sample_results(withheld=True), "score", Choice(128, "tokens")).values())


def test_references_are_ordered_and_keep_their_reasons():
    rows = standings(sample_results())["references"]
    assert [row["name"] for row in rows] == ["lzma", "4-gram", "2-gram", "unigram", "zstd"]
    assert rows[-1]["text"] == DASH
    assert rows[-1]["reason"] == "Python before 3.14 has no zstd"
    assert standings(sample_results("images"))["references"][0]["name"] == "nearest"


def test_the_verdict_is_the_producers_and_lines_say_what_other_choices_show():
    quality, long, decode = verdicts(sample_results())
    assert (quality["use"], quality["among"], quality["confidence"]) == ("gla", ["scalar-gated"], "likely")
    assert quality["score"] == "2.290 bits per byte"
    assert quality["lines"]["128 tokens"] == ""
    assert quality["lines"]["512 tokens"].startswith("Under equal tokens, read at 512 tokens (4x): gla, 2.194 ± 0.029")
    assert quality["lines"]["128 time"].endswith("The order is not that at equal tokens.")
    assert long["lines"]["512 tokens"] == ""
    assert long["lines"]["4096 tokens"].startswith("At 4k tokens one layer trains fastest: sliding-window, ")
    assert decode["use"] is None
    assert decode["lines"]["16384 tokens"] == ""
    assert "within the noise of it: sliding-window" in decode["lines"]["256 tokens"]
    assert "Least state: linear, lightning, scalar-gated, gla" in decode["lines"]["256 tokens"]
    (withheld,) = verdicts(sample_results(withheld=True))
    assert withheld["use"] is None
    assert set(withheld["lines"].values()) == {""}


def test_what_is_measured_alike_is_named_only_beyond_the_noise():
    results = sample_results(count=3)
    for mechanism, (middle, low) in zip(results["mechanisms"], [(10, 9), (11, 10.4), (12, 11.5)], strict=True):
        mechanism["cost"] = [
            {"length": 2048, "forward_backward_ms": middle, "forward_backward_quartiles": [low, middle + 0.5]}
        ]
    line = verdicts(results)[1]["lines"]["2048 tokens"]
    assert line == "At 2k tokens one layer trains fastest: softmax, 10 ms; within the noise of it: sliding-window."


def test_doubts_are_marked_in_the_trust_strip():
    def doubts(results):
        return [label for label, _, doubt in trust(results) if doubt]

    assert doubts(sample_results("images")) == []
    assert doubts(sample_results()) == ["rates at the edge"]
    assert doubts(sample_results(withheld=True)) == ["load", "rates at the edge"]
    results = sample_results("images")
    results["trust"]["seeds"] = 2
    assert doubts(results) == ["seeds"]
    assert trust({"mechanisms": []}) == [("rates at the edge", "none", False)] or trust({"mechanisms": []}) == []


@pytest.mark.parametrize("kind", ["text", "images"])
def test_every_choice_has_every_cell(kind):
    results = sample_results(kind, 25)
    keys = {choice.key for choice in choices(results)}
    for column in standings(results)["columns"]:
        assert set(column["cells"]) == set(column["titles"]) == (keys if column["turns"] else {""})
        assert all(len(found) == len(results["mechanisms"]) for found in column["cells"].values())
