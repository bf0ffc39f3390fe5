"""Checkpoints of DaViT's authors and of Florence-2: renamed as timm renames them, and loaded."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from attensor.models.vision.davit import DaViT
from tests.oracles.timm import load_timm

timm = load_timm()
SMALL = {"depths": (1, 1, 1, 1)}

# timm's names to those of the releases; timm's own filter must lead back, or these are not the releases' names
OFFICIAL = [
    (r"stem\.conv", "patch_embeds.0.proj"),
    (r"stem\.norm", "patch_embeds.0.norm"),
    (r"stages\.(\d)\.downsample\.conv", r"patch_embeds.\1.proj"),
    (r"stages\.(\d)\.downsample\.norm", r"patch_embeds.\1.norm"),
    (r"stages\.(\d)\.blocks", r"main_blocks.\1"),
    (r"cpe1", "cpe.0"),
    (r"cpe2", "cpe.1"),
    (r"head\.norm", "norms"),
    (r"head\.fc", "head"),
]
FLORENCE = [
    (r"stem\.conv", "convs.0.proj"),
    (r"stem\.norm", "convs.0.norm"),
    (r"stages\.(\d)\.downsample\.conv", r"convs.\1.proj"),
    (r"stages\.(\d)\.downsample\.norm", r"convs.\1.norm"),
    (r"stages\.(\d)\.blocks", r"blocks.\1"),
    (r"(spatial_block)\.norm1", r"\1.window_attn.norm"),
    (r"(spatial_block)\.attn", r"\1.window_attn.fn"),
    (r"(channel_block)\.norm1", r"\1.channel_attn.norm"),
    (r"(channel_block)\.attn", r"\1.channel_attn.fn"),
    (r"norm2", "ffn.norm"),
    (r"mlp", "ffn.fn.net"),
    (r"cpe1\.proj", "conv1.fn.dw"),
    (r"cpe2\.proj", "conv2.fn.dw"),
    (r"^", "vision_tower."),
]


def renamed(name: str, rules: list[tuple[str, str]]) -> str:
    for old, new in rules:
        name = re.sub(old, new, name)
    return name


@pytest.mark.parametrize(("name", "rules"), [("davit_tiny", OFFICIAL), ("davit_base_fl", FLORENCE)])
def test_names_of_a_release(name: str, rules: list[tuple[str, str]]) -> None:
    theirs = timm.create_model(name, num_classes=5 if rules is OFFICIAL else 0, **SMALL)
    weights: dict[str, Tensor] = {key: x for key, x in theirs.state_dict().items() if not key.startswith("head.norm")}
    if rules is OFFICIAL:
        weights = theirs.state_dict()
    release = {renamed(key, rules): x for key, x in weights.items()}
    if rules is FLORENCE:
        release["language_model.shared.weight"] = torch.zeros(1)  # the rest of Florence-2 is left out
    filtered = timm.models.davit.checkpoint_filter_fn(dict(release), theirs)
    assert filtered.keys() == weights.keys()
    config = DaViT.presets[name]
    ours = DaViT(type(config)(**{**vars(config), **SMALL, "num_classes": 5 if rules is OFFICIAL else 0}))
    converted = ours.convert_state_dict(release)
    assert converted.keys() == ours.convert_state_dict(filtered).keys()
    missing, unexpected = ours.load_state_dict(converted, strict=False)
    assert not unexpected
    assert set(missing) <= {"head.norm.weight", "head.norm.bias"}
    if rules is OFFICIAL:
        assert not missing
    for key, x in ours.convert_state_dict(filtered).items():
        assert torch.equal(converted[key], x), key
