"""Functions with kernels of their own, for autograd, `torch.func`, `torch.compile`, fake tensors and FLOP counts.

`register` makes a kernel an operator of torch's library. `differentiable` makes one function out of a forward pass, its
gradients and its definition: first derivatives are the kernels', all further ones (second order, forward mode) are
those of the definition, and `torch.vmap` folds into the batch.
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

__all__ = ["differentiable", "fold_batch", "is_for_onnx", "register"]

_LIBRARY = torch.library.Library("attensor", "FRAGMENT")

Tensors = tuple[Any, ...]  # of tensors; where one may be missing, None
Forward = Callable[[Tensors, Any, bool], Sequence[Tensor]]
Backward = Callable[[Tensors, tuple[Tensor, ...], Tensors, Any, tuple[bool, ...]], Tensors]
Definition = Callable[[Tensors, Any], Sequence[Tensor]]


def register(
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    flops: Callable[..., int],
    devices: Sequence[str] = ("CPU",),
    gather: Any = None,
) -> Callable[..., Any]:
    """Make a kernel `torch.ops.attensor.<name>` and return a function that calls it.

    Args:
        schema: `"name(Tensor q, ...) -> Tensor"`, as torch's library reads it.
        run: the kernel; results must not share memory with arguments, and have the strides of those of `fake`.
        fake: the same arguments to empty results.
        flops: the arguments' shapes (other arguments as they are) to useful floating-point operations, for
            `FlopCounterMode`.
        devices: dispatch keys that it runs on.
        gather: a NamedTuple that `run` and `fake` take in place of as many first arguments.
    Returns:
        the function. It calls the kernel without torch's dispatcher where nothing but the kernel could hear of it.
    """
    if gather is not None:
        run, fake = _gathered(run, gather), _gathered(fake, gather)
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    for device in devices:
        _LIBRARY.impl(name, run, device)
    torch.library.register_fake(f"attensor::{name}", fake, lib=_LIBRARY)
    operator = getattr(torch.ops.attensor, name)
    register_flop_formula(operator)(lambda *shapes, out_shape=None: flops(*shapes))

    def call(*arguments: Any) -> Any:
        return run(*arguments) if is_direct(arguments) else operator(*arguments)

    return call


def _gathered(function: Callable[..., Any], gather: Any) -> Callable[..., Any]:
    count = len(gather._fields)
    return lambda *arguments: function(gather(*arguments[:count]), *arguments[count:])


def is_direct(arguments: Sequence[Any]) -> bool:
    """Whether a call goes to plain tensors, unobserved: no compiler, no transform, no mode, no subclass."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    return all(type(x) in _PLAIN and not x.is_meta for x in arguments if isinstance(x, Tensor))


_PLAIN = (Tensor, torch.nn.Parameter)


