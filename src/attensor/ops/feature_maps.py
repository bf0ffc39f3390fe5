r"""Feature maps of kernelised attention: phi(q) . phi(k) stands for the weight of a pair.

    elementwise           phi(x) = elu(x) + 1, relu(x), silu(x)
    positive random       phi(x) = exp(W x - |x|^2 / 2) / sqrt(M)                    E[phi(x) . phi(y)] = exp(x . y)
    trigonometric random  phi(x) = exp(|x|^2 / 2) (sin W x, cos W x) / sqrt(M)       the same, but may be negative
    Taylor                phi(x) = (1, x, products of two channels, ..)              phi(x) . phi(y) = 1 + x . y + ..

with rows of W drawn from N(0, I). The error of the random maps grows exponentially with |x|; on unit vectors
(`normalize=True`) it is bounded. W x - |x|^2 / 2 <= |w|^2 / 2 bounds positive features whatever the input.

Sizes: B batch, T tokens, H heads, K head width, M features.
Source: arXiv:2106.12566 (normalised positive features), arXiv:2009.14794 (positive and orthogonal features),
arXiv:2402.18668 (Taylor features).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attensor.errors import ShapeError
from attensor.ops._checks import check_float, check_tensor, checked

__all__ = [
    "FEATURE_MAPS",
    "PositiveRandomFeatures",
    "TaylorFeatures",
    "TrigonometricRandomFeatures",
    "check_mapped",
    "random_projection",
    "resolve_feature_map",
]

FeatureMap = Callable[[Tensor], Tensor]


def _elu_plus_one(x: Tensor) -> Tensor:
    # not F.elu: expm1(x) + 1 rounds to 0 from about -17 on (float32), and the compiler mistakes the strides of its
    # gradient (torch 2.13)
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


_MAPS: dict[str, FeatureMap] = {"elu+1": _elu_plus_one, "relu": F.relu, "silu": F.silu}


def _mapped(name: str, x: Tensor) -> Tensor:
    """The map of that name, which refuses what is no floating tensor."""
    if not torch.compiler.is_compiling():
        check_tensor(owner := f"FEATURE_MAPS[{name!r}]", "x", x)
        check_float(owner, "x", x, x, "x")
    return _MAPS[name](x)


# no closures, which a layer that holds one could not be pickled with
FEATURE_MAPS: dict[str, FeatureMap] = {name: functools.partial(_mapped, name) for name in _MAPS}


def resolve_feature_map(feature_map: str | FeatureMap, name: str = "resolve_feature_map") -> FeatureMap:
    """The function of that name in `FEATURE_MAPS`, without its checks; a callable is returned as it is.

    Args:
        feature_map: a name, or a function from [B, T, H, K] to [B, T, H, M].
        name: whose argument it is, for the message.
    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if callable(feature_map) and not isinstance(feature_map, type):
        return feature_map
    if not isinstance(feature_map, str) or feature_map not in FEATURE_MAPS:
        raise ValueError(
            f"{name}: feature_map must be one of {', '.join(map(repr, FEATURE_MAPS))} or a function from [B, T, H, K] "
            f"to [B, T, H, M], got {feature_map!r}."
        )
    return _MAPS[feature_map]  # who asks by a name has looked at the tensors


def check_mapped(name: str, argument: str, x: Tensor, like: Tensor) -> None:
    """Refuse what a map of users returns, if it is not [B, T, heads, M] beside `like`."""
    if not isinstance(x, Tensor) or x.shape[:-1] != like.shape[:-1] or x.ndim != like.ndim:
        got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError(f"{name}: {argument} must return a torch.Tensor {[*like.shape[:-1], 'M']}, got {got}.")


