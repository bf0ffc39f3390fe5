"""The page of a comparison: verdict, trust, table, cost at the reader's size, and charts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from attensor import catalogue
from attensor.report.choices import RULES, choices, default_choice, length_text
from attensor.report.document import write_document
from attensor.report.looks import identities
from attensor.report.numbers import DASH, count, is_number, rounded
from attensor.report.plots import charts
from attensor.report.reading import Results, field, is_text, length_name, lengths, ordered, score_number
from attensor.report.sized import sized
from attensor.report.standings import standings
from attensor.report.tables import describe
from attensor.report.verdicts import trust, verdicts

__all__ = ["write_report"]

TEMPLATE = "attensor.report:page.html"


def write_report(results: Results, path: str | os.PathLike[str]) -> None:
    """Write the page.

    Args:
        results: what `results.json` holds, schema 2; parts that are missing or null are left out of the page.
        path: the file to write; it appears whole or not at all.
    Raises:
        MissingExtraError: jinja2 is not installed.
        OSError: the file cannot be written.
    Cost: 0.1 MB and about 40 KB a mechanism.
    """
    write_document(path, TEMPLATE, **parts(results))


def parts(results: Results) -> dict[str, Any]:
    """What the template names."""
    data = field(results, "data")
    first = default_choice(results)
    every = choices(results)
    return {
        "name": field(data, "name"),
        "is_finished": bool(results.get("finished")),
        "withheld": field(results, "ranking", "withheld"),
        "minutes": field(results, "ranking", "minutes_to_decide"),
        "verdicts": verdicts(results),
        "trust": trust(results),
        "reasons": field(results, "trust", "reasons") or [],
        "test": field(results, "ranking", "test"),
        "answer": _other_sentences(results),
        "facts": describe(results),
        "metric": field(results, "quality", "metric"),
        "lengths": [(length, length_text(results, length)) for length in lengths(results)],
        "rules": [(rule, title) for rule, title in RULES.items() if any(choice.rule == rule for choice in every)],
        "first": first,
        "equal_time": _equal_time(results),
        "table": standings(results),
        "charts": charts(results),
        "sized": sized(results),
        "skill_rows": skill_rows(results),
        "runs": run_rows(results),
        "cards": card_rows(results),
        "stopped": _stopped(results),
        "provenance": provenance(results),
        "is_text": is_text(results),
        "unit": length_name(results),
    }


def _other_sentences(results: Results) -> list[str]:
    """The answer without what the cards of the verdict say."""
    said = {case.get("sentence") for case in results.get("verdict") or () if isinstance(case, Mapping)}
    return [sentence for sentence in results.get("answer") or () if sentence not in said]


def _equal_time(results: Results) -> str:
    """Whether the other rule changes the order."""
    found = field(results, "ranking", "equal_time")
    changes, time = field(found, "changes_order"), field(found, "seconds")
    if not isinstance(changes, bool):
        return ""
    each = f" ({rounded(time)} s of training for each)" if is_number(time) else ""
    return f"Equal time{each} {'changes the order' if changes else 'does not change the order'}."


def skill_rows(results: Results) -> dict[str, Any] | None:
    """Tasks across, mechanisms down, with what each task got."""
    tasks = field(results, "skills", "tasks")
    if not tasks:
        return None
    looks = identities(results["mechanisms"])
    found = []
    for i in ordered(results):
        name = str(results["mechanisms"][i].get("name"))
        cells = []
        for task in tasks:
            row: Mapping[str, Any] = next((r for r in task.get("rows") or () if r.get("name") == name), {})
            score = row.get("score")
            at = [f"{place} {_percent(value)}" for place, value in (row.get("at") or {}).items()]
            cells.append({"text": _percent(score), "share": score if is_number(score) else 0.0, "at": at})
        if any(cell["at"] or cell["share"] for cell in cells):
            found.append({"look": looks[i], "cells": cells})
    heads = [(task.get("title") or task.get("name"), _percent(task.get("chance"))) for task in tasks]
    reasons = [
        f"{row.get('name')} in {task.get('name')}: {row['reason']}"
        for task in tasks
        for row in task.get("rows") or ()
        if row.get("reason")
    ]
    return {"tasks": heads, "rows": found, "reasons": reasons}


def _percent(value: object) -> str:
    return f"{100 * value:.0f} %" if is_number(value) else DASH


def run_rows(results: Results) -> list[dict[str, Any]]:
    """Final scores, load and checkpoint of every seed of every mechanism."""
    looks = identities(results["mechanisms"])
    rows = []
    for i in ordered(results):
        for run in results["mechanisms"][i].get("runs") or ():
            finals = [score_number(results, field(run, "final", factor)) for factor in ("1x", "2x", "4x")]
            load = rounded(run.get("load"))
            rows.append(
                {
                    "look": looks[i],
                    "seed": run.get("seed"),
                    "finals": finals,
                    "load": load,
                    "file": run.get("checkpoint"),
                }
            )
    return rows


def card_rows(results: Results) -> list[dict[str, Any]]:
    """The cards of the mechanisms that are in the catalogue, and the paper of each."""
    known, looks = catalogue.mechanisms(), identities(results["mechanisms"])
    rows = []
    for i in ordered(results):
        mechanism = results["mechanisms"][i]
        card = known.get(str(mechanism.get("name")))
        if card is not None:
            paper = mechanism.get("paper") or card.paper.url
            rows.append({"look": looks[i], "card": card, "paper": paper, "example": card.example.strip()})
    return rows


def _stopped(results: Results) -> list[tuple[str, list[str]]]:
    """(name, reasons) of measurements that ended early and of what is missing."""
    found = []
    for i in ordered(results):
        mechanism = results["mechanisms"][i]
        reasons = [str(mechanism[key]) for key in ("cost_stopped", "decode_stopped") if mechanism.get(key)]
        reasons += [f"{key}: {reason}" for key, reason in (mechanism.get("missing") or {}).items()]
        if reasons:
            found.append((str(mechanism.get("name")), reasons))
    return found


def provenance(results: Results) -> list[tuple[str, str]]:
    """(what, which) of everything that a repetition needs."""
    found = field(results, "provenance") or {}
    protocol = field(results, "protocol") or {}
    rates = ", ".join(rounded(rate, 2) for rate in field(results, "plan", "learning_rates") or ())
    pairs = [
        ("Protocol", f"{protocol.get('name')} {count(protocol.get('version'))}" if protocol else None),
        ("Command", results.get("command")),
        ("Started", results.get("created")),
        ("Commit", found.get("git_commit")),
        ("Python", found.get("python")),
        ("System", found.get("system")),
        ("Compiler", found.get("compiler")),
        ("Packages", _pairs(found.get("packages"))),
        ("Back-ends", _pairs(found.get("backends"))),
        ("SHA-256 of the data", found.get("data_sha256")),
        ("First learning rates", rates),
    ]
    return [(label, str(value)) for label, value in pairs if value]


def _pairs(mapping: object) -> str:
    return ", ".join(f"{key} {value}" for key, value in mapping.items()) if isinstance(mapping, Mapping) else ""
