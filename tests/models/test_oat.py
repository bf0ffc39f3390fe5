"""OAT: the authors' numbers, decoding step by step, mixed layouts, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attensor.errors import ShapeError
from attensor.models.pointing import OAT, OATConfig, Scenes
from attensor.models.pointing.convert import oat_from_official
from attensor.models.pointing.oat_decoding import Decoding
from attensor.models.pointing.places import gaussian_positions
from tests.golden import record_oat
from tests.golden.drawn import golden, summaries, uniform

TABLES = {11: 5.895, 14: 8.764}  # of the published tables: places, length of their codes


def scenes(batch: int = 2, rows: int = 2, columns: int = 3, look: tuple[int, ...] = (5,)) -> Scenes:
    number = rows * columns
    cells = torch.stack([torch.arange(number) // columns, torch.arange(number) % columns], -1)
    return Scenes(
        (uniform("crops", batch, number, *look) + 1) / 2,
        cells.expand(batch, -1, -1),
        torch.tensor([4, 1] * batch)[:batch] % number,
        torch.tensor([[rows, columns]]).expand(batch, -1),
    )


@pytest.fixture
def model() -> OAT:
    torch.manual_seed(0)
    return OAT(OAT.tiny).double().eval()


@pytest.mark.parametrize("name", sorted(record_oat.KINDS))
def test_is_the_official_model(name: str) -> None:
    """Scores, loss, gradients of all weights that are read, and paths of the most likely objects."""
    size, levels = record_oat.KINDS[name]
    config = replace(
        OAT.tiny, look=size, pooling_levels=levels, hidden_size=record_oat.WIDTH, look_size=None, place_norm=4.0,
        max_length=record_oat.LONGEST,
    )  # fmt: skip
    model = OAT(config).double().eval()
    model.load_state_dict(official(model))
    given = scenes(look=(*size, 3))
    expected = {key.removeprefix(f"{name}."): x for key, x in golden("oat").items() if key.startswith(f"{name}.")}
    logits = model(given, record_oat.PATHS)
    real = record_oat.PATHS.new_tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
    torch.testing.assert_close(logits[real], expected["logits"][real], rtol=1e-10, atol=1e-10)
    loss = model.loss(given, record_oat.PATHS)
    torch.testing.assert_close(loss, expected["loss"], rtol=1e-10, atol=1e-10)
    loss.backward()
    found = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    torch.testing.assert_close(summaries(found), expected["dp"], rtol=1e-9, atol=1e-10)
    paths, lengths = model.generate(given, temperature=0)
    assert paths[:, 0].tolist() == expected["paths"][:, : paths.shape[-1]].tolist()
    assert lengths[:, 0].tolist() == (expected["paths"] >= 0).sum(-1).tolist()


def official(model: OAT) -> dict[str, Tensor]:
    """What the authors' file would hold, with what nothing reads."""
    theirs = {f"model.{name}": x for name, x in record_oat.drawn(dict(model.state_dict())).items() if name != "places"}
    theirs |= {"model.generator.weight": torch.zeros(8, 32), "model.LinearEmbedding.bias": torch.zeros(16)}
    return oat_from_official(theirs, places=gaussian_positions(5, width=record_oat.TABLE, norm=4.0))


def test_published_size() -> None:
    """18.27 million with the two layers that nothing reads, for 27 objects."""
    with torch.device("meta"):
        count = sum(x.numel() for x in OAT(OAT.presets["oat_shelves"]).parameters())
    assert count + (512 + 1) * 29 + (3 + 1) * 256 == 18_271_744


@pytest.mark.parametrize("places", TABLES)
def test_codes_of_places(places: int) -> None:
    codes = gaussian_positions(places, norm=TABLES[places])
    distance = torch.arange(places)[:, None] - torch.arange(places)
    torch.testing.assert_close(codes @ codes.mT / TABLES[places] ** 2, torch.exp(-(distance**2) / 8.0).double())


def test_steps_are_the_whole(model: OAT) -> None:
    given, path = scenes(), torch.tensor([[1, 2, 4], [0, 3, 2]])
    with torch.no_grad():
        whole, decoding = model(given, path), Decoding(model, model.encode(given), 1)
        last = torch.full((2, 1), 6)
        for step in range(4):
            torch.testing.assert_close(decoding.scores(step, last)[:, 0], whole[:, step], rtol=1e-12, atol=1e-12)
            last = path[:, step : step + 1]


