"""The terminal's table: best first, best in bold, names never read as markup."""

from __future__ import annotations

import io

from rich.console import Console

from attensor.report import describe, quality_table

from .sample_results import HOSTILE, sample_results


def printed(results, width=250) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(quality_table(results))
    return console.export_text()


def names(table) -> list[str]:
    return [str(cell) for cell in table.columns[0].cells]


def test_rows_are_ordered_by_quality_and_failures_come_last():
    first = ["gla", "softmax", "scalar-gated", "sliding-window", HOSTILE, "lightning", "linear", "my_file.py:Leaky"]
    assert names(quality_table(sample_results())) == first
    images = names(quality_table(sample_results("images")))
    assert images[:2] == ["neighborhood", "window-grid"]
    results = sample_results()
    results["mechanisms"][5] |= {"status": "unfinished", "reason": "stopped"}
    assert names(quality_table(results))[-2:] == ["gla", "my_file.py:Leaky"]


def test_the_best_of_a_column_is_bold():
    table = quality_table(sample_results())
    by_title = {str(column.header): list(column.cells) for column in table.columns}
    assert [str(cell.style) for cell in by_title["bits per byte"]][:2] == ["bold", ""]
    assert [str(c) for c in by_title["tokens/s"] if c.style == "bold"] == ["82,000"]
    assert [str(c) for c in by_title["state\nat 16k"] if c.style == "bold"] == ["16 KiB"] * 4


def test_everything_is_printed_literally():
    results = sample_results()
    results["mechanisms"][0]["name"] = "[red]softmax[/red]"
    text = printed(results)
    for expected in ("[red]softmax[/red]", HOSTILE, "2.290 ± 0.011", "16 KiB", "failed: LawError: it looks"):
        assert expected in text


def test_images_have_accuracy_and_no_decode_columns():
    headers = [str(column.header) for column in quality_table(sample_results("images")).columns]
    assert headers == ["mechanism", "accuracy", "cells/s"]
    assert "97.8 ± 1.1 %" in printed(sample_results("images"))


def test_a_terminal_of_eighty_columns_shows_every_number():
    results = sample_results()
    results["mechanisms"] = [m for m in results["mechanisms"] if m["name"] != HOSTILE]
    lines = printed(results, 80).splitlines()
    assert max(map(len, lines)) <= 80
    (gla,) = [line for line in lines if "gla" in line]
    assert gla.split() == ["gla", "2.290", "±", "0.011", "2.250", "2.194", "55,000", "16", "KiB", "122", "µs"]
    assert any("sliding-window" in line for line in lines)


def test_a_clean_run_has_nothing_below_its_table():
    results = sample_results()
    assert quality_table(results).caption is not None
    results["mechanisms"] = results["mechanisms"][:6]
    assert quality_table(results).caption is None


def test_three_lines_say_what_was_compared():
    data, plan, machine = describe(sample_results())
    assert data == "stdlib: 9.07 MiB of text in 567 files to train on, 1.14 MiB in 42 held out"
    assert "2 layers of 64 with 2 heads; batches of 16 x 128 tokens; 2 seeds; 2.5 minutes shared equally" in plan
    assert machine.startswith("Imaginary 3000, 2 cores, 1 thread a process, cpu in float32")
    data, plan, _ = describe(sample_results("images"))
    assert data == "digits: 1,433 grey images of 8 x 8 pixels in 10 classes to train on, 364 held out"
    assert "8 pixels a side" in plan
    steps = sample_results()
    steps["plan"] |= {"steps": 300, "seeds": [0]}
    assert describe(steps)[1].endswith("1 seed; 300 steps each")
    assert len(describe({"data": None, "plan": None, "machine": None})) == 3
