"""Neighbourhood attention in C++: a query at a time, in a time that follows the keys of its window.

Dilated and strided axes are walked as they are, so that nothing is regrouped; sizes as in the package.
"""

from __future__ import annotations

import ctypes
import functools
from math import prod
from typing import Any

import torch
from torch import Tensor

from attensor.ops._checks import scale_of
from attensor.ops._kernel import Tensors, differentiable, register
from attensor.ops._native.loading import argument_of
from attensor.ops._native.tensors import TensorView, kernel, readable
from attensor.ops._precision import working_dtype
from attensor.ops.neighborhood_attention.function import Options, axes_with, for_each_bias
from attensor.ops.neighborhood_attention.neighborhood import Axis, key_range, keys_seen
from attensor.ops.neighborhood_attention.reference import Problem, dense_neighborhood
from attensor.ops.softmax_attention.reference import Attended

__all__ = ["run", "why_not"]

_TENSORS = "q k v out grad_out grad_q grad_k grad_v"
_POINTERS = "bias grad_lse lse grad_bias seen"
_SHORT = "heads key_heads key_dim value_dim threads"
_AXES = 3
# multiplications of a thread: with fewer, starting it was measured to take longer than what it does
_LEAST = 2**21
_WIDEST = 128  # beyond, measured to take longer than the tiles of the torch form


@argument_of("neighborhood_window")
class _Window(ctypes.Structure):
    """`Window` of window.cpp."""

    _fields_ = (
        *((name, TensorView) for name in _TENSORS.split()),
        *((name, ctypes.c_void_p) for name in _POINTERS.split()),
        *((name, ctypes.c_int64 * _AXES) for name in ("length", "step", "entries")),
        *((name, ctypes.c_int64) for name in ("batch", "most")),
        *((name, ctypes.c_int32) for name in _SHORT.split()),
        ("scale", ctypes.c_double),
    )


@functools.lru_cache(maxsize=64)
def _seen(axes: tuple[Axis, ...]) -> tuple[Tensor, int]:
    """Of all places, axis by axis: the first key, the number of keys, the first one's bias; and the most keys."""
    parts, most = [], 1
    for axis in axes:
        place = torch.arange(axis.length)
        first, count, entry = (torch.zeros_like(place) for _ in range(3))
        for group in range(min(axis.dilation, axis.length)):
            inner = place[group :: axis.dilation] // axis.dilation
            start, end = key_range(inner, axis.group(len(inner)))
            first[group :: axis.dilation] = group + axis.dilation * start
            count[group :: axis.dilation] = end - start
            entry[group :: axis.dilation] = start - inner + axis.window - 1
        parts += [first, count, entry]
        most *= int(count.amax()) if axis.length else 0
    return torch.cat(parts), most


def _call(tensors: dict[str, Tensor], pointers: dict[str, Tensor | None], options: tuple[Any, float]) -> None:
    """Call C++: `tensors` [B, *space, heads, D] and contiguous `pointers` by the names of `Window`."""
    windows, scale = options
    q, k, v = (tensors[name] for name in "qkv")
    axes = axes_with(q.shape, windows)
    padded = (*[Axis(1, 1, 1, 1, False)] * (_AXES - len(axes)), *axes)
    seen, most = _seen(padded)
    # kept by name: a view does not keep what it shows
    views = {name: readable(x.flatten(1, -3)) for name, x in tensors.items()}
    held = {"seen": seen, **pointers}
    work = q.shape[0] * q.shape[-2] * prod(map(keys_seen, axes)) * (k.shape[-1] + v.shape[-1])
    window = _Window(
        **{name: TensorView.of(x) for name, x in views.items()},
        **{name: None if x is None else x.data_ptr() for name, x in held.items()},
        **{name: (ctypes.c_int64 * _AXES)(*sizes) for name, sizes in _sizes(padded).items()},
        batch=q.shape[0],
        most=most,
        heads=q.shape[-2],
        key_heads=k.shape[-2],
        key_dim=q.shape[-1],
        value_dim=v.shape[-1],
        threads=min(torch.get_num_threads(), 1 + work // _LEAST),
        scale=scale,
    )
    if not kernel("neighborhood_window", working_dtype(q, v))(ctypes.byref(window), int("grad_out" in tensors)):
        raise MemoryError("neighborhood_attention: the cpp back-end got no memory.")


def _sizes(axes: tuple[Axis, ...]) -> dict[str, list[int]]:
    return {
        "length": [axis.length for axis in axes],
        "step": [axis.dilation for axis in axes],
        "entries": [2 * axis.window - 1 for axis in axes],
    }


def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *options: Any) -> tuple[Tensor, Tensor]:
    dtype = working_dtype(q, v)
    out = v.new_empty(*q.shape[:-1], v.shape[-1], dtype=dtype)
    lse = q.new_empty(q.shape[:-1], dtype=dtype)
    added = None if bias is None else _plain(bias, dtype)
    _call({"q": q, "k": k, "v": v, "out": out}, {"lse": lse, "bias": added}, options)
    return out.to(v.dtype), lse


