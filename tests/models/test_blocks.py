"""The residual block: what it adds, its names, stochastic depth."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attensor.models.blocks import MLP, ConvolutionalPosition, DropPath, LayerScale, ResidualBlock, drop_path_rates
from attensor.nn import AxialAttention

NORM = partial(nn.LayerNorm, 6)


def randomised(module: nn.Module) -> nn.Module:
    """Double precision, every parameter drawn anew: ones and zeros hide what is missing."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.double().parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def cells() -> Tensor:
    return torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_all_branches_act_in_the_documented_order() -> None:
    block = randomised(
        ResidualBlock(
            nn.Linear(6, 6),
            MLP(6, 7),
            norm=NORM,
            cpe=[ConvolutionalPosition(6), ConvolutionalPosition(6, 5)],
            after_mixer=nn.Linear(6, 6),
            layer_scale=partial(LayerScale, 6, 1e-5),
        )
    )
    p, x = block.state_dict(), cells()

    def norm(i: int) -> Tensor:
        return F.layer_norm(x, (6,), p[f"norm{i}.weight"], p[f"norm{i}.bias"])

    def position(i: int) -> Tensor:
        weight = p[f"cpe{i}.proj.weight"]
        maps = F.conv2d(x.permute(0, 3, 1, 2), weight, p[f"cpe{i}.proj.bias"], padding=weight.shape[-1] // 2, groups=6)
        return maps.permute(0, 2, 3, 1)

    actual = block(x)
    x = x + position(1)
    x = x + (norm(1) @ p["attn.weight"].T + p["attn.bias"]) * p["ls1.gamma"]
    x = x + norm(3) @ p["local_mp.weight"].T + p["local_mp.bias"]
    x = x + position(2)
    inside = F.gelu(norm(2) @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"])
    x = x + (inside @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"]) * p["ls2.gamma"]
    torch.testing.assert_close(actual, x, rtol=1e-12, atol=1e-12)


def test_every_branch_is_dropped_and_positions_are_not() -> None:
    class Nothing(nn.Module):
        def forward(self, branch: Tensor) -> Tensor:
            return torch.zeros_like(branch)

    position = randomised(ConvolutionalPosition(6))
    parts = {"norm": NORM, "cpe": [position], "after_mixer": nn.Linear(6, 6)}
    block = randomised(ResidualBlock(nn.Linear(6, 6), MLP(6, 7), **parts))
    assert not torch.allclose(block(cells()), cells() + position(cells()))
    block.drop_path = Nothing()
    assert torch.equal(block(cells()), cells() + position(cells()))


def test_absent_parts_have_no_keys() -> None:
    names = {name.rpartition(".")[0] for name in ResidualBlock(nn.Linear(6, 6), MLP(6, 7), norm=NORM).state_dict()}
    assert names == {"norm1", "attn", "norm2", "mlp.fc1", "mlp.fc2"}


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("silu", lambda x: x / (1 + (-x).exp())),
        ("relu", lambda x: x.clamp(min=0)),
        ("gelu", lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2),
        ("gelu_sigmoid", lambda x: x / (1 + (-1.702 * x).exp())),
        ("gelu_tanh", lambda x: x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2),
    ],
)
def test_activations_with_and_without_gate(name, function) -> None:
    x = cells()
    for gated in (False, True):
        mlp = randomised(MLP(6, 7, activation=name, gated=gated))
        inside = mlp.fc1(x)
        inside = function(inside[..., :7]) * inside[..., 7:] if gated else function(inside)
        torch.testing.assert_close(mlp(x), mlp.fc2(inside), rtol=1e-12, atol=1e-12)


def test_a_dropped_branch_is_dropped_for_whole_images_and_kept_in_the_mean() -> None:
    drop, x = DropPath(0.3).train(), torch.ones(4000, 2, 3)
    factors = drop(x).flatten(1)
    assert bool((factors == factors[:, :1]).all())
    assert factors[:, 0].unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert factors.mean().item() == pytest.approx(1.0, abs=0.04)  # 4 standard deviations
    assert drop.eval()(x) is x


def test_numbers_of_both_branches_are_dropped_in_training() -> None:
    class Ones(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones_like(x)

    block, x = ResidualBlock(Ones(), Ones(), norm=NORM, dropout=0.5), torch.zeros(1000, 5, 6)
    added, counts = block.train()(x).unique(return_counts=True)
    assert added.tolist() == [0, 2, 4]
    assert (counts / x.numel()).tolist() == pytest.approx([0.25, 0.5, 0.25], abs=0.015)
    assert (block.eval()(x) == 2).all()


def test_a_cache_reaches_the_mixer() -> None:
    mixer = AxialAttention(6, 2, axis=0, is_causal=True)
    block = randomised(ResidualBlock(mixer, MLP(6, 7), norm=NORM))
    x, cache = torch.randn(2, 4, 3, 6).double(), mixer.new_cache(2 * 3)
    pieces = [block(piece, cache=cache) for piece in x.split([1, 3], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), block(x), rtol=1e-12, atol=1e-12)


def test_rates_rise_to_the_last_block() -> None:
    assert drop_path_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0.0]


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"activation must be one of gelu, .*, got 'swish'"):
        MLP(6, 7, activation="swish")
    with pytest.raises(ValueError, match=r"rate must be at least 0 and below 1, got 1\.0"):
        DropPath(1.0)
    with pytest.raises(ValueError, match="cpe has 3 modules"):
        ResidualBlock(nn.Identity(), nn.Identity(), norm=NORM, cpe=[nn.Identity()] * 3)
