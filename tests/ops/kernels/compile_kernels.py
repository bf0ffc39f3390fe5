"""Compile every kernel of `linear_attention` for a GPU that need not be here, and print what shared memory it takes.

python -m tests.ops.kernels.compile_kernels 90 3        (compute capability 9.0, 3 stages)
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

K, V, SIZE = 128, 64, 64
HEADS = {"H": 4, "HX": 2, "HY": 2, "HZ": 4, "HK": 2, "HO": 2, "HD": 4}
SIZES = {"K": K, "V": V, "X": K, "Z": V, "STRIDE_X": V, "STRIDE_Z": 1, "SIZE": SIZE, "BLOCK": 16, "GATE_BATCH": False}
TILES = {"BK": 64, "BV": 32, "BX": 64, "BZ": 32}
INTEGERS = ("tokens", "chunks", "batches")
TYPES = {
    "i64": ("table", "first_chunk", "cu_seqlens"),
    "fp32": ("initial", "final", "scores", "grad_scores", "outer", "grad_q", "grad_k", "grad_states", "gates"),
}


def kernels() -> list[tuple[str, dict[str, Any]]]:
    """Module and the arguments that differ between the variants."""
    found: list[tuple[str, dict[str, Any]]] = []
    for decay in range(4):
        for reverse in (False, True):
            variant = {"DECAY": decay, "REVERSE": reverse, "INPUT": decay == 3, "PACKED": reverse}
            found += [("scan", variant), ("read", variant), ("on_chip", variant | {"BX": K})]
        found.append(("recurrent", {"DECAY": decay, "SLOTS": decay < 2, "PACKED": decay == 2, "BK": K}))
    for flag in (False, True):
        found += [("inside", {"REVERSE": flag, "PACKED": flag}), ("gates", {"CHANNEL": flag, "PACKED": flag})]
        found.append(("scores", {"DECAY": 3 * flag, "PACKED": flag}))
        found.append(("read", {"DECAY": 3, "REVERSE": flag, "INPUT": False, "PACKED": flag}))
    return found


def compiled(name: str, variant: dict[str, Any], half: bool, capability: int, stages: int) -> dict[str, Any]:
    """Compile one kernel for bfloat16 or float32."""
    module = importlib.import_module(f"attensor.ops.linear_attention.triton.{name}")
    kernel = getattr(module, f"{name}_kernel")
    function = getattr(kernel, "fn", kernel) if hasattr(kernel, "configs") else kernel
    numbers = {"DOT": tl.bfloat16 if half else tl.float32, "PRECISION": "tf32" if half else "tf32x3"}
    values = HEADS | SIZES | TILES | numbers | variant
    signature, constants = {}, {}
    for place, argument in enumerate(function.arg_names):
        if argument in values:
            signature[argument], constants[(place,)] = "constexpr", values[argument]
        elif argument == "scale":
            signature[argument] = "fp32"
        elif argument in INTEGERS or (argument == "slots" and name != "recurrent"):
            signature[argument] = "i32"
        else:
            types = [kind for kind, names in TYPES.items() if argument in names]
            signature[argument] = "*" + (types[0] if types else "i32" if argument == "slots" else _float(half, name))
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    options = {"num_warps": 4, "num_stages": stages}
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    stage, fixed = module._shared(values) if hasattr(module, "_shared") else (0, 32768)
    return {
        "kernel": name,
        "variant": variant,
        "shared": result.metadata.shared,
        "foreseen": (stages - 1) * stage + fixed,
    }


def _float(half: bool, name: str) -> str:
    return "bf16" if half and name != "gates" else "fp32"


if __name__ == "__main__":
    target = [int(word) for word in sys.argv[1:]]
    jobs = [(name, variant, half) for name, variant in kernels() for half in (True, False)]
    # float32 differs in its products alone
    jobs = [job for job in jobs if job[2] or (job[1].get("DECAY") == 3 and not job[1].get("REVERSE"))]
    print(json.dumps([compiled(*job, *target) for job in jobs]))
