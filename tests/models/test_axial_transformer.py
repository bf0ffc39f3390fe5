"""The Axial Transformer: nothing leaks, nothing is missed, likelihoods are exact, and all ways to sample agree."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attensor import models
from attensor.errors import ShapeError
from attensor.models.vision.axial_config import AxialTransformerConfig
from attensor.models.vision.axial_sampling import _READERS
from attensor.models.vision.axial_transformer import AxialTransformer

SMALL: dict[str, Any] = {"hidden_size": 6, "num_heads": 2, "mlp_hidden_size": 7, "num_inner_layers": 1}
KINDS: dict[str, AxialTransformerConfig] = {
    "grey": AxialTransformerConfig((3, 4), 1, 5, **SMALL, num_exterior_layers=0, num_outer_layers=4),
    "rows only": AxialTransformerConfig((3, 4), 1, 5, **SMALL, num_exterior_layers=0, num_outer_layers=0),
    "colour": AxialTransformerConfig((2, 3), 3, 5, **SMALL, num_exterior_layers=2, num_outer_layers=2),
    "colour as rows": AxialTransformerConfig(
        (2, 3), 3, 5, **SMALL, channels_as_rows=True, num_exterior_layers=0, num_outer_layers=2
    ),
    "video": AxialTransformerConfig(
        (2, 3), 2, 5, 3, **SMALL, num_frame_layers=3, num_exterior_layers=2, num_outer_layers=2
    ),
    "grey video": AxialTransformerConfig(
        (2, 3), 1, 5, 3, **SMALL, num_frame_layers=3, num_exterior_layers=0, num_outer_layers=2
    ),
    "video as rows": AxialTransformerConfig(
        (2, 2), 2, 5, 2, True, **SMALL, num_frame_layers=3, num_exterior_layers=0, num_outer_layers=2
    ),
}
EVERY = pytest.mark.parametrize("kind", KINDS)
METHODS = ("slow", "semi-parallel", "cached")


def build(config: AxialTransformerConfig, *, seed: int = 0) -> AxialTransformer:
    """In float64, with what begins next to zero drawn as large as the rest."""
    torch.manual_seed(seed)
    model = AxialTransformer(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def levels(config: AxialTransformerConfig, count: int = 2, seed: int = 1) -> Tensor:
    return torch.randint(config.num_levels, (count, *config.shape), generator=torch.Generator().manual_seed(seed))


@EVERY
def test_a_dimension_changes_the_logits_of_all_later_ones_and_of_no_other(kind: str) -> None:
    """Every pixel of every channel and frame is changed in turn: logits up to its own are equal bit for bit."""
    config = KINDS[kind]
    model, x = build(config), levels(config, 1)
    count = math.prod(config.shape)
    changed = x.flatten().repeat(count, 1)
    changed[range(count), range(count)] = (x.flatten() + 2) % config.num_levels
    with torch.no_grad():
        before = model(x.expand(count, *config.shape)).view(count, count, -1)
        after = model(changed.view(count, *config.shape)).view(count, count, -1)
    moved = (after - before).abs().amax(-1)  # [changed, seen]
    later = torch.ones(count, count, dtype=torch.bool).triu(1)
    assert not moved[~later].any()
    if kind != "rows only":  # without outer layers, which alone reach further up than one row
        assert moved[later].min() > 1e-7


def test_the_jacobian_reaches_all_predecessors_and_nothing_else() -> None:
    """Of the logits with respect to the embedded pixels, 4 x 5 of them."""
    config = dataclasses.replace(KINDS["grey"], image_size=(4, 5), num_outer_layers=2)
    model, x = build(config), levels(config, 1)
    seen: list[Tensor] = []
    model.plane.embed.register_forward_hook(lambda module, inputs, out: seen.append(out) or out)
    logits = model(x)[0, 0].flatten(0, 1)  # [20, K]
    for place, own in enumerate(logits):
        weights = torch.linspace(-1, 1, len(own), dtype=own.dtype)
        (gradient,) = torch.autograd.grad((own * weights).sum(), seen[0], retain_graph=True, allow_unused=True)
        size = torch.zeros(20) if gradient is None else gradient.flatten(1, 2)[0].abs().amax(-1)
        assert (size[:place] > 1e-9).all()
        assert not size[place:].any()


@pytest.mark.parametrize("kind", ["grey", "colour", "colour as rows", "grey video"])
def test_probabilities_of_all_images_sum_to_one(kind: str) -> None:
    """All 81 images of 2 x 2 pixels and 3 levels, or 2 x 1 of two channels or frames."""
    sizes: dict[str, Any] = {"num_levels": 3, "image_size": (2, 2) if kind == "grey" else (2, 1)}
    sizes |= {"in_channels": 2} if "colour" in kind else {"num_frames": 2} if "video" in kind else {}
    config = dataclasses.replace(KINDS[kind], **sizes)
    images = torch.tensor(list(itertools.product(range(3), repeat=4))).view(81, *config.shape)
    model = build(config)
    assert model.log_likelihood(images).exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    assert model.log_likelihood(images).std() > 0.1


@EVERY
def test_a_new_model_finds_all_levels_alike(kind: str) -> None:
    torch.manual_seed(3)
    model, x = AxialTransformer(KINDS[kind]), levels(KINDS[kind], 3)
    assert model.training_loss(x).item() == pytest.approx(math.log2(5), abs=1e-4)
    assert model.bits_per_dim(x).tolist() == pytest.approx([math.log2(5)] * 3, abs=1e-4)


def test_it_begins_as_published() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(KINDS["colour"], hidden_size=96, mlp_hidden_size=200, image_size=(20, 30))
    model = AxialTransformer(config)
    for name, deviation in {
        "plane.embed.weight": 5 / 96**0.5,
        "exterior.pos_h": 5 / 96**0.5,
        "plane.pos_w": 5 / 96**0.5,
        "exterior.conv.weight": 54**-0.5,
        "plane.outer.rows.0.attn.qkv.weight": 96**-0.5,
        "plane.inner.rows.0.mlp.fc1.weight": 96**-0.5,
        "plane.outer.columns.0.attn.proj.weight": 1e-5 * 96**-0.5,
        "exterior.blocks.rows.0.mlp.fc2.weight": 1e-5 * 200**-0.5,
        "plane.head.weight": 1e-5 * 96**-0.5,
    }.items():
        assert model.get_parameter(name).std().item() == pytest.approx(deviation, rel=0.1), name
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert not any(p.any() for p in biases)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("every", [1, 2, 5, 7])
def test_each_way_reads_the_logits_of_the_whole(method: Any, every: int) -> None:
    """Of all pixels in turn, or of some, where those between are given and whole rows are left out."""
    config = dataclasses.replace(KINDS["grey"], image_size=(5, 4), num_inner_layers=2)
    plane, x = build(config).plane, levels(config)[:, 0]
    condition = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    with torch.no_grad():
        expected, reader = plane(x, condition), _READERS[method](plane, x, condition)
        for row, column in [divmod(place, 4) for place in range(0, 20, every)]:
            found = reader.logits(row, column)
            torch.testing.assert_close(found, expected[:, row, column], rtol=1e-11, atol=1e-11)


def gumbel(config: AxialTransformerConfig, count: int, seed: int) -> Tensor:
    """The noise of a sample, by rows in the order of drawing."""
    generator = torch.Generator().manual_seed(seed)
    rows = math.prod(config.shape[:-1])
    drawn = [
        torch.rand(count, config.shape[-1], config.num_levels, generator=generator, dtype=torch.float64)
        for _ in range(rows)
    ]
    uniform = torch.stack(drawn, 1).clamp(min=1e-9)
    return -(-uniform.log()).log()


@EVERY
def test_all_ways_to_sample_give_the_same_images(kind: str) -> None:
    """Also as the definition has it: the whole model anew for every dimension."""
    config = KINDS[kind]
    model, noise = build(config), 0.9 * gumbel(config, 2, 7).flatten(1, 2)
    with torch.no_grad():
        model.plane.head.weight.mul_(4)  # else the noise decides nearly alone
    expected = torch.zeros(2, *config.shape, dtype=torch.int64)
    with torch.no_grad():
        for place in range(math.prod(config.shape)):
            logits = model(expected).flatten(1, -2)[:, place]
            expected.view(2, -1)[:, place] = (logits + noise[:, place]).argmax(-1)
    for method in METHODS:
        generator = torch.Generator().manual_seed(7)
        drawn = model.sample(2, temperature=0.9, generator=generator, method=method)
        assert torch.equal(drawn, expected), method
    assert not torch.equal(expected[0], expected[1])


@EVERY
@pytest.mark.parametrize("method", METHODS)
def test_a_completion_keeps_what_is_given_and_continues_it(kind: str, method: Any) -> None:
    """The beginning of a sample, completed with the noise of the sample, is the sample."""
    config = KINDS[kind]
    model = build(config)
    whole = model.sample(3, generator=torch.Generator().manual_seed(5))
    order = torch.arange(math.prod(config.shape)).view(config.shape)
    for known in (order < config.shape[-1] + 1, order < order.numel() - 2, order < order.numel()):
        given = torch.where(known, whole, -1)
        drawn = model.sample(3, given=given, generator=torch.Generator().manual_seed(5), method=method)
        assert torch.equal(drawn, whole)
    given = torch.where(order % 3 == 1, levels(config, 3), -1)  # holes everywhere, one of the images whole
    given[1] = levels(config)[0]
    drawn = model.sample(3, given=given, generator=torch.Generator().manual_seed(6), method=method)
    assert torch.equal(drawn[given >= 0], given[given >= 0])
    assert drawn.min() >= 0
    slow = model.sample(3, given=given, generator=torch.Generator().manual_seed(6), method="slow")
    assert torch.equal(drawn, slow)


def test_one_given_image_serves_all_samples_and_is_left_as_it_is() -> None:
    config = KINDS["colour"]
    model, given = build(config), torch.full(KINDS["colour"].shape, -1)
    given[:, 0] = 2
    drawn = model.sample(4, given=given)
    assert (drawn[:, :, 0] == 2).all()
    assert given[:, 1:].max() == -1
    assert len(drawn.flatten(1).unique(dim=0)) == 4


def test_samples_follow_the_model() -> None:
    """Counts of the 9 images of 1 x 2 pixels with 3 levels against their probabilities: chi-squared, 8 degrees."""
    config = dataclasses.replace(KINDS["grey"], image_size=(1, 2), num_levels=3)
    model, count = build(config), 4000
    images = torch.tensor(list(itertools.product(range(3), repeat=2))).view(9, 1, 1, 2)
    expected = count * model.log_likelihood(images).exp()
    drawn = model.sample(count, generator=torch.Generator().manual_seed(0)).view(count, 2)
    found = torch.bincount(3 * drawn[:, 0] + drawn[:, 1], minlength=9)
    assert ((found - expected) ** 2 / expected).sum().item() < 26.1  # 99.9 %


def test_temperature_zero_takes_the_most_likely_level() -> None:
    config = KINDS["grey"]
    model = build(config)
    drawn = model.sample(1, temperature=0.0)
    assert torch.equal(model(drawn).argmax(-1), drawn)
    assert torch.equal(model.sample(1, temperature=0.0), drawn)


@pytest.mark.parametrize("kind", ["colour", "video", "grey", "colour as rows"])
def test_the_training_loss_is_an_estimate_without_bias(kind: str) -> None:
    """The mean over all choices of a channel for one image, or one frame, is the exact value."""
    config = dataclasses.replace(KINDS[kind], num_frames=1 if KINDS[kind].num_frames else None)
    model, x = build(config), levels(config, 1)
    exact = model.bits_per_dim(x).item()
    found = {round(model.training_loss(x, torch.Generator().manual_seed(i)).item(), 9) for i in range(16)}
    assert len(found) == (config.in_channels if config.has_exterior else 1)
    assert sum(found) / len(found) == pytest.approx(exact, abs=1e-8)


@pytest.mark.parametrize("kind", ["colour", "video"])
def test_gradients_are_those_of_differences(kind: str) -> None:
    model, x = build(KINDS[kind]), levels(KINDS[kind])
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(2)
    direction = {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in parameters.items()}
    gradients = torch.autograd.grad(model.bits_per_dim(x)[0], list(parameters.values()))
    slope = sum((g * d).sum() for g, d in zip(gradients, direction.values()))
    step, ends = 1e-6, []
    for sign in (1, -1):
        moved = {name: p + sign * step * direction[name] for name, p in parameters.items()}
        ends.append(torch.func.functional_call(model, moved, (x,)))
    losses = [F.cross_entropy(e[0].flatten(0, -2), x[0].flatten()) / math.log(2) for e in ends]
    assert ((losses[0] - losses[1]) / (2 * step)).item() == pytest.approx(slope.item(), rel=1e-5)
    assert all(g.abs().max() > 0 for g in gradients)


def test_a_few_steps_learn_a_pattern() -> None:
    torch.manual_seed(0)
    config = AxialTransformer.tiny
    model = AxialTransformer(config)
    pattern = (torch.arange(math.prod(config.shape)).view(config.shape) % 5).expand(4, *config.shape)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        model.training_loss(pattern).backward()
        optimizer.step()
    assert model.eval().bits_per_dim(pattern).max() < 0.5
    assert torch.equal(model.sample(1, temperature=0.0)[0], pattern[0])


def test_half_precision_is_near() -> None:
    """In bfloat16, weights and all, and under autocast."""
    config = KINDS["colour"]
    model, x = build(config).float(), levels(config, 4)
    exact = model.bits_per_dim(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model.bits_per_dim(x), exact, rtol=0.03, atol=0.05)
    model = model.bfloat16()
    torch.testing.assert_close(model.bits_per_dim(x), exact, rtol=0.03, atol=0.05)
    assert model.bits_per_dim(x).dtype == torch.float32
    drawn = model.sample(2, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (2, *config.shape)


@pytest.mark.slow
def test_one_graph_serves_all_batches() -> None:
    """Compiled as a whole, the loss with its drawn channels too, and exported with a free batch."""
    model, x = build(AxialTransformer.tiny), levels(AxialTransformer.tiny, 3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-10, atol=1e-10)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("B", min=1, max=64)},)).module()
    for count in (1, 5):
        x = levels(AxialTransformer.tiny, count)
        torch.testing.assert_close(program(x), model(x), rtol=1e-10, atol=1e-10)
    loss = torch.compile(model.training_loss, fullgraph=True, backend="aot_eager")
    assert 0.5 < loss(x).item() < 20


def test_dropout_acts_in_training_alone() -> None:
    config = dataclasses.replace(KINDS["grey"], dropout=0.5)
    model, x = build(config), levels(config)
    assert torch.equal(model(x), build(KINDS["grey"])(x))
    assert not torch.equal(model.train()(x), model(x))
    drawn = model.sample(2, generator=torch.Generator().manual_seed(1))
    assert model.training
    assert torch.equal(drawn, build(KINDS["grey"]).sample(2, generator=torch.Generator().manual_seed(1)))


def test_no_images_are_no_trouble() -> None:
    config = KINDS["video"]
    model = build(config)
    assert model(levels(config, 0)).shape == (0, *config.shape, 5)
    assert model.log_likelihood(levels(config, 0)).shape == (0,)
    assert model.sample(0).shape == (0, *config.shape)


def test_rows_are_counted_while_sampling() -> None:
    config, seen = KINDS["video"], []
    build(config).sample(1, on_row=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 12) for i in range(1, 13)]


def test_what_it_does_not_take_is_refused() -> None:
    config = KINDS["colour"]
    model, x = build(config), levels(config)
    for wrong, error, match in (
        (x[0], ShapeError, r"AxialTransformer: images must be \[B, 3, 2, 3\], got \[3, 2, 3\]"),
        (x.movedim(1, -1), ShapeError, r"must be \[B, 3, 2, 3\], got \[2, 2, 3, 3\]"),
        (x.double(), TypeError, r"images must be integers, got torch\.float64; use model\.quantize"),
        (x + 5, ValueError, r"images must be 0 \.\. 4, got 5 \.\. 9"),
        (x - 1, ValueError, r"images must be 0 \.\. 4, got -1 \.\. "),
    ):
        for function in (model, model.training_loss, model.log_likelihood):
            with pytest.raises(error, match=match):
                function(wrong)
    for options, match in (
        ({"temperature": -1.0}, "temperature must be at least 0, got -1"),
        ({"given": x}, r"given must be of 1 or count = 3 images, got 2"),
        ({"given": x[..., :1]}, r"given must be \[B, 3, 2, 3\]"),
        ({"given": x - 7}, r"given must be -1 \.\. 4, got -7"),
        ({"method": "fast"}, "method must be "),
    ):
        with pytest.raises(ValueError, match=match):
            model.sample(3, **options)
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        model.sample(-1)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_outer_layers": 3}, "num_outer_layers must be a multiple of 2, got 3"),
        ({"num_frame_layers": 3}, "num_frame_layers must be 0 without num_frames, got 3"),
        ({"in_channels": 1}, "num_exterior_layers must be 0 with in_channels 1 .*, got 2"),
        ({"channels_as_rows": True}, "num_exterior_layers must be 0 .* channels_as_rows True"),
        ({"num_levels": 1}, "num_levels must be at least 2, got 1"),
        ({"image_size": (0, 4)}, "image_size must be at least 1"),
        ({"num_inner_layers": 0}, "num_inner_layers must be at least 1, got 0"),
    ],
)
def test_a_configuration_of_nothing_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=f"AxialTransformerConfig: {match}"):
        dataclasses.replace(KINDS["colour"], **changes)


def test_levels_of_images_between_minus_one_and_one() -> None:
    model = AxialTransformer(AxialTransformer.presets["axial_digits"])
    cells = torch.arange(17)
    assert torch.equal(model.quantize((cells * 255 / 16).round() / 127.5 - 1), cells)
    assert model.quantize(torch.tensor([-1.3, 1.2])).tolist() == [0, 16]


def test_a_saved_model_is_read_again(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float64):
        model = build(KINDS["video"]).to(dtype)
        model.save(tmp_path / "model")
        again = AxialTransformer.load(tmp_path / "model")
        assert again.config == model.config
        assert not again.training
        assert torch.equal(again(levels(model.config)), model(levels(model.config)))
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no model: there is no config\.json"):
        AxialTransformer.load(tmp_path)
    build(KINDS["grey"]).save(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    for changes, match in (
        ({"model": "GLA"}, "holds another model than AxialTransformer"),
        ({"sides": 3}, r"config\.json is no configuration of AxialTransformer: .*sides"),
        ({"num_levels": 6}, r"does not fit this AxialTransformer: 3 of another shape \(plane\.embed\.weight"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(told | changes))
        with pytest.raises(ValueError, match=match):
            AxialTransformer.load(tmp_path)


def tensorflow_shapes(config: AxialTransformerConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the official code's variables (read from it: `Transformer3d` and what it holds)."""
    (height, width), size, inside = config.image_size, config.hidden_size, config.mlp_hidden_size
    channels, count = config.in_channels, config.num_levels
    shapes: dict[str, tuple[int, ...]] = {"pos_embs_h": (height, size), "pos_embs_w": (width, size)}
    shapes |= {"exterior_input_conv/w": (3, 3, 2 * channels, size), "exterior_input_conv/b": (size,)}
    inner = {"embs": (count, size), "pos_embs_h": (height, size), "pos_embs_w": (width, size)}
    inner |= {"final_ln/g": (size,), "final_ln/b": (size,), "final_dense/w": (size, count), "final_dense/b": (count,)}
    shapes |= {f"transformer2d/{name}": shape for name, shape in inner.items()}
    blocks = [f"exterior_{axis}_{i}" for axis in ("row", "col") for i in range(config.num_exterior_layers // 2)]
    blocks += [
        f"transformer2d/outer_{axis}_{i}" for axis in ("row", "col") for i in range(config.num_outer_layers // 2)
    ]
    blocks += [f"transformer2d/inner_row_{i}" for i in range(config.num_inner_layers)]
    for block in blocks:
        for part in ("q", "k", "v", "proj_out"):
            shapes |= {f"{block}/attn/{part}/w": (size, size), f"{block}/attn/{part}/b": (size,)}
        for part, (rows, columns) in {"proj_in": (size, inside), "proj_out": (inside, size)}.items():
            shapes |= {f"{block}/mlp/{part}/w": (rows, columns), f"{block}/mlp/{part}/b": (columns,)}
        shapes |= {f"{block}/layernorm_{part}/{kind}": (size,) for part in ("attn", "mlp") for kind in "gb"}
    return {f"ar_decoder/{name}": shape for name, shape in shapes.items()}


def tensorflow_weights(config: AxialTransformerConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {name: torch.randn(shape, generator=generator) for name, shape in tensorflow_shapes(config).items()}


@pytest.mark.parametrize("name", ["axial_imagenet32", "axial_imagenet64"])
def test_every_variable_of_the_official_model_has_its_place(name: str) -> None:
    config = AxialTransformer.presets[name]
    with torch.device("meta"):
        model = AxialTransformer(config)
        weights = {n: torch.empty(shape) for n, shape in tensorflow_shapes(config).items()}
    found = model.convert_state_dict(weights)
    assert {n: x.shape for n, x in found.items()} == {n: x.shape for n, x in model.state_dict().items()}


def test_official_weights_mean_the_same_here(tmp_path: Path) -> None:
    """Sums over the official axes, written out: a convolution, a dense layer, and heads in the order (head, width)."""
    config = dataclasses.replace(KINDS["colour"], hidden_size=6)
    weights, model = tensorflow_weights(config), AxialTransformer(config)
    model.load_state_dict(model.convert_state_dict(weights))
    x = torch.randn(2, 6, 2, 3)
    padded = F.pad(x, (1, 1, 1, 1))
    kernel = weights["ar_decoder/exterior_input_conv/w"]
    summed = sum(
        torch.einsum("bchw,cd->bdhw", padded[:, :, i : i + 2, j : j + 3], kernel[i, j])
        for i, j in itertools.product(range(3), repeat=2)
    )
    bias = weights["ar_decoder/exterior_input_conv/b"][:, None, None]
    torch.testing.assert_close(model.exterior.conv(x), summed + bias, rtol=1e-4, atol=1e-5)
    block, cells = "ar_decoder/transformer2d/outer_col_0", torch.randn(2, 3, 4, 6)
    own = model.plane.outer["columns"][0]
    parts = {part: cells @ weights[f"{block}/attn/{part}/w"] + weights[f"{block}/attn/{part}/b"] for part in "qkv"}
    q, k, v = (part.unflatten(-1, (2, 3)) for part in parts.values())  # two heads of three
    scores = torch.einsum("bihnd,bjhnd->bhnij", q, k) / 3**0.5
    scores = scores.masked_fill(torch.ones(3, 3).triu(1).bool(), -1e9)
    mixed = torch.einsum("bhnij,bjhnd->bihnd", scores.softmax(-1), v).flatten(-2)
    mixed = mixed @ weights[f"{block}/attn/proj_out/w"] + weights[f"{block}/attn/proj_out/b"]
    torch.testing.assert_close(own.attn(cells), mixed, rtol=1e-4, atol=1e-4)
    inside = cells @ weights[f"{block}/mlp/proj_in/w"] + weights[f"{block}/mlp/proj_in/b"]
    inside = inside * torch.sigmoid(1.702 * inside)
    inside = inside @ weights[f"{block}/mlp/proj_out/w"] + weights[f"{block}/mlp/proj_out/b"]
    torch.testing.assert_close(own.mlp(cells), inside, rtol=1e-4, atol=1e-4)


def test_moving_averages_are_taken_and_the_optimizer_is_left_out() -> None:
    config = KINDS["colour"]
    weights, model = tensorflow_weights(config), AxialTransformer(config)
    averages = {f"{name}/ExponentialMovingAverage": x + 1 for name, x in weights.items()}
    slots = {f"{name}/Adam{which}": x for name, x in weights.items() for which in ("", "_1")}
    others = {"beta1_power": torch.ones(()), "beta2_power": torch.ones(()), "global_step": torch.tensor(7)}
    found = model.convert_state_dict({**weights, **averages, **slots, **others})
    model.load_state_dict(found)
    assert torch.equal(found["plane.embed.weight"], weights["ar_decoder/transformer2d/embs"] + 1)
    del weights["ar_decoder/transformer2d/inner_row_0/attn/k/w"]
    with pytest.raises(ValueError, match=r"attn\.q\.weight is there without .*attn\.k\.weight"):
        model.convert_state_dict(weights)
    with pytest.raises(ValueError, match="1 of 1 names are not of this layout, the first is 'encoder/w'"):
        model.convert_state_dict({"encoder/w": torch.zeros(1)})


def test_official_weights_are_created_from_a_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    config = dataclasses.replace(AxialTransformer.presets["axial_digits"], in_channels=1)
    own = AxialTransformer(config)
    save_file(own.state_dict(), tmp_path / "own.safetensors")
    model = models.create("axial_digits", pretrained=tmp_path / "own.safetensors")
    x = levels(config)
    assert torch.equal(model(x), own(x))
    with pytest.raises(ValueError, match="axial_digits has no num_classes; leave it out"):
        models.create("axial_digits", num_classes=3)
    assert models.create("axial_digits", img_size=(5, 6), device="meta").config.shape == (1, 5, 6)
