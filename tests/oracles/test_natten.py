"""neighborhood_attention against NATTEN, whose CPU path is forward only, in float32, with head sizes 8, 16, 32, .."""

from __future__ import annotations

import random

import pytest
import torch

import attensor
from attensor.ops import neighborhood_attention

natten = pytest.importorskip("natten", reason='needs NATTEN: pip install "attensor[oracles]"')

# NATTEN calls FlexAttention without compiling it, and by a name that PyTorch is about to drop.
pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning"),
    pytest.mark.filterwarnings("ignore:return_lse is deprecated:FutureWarning"),
]

THEIRS = {1: "na1d", 2: "na2d", 3: "na3d"}


def random_problem(rank, seed):
    """Grid, and window, dilation, stride, causality for each axis: all even and odd, all borders."""
    dice = random.Random(seed)
    space = [dice.randint(5, {1: 61, 2: 19, 3: 9}[rank]) for _ in range(rank)]
    dilation = [dice.randint(1, n // 2) if dice.random() < 0.5 else 1 for n in space]
    window = [dice.randint(2, n // d) for n, d in zip(space, dilation)]
    stride = [dice.randint(1, w) if dice.random() < 0.5 else 1 for w in window]
    is_causal = [dice.random() < 0.4 for _ in space]
    if rank == 1 and window == space:
        is_causal = [False]  # NATTEN sends this case to a kernel that a CPU does not have
    return space, window, {"dilation": tuple(dilation), "stride": tuple(stride), "is_causal": tuple(is_causal)}


@pytest.mark.parametrize("backend", ["cpp", "torch", "reference"])
@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 12))])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_random_problems(rank, seed, backend):
    space, window, options = random_problem(rank, seed)
    heads, kv_heads = [(2, 2), (4, 2), (3, 1)][seed % 3]
    q, k, v = (torch.randn(2, *space, h, 8) for h in (heads, kv_heads, kv_heads))
    theirs = getattr(natten, THEIRS[rank])(q, k, v, kernel_size=tuple(window), return_lse=True, **options)
    with attensor.backend(backend):
        ours = neighborhood_attention(q, k, v, window_size=tuple(window), return_lse=True, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_hundred_more_random_problems(rank):
    """Every option that both have: with those above more than three hundred."""
    for seed in range(100, 200):
        space, window, options = random_problem(rank, seed)
        dice = random.Random(seed)
        heads, kv_heads = dice.choice([(2, 2), (4, 2), (3, 1)])
        q, k, v = (torch.randn(2, *space, h, 16) for h in (heads, kv_heads, kv_heads))
        extra = {}
        if heads == kv_heads and dice.random() < 0.6:
            extra = {name: torch.randn(2, 3, kv_heads, 16) for name in ("additional_keys", "additional_values")}
        options["scale"] = dice.choice([None, 0.2, 1.3])
        theirs = getattr(natten, THEIRS[rank])(
            q, k, v, kernel_size=tuple(window), **options, **extra, return_lse=not extra
        )
        ours = neighborhood_attention(q, k, v, window_size=tuple(window), **options, **extra, return_lse=not extra)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=lambda m, seed=seed: f"seed {seed}: {m}")


def test_additional_keys():
    q, k, v = (torch.randn(2, 7, 11, 2, 16) for _ in range(3))
    more = {name: torch.randn(2, 5, 2, 16) for name in ("additional_keys", "additional_values")}
    theirs = natten.na2d(q, k, v, kernel_size=(3, 4), **more)
    ours = neighborhood_attention(q, k, v, window_size=(3, 4), **more)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