def test_mixed_layouts(model: OAT) -> None:
    """A batch of shelves of different sizes is each of them alone, gradients of the larger included."""
    small, large = scenes(1), scenes(1, 4, 5)
    paths = torch.tensor([[1, 2, -1], [19, 0, 7]])
    together = model(Scenes.join([small, large]), paths)
    torch.testing.assert_close(together[0, :3, [0, 1, 2, 3, 4, 5, 20, 21]], model(small, paths[:1, :2])[0])
    torch.testing.assert_close(together[1:], model(large, paths[1:]))
    assert together[0, :, 6:20].isneginf().all()
    drawn, _ = model.generate(Scenes.join([small, large]), samples=50)
    assert int(drawn[0].max()) < 6


def test_generation_repeats_and_ends(model: OAT) -> None:
    given = scenes()
    one, two = (model.generate(given, samples=7, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    paths, lengths = one
    assert paths.shape[:2] == lengths.shape == (2, 7)
    assert int(lengths.min()) >= 1
    assert torch.equal(paths >= 0, torch.arange(paths.shape[-1]) < lengths[..., None])
    frequent = model.generate(given, samples=4000, generator=torch.Generator().manual_seed(4))[0][:, :, 0]
    first = model(given, torch.empty(2, 0, dtype=torch.int64))[:, 0, :6].softmax(-1)
    shares = torch.stack([(frequent == number).double().mean(1) for number in range(6)], 1)
    torch.testing.assert_close(shares, first, rtol=0, atol=0.04)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"target": torch.tensor([4, 6])}, ValueError, "target must be an object"),
        ({"cells": torch.full((2, 6, 2), 3)}, ValueError, "cells must lie on the grid"),
        ({"grid": torch.tensor([[2.0, 3], [2, 3]])}, TypeError, "grid"),
        ({"looks": torch.zeros(2, 6)}, ShapeError, "looks must be"),
        ({"present": torch.ones(2, 6)}, ShapeError, "present must be"),
    ],
)
def test_scenes_refuse(change: dict[str, Tensor], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        replace(scenes(), **change)


@pytest.mark.parametrize(
    ("path", "error", "match"),
    [
        (torch.tensor([[0, 6], [1, 2]]), ValueError, "fixations must be objects"),
        (torch.tensor([[0, -1, 2], [1, 2, 3]]), ValueError, "behind the end"),
        (torch.tensor([[0, 1]]), ShapeError, "fixations must be"),
        (torch.tensor([[0.0, 1], [1, 2]]), TypeError, "fixations"),
    ],
)
def test_model_refuses(model: OAT, path: Tensor, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        model(scenes(), path)


def test_refuses_scenes_it_has_no_codes_for(model: OAT) -> None:
    with pytest.raises(ValueError, match="more rows or columns than the 5 codes"):
        model(scenes(rows=2, columns=6), torch.tensor([[0], [1]]))
    with pytest.raises(ShapeError, match="looks must be"):
        model(scenes(look=(4,)), torch.tensor([[0], [1]]))
    with pytest.raises(ValueError, match="max_places"):
        OATConfig(hidden_size=16, num_heads=4, max_places=9)
    with pytest.raises(ValueError, match="too small"):
        OAT(replace(OAT.tiny, look=(20, 40)))


def test_fixed_outputs_are_the_authors_ablation() -> None:
    """`CA_version` 0: a linear map to as many objects as there were, which other shelves are refused by."""
    torch.manual_seed(0)
    model = OAT(replace(OAT.tiny, fixed_objects=6)).double().eval()
    given, path = scenes(), torch.tensor([[1, 2, 4], [0, 3, 2]])
    with torch.no_grad():
        encoded = model.encode(given)
        causal = torch.ones(4, 4, dtype=torch.bool).triu(1)
        found = model.transformer_decoder(model.steps(encoded, path), encoded.memory, tgt_mask=causal)
        torch.testing.assert_close(model(given, path), model.generator(found))
        whole, decoding = model(given, path), Decoding(model, model.encode(given), 1)
        torch.testing.assert_close(decoding.scores(0, torch.full((2, 1), 6))[:, 0], whole[:, 0])
    drawn, _ = model.generate(given, samples=50)
    assert int(drawn.max()) < 6
    for other in (scenes(rows=2, columns=2), Scenes.join([scenes(1), scenes(1, 2, 2)])):
        with pytest.raises(ShapeError, match="must have 6 objects each"):
            model.generate(other)
    theirs = {f"model.{name}": x for name, x in model.state_dict().items() if name != "places"}
    theirs["model.LinearEmbedding.bias"] = torch.zeros(16)
    assert set(oat_from_official(theirs)) == {name for name in model.state_dict() if name != "places"}
