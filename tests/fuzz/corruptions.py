"""What users do to an argument, as changes of its expression."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.fuzz.calls import Call, evaluate

__all__ = ["RESHAPED", "corrupt"]

# what may make another argument wrong
RESHAPED = {"axes exchanged", "shorter", "longer", "one longer", "empty", "of size 1", "one axis more", "one axis less"}
RESHAPED |= {"flat", "0-d", "object"}

OBJECTS = ["None", "'abc'", "3", "2.5", "[]", "{}", "torch.Tensor", "object()", "lambda x: None", "True", "(1, 2)"]
KINDS_OF_TENSOR = {
    "numpy": "({0}).detach().numpy()",
    "list": "({0}).tolist()",
    "sparse": "({0}).to_sparse()",
    "nested": "torch.nested.nested_tensor([({0}).flatten()[:2], ({0}).flatten()[:1]])",
    "in a list": "[{0}]",
    "meta": "({0}).to('meta')",
    "0-d": "({0}).sum()",
    "parameter": "torch.nn.Parameter({0})",
    "quantised": "torch.quantize_per_tensor(({0}).float(), 0.1, 0, torch.qint8)",
}
DTYPES = ["int64", "int32", "uint8", "bool", "complex64", "float8_e4m3fn", "float16", "bfloat16", "float32", "float64"]
HUGE = ("1e18", "2**70", "10**12", "2**31")
# kind -> what is put in the place of a value
_PLACES = {
    "int": "0 | -1 | 1 | 2 | 3 | 4 | 7 | 2.5 | 2.0 | nan | '3' | True | None | (3,) | torch.tensor(3) | numpy.int64(3)"
    " | 2**31 | 10**12 | 2**70 | -2**40 | [1, 2] | {} | int",
    "float": "nan | inf | -inf | '1' | True | None | torch.tensor(1.0) | 1 | 0 | -1.0 | 1e18 | 1e-30 | [0.5] | 1j | {}"
    " | float | 2**70 | 1.5 | 0.5",
    "bool": "'no' | 1 | 0 | None | torch.tensor(True) | [] | numpy.bool_(True) | True | False | 2.0 | bool",
    "choice": "'unknown' | '' | 3 | None | b'torch' | True | ['torch'] | str | 'Torch' | 'triton' | {}",
    "text": "'unknown' | '' | 3 | None | b'x' | True | [] | str",
    "dtype": "'float32' | torch.int64 | torch.complex64 | torch.float8_e4m3fn | None | torch.bool | torch.float64"
    " | torch.float16 | 32 | float | []",
    "device": "'cpuu' | 2.5 | 'meta' | 'cpu' | None | torch.float32 | [] | torch.device('cpu') | ''",
    "per_axis": "0 | -1 | 2.5 | (2.5,) | (2, 2.5) | (1, 2, 3, 4) | () | '3' | ('3',) | None | nan | True | 1 | 2 | [2]"
    " | (2, 2) | 2**31 | 10**12 | torch.tensor(2) | numpy.int64(2) | (True,) | 'no' | {} | (1,)",
    "feature_map": "'unknown' | 'tanh' | 3 | None | 'relu' | 'elu+1' | lambda x: None | lambda x: x[..., :1]"
    " | lambda x: x.sum() | lambda x: x.flatten() | torch.nn.ReLU | torch.nn.ReLU() | {} | True",
    "function": "'relu' | 3 | None | lambda x: None | lambda x: x[..., :1] | lambda x: x.flatten() | {}",
    "instance": "'abc' | 3 | None | {} | True | torch.Generator() | torch.Generator | object() | ops.Denominator | 1e-6"
    " | ops.Denominator(0.0, 1e-6) | torch.nn.Linear(2, 3)",
    "anything": "None | 'abc' | '' | 3 | [] | [0] | [2] | (-3,) | [None] | {} | [True] | ['q'] | ('q', 'nothing')"
    " | [2.5] | object() | torch.ones(2) | lambda x: x | [10**20]",
    "sizes": "() | (0,) | (2.5, 2) | 3 | 'abc' | None | (1,) | (2, 2, 2, 2) | (-1, 2, 3, 4) | [2, 2] | (True, 2) | {}"
    " | (nan, 2.0) | (2**31, 1) | (2, 0) | (3, None) | torch.ones(2) | (numpy.int64(2), 3)",
    "mapping": "{} | None | 'abc' | 3 | [] | {'a': 1} | {1: torch.ones(2)} | {'a': None} | {'a': torch.ones(2)}"
    " | [('a', torch.ones(2))] | torch.ones(2) | object()",
    "path": "'/nowhere/at/all' | 3 | None | b'x' | True | [] | place('nothing') | object()",
    "numbers": "[] | None | 'abc' | 3 | [1.0] | ['a'] | [nan, 1.0] | [inf, 1.0] | [None] | {} | [[1.0], [2.0]]"
    " | (1, 2, 3) | torch.ones(3) | numpy.ones(3) | [True]",
}
NUMBERS = {kind: values.split(" | ") for kind, values in _PLACES.items()}
NUMBERS["bound"] = NUMBERS["float"]
NUMBERS["count"] = [text for text in NUMBERS["int"] if text not in HUGE]


def corrupt(rng: random.Random, call: Call, tries: int = 60) -> Call:
    """The call with one or two arguments changed; the text of each is evaluated here, so that it is valid Python."""
    wanted, call = 2 if rng.random() < 0.25 else 1, replace(call, legal=call.arguments)
    for _ in range(tries):
        if rng.random() < 0.01:
            corrupted = {**call.corrupted, "colour": "unknown"}
            return replace(call, arguments={**call.arguments, "colour": "3"}, corrupted=corrupted)
        # what was not given has a default, which can be replaced by nonsense as well
        name = rng.choice([*call.arguments, *call.arguments, *call.kinds])
        if name in call.corrupted or name not in call.kinds:
            continue
        old = call.arguments.get(name)
        if old is not None and rng.random() < 0.01:
            left = {other: text for other, text in call.arguments.items() if other != name}
            call = replace(call, arguments=left, corrupted={**call.corrupted, name: "left out"})
        else:
            label, text = _change(rng, call.kinds[name], old)
            try:
                torch.manual_seed(0)
                evaluate(text)
            except Exception:
                continue
            if text == old:
                continue
            call = replace(call, arguments={**call.arguments, name: text}, corrupted={**call.corrupted, name: label})
        if len(call.corrupted) == wanted:
            break
    return call


def _change(rng: random.Random, kind: str, old: str | None) -> tuple[str, str]:
    base = kind.partition(":")[0].strip("*?")
    value = None if old is None else evaluate(old)
    if isinstance(value, Tensor):
        return _change_tensor(rng, old or "", value)
    if base == "tensors" and isinstance(value, list) and value and rng.random() < 0.8:
        return _change_tensors(rng, old or "", value)
    if base == "mapping" and isinstance(value, dict) and value and rng.random() < 0.8:
        return _change_mapping(rng, old or "", value)
    if base == "packing" and isinstance(value, tuple) and rng.random() < 0.8:
        place = rng.randrange(2)
        label, text = _change_tensor(rng, f"({old})[{place}]", value[place])
        return label, f"({text}, ({old})[1])" if place == 0 else f"(({old})[0], {text})"
    if base == "cache":
        return "cache", rng.choice([*OBJECTS, *_CACHES])
    if base in ("tensor", "tensors", "packing"):
        sizes = ", ".join(str(rng.randint(1, 5)) for _ in range(rng.randint(1, 4)))
        return "object", rng.choice([*OBJECTS, f"torch.randn({sizes})", f"torch.zeros({sizes}).long()"])
    if base == "choice" and rng.random() < 0.4:
        return "choice", repr(rng.choice(kind.partition(":")[2].split("|")))
    text = rng.choice(NUMBERS[base])
    return ("huge" if text in HUGE else f"{base} {text}"), text


_CACHES = [
    "nn.SoftmaxAttention(12, 3).new_cache(2)",
    "nn.SoftmaxAttention(12, 1).new_cache(2)",
    "used(nn.SoftmaxAttention(12, 3), 2, 4)",
    "nn.SlidingWindowAttention(12, 3, window_size=3).new_cache(2)",
    "used(nn.SlidingWindowAttention(12, 3, window_size=3), 2, 5)",
    "nn.GatedLinearAttention(12, 3).new_cache(2)",
    "nn.GatedLinearAttention(12, 3).new_cache(3)",
    "nn.GatedLinearAttention(12, 3).new_cache(2, device='meta')",
    "nn.LinearAttention(12, 3).new_cache(2)",
    "nn.LinearAttention(12, 3).new_cache(1)",
    "nn.LinearAttention(12, 3, feature_map='elu+1', normalize=True).new_cache(2)",
    "nn.TransNormerAttention(12, 3).new_cache(2)",
    "nn.RelativeKernelAttention(12, 3, num_features=5).new_cache(2)",
    "nn.Retention(12, 3).new_cache(2)",
    "nn.TokenCache",
    "nn.TokenCache(2, {'k': (3, 4)})",
    "nn.StateCache(2, {'state': (3, 4, 4)})",
    "(torch.zeros(2, 3), torch.zeros(2, 3))",
]


def _change_tensor(rng: random.Random, old: str, value: Tensor) -> tuple[str, str]:
    how = rng.random()
    if how < 0.15:
        return "object", rng.choice(OBJECTS)
    if how < 0.35:
        label = rng.choice(list(KINDS_OF_TENSOR))
        return label, KINDS_OF_TENSOR[label].format(old)
    if how < 0.55:
        dtype = rng.choice(DTYPES)
        return dtype, f"({old}).to(torch.{dtype})"
    if how < 0.67:
        return _change_values(rng, old, value)
    return _change_shape(rng, old, value)


def _change_values(rng: random.Random, old: str, value: Tensor) -> tuple[str, str]:
    if not value.is_floating_point():
        negated = ("negated", f"-({old})" if value.dtype != torch.bool else f"~({old})")
        other = [("raised", f"({old}) + 1"), ("flipped", f"({old}).flip(0)"), ("zeros", f"torch.zeros_like({old})")]
        return rng.choice([negated, *other, ("raised", f"({old}) * 3")])
    label = rng.choice(["nan", "inf", "-inf", "huge", "zeros", "all nan"])
    if label in ("huge", "zeros", "all nan"):
        factor = {"zeros": "0.0", "huge": "1e4"}.get(label, "nan")
        return label, f"({old}) * {factor}"
    place = rng.randrange(max(value.numel(), 1))
    return label, f"({old}).flatten().index_fill(0, torch.tensor([{place}]), {label}).view({list(value.shape)})"


def _change_shape(rng: random.Random, old: str, value: Tensor) -> tuple[str, str]:
    if value.ndim == 0:
        return "one axis more", f"({old})[None]"
    dim = rng.randrange(value.ndim)
    other = rng.randrange(value.ndim)
    size = value.shape[dim]
    changes: list[tuple[str, str]] = [
        ("axes exchanged", f"({old}).transpose({dim}, {other})"),
        ("shorter", f"({old}).narrow({dim}, 0, {max(size - 1, 0)})"),
        ("longer", f"torch.cat([{old}, {old}], {dim})"),
        ("one longer", f"torch.cat([{old}, ({old}).narrow({dim}, 0, 1)], {dim})"),
        ("empty", f"({old}).narrow({dim}, 0, 0)"),
        ("of size 1", f"({old}).narrow({dim}, 0, 1)"),
        ("one axis more", f"({old}).unsqueeze({dim})"),
        ("one axis less", f"({old}).select({dim}, 0)"),
        ("flat", f"({old}).flatten()"),
        ("strides", f"({old}).transpose({dim}, {other}).contiguous().transpose({dim}, {other})"),
        ("expanded", f"({old}).narrow({dim}, 0, 1).expand({list(value.shape)})"),
        ("flipped", f"({old}).flip({dim})"),
    ]
    return rng.choice(changes)


def _change_mapping(rng: random.Random, old: str, value: dict[str, Any]) -> tuple[str, str]:
    key = rng.choice(list(value))
    if rng.random() < 0.3 or not isinstance(value[key], Tensor):
        return "one less", f"{{name: x for name, x in ({old}).items() if name != {key!r}}}"
    label, text = _change_tensor(rng, f"({old})[{key!r}]", value[key])
    return label, f"{{**{old}, {key!r}: {text}}}"


def _change_tensors(rng: random.Random, old: str, value: list[Any]) -> tuple[str, str]:
    place = rng.randrange(len(value))
    if rng.random() < 0.4:
        shorter = [("one less", f"({old})[1:]"), ("empty", "[]"), ("one more", f"({old}) + ({old})[:1]")]
        others = [("a tensor", f"({old})[0]"), ("a tuple", f"tuple({old})"), ("a stack", f"torch.stack({old})")]
        return rng.choice([*shorter, *others])
    label, text = _change_tensor(rng, f"({old})[{place}]", value[place])
    return label, f"({old})[:{place}] + [{text}] + ({old})[{place + 1}:]"
