"""L2ViT and RAVLT: the authors' numbers, names and sizes; other formats, memory layouts, compilers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attensor import models
from attensor.models.vision.image_model import ImageModel
from attensor.models.vision.l2vit import L2ViT, L2ViTConfig
from attensor.models.vision.ravlt import RAVLT, RAVLTConfig
from tests.golden.drawn import fingerprint, golden, listing, summaries, uniform, weighed, weights
from tests.models.released import by_released_names, filled, l2vit_shapes, ravlt_shapes

SIZES: dict[str, Any] = {"hidden_sizes": (8, 12, 16, 24), "num_classes": 7, "drop_path_rate": 0.0}
SMALL_L2VIT = L2ViTConfig(depths=(2, 2, 2, 3), num_heads=(2, 3, 4, 3), window_size=3, **SIZES)
SMALL_RAVLT = RAVLTConfig(depths=(1, 2, 1, 2), num_heads=(1, 3, 2, 3), projected_size=17, **SIZES)
IMAGE, STEP = (2, 3, 37, 45), 4


@dataclass(frozen=True)
class Recorded:
    """A small model that the authors' code was run as, and where its numbers are."""

    sheet: str
    name: str
    kind: Callable[[Any], ImageModel]
    config: Any
    shapes: Callable[[Any], dict[str, tuple[int, ...]]]
    released: Any  # the configuration that reads its names

    def build(self) -> ImageModel:
        return filled(self.kind(self.config), self.kind(self.released), self.shapes(self.config))


def recorded_ravlt(name: str, config: RAVLTConfig) -> Recorded:
    return Recorded("rala", name, RAVLT, config, ravlt_shapes, SMALL_RAVLT)


RECORDED = {
    "l2vit": Recorded("l2vit", "model", L2ViT, SMALL_L2VIT, l2vit_shapes, SMALL_L2VIT),
    "ravlt": recorded_ravlt("released", SMALL_RAVLT),
    "ravlt-linear": recorded_ravlt("all-linear", replace(SMALL_RAVLT, attention=("linear",) * 4)),
}
TINY = {"l2vit": partial(L2ViT, L2ViT.tiny), "ravlt": partial(RAVLT, RAVLT.tiny)}
# multiplications with an addition at the size of the preset, in units of 10^9
OPERATIONS = {"l2vit_tiny": 4.69, "l2vit_small": 8.98, "l2vit_base": 15.81, "l2vit_base_384": 47.32}
OPERATIONS |= {"ravlt_t": 2.61, "ravlt_s": 4.88, "ravlt_b": 10.58, "ravlt_l": 17.21}
OPERATIONS |= {"ravlt_t_linear": 2.54, "ravlt_s_linear": 4.73, "ravlt_b_linear": 10.35, "ravlt_l_linear": 16.78}
QUICK = ("l2vit_tiny", "ravlt_t_linear")
LISTED = {name: (l2vit_shapes, facts) for name, facts in listing("l2vit").items()}
LISTED |= {name: (ravlt_shapes, facts) for name, facts in listing("rala").items()}


def tiny(name: str) -> ImageModel:
    model = TINY[name]().eval()
    model.load_state_dict(weights({key: x.shape for key, x in model.state_dict().items()}))
    return model


def images(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *(size or (21, 26)), generator=torch.Generator().manual_seed(1))


def closeness(actual: Tensor, expected: Tensor) -> float:
    return float(((actual.double() - expected).abs().max() / expected.abs().max()).detach())


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("case", RECORDED.values(), ids=RECORDED)
def test_numbers_are_those_of_the_authors_code(case: Recorded, mode: str) -> None:
    """Logits, the gradient of the image and of every parameter, where neither stem nor windows fit."""
    numbers, model = golden(case.sheet), case.build().train(mode == "train")
    x = uniform("image", *IMAGE).requires_grad_()
    out = model(x)
    weighed(out).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    old = by_released_names(case.kind(case.released), case.shapes(case.config), gradients)
    found = {"out": out, "dx": x.grad[..., ::STEP, ::STEP], "dp": summaries(old)}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, numbers[f"{case.name}.{mode}.{name}"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "shapes", "facts"), [(n, *found) for n, found in LISTED.items()])
