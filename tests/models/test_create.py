"""`models.create`: names from cards, weights from files, and what does not fit said by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from attensor import models
from attensor.errors import MissingExtraError
from attensor.models.convert import Rule, convert, load_weights, read_weights
from attensor.models.vision import FeatureExtractor, VisionTransformer

TINY = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], Path]:
    """Weights of a tiny transformer for ten classes, in a folder."""
    torch.manual_seed(4)
    weights = models.create(TINY, num_classes=10).state_dict()
    folder = tmp_path_factory.mktemp("weights")
    save_file(weights, folder / "model.safetensors")
    return weights, folder


def test_names_are_those_of_the_cards() -> None:
    assert {TINY, "gla_340M", "transnormer_7B"} <= set(models.model_names())
    model = models.create("gla_340M", device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    with pytest.raises(ValueError, match="gla_340M has no num_classes; leave it out"):
        models.create("gla_340M", num_classes=3)


def test_size_type_and_classes_are_set() -> None:
    model = models.create(TINY, num_classes=3, img_size=(64, 32), dtype=torch.bfloat16)
    assert model(torch.zeros(2, 3, 64, 32, dtype=torch.bfloat16)).shape == (2, 3)
    assert model.grid_size == (4, 2)
    assert models.create(TINY, img_size=48, num_classes=0, device="meta").grid_size == (3, 3)


def test_weights_of_a_folder_or_file(saved: tuple[dict[str, Tensor], Path]) -> None:
    weights, folder = saved
    for path in (folder, str(folder / "model.safetensors")):
        model = models.create(TINY, pretrained=path, num_classes=10)
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_another_classifier_starts_anew_and_positions_are_resized(saved: tuple[dict[str, Tensor], Path]) -> None:
    weights, folder = saved
    model = models.create(TINY, pretrained=folder, num_classes=7, img_size=(96, 160))
    state = model.state_dict()
    assert {name for name in state if not torch.equal(state[name], weights.get(name, state[name][:0]))} == {
        "head.weight", "head.bias", "pos_embed",
    }  # fmt: skip
    whole = models.create(TINY, pretrained=folder, num_classes=10)
    assert torch.equal(model.pos_embed, whole.positions(6, 10))
    assert models.create(TINY, pretrained=folder, num_classes=0).get_parameter("norm.weight").shape == (192,)


def test_maps_for_a_neck(saved: tuple[dict[str, Tensor], Path]) -> None:
    weights, folder = saved
    with pytest.raises(ValueError, match=r"head\.weight \[10, 192\] instead of \[1000, 192\]"):
        models.create(TINY, pretrained=folder, features_only=True)
    extractor = models.create(TINY, pretrained=folder, num_classes=10, features_only=True, out_indices=(2, 5))
    assert isinstance(extractor, FeatureExtractor)
    assert [tuple(one.shape) for one in extractor(torch.zeros(1, 3, 32, 48))] == [(1, 192, 2, 3)] * 2
    assert torch.equal(extractor.model.get_parameter("blocks.5.norm1.weight"), weights["blocks.5.norm1.weight"])
    with pytest.raises(AttributeError):
        extractor.model.get_parameter("blocks.6.norm1.weight")


def test_what_does_not_fit_is_counted_and_named(saved: tuple[dict[str, Tensor], Path], tmp_path: Path) -> None:
    weights, _ = saved
    broken = {f"old.{name}" if "blocks.3" in name else name: tensor for name, tensor in weights.items()}
    broken["cls_token"] = torch.zeros(1, 1, 5)
    save_file(broken, tmp_path / "broken.safetensors")
    expected = (
        r"broken\.safetensors does not fit this VisionTransformer: 12 missing \(blocks\.3\.norm1\.weight, .*, \.\.\); "
        r"12 unexpected \(old\.blocks\.3\..*\); 1 of another shape \(cls_token \[1, 1, 5\] instead of \[1, 1, 192\]\)\."
    )
    with pytest.raises(ValueError, match=expected):
        models.create(TINY, pretrained=tmp_path / "broken.safetensors", num_classes=10)
    model = VisionTransformer(VisionTransformer.tiny)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="missing"):
        load_weights(model, {"cls_token": torch.ones(1, 1, 12)}, source="half a file")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no model is called 'vit_tyni_patch16_224'.*Did you mean 'vit_tiny_patch16_224'"
    ):
        models.create("vit_tyni_patch16_224")
    with pytest.raises(ValueError, match="set it"):
        models.create(TINY, device="meta", out_indices=2)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: there is no such file"):
        models.create(TINY, pretrained=tmp_path)
    (tmp_path / "weights.pth").write_bytes(b"not safetensors at all")
    with pytest.raises(ValueError, match=r"weights\.pth is not a safetensors file"):
        read_weights(tmp_path / "weights.pth")


def test_rules_rename_cut_and_refuse() -> None:
    rules = [
        Rule(r"layer(\d)\.qk", (r"\1.q", r"\1.k"), lambda rows: rows.chunk(2)),
        Rule(r"(norm)\.gain", (r"\1.weight",)),
    ]
    rows, gain = torch.arange(6.0), torch.ones(2)
    converted = convert("from_old", {"layer7.qk": rows, "norm.gain": gain}, rules)
    assert {name: tensor.tolist() for name, tensor in converted.items()} == {
        "7.q": [0, 1, 2], "7.k": [3, 4, 5], "norm.weight": [1, 1],
    }  # fmt: skip
    assert converted["norm.weight"] is gain
    with pytest.raises(ValueError, match=r"from_old: 1 of 1 names are not of this layout, the first is 'layer7\.qkv'"):
        convert("from_old", {"layer7.qkv": rows}, rules)


def test_timm_is_asked_for_only_to_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.models", None)
    with pytest.raises(MissingExtraError, match="register_with_timm needs timm: pip install timm"):
        models.register_with_timm()


@pytest.mark.slow
def test_names_cost_no_import_of_timm() -> None:
    code = "import sys; from attensor import models; models.model_names(); sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
