"""Kernelised attention with relative positions where digits end: nothing seen, large biases, NaN; and free sizes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from attensor.nn import RelativeKernelAttention
from attensor.ops import kernels_form, relative_kernel_attention
from attensor.ops.relative_kernel_attention import quotient, rows

FORMS = pytest.mark.parametrize(
    "form", [("tiles", "cpp"), ("tiles", "torch"), ("fft", "torch"), ("fft-float64", "torch"), (None, "reference")],
    ids=lambda form: "-".join(str(x) for x in form),
)  # fmt: skip
CAUSAL = pytest.mark.parametrize("is_causal", [False, True], ids=["both ways", "causal"])
NAMES = ("q", "k", "v", "relative_bias")
TOKENS, AT = 7, 3


def make(tokens: int = TOKENS, dtype: torch.dtype = torch.float64, size: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = {
        "q": (2, tokens, 4, 3),
        "k": (2, tokens, 2, 3),
        "v": (2, tokens, 2, 5),
        "relative_bias": (4, 2 * tokens - 1),
    }
    found = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}
    return {n: (x if n == "v" else size * x).to(dtype) for n, x in found.items()}


def run(
    form: tuple[str | None, str | None], tensors: dict[str, Tensor], feature_map: str = "elu+1", **options: Any
) -> Tensor:
    algorithm, backend = form
    if backend == "cpp" and kernels_form() == "torch":
        pytest.skip("there are no C++ kernels")
    return relative_kernel_attention(
        **tensors, feature_map=feature_map, algorithm=algorithm, backend=backend, **options
    )


def define(
    tensors: dict[str, Tensor], feature_map: str = "elu+1", is_causal: bool = False, key_mask: Tensor | None = None
) -> Tensor:
    """Every row with its own maximum, in float64."""
    q, k, v, bias = (tensors[name].double() for name in NAMES)
    k, v = (x.repeat_interleave(2, 2) for x in (k, v))
    phi = torch.relu if feature_map == "relu" else lambda x: torch.where(x > 0, x + 1, x.clamp(max=0).exp())
    offset = torch.arange(q.shape[1]) - torch.arange(q.shape[1])[:, None]
    log = bias[:, offset + q.shape[1] - 1].expand(len(q), -1, -1, -1)
    log = log.masked_fill(offset > 0, -math.inf) if is_causal else log
    log = log if key_mask is None else log.masked_fill(~key_mask[:, None, None], -math.inf)
    log = log + torch.einsum("bihm,bjhm->bhij", phi(q), phi(k)).log()
    top = log.detach().amax(-1, keepdim=True)
    weights = (log - top.masked_fill(top == -math.inf, 0.0)).exp()
    total = weights.sum(-1, keepdim=True)
    return torch.einsum("bhij,bjhv->bihv", weights / total.masked_fill(total == 0, 1.0), v)


def weighted(out: Tensor) -> Tensor:
    return (out.double() * torch.linspace(-1, 1.3, out.numel(), dtype=torch.float64).view_as(out)).sum()


def with_gradients(function: Any, tensors: dict[str, Tensor]) -> list[Tensor]:
    tracked = {name: x.clone().requires_grad_() for name, x in tensors.items()}
    out = function(tracked)
    return [out.detach(), *torch.autograd.grad(weighted(out), list(tracked.values()))]


def assert_near(found: list[Tensor], expected: list[Tensor], bound: float) -> None:
    assert (found[0].double() - expected[0]).abs().amax() < bound
    for got, wanted in zip(found[1:], expected[1:], strict=True):
        assert (got.double() - wanted).norm() < 10 * bound * max(1.0, float(wanted.norm()))


def closed_head(x: dict[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
    x["relative_bias"][1] = -math.inf
    return {}, lambda out: out[:, :, 1]


def far_past_alone(x: dict[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
    x["relative_bias"][:, 4:] = -math.inf  # three tokens back and more
    return {}, lambda out: out[:, :3]


def nobody(x: dict[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
    return {"key_mask": torch.tensor([[False] * TOKENS, [True] * TOKENS])}, lambda out: out[0]


def later_keys(x: dict[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
    return {"key_mask": torch.arange(TOKENS).expand(2, -1) >= 4}, lambda out: out[:, :0]


def no_features(x: dict[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
    x["q"][:, 2], x["k"][:, :2] = -1.0, -2.0
    return {"feature_map": "relu"}, lambda out: out[:, 2]


@FORMS
@CAUSAL
@pytest.mark.parametrize(
    "case", [closed_head, far_past_alone, nobody, later_keys, no_features], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_rows_that_see_nothing_are_zero(form: Any, case: Any, is_causal: bool, dtype: torch.dtype) -> None:
    tensors = make(dtype=dtype)
    options, zeros = case(tensors)
    options["is_causal"] = is_causal
    found = with_gradients(lambda x: run(form, x, **options), tensors)
    assert (zeros(found[0]) == 0).all()
    if is_causal and case in (later_keys, no_features):  # the first rows see nothing but what is not there
        assert (found[0][:, : 4 if case is later_keys else 2] == 0).all()
    assert all(x.isfinite().all() for x in found)
    if case is no_features:  # the logarithm of 0 has no derivative
        expected = [define(tensors, **options), *found[1:]]
    else:
        expected = with_gradients(lambda x: define(x, **options), tensors)
        expected = [x.nan_to_num(0.0) for x in expected]
    assert_near(found, expected, 1e-6 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("form", [("tiles", "cpp"), ("tiles", "torch"), ("fft", "torch")], ids=str)
def test_a_head_that_sees_nothing_costs_no_rows_by_themselves(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = make()
    closed_head(tensors)
    monkeypatch.delattr(quotient, "put_rows")
    assert_near([run(form, tensors)], [define(tensors).nan_to_num(0.0)], 1e-6)


@FORMS
@CAUSAL
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_one_large_bias_takes_nothing_from_rows_that_do_not_see_it(
    form: Any, is_causal: bool, dtype: torch.dtype
) -> None:
    for larger in (50, 90, 200, 800):
        for place in (2, 6, 10):
            tensors = make()
            tensors["relative_bias"][:, place] += larger
            tensors = {name: x.to(dtype) for name, x in tensors.items()}
            found = with_gradients(lambda x: run(form, x, is_causal=is_causal), tensors)
            expected = with_gradients(lambda x: define(x, is_causal=is_causal), tensors)
            assert_near(found, expected, {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype])


@FORMS
def test_a_bias_larger_than_any_number_leaves_what_no_product_reaches(form: Any) -> None:
    """The key at the offset of the large bias has no features: others share all of the weight."""
    tensors = make(dtype=torch.float32)
    tensors["k"][:, 0] = -2.0
    tensors["relative_bias"][:, 2] += 200.0
    options = {"feature_map": "relu"}
    assert_near([run(form, tensors, **options)], [define(tensors, **options)], 1e-5)


@CAUSAL
@pytest.mark.parametrize("feature_map", ["relu", "elu+1"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("algorithm", ["fft", "fft-float64"])
def test_transforms_keep_the_digits_of_every_row(
    feature_map: str, size: int, is_causal: bool, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far below the largest row of its head, by themselves or, where that takes longer, in float64."""
    options = {"feature_map": feature_map, "is_causal": is_causal}
    for dtype, bound in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        tensors = make(203, dtype, size)
        expected = with_gradients(
            lambda x: run((None, "reference"), x, **options), {name: x.double() for name, x in tensors.items()}
        )
        for pair_cost in (0, 1e9):
            monkeypatch.setattr(quotient, "_PAIR_COST", pair_cost)
            monkeypatch.setattr(rows, "_AT_ONCE", 2**10)
            found = with_gradients(lambda x: run((algorithm, "torch"), x, **options), tensors)
            assert_near(found, expected, bound)


