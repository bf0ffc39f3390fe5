"""timm's methods on every image model: a vision transformer, and a backbone made of mixers that exist."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from attensor.catalogue import cards, load
from attensor.errors import ShapeError
from attensor.models.blocks import MLP, ConvolutionalPosition, LayerScale, ResidualBlock
from attensor.models.vision import Backbone, FeatureExtractor, VisionTransformer
from attensor.models.vision.backbone import ClassifierHead, Stage
from attensor.models.vision.image_model import ImageModel
from attensor.nn import NeighborhoodAttention, WindowGridAttention


class Convolution(nn.Module):
    """Halves a map of any size, channels last."""

    def __init__(self, channels: int, width: int, *, channels_first: bool = False) -> None:
        super().__init__()
        self.proj, self.channels_first = nn.Conv2d(channels, width, 3, stride=2, padding=1), channels_first

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x if self.channels_first else x.movedim(-1, 1)).movedim(1, -1)


class Toy(Backbone):
    """Two stages: window and grid attention by turns, then neighbourhoods with positions by convolution."""

    def __init__(self, *, stem_map: bool = True, drop_path: float = 0.0) -> None:
        def block(width: int, mixer: nn.Module, **options: object) -> ResidualBlock:
            norm = partial(nn.LayerNorm, width)
            return ResidualBlock(mixer, MLP(width, 2 * width), norm=norm, drop_path=drop_path, **options)

        near = [block(6, WindowGridAttention(6, 2, block_size=3, layer_index=i)) for i in range(2)]
        far = [
            block(
                8,
                NeighborhoodAttention(8, 2, window_size=3),
                cpe=[ConvolutionalPosition(8)],
                layer_scale=partial(LayerScale, 8, 0.5),
            )
        ]
        super().__init__(
            Convolution(3, 6, channels_first=True),
            [Stage(near), Stage(far, downsample=Convolution(6, 8))],
            ClassifierHead(8, 5),
            channels=(6, 6, 8) if stem_map else (6, 8),
            reductions=(2, 2, 4) if stem_map else (2, 4),
            norm=nn.LayerNorm(8),
        )


def vit(**changes: object) -> VisionTransformer:
    return VisionTransformer(dataclasses.replace(VisionTransformer.tiny, **changes))


def published() -> dict[str, Callable[[], ImageModel]]:
    """The smallest model of every class that a card names."""
    kinds = [load(path) for card in cards().values() for path in card.models]
    return {kind.__name__: partial(kind, kind.tiny) for kind in kinds if issubclass(kind, ImageModel)}


MODELS: dict[str, Callable[[], ImageModel]] = {
    **published(),
    "vit-mean": partial(vit, class_token=False),
    "toy": Toy,
    "toy-without-stem-map": partial(Toy, stem_map=False),
}
MODEL = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
DEEP = pytest.mark.parametrize(
    "make", [partial(vit, drop_path_rate=0.4), partial(Toy, drop_path=0.3)], ids=["vit", "toy"]
)


def build(make: Callable[[], ImageModel], seed: int = 0) -> ImageModel:
    torch.manual_seed(seed)
    return make().double().eval()


def images(*size: int, batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, *(size or (16, 24)), dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@MODEL
@pytest.mark.parametrize("size", [(16, 24), (17, 31), (9, 8)], ids=str)
def test_any_size_and_images_do_not_mix(make, size) -> None:
    model, x = build(make), images(*size).requires_grad_()
    logits = model(x)
    assert logits.shape == (3, model.num_classes)
    (grad,) = torch.autograd.grad(logits[1, 2], x)
    assert grad[1].abs().amin() > 0
    assert not grad[[0, 2]].any()
    torch.testing.assert_close(model(x[1:2]), logits[1:2], rtol=1e-10, atol=1e-10)
    assert model(x[:0]).shape == (0, model.num_classes)
    assert all(one.shape[0] == 0 for one in model.forward_intermediates(x[:0], intermediates_only=True))


@MODEL
def test_the_pieces_make_the_whole(make) -> None:
    """The forward pass is the head of the features; maps are what the parts return; stopping early changes nothing."""
    model, x = build(make), images(17, 31)
    logits, features = model(x), model.forward_features(x)
    assert torch.equal(model.forward_head(features), logits)
    pooled = model.forward_head(features, pre_logits=True)
    assert torch.equal(model.get_classifier()(pooled), logits)
    assert pooled.shape[1] == model.num_features
    last, maps = model.forward_intermediates(x, norm=True)
    assert torch.equal(last, features)
    flat = features[:, getattr(model, "num_prefix_tokens", 0) :].mT if features.dim() == 3 else features.flatten(2)
    assert torch.equal(maps[-1].flatten(2), flat)
    for info, one in zip(model.feature_info, maps, strict=True):
        assert one.shape[1] == info["num_chs"]
        assert list(one.shape[2:]) == [-(-n // info["reduction"]) for n in (17, 31)]
    some = model.forward_intermediates(x, [0, -2], intermediates_only=True, stop_early=True, output_fmt="NHWC")
    every = model.forward_intermediates(x, intermediates_only=True)
    for one, index in zip(some, sorted({0, len(every) - 2})):
        assert torch.equal(one.movedim(-1, 1), every[index])
    assert torch.equal(model.forward_intermediates(x, 1, intermediates_only=True)[0], every[-1])


@MODEL
@pytest.mark.parametrize("out_indices", [None, (0,), (0, -1), 1], ids=str)
def test_a_feature_extractor_keeps_what_its_maps_need(make, out_indices) -> None:
    model, x = build(make), images(16, 24)
    expected = model.forward_intermediates(x, out_indices, intermediates_only=True)
    extractor = FeatureExtractor(copy.deepcopy(model), out_indices)
    maps = extractor(x)
    for actual, wanted in zip(maps, expected, strict=True):
        assert torch.equal(actual, wanted)
    assert extractor.feature_info.channels() == [one.shape[1] for one in maps]
    assert extractor.feature_info.reduction() == [16 // one.shape[2] for one in maps]
    loss = sum((one * torch.linspace(-1, 1, one.numel(), dtype=one.dtype).view_as(one)).sum() for one in maps)
    loss.backward()
    assert [name for name, p in extractor.named_parameters() if p.grad is None] == []


@DEEP
def test_checkpointing_changes_memory_and_nothing_else(make) -> None:
    """The same gradients in training with stochastic depth, and fewer tensors kept for the backward pass."""
    model, x = build(make).train(), images(16, 24)
    kept, results = [], []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(5)
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t) or t, lambda t: t):
            out = model(x)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        results.append([p.grad for p in model.parameters()])
        kept.append(len(saved))
    for plain, again in zip(*results, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-12, atol=1e-14)
    assert kept[1] < 0.5 * kept[0]
    assert model.forward_intermediates(x)[0].requires_grad


@MODEL
def test_another_classifier(make) -> None:
    model, x = build(make), images()
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model(x).shape == (3, 7)
    assert model(x).dtype == torch.float64
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert torch.equal(model(x), pooled)


@MODEL
def test_meta_costs_nothing(make) -> None:
    with torch.device("meta"):
        assert all(p.is_meta for p in make().parameters())


def test_what_does_not_decay() -> None:
    model = Toy()
    model.stages[0].blocks[1].attn.rel_pos.no_weight_decay = lambda: {"relative_position_bias_table"}
    assert model.no_weight_decay() == {"stages.0.blocks.1.attn.rel_pos.relative_position_bias_table"}
    assert vit().no_weight_decay() == {"cls_token", "pos_embed"}


def test_names_of_the_vision_transformer_are_timms() -> None:
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    modules = ["patch_embed.proj", "norm", "head", *(f"blocks.{i}.{part}" for i in (0, 1) for part in parts)]
    expected = {"pos_embed", "cls_token", *(f"{module}.{kind}" for module in modules for kind in ("weight", "bias"))}
    assert set(vit().state_dict()) == expected


def test_a_mixer_of_ones_own_sees_tokens_with_the_prefix_in_front() -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, hidden_states: Tensor) -> Tensor:
            seen.append(hidden_states.shape)
            return hidden_states

    VisionTransformer(VisionTransformer.tiny, lambda index: Spy())(images().float())
    assert seen == [(3, 1 + 2 * 3, 12)] * 2


def test_wrong_input_and_options_are_refused() -> None:
    model = build(Toy)
    with pytest.raises(ShapeError, match=r"Toy: images must be \[B, 3, height, width\], got \[3, 16, 24, 3\]"):
        model(images().movedim(1, -1))
    for indices in ([3], [-4], 4, 0, []):
        with pytest.raises(ValueError, match=r"out_indices must be numbers of 3 maps, -3 to 2"):
            model.forward_intermediates(images(), indices)
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW' or 'NHWC', got 'NLC'"):
        model.forward_intermediates(images(), output_fmt="NLC")
    with pytest.raises(ValueError, match="2 stages, but 1 channels and 1 reductions"):
        Backbone(nn.Identity(), [nn.Identity()] * 2, ClassifierHead(3, 5), channels=[3], reductions=[2])


@pytest.mark.slow
def test_compiles_to_the_same_numbers() -> None:
    model, x = build(Toy), images(17, 31)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_an_exported_vision_transformer_takes_any_batch_and_size() -> None:
    model = build(vit)
    side = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(model, (images(16, 24),), dynamic_shapes=(side,))
    for x in (images(16, 24), images(32, 40, batch=2)):
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MaxViT", "DaViT"])
def test_an_exported_backbone_takes_any_batch_and_size(name: str) -> None:
    """Made on sides that neither strides nor windows divide."""
    model = MODELS[name]().double().eval()
    side = {0: torch.export.Dim("B"), **{i: torch.export.Dim(f"side{i}", min=16) for i in (2, 3)}}
    with torch.no_grad():
        program = torch.export.export(model, (images(50, 70),), dynamic_shapes=(side,), strict=False).module()
        for x in (images(64, 64), images(33, 47, batch=1), images(16, 100, batch=2)):
            torch.testing.assert_close(program(x), model(x), rtol=1e-9, atol=1e-9)