def test_every_name_and_shape_of_a_release_finds_its_place(name: str, shapes: Any, facts: dict[str, int]) -> None:
    model = models.create(name, device="meta")
    released = shapes(model.config)
    assert (len(released), fingerprint(released)) == (facts["tensors"], facts["fingerprint"])
    assert sum(parameter.numel() for parameter in model.parameters()) == facts["parameters"]
    converted = model.convert_state_dict({key: torch.empty(shape, device="meta") for key, shape in released.items()})
    assert {key: x.shape for key, x in converted.items()} == {key: x.shape for key, x in model.state_dict().items()}
    assert model.convert_state_dict(converted) == converted
    with pytest.raises(ValueError, match=r"1 of .* names are not of this layout, the first is 'patch_embeds"):
        model.convert_state_dict({"patch_embeds.0.weight": torch.zeros(1), **weights(dict([*released.items()][:1]))})


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in OPERATIONS])
def test_operations_are_the_published_ones(name: str) -> None:
    model = models.create(name, device="meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, *model.config.image_size, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(OPERATIONS[name], rel=5e-3)


def test_weights_of_softmax_stages_are_not_taken_for_linear_ones() -> None:
    """Every name and shape would fit; what was trained as linear in the authors' code is loaded knowingly."""
    shapes = ravlt_shapes(SMALL_RAVLT)
    released, linear = RECORDED["ravlt"].build().eval(), RECORDED["ravlt-linear"].build().eval()
    assert closeness(linear(uniform("image", *IMAGE)), released(uniform("image", *IMAGE))) > 0.05
    with pytest.raises(ValueError, match=r"with attention=\('linear', 'linear', 'softmax', 'softmax'\), do not fit"):
        linear.convert_state_dict(weights(shapes))


@pytest.mark.slow
def test_files_of_releases(tmp_path: Path) -> None:
    whole = models.create("ravlt_t", device="meta").config
    save_file({name: torch.zeros(shape) for name, shape in ravlt_shapes(whole).items()}, tmp_path / "t.safetensors")
    with pytest.raises(ValueError, match="create the model without _linear"):
        models.create("ravlt_t_linear", pretrained=tmp_path / "t.safetensors")
    model = models.create("ravlt_t", pretrained=tmp_path / "t.safetensors")
    assert not any(parameter.any() for parameter in model.parameters())
    shapes = l2vit_shapes(models.create("l2vit_tiny", device="meta").config)
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "l2vit.safetensors")
    model = models.create("l2vit_tiny", pretrained=tmp_path / "l2vit.safetensors", num_classes=3, img_size=64)
    assert model.head.fc.weight.shape == (3, 768)
    assert bool(model.stages[3].blocks[1].local_mp.conv2.weight.eq(1).all())


def test_each_stage_has_all_its_sizes() -> None:
    with pytest.raises(ValueError, match=r"hidden_sizes 4, depths 3, num_heads 4, attention 4, .*equally many"):
        RAVLTConfig(depths=(1, 2, 3))
    kinds = [[block.attn.attention for block in stage.blocks] for stage in RAVLT(SMALL_RAVLT).stages]
    assert kinds == [["linear"], ["linear"] * 2, ["softmax"], ["softmax"] * 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", TINY)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    model, x = tiny(name), images()
    exact = copy.deepcopy(model).double()(x.double())
    with torch.autocast("cpu", dtype):
        mixed = model(x)
    for out in (mixed, model.to(dtype)(x.to(dtype))):
        assert out.dtype == dtype
        assert closeness(out, exact) < (0.05 if dtype == torch.bfloat16 else 0.01)


@pytest.mark.parametrize("name", TINY)
def test_channels_last_and_single_images(name: str) -> None:
    model, x = tiny(name), images(batch=3)
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model(x[1:2]), expected[1:2], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_compiles_to_the_same_numbers(name: str) -> None:
    model, x = tiny(name).double(), images().double()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_an_exported_model_takes_any_batch_and_size(name: str) -> None:
    model = tiny(name).double()
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(model, (images().double(),), dynamic_shapes=(free,))
    for x in (images().double(), images(39, 30, batch=3).double()):
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-9, atol=1e-9)
