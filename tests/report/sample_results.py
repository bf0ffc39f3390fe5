"""Results like those of a real comparison, made by formula: for the tests of the report, and to look at the page."""

from __future__ import annotations

import math
from typing import Any

HOSTILE = "<img src=x onerror=alert(1)><b>%{x}</b>"

_FORMULAS = {
    "softmax": ("4*B*T**2*H*K", "8*B*T*H*K"),
    "sliding-window": ("4*B*T*W*H*K", "8*B*W*H*K"),
    "linear": ("B*T*H*(4*K*V + 2*C*(K + V))", "4*B*H*K*V"),
}
# name, title, score, gain at 2x, slope, tokens/s, is state constant, learning rate
_TEXT = [
    ("softmax", "Softmax attention with rotary positions", 2.31, 0.35, 2.0, 61_000, False, 3e-3),
    ("sliding-window", "Sliding-window attention", 2.34, 0.02, 1.05, 64_000, True, 3e-3),
    ("linear", "Linear attention", 2.52, 0.08, 1.01, 82_000, True, 1e-3),
    ("lightning", "Lightning attention", 2.41, -0.03, 1.02, 79_000, True, 3e-3),
    ("scalar-gated", "Linear attention with one gate a head", 2.33, -0.03, 1.02, 73_000, True, 3e-3),
    ("gla", "Gated linear attention", 2.29, -0.04, 1.03, 55_000, True, 1e-2),
]
_IMAGES = [
    ("softmax", "Softmax attention", 0.962, 0, 2.0, 151_000, True, 3e-3),
    ("neighborhood", "Neighbourhood attention", 0.978, 0, 1.03, 92_000, True, 3e-3),
    ("window-grid", "Window and grid attention", 0.973, 0, 1.02, 131_000, True, 1e-3),
    ("axial", "Axial attention", 0.967, 0, 1.5, 125_000, True, 3e-3),
]
_TEXT_ANSWER = [
    "For quality take gla: 2.290 bits per byte, ahead of softmax by more than the spread between the seeds.",
    "Up to 2k tokens on this machine softmax costs no more than gla; beyond, gla is cheaper, 6.1x at 16k.",
    "To decode long contexts gla keeps 16 KiB a layer, softmax 8 MiB at 16k tokens.",
]
_IMAGE_ANSWER = ["For quality take neighborhood: 97.8 %, ahead of window-grid within the spread between the seeds."]
_RATES = (1e-3, 3e-3, 1e-2)


def sample_results(kind: str = "text") -> dict[str, Any]:
    """A finished comparison: good rows, one that failed with a hostile reason, one with a hostile name."""
    rows = [_mechanism(*row, is_text=kind == "text") for row in (_TEXT if kind == "text" else _IMAGES)]
    mine = _mechanism(
        HOSTILE,
        "</script><b>mine</b> %{x}",
        rows[0]["score"]["mean"] + (0.09 if kind == "text" else -0.03),
        0.1,
        1.6,
        48_000,
        False,
        3e-3,
    )
    mine |= {"source": "my_file.py:MyMixer", "formula": None}
    mine |= {} if kind == "text" else {"decode": [], "score_2x": None, "score_4x": None}
    failed = {
        **dict.fromkeys(mine),
        "name": "my_file.py:Leaky",
        "title": "my_file.py:Leaky",
        "source": "my_file.py:Leaky",
        "status": "failed",
        "reason": "LawError: it looks into the future: changing token 7 changed the output at <i>token 3</i> by 0.412",
        "runs": [],
        "pilots": [],
        "cost": [],
        "decode": [],
    }
    text = {"name": "stdlib", "kind": "text", "train_bytes": 9_509_338, "held_out_bytes": 1_194_574}
    digits = {"name": "digits", "kind": "images", "classes": list("0123456789"), "train_images": 1433}
    return {
        "schema": 1,
        "attensor": "0.1.0",
        "torch": "2.13.0+cpu",
        "created": "2026-11-22T21:00:00",
        "finished": True,
        "command": "attensor compare" + ("" if kind == "text" else " --data digits"),
        "machine": {"processor": "Imaginary 3000", "cores": 2, "threads": 1, "device": "cpu", "dtype": "float32"},
        "data": {**text, "train_files": 567, "held_out_files": 42}
        if kind == "text"
        else {**digits, "held_out_images": 364, "image_shape": [1, 8, 8]},
        "plan": {
            "size": "tiny",
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 2,
            "batch_size": 16,
            "seeds": [0, 1],
            "length": 128 if kind == "text" else 8,
            "steps": None,
            "budget_seconds": 150.0,
            "learning_rates": list(_RATES),
            "pilot_fraction": 0.1,
        },
        "quality": {"metric": "bits per byte", "lower_is_better": True}
        if kind == "text"
        else {"metric": "accuracy", "lower_is_better": False},
        "mechanisms": [*rows, failed, mine],
        "answer": _TEXT_ANSWER if kind == "text" else _IMAGE_ANSWER,
    }


