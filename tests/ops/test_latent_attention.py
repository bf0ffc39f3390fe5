"""The absorbed form reads what is kept where it lies; numbers that are not finite stay where they are seen."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from attensor.nn import GroupedLatentAttention, LatentAttention, Slicing
from attensor.ops import latent_attention, latent_attention_reference

module = importlib.import_module("attensor.ops.latent_attention")
LAYERS = {
    "two latents": lambda: GroupedLatentAttention(24, 4, dtype=torch.float64),
    "four latents": lambda: GroupedLatentAttention(24, 4, num_latents=4, dtype=torch.float64),
    "slices": lambda: LatentAttention(24, 4, kv_rank=8, slicing=Slicing(2, (2.0, 2.0)), dtype=torch.float64),
}


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_a_step_joins_no_latents_and_is_the_naive_form(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a cache with several latents a token, none is copied to stand beside the rotary key."""
    torch.manual_seed(1)
    layer, x = LAYERS[name](), torch.randn(3, 40, 24, dtype=torch.float64)
    outputs: dict[str, Tensor] = {}
    for form in ("naive", "absorbed"):
        layer.form = form  # type: ignore[assignment]
        cache = layer.new_cache(3)
        cache.first = torch.tensor([0, 5, 2])
        layer(x[:, :38], cache=cache)
        if form == "absorbed":
            monkeypatch.setattr(module, "_joined", lambda *_: pytest.fail("latents were copied"))
        outputs[form] = torch.cat([layer(x[:, t : t + 1], cache=cache) for t in (38, 39)], 1)
    torch.testing.assert_close(outputs["absorbed"], outputs["naive"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("case", ["seen", "hidden", "all"])
def test_rotary_keys_that_are_not_finite_reach_those_who_see_them(bad: float, case: str) -> None:
    """Also where all are so: a mask of -inf would say that there is nothing to see."""

    def drawn(*sizes: int) -> Tensor:
        return torch.randn(*sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(sizes)))

    q, latent, weights = drawn(2, 2, 4, 3), drawn(2, 9, 2, 6), (drawn(4, 3, 6), drawn(4, 5, 6))
    rotary: dict[str, Any] = {"q_rotary": drawn(2, 2, 4, 2), "k_rotary": drawn(2, 9, 1, 2)}
    rotary["k_rotary"][1, slice(None) if case == "all" else 3] = bad
    mask = torch.ones(2, 1, 2, 9, dtype=torch.bool)
    mask[1, :, 0, 3] = case == "all"
    mask[1, :, 1, 3] = case != "hidden"
    options: dict[str, Any] = {**rotary, "attn_mask": mask, "form": "absorbed"}
    found, expected = (f(q, latent, *weights, **options) for f in (latent_attention, latent_attention_reference))
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert bool(found[1, 0].isfinite().all()) == (case != "all")
    assert bool(found[1, 1].isfinite().all()) == (case == "hidden")
