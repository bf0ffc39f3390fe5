"""What a comparison concludes from its rows, in the form of schema 2: for `sample_results`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]

WITHHELD = "load 1.83 during the training of gla: the machine was busy"


def findings(rows: Sequence[Row], is_text: bool, length: int, parts: Mapping[str, bool]) -> dict[str, Any]:
    """Ranking, verdict, speed-up, crossings, trust, skills, scale and answer for these rows."""
    sign = 1 if is_text else -1
    order = sorted((row for row in rows if row["score"]), key=lambda row: sign * row["score"]["mean"])
    names = [row["name"] for row in order]
    ahead = order[0]["score"]["mean"] - order[-1]["score"]["mean"]
    withheld = WITHHELD if parts.get("withheld") else None
    return {
        "ranking": _ranking(order, sign, withheld),
        "verdict": _verdict(order, length, is_text, withheld),
        "speedup": {
            row["name"]: {"factor": 1 + i / 9, "low": 0.9 + i / 9, "high": 1.2 + i / 9}
            for i, row in enumerate(reversed(order))
        }
        | {names[-1]: None},
        "crossings": [{"of": "quality", "a": names[-1], "b": names[0], "length": 2 * length}] if is_text else [],
        "trust": {
            "rule": "equal tokens: 420 steps for all",
            "steps": 420,
            "seeds": 3,
            "load": 1.83 if withheld else 1.09,
            "edges": [row["name"] for row in rows if row["at_edge"]],
            "test_size": "1.14 MiB in 42 files" if is_text else "200 images",
            "chance": 8.0 if is_text else 0.1,
            "reasons": [withheld] if withheld else [],
        },
        "skills": _skills(order) if parts.get("skills") else None,
        "scale": _scale(order) if parts.get("scale") else None,
        "answer": [
            f"All trained for 420 steps; {names[0]} is best and {names[1 % len(names)]} cannot be told from it.",
            f"At equal time the order stays the same. Best and last are {abs(ahead):.3f} apart.",
            "Below the back-off n-gram with three bytes of context, above lzma: counting explains most of the score.",
        ],
    }


def _ranking(order: Sequence[Row], sign: int, withheld: str | None) -> dict[str, Any]:
    names = [row["name"] for row in order]
    groups = [names[:2], *([name] for name in names[2:])]
    by_time = sorted(order, key=lambda row: sign * row["score_equal_time"]["mean"])
    pairs = []
    for better, worse in itertools.pairwise(order):
        difference = abs(better["score"]["mean"] - worse["score"]["mean"])
        pair = {"better": better["name"], "worse": worse["name"], "difference": difference}
        pair |= {"low": difference - 0.02, "high": difference + 0.02, "p": 0.03, "decided": difference > 0.02}
        pairs.append(pair)
    return {
        "withheld": withheld,
        "alpha": 0.05,
        "test": "Welch's t",
        "smallest_p": 0.004,
        "groups": groups,
        "pairs": pairs,
        "equal_time": {
            "groups": [[row["name"]] for row in by_time],
            "changes_order": [row["name"] for row in by_time] != names,
            "seconds": 14.2,
        },
        "minutes_to_decide": 12.0,
    }


def _verdict(order: Sequence[Row], length: int, is_text: bool, withheld: str | None) -> list[dict[str, Any]]:
    best, second = order[0], order[1 % len(order)]
    code = f"from attensor import nn\nlayer = nn.GatedLinearAttention(hidden_size=64, num_heads=2)  # {best['name']}"
    if withheld:
        sentence = f"Not decided: {withheld}. About 12 more minutes would decide."
        base = {"use": None, "among": [], "score": None, "price": "", "confidence": "not decided", "code": ""}
        return [{**base, "case": "quality", "length": length, "sentence": sentence}]
    cases = [
        {
            "case": "quality",
            "use": best["name"],
            "among": [best["name"], second["name"]],
            "score": best["score"]["mean"],
            "length": length if is_text else None,
            "price": "1.11x the training time of softmax",
            "confidence": "likely",
            "code": code,
            "sentence": f"{best['name']} or {second['name']}: not told apart, and both are ahead of the rest.",
        }
    ]
    if not is_text:
        return cases
    long = {"case": "long", "use": second["name"], "among": [second["name"]], "length": 4 * length}
    long |= {"score": second["score_4x"]["mean"], "price": "as fast as softmax at 512 tokens, 6.1x at 16k"}
    long |= {"confidence": "clear", "code": code, "sentence": "Its score does not fall beyond the training length."}
    decode = {"case": "decode", "use": None, "among": [row["name"] for row in order[1:4]], "length": 16384}
    decode |= {"score": None, "price": "", "confidence": "not decided", "code": ""}
    decode |= {"sentence": "Several keep a constant state and decode equally fast within the noise of the clock."}
    return [*cases, long, decode]


def _skills(order: Sequence[Row]) -> dict[str, Any]:
    def rows(offset: float, factors: Sequence[str], chance: float) -> list[dict[str, Any]]:
        found = []
        for i, row in enumerate(order):
            score = chance + (1 - chance) * (0.5 + 0.5 * math.sin(offset + 1.3 * i))
            at = {factor: max(chance, score - 0.3 * place) for place, factor in enumerate(factors)}
            state = 4096.0 * 2 ** (i % 6)
            found.append({"name": row["name"], "score": score, "at": at, "seconds": 8.0, "state_bytes": state})
        return found

    return {
        "tasks": [
            {"name": "mqar", "title": "Associative recall", "chance": 0.016, "rows": rows(0.5, ["64"], 0.016)},
            {"name": "copy", "title": "Selective copying", "chance": 0.0625, "rows": rows(1.5, ["1x"], 0.0625)},
            {"name": "parity", "title": "Parity", "chance": 0.5, "rows": rows(2.5, ["1x", "6x"], 0.5)},
            {"name": "s5", "title": "State tracking in S5", "chance": 0.008, "rows": rows(3.5, ["1x", "6x"], 0.008)},
            {"name": "needle", "title": "Needle", "chance": 0.01, "rows": rows(0.1, ["256"], 0.01)},
        ]
    }


def _scale(order: Sequence[Row]) -> dict[str, Any]:
    sizes = [("tiny", 130_000), ("small", 800_000), ("base", 5_000_000)]
    rows = []
    for i, row in enumerate(order):
        start, exponent = row["score"]["mean"], -0.06 - 0.01 * (i % 4)
        points = [
            {"size": name, "parameters": count, "score": start * (count / 130_000) ** exponent} for name, count in sizes
        ]
        fit = {"exponent": exponent, "low": exponent - 0.01, "high": exponent + 0.01}
        rows.append({"name": row["name"], "points": points, **fit})
    return {"sizes": [name for name, _ in sizes], "rows": rows, "rank_correlation": 0.86}