def _mechanism(
    name: str,
    title: str,
    score: float,
    longer: float,
    slope: float,
    rate: float,
    is_constant: bool,
    best: float,
    is_text: bool = True,
) -> dict[str, Any]:
    flops, state = _FORMULAS.get(name, ("B*T*H*(4*K*V + 2*C*(K + V))", "4*B*H*K*V"))
    start = 7.6 if score > 1 else 0.1
    runs = [_run(name, score, longer, rate, start, seed, is_text) for seed in (0, 1)]
    wobble = 1 + 0.1 * math.sin(len(name))
    lengths = [256 * 2**i for i in range(7)][: 5 if slope > 1.9 else 7]
    cost = [
        {
            "length": n,
            "forward_ms": wobble * 0.9 * (n / 256 + (n / 1100) ** slope),
            "forward_backward_ms": wobble * 2.6 * (n / 256 + (n / 1000) ** slope),
            "peak_bytes": int(wobble * 600 * n + 100_000),
            "flops": 4 * n * 64 * 64 if slope < 1.9 else 4 * n * n * 64,
        }
        for n in lengths
    ]
    contexts = [128 * 2**i for i in range(8)] if is_text else []
    decode = [
        {
            "context": n,
            "ms_per_token": wobble * (0.12 if is_constant else 0.1 + n / 60_000),
            "state_bytes": 16_384 * (1 + len(name) % 3) if is_constant else 512 * n,
        }
        for n in contexts
    ]
    return {
        "name": name,
        "title": title,
        "source": "catalogue",
        "status": "ok",
        "reason": None,
        "parameters": 132_864 + 64 * len(name),
        "mlp_hidden_size": 256,
        "learning_rate": best,
        "formula": {"flops": flops, "state_bytes": state},
        "pilots": [
            {
                "learning_rate": lr,
                "steps": 40,
                "score": score + math.copysign(0.5, start - score) * (1 + _far(lr, best)),
            }
            for lr in _RATES
        ],
        "steps": int(rate / 130),
        "train_tokens_per_second": float(rate),
        "runs": runs,
        "score": {"mean": score, "spread": 0.011},
        "score_2x": {"mean": score + longer, "spread": 0.014} if is_text else None,
        "score_4x": {"mean": score + 2.4 * longer, "spread": 0.021} if is_text else None,
        "cost": cost,
        "cost_stopped": None if len(lengths) == 7 else "stopped at 4096: 8192 would take too long",
        "exponent": {"forward": slope - 0.02, "forward_backward": slope, "peak_bytes": 0.98},
        "decode": decode,
        "decode_stopped": None,
    }


def _far(rate: float, best: float) -> float:
    return 0.3 * abs(math.log(rate / best))


def _run(name: str, score: float, longer: float, rate: float, start: float, seed: int, is_text: bool) -> dict[str, Any]:
    total = int(rate / 130)
    off = 0.011 * (2 * seed - 1)
    curve = []
    for i in range(13):
        step = round(total * (i / 12) ** 1.7)
        fade = (math.exp(-6 * step / total) - math.exp(-6)) / (1 - math.exp(-6))
        wobble = 0.02 * math.sin(5 * i + seed + len(name)) * (1 - i / 12)
        value = score + off + (start - score) * fade + wobble
        curve.append({"step": step, "tokens": step * 2048, "seconds": step * 2048 / rate, "score": value})
    return {
        "seed": seed,
        "curve": curve,
        "final": {"1x": score + off, "2x": score + longer + off, "4x": score + 2.4 * longer + off}
        if is_text
        else {"1x": score + off, "2x": None, "4x": None},
        "checkpoint": f"{name}/seed-{seed}.safetensors",
    }
