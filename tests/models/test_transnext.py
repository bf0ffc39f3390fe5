"""TransNeXt and MoH-ViT against the authors' model: numbers, names and sizes; operations counted by hand."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attensor.models.vision.transnext import TransNeXt, TransNeXtConfig
from attensor.nn import AggregatedAttention, load_balance_loss
from tests.golden.drawn import fingerprint, golden, listing, summaries, uniform, weighed, weights

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
CONFIG = TransNeXtConfig(
    image_size=(64, 64), hidden_sizes=(4, 6, 8, 12), depths=(1, 2, 1, 1), num_heads=(2, 3, 4, 4),
    mlp_ratios=(3, 3, 2, 2), num_shared=(2, 1, 2, 2), num_active=(2, 2, 3, 3), num_classes=5, drop_path_rate=0.0,
)  # fmt: skip
WIDE = {"temperature": (1, 1), "query_embedding": (1,), "learnable_bias": (1,)}


def theirs(name: str) -> str:
    """A parameter's name in the release."""
    name = re.sub(r"^stem\.", "patch_embed1.", name)
    name = re.sub(r"^head\.fc\.", "head.", name)
    place = re.match(r"stages\.(\d+)\.", name)
    if place:
        number, rest = int(place[1]) + 1, name[place.end() :]
        rest = re.sub(r"^downsample\.", f"patch_embed{number}.", rest)
        rest = re.sub(r"^norm\.", f"norm{number}.", rest)
        name = re.sub(r"^blocks\.", f"block{number}.", rest)
    name = re.sub(r"attn\.bias\.", "attn.cpb_", name).replace("attn.router.", "attn.")
    return name.replace("mlp.dwconv.", "mlp.dwconv.dwconv.")


def shape(name: str, x: Tensor) -> tuple[int, ...]:
    """Of the same parameter in the release."""
    more = WIDE.get(name.rpartition(".")[2], ())
    return (len(x), *more, *x.shape[1:])


def test_equals_the_authors_model() -> None:
    model = TransNeXt(CONFIG).double().eval()
    named = dict(model.named_parameters())
    shapes = {f"transnext.{theirs(name)}": shape(name, x) for name, x in named.items()}
    given = {name.removeprefix("transnext."): x for name, x in weights(shapes).items()}
    model.load_state_dict(model.convert_state_dict(given))
    expected, images = golden("moh"), uniform("image", 2, 3, 64, 64).requires_grad_()
    out = model(images)
    weighed(out).backward()
    torch.testing.assert_close(out, expected["transnext.out"], **CLOSE)
    torch.testing.assert_close(images.grad, expected["transnext.dx"], **CLOSE)
    found = {theirs(name): x.grad.view(shape(name, x)) for name, x in named.items()}
    torch.testing.assert_close(summaries(found), expected["transnext.dp"], **CLOSE)


@pytest.mark.parametrize("name", [name for name in TransNeXt.presets if name.startswith("moh")])
def test_released_sizes_have_the_authors_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        model = TransNeXt(TransNeXt.presets[name])
    shapes = {theirs(key): shape(key, x) for key, x in model.named_parameters()}
    assert fingerprint(shapes) == listing("moh")[name]["fingerprint"]


def test_images_of_any_size_and_the_loads_of_routed_stages() -> None:
    model = TransNeXt(CONFIG).train()
    assert model(torch.randn(2, 3, 41, 70)).shape == (2, 5)
    loads = [stage.blocks[0].attn.router.load for stage in model.stages]
    assert loads[0] is None  # all of its heads are shared
    assert load_balance_loss(model).item() > 0.9


@pytest.mark.parametrize(
    ("name", "giga"),
    [("transnext_micro", 2.7), ("transnext_tiny", 5.7), ("transnext_small", 10.3), ("transnext_base", 18.4)],
)
def test_operations_are_the_paper_s(name: str, giga: float) -> None:
    """GMACs at 224 x 224 (arXiv:2311.17132, table 2) to their last digit, counted as fvcore counts the authors' code.

    Beside products and convolutions these are five for each number that a layer norm makes, one for each that is
    pooled, and those of neighbours beyond the border.
    """
    with torch.device("meta"):
        model = TransNeXt(TransNeXt.presets[name]).eval()
        images = torch.empty(1, 3, 224, 224)
    others = [0]

    def count(module: nn.Module, _: object, out: Tensor) -> None:
        others[0] += 5 * out.numel()

    def count_attention(module: nn.Module, args: tuple[Tensor], _: object) -> None:
        others[0] += args[0].numel() + 2 * 9 * args[0].numel()

    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(count)
        if isinstance(module, AggregatedAttention):
            module.register_forward_hook(count_attention)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    found = counter.get_total_flops() / 2
    inside = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "neighborhood" in str(op)) / 2
    if name == "transnext_small":
        assert found == pytest.approx(giga * 1e9, rel=0.005)
    assert round((found - inside + others[0]) / 1e9, 1) == giga
