"""HaloNet: what its configuration means, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attensor.models.vision.halonet import HaloNet
from attensor.models.vision.residual import ChannelGate

TINY = HaloNet.tiny
POOLED = replace(TINY, stem_sizes=(6,), stem_pool=True, gate="eca", blocks=("ac", "a"), value_ratio=1.5, key_dim=3)


def test_timms_two_layers_elsewhere_find_their_stage() -> None:
    """What brings the stem's map to a quarter is of the first stage here, the last convolution of the last."""
    model = HaloNet(TINY)
    theirs = {
        name.replace("stages.0.conv2.", "stem.conv2.").replace("stages.1.final_conv.", "final_conv."): tensor
        for name, tensor in model.state_dict().items()
    }
    assert {"stem.conv2.bn.weight", "final_conv.conv.weight"} <= theirs.keys()
    assert model.convert_state_dict(theirs).keys() == model.state_dict().keys()
    assert model.convert_state_dict(model.state_dict()).keys() == model.state_dict().keys()


def test_widths_of_keys_values_and_windows() -> None:
    weights = {name: tuple(tensor.shape) for name, tensor in HaloNet(POOLED).state_dict().items()}
    assert weights["stem.conv1.conv.weight"] == (6, 3, 7, 7)
    assert weights["stages.0.0.self_attn.q.weight"] == (6, 4, 1, 1)  # 2 heads of 3
    assert weights["stages.0.0.self_attn.kv.weight"] == (6 + 6, 4, 1, 1)  # and values 1.5 times as wide
    assert weights["stages.0.0.self_attn.pos_embed.width_rel"] == (2 * (2 + 2 * 1) - 1, 3)
    assert weights["stages.1.0.post_attn.weight"] == (12,)
    assert weights["stages.0.1.attn.conv.weight"] == (1, 1, 3)


def test_the_map_of_the_stem_is_seen_before_it_is_pooled() -> None:
    x = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    for config in (TINY, POOLED):
        maps = HaloNet(config).eval().forward_intermediates(x, intermediates_only=True)
        sizes = [tuple(one.shape[1:]) for one in maps]
        assert sizes == [(config.stem_sizes[0], 12, 20), (8, 6, 10), (10, 3, 5)]


def test_a_gate_multiplies_channels_by_what_their_neighbours_have() -> None:
    gate = ChannelGate(7).double()
    x = torch.randn(2, 7, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    means = torch.nn.functional.pad(x.mean((2, 3)), (1, 1))
    factors = sum(gate.conv.weight[0, 0, i] * means[:, i : i + 7] for i in range(3)).sigmoid()
    torch.testing.assert_close(gate(x), x * factors[:, :, None, None], rtol=1e-12, atol=1e-12)
    assert [ChannelGate(width).conv.weight.shape[-1] for width in (16, 64, 128, 512)] == [3, 3, 5, 5]


def test_blocks_are_checkpointed_one_by_one() -> None:
    model = HaloNet(replace(TINY, gate=None)).double().eval()
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients, kept = [], []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t) or t, lambda t: t):
            out = model(x)
        (out * torch.arange(5.0, dtype=out.dtype)).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        kept.append(len(saved))
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-12, atol=1e-14)
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": ("cx", "a")}, r"HaloNet: blocks must be a text for each stage, of .* got \('cx', 'a'\)"),
        ({"blocks": ("", "a")}, "HaloNet: blocks must be"),
        ({"gate": "cbam"}, "HaloNet: gate must be one of se, eca, or None, got 'cbam'"),
        ({"stem_sizes": (4,)}, "only halves the image; give another one or set stem_pool"),
        ({"block_size": 3}, "block_size 3 is not a multiple of query_stride 2"),
    ],
    ids=str,
)
def test_wrong_configurations_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HaloNet(replace(TINY, **changes))
