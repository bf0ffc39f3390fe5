"""The page of a comparison: answer, tables and charts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from attensor.report.charts import identities
from attensor.report.document import write_document
from attensor.report.numbers import DASH, count, is_number, milliseconds, rounded, short, size
from attensor.report.plots import charts
from attensor.report.tables import (
    best_of,
    columns,
    describe,
    field,
    length_name,
    ordered,
    score_text,
    status_text,
)

__all__ = ["write_report"]

TEMPLATE = "attensor.report:page.html"


def write_report(results: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the page.

    Args:
        results: what `results.json` holds; parts that are missing or null are left out of the page.
        path: the file to write; it appears whole or not at all.
    Raises:
        MissingExtraError: plotly or jinja2 is not installed.
        OSError: the file cannot be written.
    Cost: 5 MB, nearly all of it plotly.js.
    """
    write_document(path, TEMPLATE, **parts(results))


def parts(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the template names."""
    data = field(results, "data")
    return {
        "name": field(data, "name"),
        "is_finished": bool(results.get("finished")),
        "command": results.get("command"),
        "created": results.get("created"),
        "answer": results.get("answer") or [],
        "facts": describe(results),
        "quality": quality_rows(results),
        "charts": charts(results),
        "cost": cost_rows(results),
        "runs": run_rows(results),
        "rates": ", ".join(rounded(rate, 2) for rate in field(results, "plan", "learning_rates") or ()),
        "pilot": field(results, "plan", "pilot_fraction"),
        "is_text": field(data, "kind") != "images",
    }


def quality_rows(results: Mapping[str, Any]) -> dict[str, Any]:
    """Heads and rows of the quality table."""
    order = ordered(results)
    looks = identities(results["mechanisms"])
    mechanisms = [results["mechanisms"][i] for i in order]
    shown = columns(results)
    best = [best_of(column, mechanisms) for column in shown]
    rows = []
    for place, (position, mechanism) in enumerate(zip(order, mechanisms, strict=True)):
        cells = [
            {"text": column.text(mechanism), "is_best": place in chosen}
            for column, chosen in zip(shown, best, strict=True)
        ]
        has_score = is_number(field(mechanism, "score", "mean"))
        name, title = mechanism.get("name"), mechanism.get("title")
        row = {"look": looks[position], "name": name, "title": title if title != name else None, "cells": cells}
        is_ok = mechanism.get("status") == "ok"
        rows.append({**row, "has_score": has_score, "is_ok": is_ok, "status": status_text(mechanism)})
    return {"columns": shown, "rows": rows}


def cost_rows(results: Mapping[str, Any]) -> dict[str, Any]:
    """The cards' formulas beside what was measured, at the longest length that all have."""
    measured = [m for m in (results["mechanisms"][i] for i in ordered(results)) if m.get("cost")]
    shared = set.intersection(*({row["length"] for row in m["cost"]} for m in measured)) if measured else set()
    length = max(shared, default=None)
    looks = dict(zip((id(m) for m in results["mechanisms"]), identities(results["mechanisms"]), strict=True))
    rows = []
    for mechanism in measured:
        at: Mapping[str, Any] = next((row for row in mechanism["cost"] if row["length"] == length), {})
        flops, time = at.get("flops"), at.get("forward_ms")
        rate = flops / time / 1e6 if is_number(flops) and is_number(time) and time > 0 else None
        exponents = [field(mechanism, "exponent", key) for key in ("forward", "forward_backward", "peak_bytes")]
        decode = mechanism.get("decode") or ()
        rows.append(
            {
                "look": looks[id(mechanism)],
                "flops_formula": formula(field(mechanism, "formula", "flops")),
                "state_formula": formula(field(mechanism, "formula", "state_bytes")),
                "numbers": [
                    rounded(flops / 1e6 if is_number(flops) else None),
                    milliseconds(time),
                    rounded(rate),
                    milliseconds(at.get("forward_backward_ms")),
                    size(at.get("peak_bytes")),
                ],
                "exponents": [f"{e:.2f}" if is_number(e) else DASH for e in exponents],
                "state": f"{size(decode[-1].get('state_bytes'))} at {short(decode[-1].get('context'))}"
                if decode
                else DASH,
                "stopped": [reason for key in ("cost_stopped", "decode_stopped") if (reason := mechanism.get(key))],
            }
        )
    return {"length": f"{count(length)} {length_name(results)}", "rows": rows}


def run_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Final scores and checkpoint of every seed of every mechanism."""
    looks = identities(results["mechanisms"])
    rows = []
    for i in ordered(results):
        for run in results["mechanisms"][i].get("runs") or ():
            finals = [score_text(results, {"mean": field(run, "final", factor)}) for factor in ("1x", "2x", "4x")]
            rows.append({"look": looks[i], "seed": run.get("seed"), "finals": finals, "file": run.get("checkpoint")})
    return rows


def formula(text: object) -> str:
    """A card's formula with the signs of mathematics; empty where there is none."""
    return str(text).replace("**2", "²").replace("*", "·") if text else ""
