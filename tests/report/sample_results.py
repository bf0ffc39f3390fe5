"""Results of schema 2 like those of a real comparison, made by formula: for the tests of the report, and to look at.

`python -m tests.report.sample_results FOLDER` writes the pages of all cases of `CASES`.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

HOSTILE = "<img src=x onerror=alert(1)><b>%{x}</b>"
LONG = "my_experiments/mixers_of_march.py:GatedSlidingWindowWithLearnedSinksAndRotaryPositions"
LENGTH = 128
SEEDS = (0, 1, 2)
RATES = (1e-3, 3e-3, 9e-3)

_FORMULAS = {
    "softmax": ("2*B*T**2*H*(K + V)", "4*B*T*H*(K + V)"),
    "sliding-window": ("2*B*T*M*H*(K + V)", "4*B*W*H*(K + V)"),
    "nprf-rpe": ("B*H*T*(4*K*F + 2*M*(F + V + 1))", "4*B*T*H*(F + V)"),
}
_LINEAR = ("4*B*T*H*K*V", "4*B*H*K*V")
# name, title, score, loss at 2x, slope of cost, tokens/s, is its state constant, learning rate
Row = tuple[str, str, float, float, float, int, bool, float]
_TEXT: list[Row] = [
    ("softmax", "Softmax attention", 2.31, 0.35, 2.0, 61_000, False, 3e-3),
    ("sliding-window", "Sliding-window attention", 2.34, 0.02, 1.05, 64_000, True, 3e-3),
    ("linear", "Linear attention", 2.52, 0.08, 1.01, 82_000, True, 1e-3),
    ("lightning", "Lightning attention (fixed decay per head)", 2.41, -0.03, 1.02, 79_000, True, 3e-3),
    ("scalar-gated", "Linear attention with one gate a head", 2.30, -0.03, 1.02, 73_000, True, 3e-3),
    ("gla", "Gated linear attention", 2.29, -0.04, 1.03, 55_000, True, 9e-3),
]
_IMAGES: list[Row] = [
    ("softmax", "Softmax attention", 0.962, 0, 2.0, 151_000, True, 3e-3),
    ("neighborhood", "Neighbourhood attention", 0.978, 0, 1.03, 92_000, True, 3e-3),
    ("window-grid", "Window and grid attention", 0.973, 0, 1.02, 131_000, True, 1e-3),
    ("axial", "Axial attention (rows and columns by turns)", 0.967, 0, 1.5, 125_000, True, 3e-3),
]
_MORE = (
    *("nprf-rpe", "retention", "delta-rule", "gated-delta", "mamba-2", "rwkv-7", "hgrn-2", "mesa", "longhorn", "based"),
    *("rebased", "titans", "moba", "latent", "mla-tpla", "moh", "tensor-product", "ring-window", "hyena", "log-linear"),
)
_REFERENCES = [
    ("unigram", "Frequencies of bytes", 4.61),
    ("2-gram", "Back-off, one byte of context", 3.52),
    ("4-gram", "Back-off n-gram, three bytes of context", 2.36),
    ("lzma", "lzma, the standard library's best", 2.09),
]
_IMAGE_REFERENCES = [
    ("majority", "Largest class", 0.104),
    ("nearest", "Nearest neighbour", 0.955),
    ("logistic", "Logistic regression on pixels", 0.931),
]


def sample_results(kind: str = "text", count: int = 8, **parts: bool) -> dict[str, Any]:
    """A comparison of schema 2.

    Args:
        kind: "text" or "images".
        count: mechanisms; from five on one has a hostile name and one has failed, from 20 on one is unfinished and
            one has a long name.
        parts: `withheld`: the ranking is; `skills`, `scale`: they were measured.
    """
    is_text = kind == "text"
    rows = [_mechanism(row, is_text) for row in _rows(is_text, count)]
    if count >= 5:
        rows[-1] |= {"name": HOSTILE, "title": "</script><b>mine</b>", "source": "my.py:Mine", "formula": None}
        rows[-1] |= {"missing": {"formula": "only cards have formulas"}}
        rows.insert(-1, _failed(rows[0]))
        del rows[-3]
    if count >= 20:
        rows[6] |= {"status": "unfinished", "reason": "stopped at step 200 of 420"}
        rows[9] |= {"name": LONG, "title": LONG, "source": LONG}
    from .sample_findings import findings

    return _facts(is_text, count) | {"mechanisms": rows} | findings(rows, is_text, LENGTH, parts)


def _rows(is_text: bool, count: int) -> list[Row]:
    rows = (_TEXT if is_text else _IMAGES)[:count]
    best = rows[0][2]
    for i, name in enumerate(_MORE[: count - len(rows)]):
        off = (0.05 + 0.27 * abs(math.sin(7 * i + 1))) * (1 if is_text else -0.3)
        longer = 0.05 * math.sin(5 * i) if is_text else 0
        speed = round(45_000 + 40_000 * abs(math.cos(3 * i)), -3)
        title = f"{name.capitalize()}, the mixer number {i}"
        rows = [*rows, (name, title, best + off, longer, 1.0 + 0.05 * (i % 3), speed, i % 5 != 4, 3e-3)]
    return rows


def _facts(is_text: bool, count: int) -> dict[str, Any]:
    text = {"name": "stdlib", "kind": "text", "train_bytes": 9_509_338, "train_files": 567, "fingerprint": "a1b2"}
    text |= {"selection_bytes": 594_574, "selection_files": 21, "test_bytes": 1_194_574, "test_files": 42}
    digits = {"name": "digits", "kind": "images", "classes": list("0123456789"), "image_shape": [1, 8, 8]}
    digits |= {"train_images": 1433, "selection_images": 164, "test_images": 200}
    command = "attensor compare" + ("" if is_text else " --data digits")
    plan = {"size": "tiny", "hidden_size": 64, "num_layers": 2, "num_heads": 2, "batch_size": 16, "seeds": list(SEEDS)}
    return {
        "schema": 2,
        "protocol": {"name": "attensor-compare", "version": 3},
        "attensor": "0.1.0",
        "torch": "2.13.0+cpu",
        "created": "2026-11-22T21:00:00",
        "finished": True,
        "command": command,
        "provenance": {
            "git_commit": "fe0ee26aa0",
            "python": "3.12.4",
            "system": "Linux 6.1 x86_64",
            "compiler": "g++ 12.2.0",
            "packages": {"torch": "2.13.0+cpu", "einops": "0.8.2"},
            "backends": {"linear_attention": "cpp", "softmax_attention": "torch"},
            "data_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        },
        "machine": {"processor": "Imaginary 3000", "cores": 2, "threads": 1, "device": "cpu", "dtype": "float32"},
        "data": {**(text if is_text else digits), "notes": ["3 binary files were left out"]},
        "plan": {
            **plan,
            "length": LENGTH if is_text else 8,
            "rule": "tokens",
            "steps": 420,
            "budget_seconds": 300.0,
            "learning_rates": list(RATES),
        },
        "quality": {
            "metric": "bits per byte" if is_text else "accuracy",
            "lower_is_better": is_text,
            "chance": 8.0 if is_text else 0.1,
            "units": {"kind": "file" if is_text else "image", "weights": [1.0, 3.0, 2.0]},
        },
        "references": [
            {"name": name, "title": title, "score": score, "reason": None}
            for name, title, score in (_REFERENCES if is_text else _IMAGE_REFERENCES)
        ]
        + [{"name": "zstd", "title": "zstd", "score": None, "reason": "Python before 3.14 has no zstd"}],
    }


def _failed(like: dict[str, Any]) -> dict[str, Any]:
    name = "my_file.py:Leaky"
    reason = "LawError: it looks into the future: changing token 7 changed the output at <i>token 3</i> by 0.412"
    empty = {key: [] for key in ("runs", "pilots", "cost", "decode", "generation")} | {"missing": {}}
    named = {"name": name, "title": name, "source": name, "status": "failed", "reason": reason}
    return dict.fromkeys(like) | empty | named


def _score(mean: float, spread: float = 0.011) -> dict[str, float]:
    return {"mean": mean, "spread": spread, "low": mean - 1.4 * spread, "high": mean + 1.4 * spread}


def _mechanism(row: Row, is_text: bool) -> dict[str, Any]:
    name, title, score, longer, slope, rate, is_constant, best = row
    flops, state = _FORMULAS.get(name, _LINEAR)
    scale = 1 if is_text else 0.2
    steps = 420
    missing = {} if is_text else {"decode": "images do not decode", "score_2x": "images have one size"}
    return {
        "name": name,
        "title": title,
        "source": "catalogue",
        "status": "ok",
        "reason": None,
        "parameters": 132_864 + 64 * len(name),
        "mlp_hidden_size": 256,
        "formula": {"flops": flops, "state_bytes": state if is_text else "0"},
        "paper": f"https://arxiv.org/abs/2312.{len(name):05d}",
        "learning_rate": best,
        "at_edge": name == "linear",
        "pilots": [_pilot(rate, score, best, is_text) for rate in RATES],
        "steps": steps,
        "seconds_per_step": 2048 / rate,
        "load": 1.0 + 0.1 * abs(math.sin(rate)),
        "train_tokens_per_second": float(rate),
        "runs": [_run(row, seed, steps, is_text) for seed in SEEDS],
        "score": _score(score, 0.011 * scale),
        "score_2x": _score(score + longer, 0.014) if is_text else None,
        "score_4x": _score(score + 2.4 * longer, 0.021) if is_text else None,
        "score_equal_time": _score(score + (82_000 - rate) / 5e5 * (1 if is_text else -0.2), 0.013 * scale),
        **_cost(row),
        "exponent": {"forward": slope - 0.02, "forward_backward": slope, "peak_bytes": 0.98},
        "decode": _decode(name, is_constant) if is_text else [],
        "decode_stopped": None,
        "generation": [{"batch": b, "tokens_per_second": b**0.8 * rate / 60} for b in (1, 8, 32)] if is_text else [],
        "missing": missing,
    }


def _pilot(rate: float, score: float, best: float, is_text: bool) -> dict[str, Any]:
    far = 0.15 * abs(math.log(rate / best)) + 0.4
    return {"learning_rate": rate, "steps": 60, "score": score + far * (1 if is_text else -0.4), "reason": None}


def _cost(row: Row) -> dict[str, Any]:
    name, _, _, _, slope, *_ = row
    wobble = 1 + 0.3 * math.sin(len(name) + slope * 9)
    lengths = [256 * 2**i for i in range(5 if slope > 1.9 else 7)]
    cost = []
    for n in lengths:
        forward = wobble * 0.9 * (n / 256 + (n / 1100) ** slope)
        both = 2.9 * forward
        cost.append(
            {
                "length": n,
                "forward_ms": forward,
                "forward_quartiles": [0.96 * forward, 1.05 * forward],
                "forward_backward_ms": both,
                "forward_backward_quartiles": [0.97 * both, 1.04 * both],
                "peak_bytes": int(wobble * 600 * n + 100_000),
                "flops": 256 * n * n if slope > 1.9 else 4 * n * 64 * 32,
            }
        )
    stopped = None if len(lengths) == 7 else "stopped at 4096: 8192 would take about 3 s a call"
    return {"cost": cost, "cost_stopped": stopped}


def _decode(name: str, is_constant: bool) -> list[dict[str, Any]]:
    rows = []
    wobble = 1 + 0.2 * math.sin(3 * len(name))
    for context, batch in [*((128 * 2**i, 1) for i in range(8)), (1024, 8), (1024, 32)]:
        time = wobble * batch**0.6 * (0.12 if is_constant else 0.1 + context / 60_000)
        bytes_kept = batch * (8192 * (1 + len(name) % 3) if is_constant else 512 * context)
        quartiles = [0.95 * time, 1.06 * time]
        found = {"context": context, "batch": batch, "ms_per_token": time, "quartiles": quartiles}
        rows.append(found | {"state_bytes": bytes_kept})
    return rows


def _run(row: Row, seed: int, steps: int, is_text: bool) -> dict[str, Any]:
    name, _, score, longer, _, rate, *_ = row
    start = 7.6 if is_text else 0.1
    off = 0.011 * (seed - 1) * (1 if is_text else 0.2)
    curve = []
    for i in range(12):
        step = max(i, round(steps * 2 ** (i - 11)))
        fade = (math.exp(-7 * (step / steps) ** 0.7) - math.exp(-7)) / (1 - math.exp(-7))
        point = {"step": step, "tokens": step * 2048, "seconds": step * 2048 / rate}
        curve.append({**point, "score": score + off + (start - score) * fade})
    final = {"1x": score + off, "2x": score + longer + off, "4x": score + 2.4 * longer + off}
    return {
        "seed": seed,
        "curve": curve,
        "final": final if is_text else {**final, "2x": None, "4x": None},
        "units": [score + off, score + 0.1, score - 0.1],
        "checkpoint": f"{name}/seed-{seed}.safetensors",
        "load": 1.02,
    }


CASES: dict[str, dict[str, Any]] = {
    "three": {"count": 3},
    "usual": {"skills": True, "scale": True},
    "many": {"count": 25, "skills": True, "scale": True},
    "withheld": {"withheld": True},
    "images": {"kind": "images"},
}

if __name__ == "__main__":
    from attensor.report import write_report

    for case, options in CASES.items():
        write_report(sample_results(**options), Path(sys.argv[1]) / f"{case}.html")
