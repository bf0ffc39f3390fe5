"""NAT and DiNAT: the authors' numbers, names of the published layouts, parameters and multiplications of all sizes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attensor import models
from attensor.models.vision.nat import NAT, NATConfig

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "nat.json").read_text())
CASES = {**GOLDEN["cases"], "transformers": GOLDEN["transformers"]}

# as printed by the authors: millions of parameters, billions of multiplications and additions at the preset's size
PRINTED = {
    "nat_mini": (20, 2.7), "nat_tiny": (28, 4.3), "nat_small": (51, 7.8), "nat_base": (90, 13.7),
    "dinat_mini": (20, 2.7), "dinat_tiny": (28, 4.3), "dinat_small": (51, 7.8), "dinat_base": (90, 13.7),
    "dinat_large": (200, 30.6), "dinat_large_384": (200, 89.7), "dinat_large_384_11x11": (200, 92.4),
}  # fmt: skip


def config_of(options: dict[str, Any]) -> NATConfig:
    """Ours, of the authors' options."""
    return NATConfig(
        hidden_sizes=tuple(options["embed_dim"] * 2**i for i in range(len(options["depths"]))),
        depths=tuple(options["depths"]),
        num_heads=tuple(options["num_heads"]),
        window_size=options["kernel_size"],
        dilations=tuple(map(tuple, options["dilations"])),
        mlp_ratio=options["mlp_ratio"],
        layer_scale=options["layer_scale"],
        num_classes=5,
    )


def filled(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Waves, around 1 for what norms multiply with; every tensor another."""
    found = {}
    for index, (name, shape) in enumerate(shapes.items()):
        count = torch.Size(shape).numel()
        wave = 0.2 * torch.sin(0.9 * torch.arange(count, dtype=torch.float64) + index).view(shape)
        found[name] = wave + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return found


def weigh(x: Tensor) -> Tensor:
    return (x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sum()


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_the_authors(case: str) -> None:
    """A map smaller than a window is among them; gradients of every parameter by a weighted sum."""
    theirs = CASES[case]
    model = NAT(config_of(theirs["options"])).double().eval()
    weights = filled(theirs["shapes"])
    converted = model.convert_state_dict(weights)
    model.load_state_dict(converted, strict=True)
    height, width = GOLDEN["size"]
    images = torch.cos(0.37 * torch.arange(2 * 3 * height * width, dtype=torch.float64)).view(2, 3, height, width)
    logits = model(images)
    torch.testing.assert_close(logits, torch.tensor(theirs["logits"], dtype=torch.float64), rtol=1e-9, atol=1e-11)
    # converting is linear, so the sum weighed by converted weights is the one by their own
    weighed = {name: torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x) for name, x in weights.items()}
    expected = sum(theirs["gradients"].values())
    names = [name for name, _ in model.named_parameters()]
    grads = torch.autograd.grad(weigh(logits), list(model.parameters()))
    factors = model.convert_state_dict(weighed)
    sums = {name: (grad * factors[name]).sum() for name, grad in zip(names, grads)}
    assert float(sum(sums.values())) == pytest.approx(expected, rel=1e-9)
    if case != "transformers":  # there one tensor of theirs is three or two of ours
        ours = {id(x): name for name, x in converted.items()}
        for name, sum_of_theirs in theirs["gradients"].items():
            assert float(sums[ours[id(weights[name])]]) == pytest.approx(sum_of_theirs, rel=1e-8, abs=1e-10), name


@pytest.mark.parametrize("name", GOLDEN["names"])
def test_names_and_shapes_of_a_release(name: str) -> None:
    with torch.device("meta"):
        release = {key: torch.empty(shape) for key, shape in GOLDEN["names"][name].items()}
        model = models.create(name, device="meta")
        converted = model.convert_state_dict(release)
        own = {key: x.shape for key, x in model.state_dict().items()}
    assert {key: x.shape for key, x in converted.items()} == own
    assert model.convert_state_dict(converted).keys() == own.keys()


def test_names_of_transformers() -> None:
    """Those of `NatForImageClassification` begin with nat; a model without a head has no prefix."""
    theirs = GOLDEN["transformers"]
    model = NAT(config_of(theirs["options"]))
    expected = {key: x.shape for key, x in model.state_dict().items()}
    weights = filled(theirs["shapes"])
    for prefix in ("dinat.", "nat."):
        named = {key.replace("dinat.", prefix): x for key, x in weights.items()}
        assert {key: x.shape for key, x in model.convert_state_dict(named).items()} == expected
    bare = {key.removeprefix("dinat."): x for key, x in weights.items() if not key.startswith("classifier")}
    assert expected.keys() - model.convert_state_dict(bare).keys() == {"head.fc.weight", "head.fc.bias"}
    with pytest.raises(ValueError, match=r"NAT: 1 of \d+ names are not of this layout, the first is 'levels\.0\.foo'"):
        model.convert_state_dict({"levels.0.foo": torch.zeros(1)})


def test_heads_come_from_the_weights_and_tables_are_resized(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(NAT.tiny, num_heads=(4, 6))
    published = NAT(config)
    assert NAT.fitted(NAT.tiny, published.state_dict()) == config
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    wide = NAT(dataclasses.replace(config, window_size=5))
    tables = wide.convert_state_dict(published.state_dict())["stages.0.blocks.0.attn.rpb"]
    assert tables.shape == (4, 9, 9)
    small = published.state_dict()["stages.0.blocks.0.attn.rpb"]
    torch.testing.assert_close(tables[:, 4, 4], small[:, 2, 2])  # the middle is that of a cell itself
    presets = {"nat_mini": NAT.tiny}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NAT, "presets", presets)
        model = models.create("nat_mini", pretrained=tmp_path)
    images = torch.randn(1, 3, 32, 40)
    torch.testing.assert_close(model.eval()(images), published.eval()(images))


@pytest.mark.parametrize("name", PRINTED)
def test_sizes_are_the_printed_ones(name: str) -> None:
    """To the digits that are printed; the parameters exactly those of the authors' code."""
    model = models.create(name, device="meta")
    parameters, billions = PRINTED[name]
    count = sum(p.numel() for p in model.parameters())
    assert count == GOLDEN["parameters"][name]
    assert round(count / 1e6) == pytest.approx(parameters, abs=1 if parameters == 200 else 0)
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, 3, *model.config.image_size, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(billions, rel=5e-3, abs=0.05)


def test_relative_biases_do_not_decay() -> None:
    model = NAT(NAT.tiny)
    assert model.no_weight_decay() == {name for name, _ in model.named_parameters() if name.endswith(".rpb")}
    assert isinstance(model.stages[0].blocks[0].ls1.gamma, nn.Parameter)


@pytest.mark.slow
def test_an_exported_model_takes_any_batch_and_size() -> None:
    """With parameters that still ask for gradients: the kernels are then looked into by autograd."""
    torch.manual_seed(0)
    model = NAT(NAT.tiny).double().eval()
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    example = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    program = torch.export.export(model, (example,), dynamic_shapes=(free,), strict=False).module()
    for images in (example, torch.randn(3, 3, 96, 72, dtype=torch.float64)):
        torch.testing.assert_close(program(images), model(images), rtol=1e-10, atol=1e-12)