@checked
def random_projection(
    num_heads: int,
    num_features: int,
    head_dim: int,
    *,
    is_orthogonal: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw the directions of random features.

    Args:
        num_heads: draws, one a head; 1 to share one among all heads.
        num_features: rows M.
        head_dim: K.
        is_orthogonal: every K rows are orthogonal to each other, with the lengths of independent normal vectors:
            each row is still N(0, I), and the variance of the estimate is smaller.
        generator: source of randomness; PyTorch's own if None.
    Returns:
        [num_heads, M, K], float32 on the CPU.
    Raises:
        ValueError: a number below 1.
    """
    if min(num_heads, num_features, head_dim) < 1:
        raise ValueError(
            "random_projection: num_heads, num_features and head_dim must be at least 1, got "
            f"{num_heads}, {num_features} and {head_dim}; choose others."
        )
    if not is_orthogonal:
        return torch.randn(num_heads, num_features, head_dim, generator=generator)
    blocks = -(-num_features // head_dim)
    square = torch.randn(num_heads, blocks, head_dim, head_dim, generator=generator, dtype=torch.float64)
    directions, triangle = torch.linalg.qr(square)
    # without the signs of the triangle, the directions would not be uniformly distributed
    directions = directions * triangle.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    rows = directions.mT.flatten(1, 2)[:, :num_features]
    lengths = torch.randn(num_heads, num_features, head_dim, generator=generator).norm(dim=-1, keepdim=True)
    drawn: Tensor = rows.float() * lengths
    return drawn


class PositiveRandomFeatures:
    """phi(x) = exp(W x - |x|^2 / 2) / sqrt(M): positive features whose products estimate exp(x . y).

    Calling it takes any token, as nothing is subtracted that depends on other tokens: a maximum over the keys would
    leak the future. `queries` is for queries alone.

    Args:
        projection: W, [P, M, K], P = 1 or a divisor of the heads of the input (head h reads row h // (heads / P)).
        normalize: x is divided by its length first, so that exp(cos(x, y)) is estimated with bounded error.
        scale: multiplies x otherwise; `K ** -0.25` if None, so that products estimate exp(x . y / sqrt(K)).
        eps: added to the squared length under the root when normalising, which keeps zero vectors differentiable.
    Raises:
        ShapeError: the projection is not [P, M, K]; when called, the input does not fit it.
        TypeError: projection or input are not of floating dtypes. ValueError: eps is negative, or devices differ.
    Cost: O(T M K) a head.
    Source: arXiv:2106.12566 (normalised), arXiv:2009.14794, lemma 1.
    """

    def __init__(
        self, projection: Tensor, *, normalize: bool = False, scale: float | None = None, eps: float = 1e-12
    ) -> None:
        _check_features(type(self).__name__, projection, normalize=normalize, scale=scale, eps=eps)
        self.projection, self.normalize, self.eps = projection, normalize, eps
        self.scale = projection.shape[-1] ** -0.25 if scale is None else scale

    def __call__(self, x: Tensor) -> Tensor:
        """Features of x [B, T, H, K] as [B, T, H, M] in at least float32."""
        return self._features(self._exponents(x))

    def queries(self, x: Tensor) -> Tensor:
        """Features of queries, each divided by its largest: a factor that cancels where a denominator follows."""
        exponents = self._exponents(x)
        return self._features(exponents - exponents.detach().amax(-1, keepdim=True))

    def _features(self, exponents: Tensor) -> Tensor:
        features: Tensor = exponents.exp() * exponents.shape[-1] ** -0.5
        return features

    def _exponents(self, x: Tensor) -> Tensor:
        products, half_square = _project(self, x)
        return products - half_square


class TrigonometricRandomFeatures(PositiveRandomFeatures):
    """phi(x) = exp(|x|^2 / 2) (sin W x, cos W x) / sqrt(M): 2 M features that estimate exp(x . y) and may be negative.

    Arguments and errors as `PositiveRandomFeatures`. Good for small |x - y|; where weights are small, sums of them can
    come out negative.

    Source: arXiv:2009.14794, section 2.3; Rahimi and Recht 2007.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Features of x [B, T, H, K] as [B, T, H, 2 M] in at least float32."""
        products, half_square = _project(self, x)
        return self._waves(products) * half_square.exp()

    def queries(self, x: Tensor) -> Tensor:
        """Features of queries without exp(|x|^2 / 2), a factor that cancels where a denominator follows."""
        return self._waves(_project(self, x)[0])

    def _waves(self, products: Tensor) -> Tensor:
        waves: Tensor = torch.cat([products.sin(), products.cos()], -1) * products.shape[-1] ** -0.5
        return waves


class TaylorFeatures:
    """Monomials whose products are the series of exp up to a degree: phi(x) . phi(y) = sum_n (x . y)^n / n!.

    Calling it maps [B, T, H, K] to [B, T, H, M] in at least float32, order by order; M is (K + degree) choose degree,
    as each product of channels stands once, whatever their order. Products of features of degree 2 are at least 1/2.

    Args:
        degree: of the series, at least 0.
        diagonal: from the second order on powers of single channels alone, phi(x) . phi(y) =
            1 + x . y + sum_c (x_c y_c)^n / n!; M is 1 + degree K, and products may be negative.
        scale: multiplies x; `K ** -0.25` if None, so that products are the series of exp(x . y / sqrt(K)).
    Raises:
        ValueError: a degree below 0. ShapeError, TypeError: when called with no floating [.., K].
    Cost: O(T M) a head.
    Source: arXiv:2402.18668 (Based), equation 3; diagonal: arXiv:2510.11602, equation 6.
    """

    def __init__(self, degree: int, diagonal: bool = False, *, scale: float | None = None) -> None:
        _check_taylor(degree, diagonal, scale=scale)
        self.degree, self.diagonal, self.scale = degree, diagonal, scale

    def __call__(self, x: Tensor) -> Tensor:
        """Features of x [B, T, H, K] as [B, T, H, M] in at least float32."""
        return torch.cat(self.orders(x), -1)

    def orders(self, x: Tensor) -> list[Tensor]:
        """The features of each order from 0 to the degree, in at least float32."""
        name = type(self).__name__
        check_tensor(name, "x", x)
        check_float(name, "x", x, x, "x")
        if x.ndim < 1:
            raise ShapeError(f"{name}: x must be [.., K], got {list(x.shape)}; give vectors.")
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        x = x * (x.shape[-1] ** -0.25 if self.scale is None else self.scale)
        found = [torch.ones_like(x[..., :1]), x][: self.degree + 1]
        last = torch.arange(x.shape[-1], device=x.device)  # channel that a monomial ends in; channels only rise
        equal = torch.ones_like(last)  # how often it ends in that
        for order in range(2, self.degree + 1):
            if self.diagonal:
                found.append(found[-1] * x * order**-0.5)
                continue
            shorter, last, equal = _longer(last, equal, x.shape[-1], math.comb(x.shape[-1] + order - 1, order))
            # each permutation of the same channels is one term of (x . y)^n: n! / (their counts' factorials) of them
            found.append(found[-1][..., shorter] * (x[..., last] * equal.to(x.dtype).rsqrt()))
        return found


def _longer(last: Tensor, equal: Tensor, width: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Monomials of one channel more: which was made longer, the channel they end in, how often they end in it."""
    more = width - last
    shorter = torch.repeat_interleave(more, output_size=count)
    within = torch.arange(count, device=last.device) - (more.cumsum(0) - more)[shorter]
    return shorter, last[shorter] + within, torch.where(within == 0, equal[shorter] + 1, 1)


def _kinds(projection: Tensor, *, normalize: bool, scale: float | None, eps: float) -> None:
    """What the constructors take."""


# apart from the constructors, which compiled layers call: only functions that have a name are traced with their checks
_CHECKS = {name: checked(_kinds, name) for name in ("PositiveRandomFeatures", "TrigonometricRandomFeatures")}


@functools.partial(checked, owner="TaylorFeatures")
def _check_taylor(degree: int, diagonal: bool, *, scale: float | None) -> None:
    if degree < 0:
        raise ValueError(f"TaylorFeatures: degree must be at least 0, got {degree}; 2 is usual.")


def _check_features(name: str, projection: Tensor, **options: Any) -> None:
    _CHECKS.get(name, _CHECKS["PositiveRandomFeatures"])(projection, **options)
    check_float(name, "projection", projection, projection, "projection")
    if projection.ndim != 3 or 0 in projection.shape:
        raise ShapeError(
            f"{name}: projection must be [1 or heads, M, K], got {list(projection.shape)}; "
            "draw it with feature_maps.random_projection."
        )
    if options["eps"] < 0:
        raise ValueError(
            f"{name}: eps must be at least 0, got {options['eps']}; the default keeps zero vectors differentiable."
        )


def _project(features: PositiveRandomFeatures, x: Tensor) -> tuple[Tensor, Tensor]:
    """W x [B, T, H, M] and |x|^2 / 2 [B, T, H, 1] of the normalised or scaled x, in at least float32."""
    draws, _, head_dim = features.projection.shape
    name = type(features).__name__
    check_tensor(name, "x", x)
    check_float(name, "x", x, features.projection, "the projection")
    if x.ndim < 2 or x.shape[-1] != head_dim or x.shape[-2] % draws:
        raise ShapeError(
            f"{name}: x must be [.., heads, {head_dim}] with a multiple of {draws} heads, as the projection "
            f"{list(features.projection.shape)}, got {list(x.shape)}; draw it for those."
        )
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, projection = x.to(dtype), features.projection.to(dtype)
    x = x * ((x.square().sum(-1, keepdim=True) + features.eps).rsqrt() if features.normalize else features.scale)
    grouped = torch.unflatten(x, -2, (draws, x.shape[-2] // draws))  # [.., P, H / P, K]
    with torch.autocast(x.device.type, enabled=False):
        products = torch.einsum("...pgk,pmk->...pgm", grouped, projection)
    return products.flatten(-3, -2), 0.5 * x.square().sum(-1, keepdim=True)
