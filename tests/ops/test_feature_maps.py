"""Feature maps: products estimate the kernel they stand for, with the variance that theory gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops import kernel_attention
from attensor.ops.feature_maps import (
    FEATURE_MAPS,
    PositiveRandomFeatures,
    TaylorFeatures,
    TrigonometricRandomFeatures,
    random_projection,
    resolve_feature_map,
)

RANDOM = pytest.mark.parametrize("kind", [PositiveRandomFeatures, TrigonometricRandomFeatures])


def draw(*sizes: int, is_orthogonal: bool = True) -> Tensor:
    return random_projection(*sizes, is_orthogonal=is_orthogonal, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize(("name", "at_minus_one"), [("elu+1", 0.36787944), ("relu", 0.0), ("silu", -0.26894142)])
def test_a_name_finds_its_function(name: str, at_minus_one: float) -> None:
    function = resolve_feature_map(name)
    assert float(function(torch.tensor(-1.0))) == pytest.approx(at_minus_one)
    assert torch.equal(function(x := torch.linspace(-2, 2, 5)), FEATURE_MAPS[name](x))
    with pytest.raises(
        TypeError, match=r"FEATURE_MAPS\[.*\]: x must be a torch\.Tensor, got \[1\.0\]; use torch\.tensor"
    ):
        FEATURE_MAPS[name]([1.0])
    assert resolve_feature_map(torch.cos) is torch.cos


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'elu\+1', 'relu', 'silu'.*'gelu'"):
        resolve_feature_map("gelu")


@pytest.mark.parametrize("length", [0.5, 1.0])
def test_positive_features_have_the_mean_and_variance_of_theory(length: float) -> None:
    """mean exp(x.y); mean square error exp(|x+y|^2 + 2 x.y) (1 - exp(-|x+y|^2)) / M."""
    draws, features = 4000, 7
    x, y = length * torch.nn.functional.normalize(torch.randn(2, 5).double(), dim=-1)
    phi = PositiveRandomFeatures(draw(draws, features, 5, is_orthogonal=False), scale=1.0)
    estimates = (phi(x.expand(draws, 5)) * phi(y.expand(draws, 5))).sum(-1)
    exact, spread = (x @ y).exp(), (x + y).square().sum()
    variance = (spread + 2 * x @ y).exp() * (1 - (-spread).exp()) / features
    assert abs(estimates.mean() - exact) < 4 * (variance / draws).sqrt()
    assert estimates.var() == pytest.approx(variance, rel=0.25)


@RANDOM
@pytest.mark.parametrize("is_orthogonal", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_products_estimate_the_exponential(kind: type, is_orthogonal: bool, normalize: bool) -> None:
    phi = kind(draw(1, 40_000, 5, is_orthogonal=is_orthogonal), normalize=normalize)
    unit = torch.nn.functional.normalize
    x, y = 1.2 * unit(torch.randn(2, 11, 1, 5).double(), dim=-1)
    exponent = (unit(x, dim=-1) * unit(y, dim=-1)).sum(-1) if normalize else (x * y).sum(-1) / 5**0.5
    products = (phi(x) * phi(y)).sum(-1)
    torch.testing.assert_close(products, exponent.exp(), rtol=0.05, atol=0.05)


def test_orthogonal_rows_have_the_lengths_of_normal_ones() -> None:
    rows = draw(3, 23, 7)
    gram = rows[1, 7:14] @ rows[1, 7:14].T
    torch.testing.assert_close(gram, gram.diagonal().diag(), rtol=0, atol=1e-5)
    assert rows.square().sum(-1).mean() == pytest.approx(7, rel=0.2)
    assert not torch.equal(rows[0], rows[1])
    many = draw(500, 3, 3)  # uniform directions: no quadrant is preferred
    assert many.sign().mean((0, 1)).abs().max() < 0.1


@RANDOM
def test_queries_differ_from_features_by_a_factor_of_each_token(kind: type) -> None:
    phi = kind(draw(3, 6, 5), scale=1.0)
    x = torch.randn(2, 4, 3, 5).double()
    ratio = phi.queries(x) / phi(x)
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio))


def test_queries_far_from_every_direction_keep_features() -> None:
    phi = PositiveRandomFeatures(draw(1, 6, 5).float(), scale=1.0)
    x = 40 * torch.randn(2, 4, 3, 5)
    assert (phi(x) == 0).all()
    assert (phi.queries(x).amax(-1) > 0.1).all()


@RANDOM
def test_a_token_has_its_features_whatever_comes_later(kind: type) -> None:
    phi = kind(draw(1, 6, 5), normalize=True)
    x = torch.randn(2, 7, 3, 5).double()
    changed = torch.cat([x[:, :4], 1e3 * x[:, 4:]], 1)
    assert torch.equal(phi(x)[:, :4], phi(changed)[:, :4])


@RANDOM
@pytest.mark.parametrize("size", [0.0, 1e-20, 1.0, 1e15])
def test_any_length_has_finite_features_and_gradients(kind: type, size: float) -> None:
    phi = kind(draw(1, 6, 64).float(), normalize=True)
    x = (size * torch.randn(2, 3, 1, 64)).requires_grad_()
    out = phi(x) if kind is PositiveRandomFeatures else phi.queries(x)
    (gradient,) = torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), x)
    assert out.isfinite().all()
    assert gradient.isfinite().all()


def test_heads_of_a_group_share_a_projection() -> None:
    projection = draw(3, 5, 7)
    x = torch.randn(2, 4, 6, 7).double()
    grouped = PositiveRandomFeatures(projection)(x)
    repeated = PositiveRandomFeatures(projection.repeat_interleave(2, 0))(x)
    torch.testing.assert_close(grouped, repeated, rtol=0, atol=1e-12)
    assert not torch.allclose(grouped[:, :, 0], PositiveRandomFeatures(projection[1:2])(x[:, :, :1])[:, :, 0])


def test_low_precision_is_computed_in_float32() -> None:
    x = torch.randn(2, 3, 1, 8).bfloat16()
    phi = PositiveRandomFeatures(draw(1, 5, 8).bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = phi(x)
    assert out.dtype == torch.float32
    exact = PositiveRandomFeatures(phi.projection.double())(x.double())
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=0)


def test_kernel_attention_takes_them() -> None:
    phi = PositiveRandomFeatures(draw(1, 6, 5))
    q, k, v = torch.randn(3, 2, 11, 3, 5).double()
    out, _ = kernel_attention(q, k, v, feature_map=phi)
    scores = torch.einsum("bihm,bjhm->bhij", phi(q), phi(k)).tril()
    torch.testing.assert_close(out, torch.einsum("bhij,bjhv->bihv", scores, v), rtol=1e-10, atol=1e-10)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"projection.*\[6, 5\]"):
        PositiveRandomFeatures(draw(1, 6, 5)[0])
    phi = TrigonometricRandomFeatures(draw(2, 6, 5))
    with pytest.raises(ShapeError, match=r"Trigonometric.*heads, 5\].*multiple of 2.*\[1, 4, 3, 5\]"):
        phi(torch.randn(1, 4, 3, 5))
    with pytest.raises(ShapeError, match=r"\[1, 4, 2, 7\]"):
        phi(torch.randn(1, 4, 2, 7))


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_products_of_taylor_features_are_the_series_of_exp(degree: int, diagonal: bool) -> None:
    """Each order by itself, with as many features as there are products of channels."""
    x, y = torch.randn(2, 3, 11, 2, 5, dtype=torch.float64)
    phi = TaylorFeatures(degree, diagonal, scale=1.0)
    assert phi(x).shape[-1] == (1 + 5 * degree if diagonal else math.comb(5 + degree, degree))
    for order, (f, g) in enumerate(zip(phi.orders(x), phi.orders(y), strict=True)):
        powers = (x * y).pow(order).sum(-1) if diagonal and order else (x * y).sum(-1).pow(order)
        torch.testing.assert_close((f * g).sum(-1), powers / math.factorial(order), rtol=1e-12, atol=1e-12)
    scaled = (TaylorFeatures(degree, diagonal)(x) * TaylorFeatures(degree, diagonal)(y)).sum(-1)
    shrunk = phi(x * 5**-0.25)
    torch.testing.assert_close(scaled, (shrunk * phi(y * 5**-0.25)).sum(-1), rtol=1e-12, atol=1e-12)


def test_taylor_features_compile_and_refuse_what_has_no_series() -> None:
    x, phi = torch.randn(2, 7, 3, 5), TaylorFeatures(3)
    compiled = torch.compile(lambda x: phi(x), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), phi(x))
    assert phi(x.bfloat16()).dtype == torch.float32
    for wrong, error, told in (
        (lambda: TaylorFeatures(-1), ValueError, "degree must be at least 0, got -1"),
        (lambda: TaylorFeatures(2.5), TypeError, "degree must be "),
        (lambda: TaylorFeatures(2, "full"), TypeError, "diagonal must be "),
        (lambda: phi(torch.ones(3, 5, dtype=torch.int64)), TypeError, "x must be "),
        (lambda: phi("x"), TypeError, "x must be "),
        (lambda: phi(torch.tensor(1.0)), ShapeError, r"x must be \[.., K\], got \[\]"),
    ):
        with pytest.raises(error, match=f"^TaylorFeatures: {told}"):
            wrong()