def is_for_onnx() -> bool:
    """Whether a program is being made for ONNX, which has operations of torch and no kernels of ours."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


def differentiable(
    forward: Forward,
    backward: Backward,
    definition: Definition,
    *,
    batch_dims: Sequence[int | None],
    out_dims: Sequence[int],
    kept_dims: Sequence[int] = (),
    keep_outputs: bool = False,
) -> Callable[[Tensors, Any], tuple[Tensor, ...]]:
    """One function of tensors and options with derivatives of every order, forward mode, `vmap` and compilation.

    Args:
        forward: (tensors, options, keep) -> outputs, then what is kept for `backward`: empty tensors unless `keep`.
        backward: (tensors, kept, gradients of the outputs, options, needs) -> a gradient for each tensor, None where
            `needs` is False. Gradients that nobody has come as None.
        definition: (tensors, options) -> outputs, in operations of torch that have all derivatives; it also is what
            a program in ONNX consists of.
        batch_dims: where the batch stands in each tensor; None: it has none, and cannot be vmapped.
        out_dims: where it stands in each output.
        kept_dims: where it stands in each kept tensor.
        keep_outputs: `backward` finds the outputs behind the kept tensors.
    Returns:
        (tensors, options) -> outputs. Tensors may be None or hold integers; options are hashable.
    """
    parts = _Parts(forward, backward, definition, tuple(batch_dims), tuple(out_dims), tuple(kept_dims), keep_outputs)
    eager, traced, outputs = _eager_function(parts), _traced_function(parts), len(out_dims)

    def call(tensors: Tensors, options: Any) -> tuple[Tensor, ...]:
        needs_gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
        if torch.compiler.is_compiling():
            if is_for_onnx():
                return tuple(definition(tensors, options))
            if needs_gradient:  # else Dynamo fails on the function
                return traced.apply(*tensors, options, needs_gradient)[:outputs]  # type: ignore[no-any-return]
        elif needs_gradient or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return eager.apply(*tensors, options, torch.is_grad_enabled())[:outputs]  # type: ignore[no-any-return]
        return tuple(forward(tensors, options, False)[:outputs])

    return call


@dataclass(frozen=True)
class _Parts:
    """What `differentiable` was given, and derivatives of the definition by `torch.func`."""

    forward: Forward
    backward: Backward
    definition: Definition
    batch_dims: tuple[int | None, ...]
    out_dims: tuple[int, ...]
    kept_dims: tuple[int, ...]
    keep_outputs: bool

    @property
    def saved_dims(self) -> tuple[int | None, ...]:
        """Where the batch stands in each saved tensor."""
        return (*self.batch_dims, *self.kept_dims, *self.out_dims * self.keep_outputs)

    def cut(self, saved: Sequence[Any]) -> tuple[Tensors, tuple[Tensor, ...], Tensors]:
        """Tensors, kept ones and gradients of outputs."""
        first, last = len(self.batch_dims), len(self.saved_dims)
        return tuple(saved[:first]), tuple(saved[first:last]), tuple(saved[last:])

    def of_floats(self, tensors: Tensors, options: Any) -> tuple[Callable[..., tuple[Tensor, ...]], list[int]]:
        """The definition as a function of the floating tensors alone, and their places among `tensors`."""
        places = [i for i, x in enumerate(tensors) if x is not None and x.is_floating_point()]

        def function(*floats: Tensor) -> tuple[Tensor, ...]:
            every = dict(enumerate(tensors)) | dict(zip(places, floats))
            return tuple(self.definition(tuple(every.values()), options))

        return function, places

    def of_gradients(
        self, saved: Sequence[Any], options: Any, needs: Sequence[bool]
    ) -> tuple[Callable[..., Tensors], list[Tensor], list[int]]:
        """The needed gradients as a function, by the definition; its arguments, and their places among `saved`."""
        tensors, _, grads = self.cut(saved)
        function, places = self.of_floats(tensors, options)
        zeros = self.definition(tensors, options) if any(g is None for g in grads) else ()
        coming = [torch.zeros_like(zeros[i]) if g is None else g for i, g in enumerate(grads)]

        def gradients(*arguments: Tensor) -> Tensors:
            outs, pull, *_ = torch.func.vjp(function, *arguments[: len(places)])
            found = pull(tuple(g.to(out.dtype) for g, out in zip(arguments[len(places) :], outs)))
            return tuple(g for place, g in zip(places, found) if needs[place])

        of_outputs = [len(self.saved_dims) + i for i in range(len(grads))]
        return gradients, [*(saved[i] for i in places), *coming], [*places, *of_outputs]


def _tangent(function: Callable[..., Any], primals: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Any:
    """The tangent of function(*primals): the gradient of a gradient, because forward mode does not nest."""
    outs, pull, *_ = torch.func.vjp(function, *primals)
    filled = [torch.zeros_like(x) if t is None else t for x, t in zip(primals, tangents)]
    return torch.func.vjp(lambda *u: pull(tuple(u)), *map(torch.zeros_like, outs))[1](tuple(filled))


# torch.autograd.grad(is_grads_batched=True), whose tensors find no rule for kernels, unlike those of torch.func.vmap
_BATCHED = torch._C._dispatch_key_parse("VmapMode")


def _is_transformed() -> bool:
    """Whether a transform, forward mode or a batch of gradients asks for more than the result."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    return bool(torch._C._dispatch_tls_is_dispatch_key_included(_BATCHED))