def _backward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, grad_out: Tensor, grad_lse: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and the bias; empty where there is none."""
    dtype = working_dtype(q, v)
    grads = {"grad_q": q.new_empty(q.shape, dtype=dtype)}
    grads |= {name: x.new_zeros(x.shape, dtype=dtype) for name, x in (("grad_k", k), ("grad_v", v))}
    pointers = {"grad_lse": None if grad_lse is None else _plain(grad_lse, dtype)}
    if bias is not None:
        of_entries = q.new_zeros(q.shape[0], *bias.shape[1:], dtype=dtype)
        pointers |= {"bias": _plain(bias, dtype), "grad_bias": of_entries}
    _call({"q": q, "k": k, "v": v, "grad_out": grad_out, **grads}, pointers, options)
    of_bias = q.new_empty(0) if bias is None else of_entries.sum(0, keepdim=True).to(bias.dtype)
    of_q, of_k, of_v = (grad.to(x.dtype) for grad, x in zip(grads.values(), (q, k, v)))
    return of_q, of_k, of_v, of_bias


def _plain(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).resolve_neg().contiguous()


def _pairs(q: Any, windows: Any) -> int:
    """Pairs of a query and a key that it sees, over batch and heads."""
    return int(q[0] * q[-2] * prod(map(keys_seen, axes_with(q, windows))))


_ARGUMENTS = "Tensor q, Tensor k, Tensor v, Tensor? bias"
_kernel = register(
    f"cpp_neighborhood_attention({_ARGUMENTS}, int[] windows, float scale) -> (Tensor, Tensor)",
    _forward,
    lambda q, k, v, *_: (v.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=working_dtype(q, v))),
    flops=lambda q, k, v, bias, windows, *_: 2 * _pairs(q, windows) * (q[-1] + v[-1]),
)
_kernel_backward = register(
    f"cpp_neighborhood_attention_backward({_ARGUMENTS}, Tensor grad_out, Tensor? grad_lse, int[] windows, float scale) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    lambda *x: tuple(x[0].new_empty(0) if t is None else t.new_empty(t.shape) for t in x[:4]),
    # scores again, and the gradients of weights, q, k and v
    flops=lambda q, k, v, bias, grad, of_lse, windows, *_: 2 * _pairs(q, windows) * (3 * q[-1] + 2 * v[-1]),
)


def _passed(tensors: Tensors, options: Options, _: bool) -> tuple[Tensor, ...]:
    return for_each_bias(_kernel, tensors, options)


def _returned(
    tensors: Tensors, kept: Tensors, grads: Tensors, options: Options, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    q, _, v, _ = tensors
    grad_out = v.new_zeros(*q.shape[:-1], v.shape[-1]) if grads[0] is None else grads[0]
    found = for_each_bias(_kernel_backward, (*tensors, grad_out, grads[1]), options)
    return tuple(g if needed else None for g, needed in zip(found, needs))


def _definition(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    return dense_neighborhood((*tensors, None, None, None), axes_with(tensors[0].shape, options.windows), options.scale)


# (q, k, v, bias [1, H, ..]) to (out, lse)
_neighborhood = differentiable(_passed, _returned, _definition, batch_dims=(0, 0, 0, 0), out_dims=(0, 0))


def run(problem: Problem) -> Attended:
    """See `neighborhood_attention`."""
    options = Options.of(problem.axes, scale_of(problem.q, problem.scale))
    out, lse = _neighborhood(problem.tensors[:4], options)
    return (out, lse) if problem.return_lse else out


def why_not(problem: Problem) -> str | None:
    """What this form does not know."""
    if problem.additional_keys is not None or problem.cu_seqlens is not None:
        return "it knows neither additional keys nor packed sequences"
    widest = max(axis.window for axis in problem.axes)
    if widest > _WIDEST:
        return f"a window of {widest} along an axis is faster in matrix products"
    return None