@FORMS
@pytest.mark.parametrize("poison", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("kind", ["causal", "masked", "packed", "closed"])
def test_what_is_not_finite_stays_where_it_is_seen(form: Any, poison: float, name: str, kind: str) -> None:
    """Not in earlier tokens, other sequences, behind a mask or a bias of -inf; a query's own row alone."""
    tensors, options, seen = make(), {"is_causal": kind == "causal"}, torch.zeros(2, TOKENS, dtype=torch.bool)
    seen[0, AT:] = kind == "causal"
    if kind == "masked":
        options["key_mask"] = torch.ones(2, TOKENS, dtype=torch.bool)
        options["key_mask"][0, AT] = False
    if kind == "closed":
        tensors["relative_bias"][:, TOKENS:] = -math.inf  # the same as causal
        seen[0, AT:] = True
    if kind == "packed":
        tensors = {n: x if n == "relative_bias" else x[:1] for n, x in tensors.items()}
        options |= {"cu_seqlens": torch.tensor([0, 4, TOKENS]), "max_seqlen": 5}
        seen = torch.arange(TOKENS)[None] < 4
    if name == "q":
        seen = torch.zeros_like(seen)
        seen[0, AT] = True
    poisoned = tensors | {name: tensors[name].clone()}
    poisoned[name][0, AT] = poison
    clean = run(form, tensors, **options)
    for tracked in (False, True):
        out = run(form, {n: x.clone().requires_grad_(tracked) for n, x in poisoned.items()}, **options).detach()
        torch.testing.assert_close(out[~seen], clean[~seen], rtol=0, atol=1e-9)
        assert not (kind == "causal" and poison != poison) or not out[0, AT].isfinite().all()


@FORMS
def test_a_mask_hides_what_is_not_finite_from_gradients(form: Any) -> None:
    tensors, mask = make(), torch.arange(TOKENS).expand(2, -1) != AT
    for name in ("k", "v"):
        tensors[name][:, AT] = math.nan
    found = with_gradients(lambda x: run(form, x, key_mask=mask), tensors)
    clean = {n: x if n in ("q", "relative_bias") else x.nan_to_num(0.3) for n, x in tensors.items()}
    assert_near(found, with_gradients(lambda x: define(x, key_mask=mask), clean), 1e-6)
    assert all((x[:, AT] == 0).all() for x in found[2:4])


@pytest.mark.parametrize(
    "form",
    [("tiles", "torch"), *(pytest.param(x, marks=pytest.mark.slow) for x in [("fft", "torch"), (None, None)])],
    ids=str,
)
def test_two_graphs_serve_all_lengths(form: Any) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    bias = torch.randn(4, 9)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return run(form, {"q": q, "k": k, "v": v, "relative_bias": bias}, is_causal=True)

    compiled = torch.compile(call, fullgraph=True, backend=counter)
    for tokens in (7, 9, 17, 33, 140, 300):
        qkv = [x.float() for name, x in make(tokens).items() if name != "relative_bias"]
        torch.testing.assert_close(compiled(*qkv), call(*qkv), rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= 2


@pytest.mark.slow
@pytest.mark.parametrize("space_dims", [1, 2])
def test_a_layer_is_exported_with_free_sizes(space_dims: int) -> None:
    layer = RelativeKernelAttention(12, 3, num_features=5, max_distance=4, space_dims=space_dims, is_causal=False)
    sizes = {0: torch.export.Dim("batch", min=1, max=64)}
    sizes |= {i: torch.export.Dim(f"tokens{i}", min=2, max=512) for i in range(1, 1 + space_dims)}
    with torch.no_grad():
        x = torch.randn(2, *(7, 5)[:space_dims], 12)
        exported = torch.export.export(layer, (x,), dynamic_shapes=(sizes,)).module()
        y = torch.randn(3, *(140, 9)[:space_dims], 12)
        torch.testing.assert_close(exported(y), layer(y))