def _one_by_one(run: Callable[..., Any], arguments: Sequence[Any]) -> list[Any]:
    """The results of `run` for each entry of such a batch."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    key = torch._C._dispatch_key_parse("Batched")
    is_batched = [isinstance(x, Tensor) and torch._C._dispatch_keys(x).has(key) for x in arguments]
    every = [torch._remove_batch_dim(x, level, 1, 0) if b else x for x, b in zip(arguments, is_batched)]
    size = next(len(x) for x, b in zip(every, is_batched) if b)
    found = [run(*(x[i] if b else x for x, b in zip(every, is_batched))) for i in range(size)]
    stacked = (None if column[0] is None else torch.stack(column) for column in zip(*found))
    return [None if x is None else torch._add_batch_dim(x, 0, level) for x in stacked]


def _gradients_function(parts: _Parts) -> type[torch.autograd.Function]:
    def run(*arguments: Any) -> Tensors:
        *saved, options, needs = arguments
        return parts.backward(*parts.cut(saved), options, needs)

    class Gradients(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: Any) -> tuple[Tensor, ...]:
            is_batched = torch._C._dispatch_tls_is_dispatch_key_included(_BATCHED)
            found = _one_by_one(run, arguments) if is_batched else run(*arguments)
            return tuple(g for g, needed in zip(found, arguments[-1]) if needed and g is not None)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            *saved, ctx.options, ctx.needs = inputs
            ctx.save_for_backward(*saved)
            ctx.save_for_forward(*saved)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            saved = ctx.saved_tensors
            function, arguments, places = parts.of_gradients(saved, ctx.options, ctx.needs)
            outs, pull, *_ = torch.func.vjp(function, *arguments)
            filled = [torch.zeros_like(x) if g is None else g for x, g in zip(outs, grads)]
            found = dict(zip(places, pull(tuple(filled))))
            return (*(None if x is None else found.get(i) for i, x in enumerate(saved)), None, None)

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
            function, arguments, places = parts.of_gradients(ctx.saved_tensors, ctx.options, ctx.needs)
            return _tangent(function, arguments, [tangents[place] for place in places])

        @staticmethod
        def vmap(info: Any, in_dims: Sequence[Any], *arguments: Any) -> Any:
            needed = [dim for dim, needed in zip(parts.batch_dims, arguments[-1]) if needed]
            every = (*parts.saved_dims, *parts.out_dims)
            return fold_batch(Gradients.apply, info.batch_size, in_dims, arguments, every, needed)

    _sign(Gradients)
    return Gradients


def _apart(found: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Results as forward mode wants them, which lays tangents out as the memory below a view."""
    is_dual = forward_ad._current_level >= 0
    return tuple(x.clone() if is_dual and x._is_view() else x for x in found)


class _Direct(torch.autograd.Function):
    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        if _is_transformed():
            return super().apply(*arguments)
        # past what binds arguments to a signature, which takes as long as a small kernel
        return super(torch.autograd.Function, cls).apply(*arguments)  # type: ignore[misc]


