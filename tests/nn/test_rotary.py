"""Rotary positions turn queries and keys so that scores depend on distances only."""

from __future__ import annotations

import math

import pytest
import torch

from attensor.nn import Frequencies, LatentAttention, rotary_embedding, token_positions


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_turns_each_pair_by_its_angle() -> None:
    """Against complex multiplication, the definition of arXiv:2104.09864."""
    x, positions = rows(2, 3, 5, 8), torch.tensor([0, 7, 30])
    pairs = torch.complex(x[..., :4], x[..., 4:])
    angles = torch.tensor([[p * 100.0 ** (-2 * i / 8) for i in range(4)] for p in (0, 7, 30)], dtype=torch.float64)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    torch.testing.assert_close(
        rotary_embedding(x, positions, base=100.0), torch.cat([turned.real, turned.imag], -1), rtol=1e-12, atol=1e-12
    )


def test_frequencies_one_by_one() -> None:
    x, positions = torch.randn(2, 5, 3, 4, dtype=torch.float64), torch.tensor([0, 1, 7, 100, 3])
    given = Frequencies([1.0, 0.01], gain=1.5)  # a list, as JSON has it
    torch.testing.assert_close(
        rotary_embedding(x, positions, base=given), 1.5 * rotary_embedding(x, positions, base=1e4)
    )
    still = rotary_embedding(x, positions, base=Frequencies((0.0, 0.0)), interleaved=True)
    assert torch.equal(still, x)
    with pytest.raises(ValueError, match="2 values turn 4 channels, got 6"):
        rotary_embedding(torch.randn(1, 5, 1, 6), positions, base=given)
    options = {"kv_rank": 6, "nope_dim": 3, "rotary_dim": 4}
    layers = [LatentAttention(8, 2, **options, rotary=one) for one in (given, {"values": [1.0, 0.01], "gain": 1.5})]
    assert layers[0].rotary == layers[1].rotary
    with pytest.raises(ValueError, match="2 values turn 4 channels, got 6"):
        LatentAttention(8, 2, kv_rank=6, rotary_dim=6, rotary=given)


def test_scores_depend_on_distance_only() -> None:
    q, k = rows(1, 2, 3, 6).split(1, dim=1)

    def score(at: int, other: int) -> torch.Tensor:
        return (rotary_embedding(q, torch.tensor([at])) * rotary_embedding(k, torch.tensor([other]))).sum()

    torch.testing.assert_close(score(5, 2), score(1005, 1002), rtol=1e-10, atol=1e-10)
    assert not math.isclose(score(5, 2), score(5, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_keeps_its_dtype_and_exact_angles(dtype: torch.dtype) -> None:
    x, positions = rows(1, 3, 1, 4).to(dtype), torch.tensor([0, 4001, 16383])
    out = rotary_embedding(x, positions)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), rotary_embedding(x.double(), positions), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_packed_positions_start_again(index_dtype: torch.dtype) -> None:
    """Empty sequences at the start, in between and at the end included."""
    boundaries = torch.tensor([0, 0, 3, 3, 4, 9, 9], dtype=index_dtype)
    got = token_positions(9, cu_seqlens=boundaries, device=torch.device("cpu"))
    assert got.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4]


def test_positions_continue_after_a_cache() -> None:
    assert token_positions(3, offset=5, device=torch.device("cpu")).tolist() == [5, 6, 7]
