"""L2ViT's attention and local concentration, written out; the whole mixer obeys the laws of the house in evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.catalogue import Domain, mechanism
from attensor.nn import GlobalLinearAttention, Heads, LocalConcentration
from tests.conformance import cases as laws
from tests.conformance import test_laws  # noqa: F401  names the laws
from tests.conformance.cases import Case, weights
from tests.golden.drawn import golden, summaries, uniform, weighed
from tests.golden.drawn import weights as drawn_weights

B, HEIGHT, WIDTH, H, D = 2, 3, 5, 3, 7
C = H * D


class Evaluated(Case):
    """The mixer in evaluation, where batch norm knows its statistics."""

    def layer(self, **options: Any) -> nn.Module:
        return super().layer(**options).eval()


def build(scale: float = 1.0, **options: Any) -> tuple[GlobalLinearAttention, Tensor]:
    layer = GlobalLinearAttention(C, H, **options, dtype=torch.float64)
    with torch.no_grad():
        layer.temperature.copy_(torch.tensor([0.3, 0.7, 1.9]).view(H, 1, 1))
        for parameter in layer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return layer, scale * torch.randn(B, HEIGHT, WIDTH, C, dtype=torch.float64)


def dense(layer: GlobalLinearAttention, x: Tensor) -> Tensor:
    """The matrix relu(q) relu(k)^T temperature / max(row sum, minimum), [B, H, cells, cells]."""
    q, k, v = layer.qkv(x.flatten(1, -2)).view(B, -1, 3, H, D).permute(2, 0, 3, 1, 4)
    matrix = q.relu() @ k.relu().mT
    divisors = matrix.sum(-1, keepdim=True).clamp(min=layer.denominator_minimum)
    out = matrix * layer.temperature / divisors @ v
    return layer.proj(out.transpose(1, 2).flatten(2)).view(x.shape)


@pytest.mark.parametrize(
    ("scale", "minimum", "raised"),
    [(1.0, 100.0, "all"), (30.0, 100.0, "none"), (3.0, 100.0, "some"), (1.0, 5.0, "some")],
)
def test_equals_all_pairs_written_out(scale: float, minimum: float, raised: str) -> None:
    """Output and all gradients, where the minimum holds for all rows, some, and none."""
    layer, x = build(scale, denominator_minimum=minimum)
    q, k, _ = layer.qkv(x.flatten(1, 2)).view(B, -1, 3, H, D).permute(2, 0, 3, 1, 4)
    is_raised = (q.relu() @ k.relu().mT).sum(-1) < minimum
    share = is_raised.double().mean().item()
    assert {"all": share > 0.95, "none": share < 0.05, "some": 0.05 < share < 0.95}[raised]
    x.requires_grad_()
    results = []
    for f in (layer, lambda y: dense(layer, y)):
        out = f(x)
        results.append([out, *torch.autograd.grad((out * weights(out)).sum(), [x, *layer.parameters()])])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("minimum", "degree"), [(1e12, 3), (1e-12, 1)])
def test_outputs_scale_with_the_third_power_where_they_are_not_normalised(minimum: float, degree: int) -> None:
    layer, _ = build(denominator_minimum=minimum)
    q, k, v = torch.randn(3, B, HEIGHT, WIDTH, H, D, dtype=torch.float64)
    torch.testing.assert_close(layer.attend(Heads(2 * q, 2 * k, 2 * v)), 2**degree * layer.attend(Heads(q, k, v)))


def test_cells_on_any_number_of_axes_are_one_set() -> None:
    layer, x = build(3.0)
    line = layer(x.flatten(1, 2))
    assert torch.equal(layer(x).flatten(1, 2), line)
    assert torch.equal(layer(x.unflatten(1, (1, HEIGHT))).flatten(1, 3), line)


def test_keys_shapes_and_first_temperatures_are_the_published_ones() -> None:
    layer = GlobalLinearAttention(C, H)
    shapes = {key: tuple(value.shape) for key, value in layer.state_dict().items()}
    assert shapes == {
        "temperature": (H, 1, 1),
        "qkv.weight": (3 * C, C),
        "qkv.bias": (3 * C,),
        "proj.weight": (C, C),
        "proj.bias": (C,),
    }
    assert torch.equal(layer.temperature, torch.full((H, 1, 1), D**-0.5))
    assert layer.denominator_minimum == 100
    more = GlobalLinearAttention(C, H, local_concentration=True).state_dict()
    convolutions = {f"local_mp.conv{i}.{name}": shape for i in (1, 2) for name, shape in CONVOLUTION.items()}
    statistics = {f"local_mp.bn.{name}": () if name.startswith("num") else (C,) for name in STATISTICS}
    norm = {"norm3.weight": (C,), "norm3.bias": (C,)}
    assert {key: tuple(value.shape) for key, value in more.items()} == shapes | convolutions | statistics | norm


CONVOLUTION = {"weight": (C, 1, 7, 7), "bias": (C,)}
STATISTICS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def convolved(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    """[B, height, width, C], summed over the cells around each cell, channel by channel."""
    side = convolution.kernel_size[0]
    padded = F.pad(x, (0, 0, *(side // 2,) * 4))
    windows = padded.unfold(1, side, 1).unfold(2, side, 1)  # [B, height, width, C, side, side]
    return (windows * convolution.weight[:, 0]).sum((-2, -1)) + convolution.bias


@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("training", [False, True])
def test_local_concentration_equals_its_definition(kernel_size: int, training: bool) -> None:
    """In training with the statistics of the batch, which it also follows; in evaluation with those."""
    lcm = LocalConcentration(C, kernel_size=kernel_size, dtype=torch.float64).train(training)
    with torch.no_grad():
        lcm.bn.running_mean.normal_()
        lcm.bn.running_var.uniform_(0.5, 2)
        lcm.bn.weight.normal_()
        lcm.bn.bias.normal_()
    x = torch.randn(B, HEIGHT, WIDTH, C, dtype=torch.float64, requires_grad=True)
    inside = F.gelu(convolved(x, lcm.conv1))
    mean, variance = lcm.bn.running_mean.clone(), lcm.bn.running_var.clone()
    if training:
        mean, variance = inside.mean((0, 1, 2)), inside.var((0, 1, 2), unbiased=False)
    normed = (inside - mean) / (variance + 1e-5).sqrt() * lcm.bn.weight + lcm.bn.bias
    expected, got = convolved(normed, lcm.conv2), lcm(x)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    found, wanted = (torch.autograd.grad((out * weights(out)).sum(), [x, *lcm.parameters()]) for out in (got, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_local_concentration_sees_two_kernels_far() -> None:
    lcm = LocalConcentration(1, dtype=torch.float64).eval()
    x = torch.randn(1, 1, 31, 1, dtype=torch.float64)
    changed = x.clone()
    changed[:, :, 15] += 1
    seen = (lcm(changed) != lcm(x)).flatten()
    assert seen.tolist() == [abs(cell - 15) <= 6 for cell in range(31)]


def test_the_mixer_adds_local_concentration_with_a_residual_of_its_own() -> None:
    layer, x = build(3.0, local_concentration=True)
    attention, _ = build()
    attention.load_state_dict({k: v for k, v in layer.state_dict().items() if "3" not in k and "local" not in k})
    for training in (True, False):
        layer.train(training)
        mixed = attention(x)
        expected = mixed + layer.local_mp(layer.norm3(x + mixed))
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_images_of_a_batch_see_each_other_in_training_only() -> None:
    layer, x = build(local_concentration=True)
    assert not torch.allclose(layer(x)[:1], layer(x[:1]))
    layer.eval()
    torch.testing.assert_close(layer(x)[:1], layer(x[:1]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("law", sorted(set(laws.LAWS) - laws.CAUSAL_LAWS))
def test_the_whole_mixer_obeys_the_laws_in_evaluation(law: str, tmp_path: Path) -> None:
    laws.obey(Evaluated(mechanism("l2vit"), Domain.GRID), law, tmp_path)


def test_is_drawn_anew_after_the_meta_device() -> None:
    with torch.device("meta"):
        empty = GlobalLinearAttention(C, H, local_concentration=True, dtype=torch.float64)
    filled = empty.to_empty(device="cpu")
    for tensor in filled.state_dict().values():
        tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
    filled.reset_parameters()
    assert filled(build()[1]).isfinite().all()
    assert filled.eval()(build()[1]).isfinite().all()


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"denominator_minimum must be greater than 0, got 0"):
        GlobalLinearAttention(C, H, denominator_minimum=0)
    with pytest.raises(ValueError, match=r"LocalConcentration: kernel_size must be odd, got 4"):
        LocalConcentration(C, kernel_size=4)
    layer, x = build(local_concentration=True)
    with pytest.raises(ValueError, match=r"GlobalLinearAttention: hidden_states must be \[B, height, width, C\]"):
        layer(x.flatten(1, 2))
    with pytest.raises(ValueError, match=r"LocalConcentration: hidden_states must end in hidden_size = 21 channels"):
        LocalConcentration(C, dtype=x.dtype)(x[..., :5])
    assert "denominator_minimum=100" in repr(layer)


@pytest.mark.parametrize("scale", [1, 30])
def test_numbers_are_those_of_the_authors_code(scale: int) -> None:
    """Where most denominators are raised to 100, and where few are; gradients of the input and of every parameter."""
    layer = GlobalLinearAttention(12, 3, dtype=torch.float64)
    drawn = drawn_weights({f"attention.{key}": value.shape for key, value in layer.state_dict().items()})
    layer.load_state_dict({key.removeprefix("attention."): value for key, value in drawn.items()})
    x = (scale * uniform("cells", 2, 35, 12)).requires_grad_()
    out = layer(x)
    weighed(out).backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    numbers = golden("l2vit")
    for name, tensor in {"out": out, "dx": x.grad, "dp": summaries(gradients)}.items():
        torch.testing.assert_close(tensor, numbers[f"attention.{scale}.{name}"], rtol=1e-10, atol=1e-10)
