"""Weights that are stored in other numbers than computed with, and sums that leave the range of float16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.nn import Mixer
from tests.conformance.cases import Case, all_cases, name, weights

EVERY = pytest.mark.parametrize("case", all_cases(), ids=name)
# features that are exponentials of large keys leave the range of float32, whatever the sums do
EXPONENTIAL = ("random features", "not normalised")
SUMMING = [c for c in all_cases() if c.is_causal and c.variant not in EXPONENTIAL]


class Quantised(nn.Module):
    """A linear layer whose weight is whole numbers, or hidden, and which computes in its input's dtype."""

    def __init__(self, linear: nn.Linear, *, shows_weight: bool) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.scale = weight.abs().amax(1, keepdim=True) / 127
        stored = (weight / self.scale).round().to(torch.int8)
        if shows_weight:
            self.weight = nn.Parameter(stored, requires_grad=False)
        self.hidden, self.bias = [stored], linear.bias

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        return (self.hidden[0].double() * self.scale).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dequantised(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Adapted(nn.Module):
    """A frozen layer and a trained product of low rank beside it: QLoRA."""

    def __init__(self, base: Quantised, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(2, inputs, dtype=torch.float32) / inputs)
        self.up = nn.Parameter(torch.zeros(outputs, 2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        return out + F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


def quantise(layer: nn.Module, *, shows_weight: bool, is_adapted: bool = False) -> None:
    """Put quantised layers in place of all linear ones, and round those weights in `layer` alike."""
    for called, child in list(layer.named_children()):
        if isinstance(child, nn.Linear):
            quantised: nn.Module = Quantised(child, shows_weight=shows_weight)
            if is_adapted:
                quantised = Adapted(quantised, child.in_features, child.out_features)
            setattr(layer, called, quantised)
        else:
            quantise(child, shows_weight=shows_weight, is_adapted=is_adapted)


def round_weights(layer: nn.Module) -> None:
    with torch.no_grad():
        for child in layer.modules():
            if isinstance(child, nn.Linear):
                child.weight.copy_(Quantised(child, shows_weight=False).dequantised(child.weight.dtype))


@EVERY
@pytest.mark.parametrize("shows_weight", [True, False], ids=["int8", "no weight"])
def test_quantised_weights_compute_as_the_numbers_they_stand_for(case: Case, shows_weight: bool) -> None:
    """Forward, the gradient of the input and, where there is a cache, token by token."""
    layer, x = case.layer(dtype=torch.float64), case.hidden_states()
    round_weights(layer)
    expected = layer(x.requires_grad_())
    (grad,) = torch.autograd.grad((expected * weights(expected)).sum(), x)
    quantise(layer, shows_weight=shows_weight)
    out = layer(x)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.autograd.grad((out * weights(out)).sum(), x)[0], grad, rtol=1e-9, atol=1e-9)
    if case.is_causal:
        cache = layer.new_cache(2)
        steps = [layer(token, cache=cache) for token in x.detach().split(1, 1)]
        torch.testing.assert_close(torch.cat(steps, 1), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", [c for c in all_cases() if c.variant is None and c.card.name != "rala"], ids=name)
def test_adapters_beside_quantised_weights_train(case: Case) -> None:
    """In bfloat16, as it is done; rala's projections are convolutions, which nobody quantises."""
    layer, x = case.layer(dtype=torch.bfloat16), case.hidden_states().bfloat16()
    quantise(layer, shows_weight=True, is_adapted=True)
    adapters = [p for n, p in layer.named_parameters() if n.endswith(".up")]
    target, losses = layer(x).detach().float().roll(1, 0), []
    optimiser = torch.optim.Adam(adapters, lr=1e-2)
    for _ in range(4):
        optimiser.zero_grad()
        out = layer(x)
        assert out.dtype == torch.bfloat16
        losses.append(F.mse_loss(out.float(), target))
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("case", SUMMING, ids=name)
def test_float16_sums_over_many_tokens_stay_finite(case: Case) -> None:
    """Sums of products leave the range of float16, whose largest is 65,504; norm or denominator bring them back."""
    layer = loud(case.layer(dtype=torch.float64)).eval()
    x = 5 * case.hidden_states(space=(300,)).abs()
    exact = layer(x)
    assert exact.abs().max() < 6e4
    half = layer.half()
    out = half(x.half())
    assert (out.double() - exact).norm() <= 2e-2 * exact.norm()
    cache = half.new_cache(2)
    with torch.no_grad():
        outs = [half(piece, cache=cache) for piece in x.half().split([298, 1, 1], 1)]
    assert (torch.cat(outs, 1).double() - exact).norm() <= 2e-2 * exact.norm()


def loud(layer: Mixer) -> Mixer:
    """With queries, keys and values that have the same signs and are eight times as large."""
    with torch.no_grad():
        for called, parameter in layer.named_parameters():
            if called in ("q_proj.weight", "k_proj.weight", "v_proj.weight"):
                parameter.abs_().mul_(8)
    return layer.half().double()
