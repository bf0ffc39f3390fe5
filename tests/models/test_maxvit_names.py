"""MaxViT's TensorFlow checkpoints: every variable finds its place, and the network computes what the authors' does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from attensor import models
from attensor.models.convert import join
from attensor.models.vision.maxvit import MaxViT, MaxViTConfig

Shapes = dict[str, list[int]]

# the authors' own code, run once; `tests/golden/README.md` tells how
GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "maxvit.json").read_text())
SMALL = MaxViTConfig(
    image_size=(16, 16), stem_size=8, hidden_sizes=(8, 12), depths=(1, 2), block_size=2, head_dim=4, num_classes=5
)


def official_shapes(config: MaxViTConfig, window: int) -> Shapes:
    """Names and shapes of the variables, read from the authors' code."""
    norm = ("beta", "gamma", "moving_mean", "moving_variance")
    stem, last = config.stem_size, config.hidden_sizes[-1]
    shapes: Shapes = {"stem/conv_0/kernel": [3, 3, config.in_channels, stem], "stem/conv_1/kernel": [3, 3, stem, stem]}
    shapes |= {"stem/conv_0/bias": [stem], "stem/conv_1/bias": [stem]} | {f"stem/norm_0/{n}": [stem] for n in norm}
    before = stem
    for stage, (width, depth) in enumerate(zip(config.hidden_sizes, config.depths)):
        for index in range(depth):
            at, inside, heads = f"block_{stage:02d}_{index:02d}/", 4 * width, width // config.head_dim
            conv = f"{at}mbconv/"
            shapes |= {f"{conv}pre_norm/{n}": [before] for n in norm}
            shapes |= {f"{conv}{kind}_norm/{n}": [inside] for kind in ("expand", "depthwise") for n in norm}
            shapes |= {f"{conv}expand_conv/kernel": [1, 1, before, inside]}
            shapes |= {f"{conv}depthwise_conv/depthwise_kernel": [3, 3, inside, 1]}
            for kind, sizes in (("se/reduce_conv2d", [inside, width // 4]), ("se/expand_conv2d", [width // 4, inside])):
                shapes |= {f"{conv}{kind}/kernel": [1, 1, *sizes], f"{conv}{kind}/bias": sizes[1:]}
            shapes |= {f"{conv}shrink_conv/kernel": [1, 1, inside, width], f"{conv}shrink_conv/bias": [width]}
            if before != width:
                shapes |= {f"{conv}shortcut_conv/kernel": [1, 1, before, width], f"{conv}shortcut_conv/bias": [width]}
            for suffix in ("", "_1"):
                for kind in ("attn", "ffn"):
                    shapes |= {f"{at}{kind}_layer_norm{suffix}/{n}": [width] for n in norm[:2]}
                attention, ffn = f"{at}attention{suffix}/", f"{at}ffn{suffix}/"
                head = [heads, config.head_dim]
                shapes |= {f"{attention}{name}/weight": [width, *head] for name in "qkv"}
                shapes |= {f"{attention}{name}/bias": head for name in "qkv"}
                shapes |= {f"{attention}o/weight": [*head, width], f"{attention}o/bias": [width]}
                shapes |= {f"{attention}relative_bias": [heads, 2 * window - 1, 2 * window - 1]}
                shapes |= {f"{ffn}expand_dense/weight": [width, inside], f"{ffn}expand_dense/bias": [inside]}
                shapes |= {f"{ffn}shrink_dense/weight": [inside, width], f"{ffn}shrink_dense/bias": [width]}
            before = width
    shapes |= {f"final_layer_norm/{n}": [last] for n in norm[:2]}
    for kind, out in (("inner_dense", last), ("logit_dense", config.num_classes)):
        shapes |= {f"cls_head/{kind}/weight": [last, out], f"cls_head/{kind}/bias": [out]}
    return shapes


def drawn(shapes: Shapes) -> dict[str, Tensor]:
    """The values with which the golden numbers were made: sines of their place, by the order of the names."""
    found = {}
    for index, (name, shape) in enumerate(sorted(shapes.items())):
        waves = torch.sin(1.7 * torch.arange(torch.Size(shape).numel(), dtype=torch.float64) + index)
        is_factor = name.endswith(("moving_variance", "gamma"))
        found[name] = (1 + 0.5 * waves if is_factor else 0.4 * waves).reshape(shape).float()
    return found


def test_names_and_shapes_are_those_of_the_authors_network() -> None:
    assert {f"maxvit/{name}": shape for name, shape in official_shapes(SMALL, 2).items()} == GOLDEN["shapes"]


def test_the_network_computes_what_the_authors_does() -> None:
    model = MaxViT(SMALL).double().eval()
    model.load_state_dict(model.convert_state_dict(drawn(GOLDEN["shapes"])), strict=True)
    x = torch.sin(0.37 * torch.arange(2 * 16 * 16 * 3, dtype=torch.float64)).reshape(2, 16, 16, 3).movedim(-1, 1)
    with torch.no_grad():
        logits, maps = model(x), model.forward_intermediates(x, intermediates_only=True)
    expected = torch.tensor(GOLDEN["logits"], dtype=torch.float64)
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))
    for one, (mean, size, sample) in zip(maps, GOLDEN["maps"], strict=True):
        flat = one.movedim(1, -1).flatten()
        found = [flat.mean().item(), flat.abs().mean().item(), flat[flat.numel() // 3].item()]
        assert found == pytest.approx([mean, size, sample], abs=5e-6 * size)


def test_moving_averages_come_first_and_what_is_no_weight_is_left_out() -> None:
    shapes = official_shapes(SMALL, 2)
    latest, average = "maxvit/{}:0", "maxvit/{}/ExponentialMovingAverage"
    assert GOLDEN["average"] == average.format("block_00_00/attention/k/bias")
    saved = {latest.format(name): torch.zeros(shape) for name, shape in shapes.items()}
    saved |= {average.format(name): tensor for name, tensor in drawn(shapes).items()}
    saved["global_step"] = torch.tensor(7)
    model = MaxViT(SMALL)
    converted, expected = (model.convert_state_dict(given) for given in (saved, drawn(shapes)))
    assert converted.keys() == expected.keys() == model.state_dict().keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in expected.items())


def test_a_file_of_another_window_loads_by_the_name_of_the_model(tmp_path: Path) -> None:
    """As the authors' fine-tuned ones, which keep the tables of the size that they were trained at."""
    shapes = official_shapes(MaxViT.presets["maxvit_tiny_tf_384"], 7)
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    model = models.create("maxvit_tiny_tf_384", pretrained=tmp_path)
    assert sum(tensor.numel() for tensor in model.parameters()) == 30_977_008
    assert model.stages[3].blocks[1].attn_grid.attn.rel_pos.relative_position_bias_table.shape == (16, 23, 23)


def test_what_is_not_of_the_layout_is_named() -> None:
    model = MaxViT(SMALL)
    for name in ("block_00_00/mbconv/pre_norm/delta", "maxvit/stem/conv_2/kernel"):
        with pytest.raises(ValueError, match=f"1 of .* names are not of this layout, .*{name.removeprefix('maxvit/')}"):
            model.convert_state_dict(drawn(official_shapes(SMALL, 2)) | {name: torch.ones(8)})


def test_parts_are_joined_in_their_order_or_missed() -> None:
    rows = torch.arange(6.0)
    joined = join(
        {"a.k.bias": rows[2:4], "a.v.bias": rows[4:], "b": rows, "a.q.bias": rows[:2]}, ["q", "k", "v"], "qkv"
    )
    assert joined.keys() == {"a.qkv.bias", "b"}
    assert torch.equal(joined["a.qkv.bias"], rows)
    with pytest.raises(ValueError, match=r"join: weights must have a\.q\.bias: a\.qkv\.bias is made of"):
        join({"a.k.bias": rows, "a.v.bias": rows}, ["q", "k", "v"], "qkv")