def _eager_function(parts: _Parts) -> type[torch.autograd.Function]:
    gradients, keep_outputs = _gradients_function(parts), parts.keep_outputs
    count, outputs = len(parts.batch_dims), len(parts.out_dims)

    class Function(_Direct):
        @staticmethod
        def forward(*arguments: Any) -> tuple[Tensor, ...]:
            *tensors, options, keep = arguments
            return _apart(parts.forward(tuple(tensors), options, keep))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            _save(ctx, inputs, output, outputs, keep_outputs)
            ctx.save_for_forward(*inputs[:count])

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            needs = tuple(ctx.needs_input_grad[:count])
            if all(g is None for g in grads[:outputs]):
                return (None,) * (count + 2)
            saved = (*ctx.saved_tensors, *grads[:outputs])
            if not (torch.is_grad_enabled() or _is_transformed()):  # nobody differentiates the gradients
                return (*parts.backward(*parts.cut(saved), ctx.options, needs), None, None)
            found = iter(gradients.apply(*saved, ctx.options, needs))
            return (*(next(found) if needed else None for needed in needs), None, None)

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
            tensors = ctx.saved_tensors[:count]
            function, places = parts.of_floats(tensors, ctx.options)
            found = _tangent(function, [tensors[i] for i in places], [tangents[i] for i in places])
            return (*found, *[None] * len(parts.kept_dims))

        @staticmethod
        def vmap(info: Any, in_dims: Sequence[Any], *arguments: Any) -> Any:
            dims = (*parts.out_dims, *parts.kept_dims)
            return fold_batch(Function.apply, info.batch_size, in_dims, arguments, parts.batch_dims, dims)

    _sign(Function)
    return Function


def _sign(function: type[torch.autograd.Function]) -> None:
    """Keep the signature that `apply` asks for at each call: reading it anew takes as long as a small kernel."""
    function.forward.__signature__ = inspect.signature(function.forward)  # type: ignore[attr-defined]


def _traced_function(parts: _Parts) -> type[torch.autograd.Function]:
    """For compilers, which take neither forward mode nor functions within functions; they differentiate once."""
    count, outputs, keep_outputs = len(parts.batch_dims), len(parts.out_dims), parts.keep_outputs
    forward_pass, backward_pass = parts.forward, parts.backward  # a compiler follows functions, not fields

    class Traced(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: Any) -> tuple[Tensor, ...]:
            *tensors, options, keep = arguments
            return tuple(forward_pass(tuple(tensors), options, keep))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            _save(ctx, inputs, output, outputs, keep_outputs)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            saved = ctx.saved_tensors
            needs = tuple(ctx.needs_input_grad[:count])
            found = backward_pass(tuple(saved[:count]), tuple(saved[count:]), grads[:outputs], ctx.options, needs)
            return (*found, None, None)

    return Traced


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...], outputs: int, keep_outputs: bool) -> None:
    *tensors, ctx.options, _ = inputs
    ctx.mark_non_differentiable(*output[outputs:])
    # else autograd makes zeros for what has no gradient: as much memory as a result
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[outputs:], *(output[:outputs] if keep_outputs else ()))


def fold_batch(
    apply: Callable[..., tuple[Tensor, ...]],
    size: int,
    in_dims: Sequence[Any],
    arguments: Sequence[Any],
    batch_dims: Sequence[int | None],
    out_batch_dims: Sequence[int | None],
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """Call `apply` with dimension `in_dims[i]` of each tensor merged into its batch dimension `batch_dims[i]`."""
    merged = list(arguments)
    first = arguments[0] if in_dims[0] is None else arguments[0].movedim(in_dims[0], -1)
    batch = first.shape[batch_dims[0] or 0]
    for index, batch_dim in enumerate(batch_dims):
        if isinstance(merged[index], Tensor):
            merged[index] = _merge(merged[index], in_dims[index], (size, batch), batch_dim)
    results = apply(*merged)
    dims = tuple(out_batch_dims[: len(results)])
    # whatever comes out has a batch, or it could not have been vmapped
    split = ((r, d or 0) for r, d in zip(results, dims))
    return tuple(r.unflatten(d, (size, r.shape[d] // size)) for r, d in split), dims


def _merge(x: Tensor, in_dim: int | None, sizes: tuple[int, int], batch_dim: int | None) -> Tensor:
    if batch_dim is None:
        if in_dim is not None:
            raise NotImplementedError("no vmap over the lengths of packed sequences; put all into one packing.")
        return x
    x = x.unsqueeze(batch_dim) if in_dim is None else x.movedim(in_dim, batch_dim)
    # what is the same for the whole batch comes as a batch of 1; its gradient is summed back to that
    return x.expand(*x.shape[:batch_dim], *sizes, *x.shape[batch_dim + 2 :]).flatten(batch_dim, batch_dim + 1)
