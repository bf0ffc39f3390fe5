"""The Toeplitz product against its definition, SciPy and loops; coefficients are never symmetric."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from attensor.errors import ShapeError
from attensor.ops import toeplitz, toeplitz_reference
from attensor.ops.toeplitz import fast_fft_size

SIZES = [(1, 1), (2, 2), (7, 7), (13, 5), (5, 17), (1, 11), (97, 97), (128, 128)]  # outputs, inputs
ONE_AXIS = pytest.mark.parametrize(("n", "m"), SIZES, ids=str)


@ONE_AXIS
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_scipy_agrees(n: int, m: int, backend: str) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    c, x = torch.randn(n + m - 1).double(), torch.randn(m, 3).double()
    column, row = c[:n].flip(0), c[n - 1 :]
    expected = torch.from_numpy(linalg.matmul_toeplitz((column.numpy(), row.numpy()), x.numpy()))
    torch.testing.assert_close(toeplitz(c, x.T.contiguous(), backend=backend).T, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_loops_agree_on_a_grid(backend: str) -> None:
    n, m = (3, 5), (4, 2)
    c, x = torch.randn(n[0] + m[0] - 1, n[1] + m[1] - 1).double(), torch.randn(*m).double()
    expected = torch.zeros(n).double()
    for a in range(n[0]):
        for b in range(n[1]):
            for e in range(m[0]):
                for f in range(m[1]):
                    expected[a, b] += c[e - a + n[0] - 1, f - b + n[1] - 1] * x[e, f]
    torch.testing.assert_close(toeplitz(c, x, space_dims=2, backend=backend), expected, rtol=0, atol=1e-12)


def test_causal_means_lower_triangular() -> None:
    c, x = torch.randn(13).double(), torch.eye(7).double()
    matrix = toeplitz(c, x, is_causal=True).T  # one column for each unit vector
    torch.testing.assert_close(matrix, toeplitz(c, x).T.tril(), rtol=0, atol=1e-14)
    assert (matrix.tril().abs().sum(1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_error_is_that_of_the_transforms(dtype: torch.dtype) -> None:
    c, x = torch.rand(2 * 1009 - 1).to(dtype), torch.randn(1009).to(dtype)
    exact = toeplitz_reference(c.double(), x.double())
    errors = {}
    for fft_dtype in (None, torch.float64):
        y = toeplitz(c, x, fft_dtype=fft_dtype)
        assert y.dtype == dtype
        errors[fft_dtype] = float((y.double() - exact).abs().max() / exact.abs().max())
    assert errors[None] < (1e-6 if dtype == torch.float32 else 5e-3)
    if dtype == torch.float32:
        assert errors[torch.float64] < errors[None] / 3


def test_fast_sizes_are_the_next_smooth_even_ones() -> None:
    def is_smooth(size: int) -> bool:
        for factor in (2, 3, 5):
            while size % factor == 0:
                size //= factor
        return size == 1

    for minimum in [*range(1, 200), 4095, 8193, 131_071]:
        expected = next(s for s in range(minimum, 4 * minimum + 2) if s % 2 == 0 and is_smooth(s))
        assert fast_fft_size(minimum) == expected


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")], ids=str)
def test_what_is_not_finite_stays_after_its_place_when_causal(backend: str, poison: float) -> None:
    c, x = torch.randn(13).double(), torch.randn(3, 7).double()
    bad = x.clone()
    bad[1, 4] = poison
    y, clean = (toeplitz(c, t, is_causal=True, backend=backend) for t in (bad, x))
    assert not y[1, 4:].isfinite().any()
    y[1, 4:] = clean[1, 4:]
    torch.testing.assert_close(y, clean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_no_vectors_have_no_products(backend: str) -> None:
    c, x = torch.randn(3, 13, requires_grad=True), torch.randn(0, 3, 7, requires_grad=True)
    y = toeplitz(c, x, backend=backend)
    assert y.shape == (0, 3, 7)
    assert (torch.autograd.grad(y.sum(), c)[0] == 0).all()
    assert toeplitz(torch.randn(0, 13), torch.randn(7), backend=backend).shape == (0, 7)
    assert toeplitz(torch.randn(5, 3), torch.randn(0, 4, 2), space_dims=2, backend=backend).shape == (0, 2, 2)


@pytest.mark.parametrize("function", [toeplitz, toeplitz_reference])
def test_other_devices_and_transforms_are_refused(function: Callable[..., torch.Tensor]) -> None:
    """A tensor without memory must not give a result with some."""
    c, x = torch.randn(13), torch.randn(7)
    with pytest.raises(ValueError, match="toeplitz: coefficients is on cpu, x on meta"):
        function(c, x.to("meta"))
    with pytest.raises(ValueError, match="toeplitz: coefficients is on meta, x on cpu"):
        function(c.to("meta"), x)
    with pytest.raises(ValueError, match=r"toeplitz: fft_dtype must be torch.float32.*got torch.float16"):
        function(c, x, fft_dtype=torch.float16)
    with pytest.raises(TypeError, match="toeplitz: fft_dtype must be"):
        function(c, x, fft_dtype="float32")


def test_bad_input_is_refused() -> None:
    c, x = torch.randn(13), torch.randn(7)
    with pytest.raises(ShapeError, match=r"toeplitz: coefficients.*\[6\].*\[7\]"):
        toeplitz(c[:6], x)
    with pytest.raises(TypeError, match="toeplitz: x"):
        toeplitz(c, x.long())
    with pytest.raises(ValueError, match="space_dims 2 with is_causal=True"):
        toeplitz(c[None], x[None], space_dims=2, is_causal=True)
