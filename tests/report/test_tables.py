"""The terminal's table: best first, ties marked, best in bold, names never read as markup."""

from __future__ import annotations

import io

from rich.console import Console

from attensor.report import describe, quality_table

from .sample_findings import WITHHELD
from .sample_results import HOSTILE, sample_results


def printed(results, width=250) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(quality_table(results))
    return console.export_text()


def names(table) -> list[str]:
    (column,) = [column for column in table.columns if column.header == "mechanism"]
    return [str(cell) for cell in column.cells]


def test_rows_are_ordered_by_quality_and_failures_come_last():
    first = ["gla", "scalar-gated", "softmax", "sliding-window", "lightning", "linear", HOSTILE, "my_file.py:Leaky"]
    assert names(quality_table(sample_results())) == first
    assert names(quality_table(sample_results("images", 4)))[:2] == ["neighborhood", "window-grid"]
    results = sample_results()
    results["mechanisms"][5] |= {"status": "unfinished", "reason": "stopped"}
    assert names(quality_table(results))[-2:] == ["gla", "my_file.py:Leaky"]


def test_the_best_of_a_column_is_bold_and_ties_share_a_place():
    table = quality_table(sample_results())
    by_title = {str(column.header): list(column.cells) for column in table.columns}
    assert [str(cell) for cell in by_title[""]] == ["1=", "1=", "3", "4", "5", "6", "7", ""]
    assert [str(cell.style) for cell in by_title["bits per byte"]][:2] == ["bold", ""]
    assert [str(c) for c in by_title["tokens/s"] if c.style == "bold"] == ["85,000"]
    assert {str(c) for c in by_title["state\nat 16k"] if c.style == "bold"} == {"8 KiB"}


def test_a_withheld_ranking_names_no_place_and_no_best():
    table = quality_table(sample_results(withheld=True))
    assert table.columns[0].header == "mechanism"
    assert not [cell for column in table.columns for cell in column.cells if getattr(cell, "style", "") == "bold"]
    assert f"No ranking: {WITHHELD}" in printed(sample_results(withheld=True))


def test_everything_is_printed_literally():
    results = sample_results()
    results["mechanisms"][0]["name"] = "[red]softmax[/red]"
    text = printed(results)
    for expected in ("[red]softmax[/red]", HOSTILE, "2.290 ± 0.015", "8 KiB", "failed: LawError: it looks"):
        assert expected in text


def test_images_have_accuracy_and_no_decode_columns():
    headers = [str(column.header) for column in quality_table(sample_results("images")).columns]
    assert headers == ["", "mechanism", "accuracy", "cells/s"]
    assert "97.8 ± 0.3 %" in printed(sample_results("images"))


def test_a_terminal_of_eighty_columns_shows_every_number():
    results = sample_results()
    results["mechanisms"] = [m for m in results["mechanisms"] if m["name"] != HOSTILE]
    lines = printed(results, 80).splitlines()
    assert max(map(len, lines)) <= 80
    (gla,) = [line for line in lines if " gla" in line]
    assert gla.split() == ["1=", "gla", "2.290", "±", "0.015", "2.194", "55,000", "8", "KiB", "130", "µs"]
    assert any("sliding-window" in line for line in lines)


def test_a_clean_run_has_nothing_below_its_table():
    assert quality_table(sample_results()).caption is not None
    assert quality_table(sample_results(count=3)).caption is None


def test_three_lines_say_what_was_compared():
    data, left_out, plan, machine = describe(sample_results())
    assert data.startswith("stdlib: 9.07 MiB in 567 files of text to train on, 581 KiB in 21 to choose learning rates")
    assert data.endswith(", 1.14 MiB in 42 to test")
    assert left_out == "3 binary files were left out"
    assert "2 layers of 64 with 2 heads; batches of 16 x 128 tokens; 3 seeds; 420 steps each in 5 minutes" in plan
    assert machine.startswith("Imaginary 3000, 2 cores, 1 thread a process, cpu in float32")
    data, _, plan, _ = describe(sample_results("images"))
    assert data.startswith("digits: 1,433 grey images of 8 x 8 pixels in 10 classes to train on, 164 to choose")
    assert "8 pixels a side" in plan
    assert len(describe({"data": None, "plan": None, "machine": None})) == 3
