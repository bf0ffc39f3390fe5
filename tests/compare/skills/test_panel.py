"""The panel as a table and sentences, of results that were made up."""

from __future__ import annotations

import io

from rich.console import Console

from attensor.compare.skills import skills_sentences, skills_table


def row(name: str, *shares: float, keys=("1x", "6x")):
    at = dict(zip(keys, shares, strict=True))
    return {"name": name, "score": shares[-1] if shares else None, "at": at}


def task(name: str, claim: str, rows, *, steps: int | None = 500, chance: float = 0.5):
    return {"name": name, "claim": claim, "judged": "6x", "chance": chance, "steps": steps, "rows": rows}


EMPTY = {"name": "c", "score": None, "at": {}}
RECALL = task("recall", "recalls 4 pairs", [row("a", 1.0, 0.99), row("b", 1.0, 0.96), EMPTY])
PARITY = task("parity", "tracks parity", [row("a", 1.0, 0.51), row("b", 1.0, 0.8), EMPTY])
S5 = task("s5", "tracks permutations", [row("a", 0.1, 0.02), row("b", 0.1, 0.01), EMPTY], chance=1 / 120)


def test_sentences_name_who_does_it_and_how_far_the_best_is_where_nobody_does() -> None:
    assert skills_sentences({"tasks": [RECALL, PARITY, S5]}) == [
        "Skills, at least 95 % of the answers right: recalls 4 pairs: a, b.",
        "No mechanism tracks parity (best b with 80 %, chance 50 %), none tracks permutations (all near chance).",
    ]


def test_the_order_of_rows_changes_nothing() -> None:
    turned = [{**one, "rows": one["rows"][::-1]} for one in (RECALL, PARITY, S5)]
    assert skills_sentences({"tasks": turned}) == skills_sentences({"tasks": [RECALL, PARITY, S5]})


def test_too_few_steps_are_said_to_be_so() -> None:
    advice = "and few tasks can be learned in fewer than 400: give --skills about 4 times as long."
    one, other = RECALL | {"steps": 100}, PARITY | {"steps": 300}
    assert skills_sentences({"tasks": [one]})[-1] == f"The skills panel took 100 steps a task, {advice}"
    assert skills_sentences({"tasks": [other, one]})[-1] == f"The skills panel took 100 to 300 steps a task, {advice}"


def test_nothing_is_said_of_what_nobody_has_done_or_asked_for() -> None:
    undone = task("parity", "tracks parity", [EMPTY], steps=None)
    assert skills_sentences({"tasks": [undone]}) == []
    assert skills_sentences(None) == []


def test_the_table_fits_a_terminal_and_rounds_nothing_up_to_all() -> None:
    keys = ("4 pairs", "8 pairs", "16 pairs")
    capacity = task("capacity", "recalls 16", [row("sliding-window", 0.999, 0.95, 0.5, keys=keys)], chance=1 / 16)
    console = Console(file=io.StringIO(), width=80)
    console.print(skills_table({"tasks": [RECALL, capacity, PARITY, S5, RECALL, PARITY]}))
    shown = console.file.getvalue()
    assert "…" not in shown
    assert "sliding-window" in shown
    assert "4/8/16 pairs" in shown
    assert "99/95/50" in shown
    assert "100/51" in shown
    assert next(line for line in shown.splitlines() if "chance" in line).split()[1:] == [
        "50",
        "6",
        "50",
        "1",
        "50",
        "50",
    ]
