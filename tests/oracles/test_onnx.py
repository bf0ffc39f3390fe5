"""Image models as ONNX programs: onnxruntime gives the same logits, whatever the batch and the size of the images."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attensor.catalogue import cards, load
from attensor.models.vision.image_model import ImageModel

for package in ("onnx", "onnxscript"):  # what torch.onnx is made of
    pytest.importorskip(package, reason=f"{package} is not installed: pip install {package}")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime")

FREE = torch.export.Dim.DYNAMIC


def models() -> dict[str, tuple[type[ImageModel], Any]]:
    """Every class of image models that a card names, as small as it gets; that of NAT is dilated as well."""
    kinds = [load(path) for card in cards().values() for path in card.models if ".vision." in path]
    return {kind.__name__: (kind, kind.tiny) for kind in kinds if issubclass(kind, ImageModel)}


def built(name: str) -> nn.Module:
    """One whose every parameter matters."""
    kind, config = models()[name]
    torch.manual_seed(0)
    model: nn.Module = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)  # type: ignore[union-attr,operator]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr,operator]
    return model


def exported(model: nn.Module, images: Tensor, file: Path) -> Any:
    """A session of onnxruntime with the model in a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of what it deprecates in itself
        program = torch.onnx.export(
            model, (images,), dynamo=True, verbose=False, dynamic_shapes=(dict.fromkeys((0, 2, 3), FREE),)
        )
    assert program is not None
    program.save(str(file))
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


@pytest.mark.slow
@pytest.mark.parametrize("name", models())
def test_a_program_takes_any_batch_and_size(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if name == "TransNeXt":
        why = "torch.onnx.export contradicts itself on the size that keys are pooled to when the map's is free"
        request.applymarker(pytest.mark.xfail(reason=why, strict=True))
    model = built(name)
    height, width = model.config.image_size  # type: ignore[union-attr]
    session = exported(model, torch.randn(2, 3, height, width), tmp_path / "model.onnx")
    (given,) = session.get_inputs()
    for batch, sides in ((2, (height, width)), (1, (2 * height, width)), (3, (height + 17, 2 * width - 3))):
        images = torch.randn(batch, 3, *sides)
        (logits,) = session.run(None, {given.name: images.numpy()})
        with torch.no_grad():
            expected = model(images)
        assert expected.std() > 1e-2
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-4)
