"""`attensor solve complete`: from an image with holes to a sheet or a page, and one line for what cannot be done."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from attensor import cli
from attensor.data.pictures import png, read_picture
from attensor.errors import DataError
from attensor.models.vision.axial_pictures import levels_of_file, pixels_of
from attensor.models.vision.axial_transformer import AxialTransformer

GREY = dataclasses.replace(AxialTransformer.presets["axial_digits"], image_size=(4, 3), hidden_size=8, num_heads=2)
COLOUR = dataclasses.replace(AxialTransformer.tiny, image_size=(4, 3), num_levels=256)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and half images."""
    folder = tmp_path_factory.mktemp("models")
    for name, config in (("grey", GREY), ("colour", COLOUR)):
        torch.manual_seed(1)
        AxialTransformer(config).save(folder / name)
        half = torch.randint(17, (config.in_channels, 2, 3)) * 15
        (folder / f"{name}.png").write_bytes(png(half.to(torch.uint8)))
    return folder


def complete(folder: Path, name: str, out: Path, *options: str, image: str | None = None) -> int:
    arguments = ["--model", str(folder / name), "--image", str(folder / (image or f"{name}.png")), "--out", str(out)]
    return cli.main(["solve", "complete", *arguments, *options])


@pytest.mark.parametrize("name", ["grey", "colour"])
def test_a_sheet_shows_the_image_and_its_completions(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheets = []
    for seed in ("4", "4", "5"):
        out = tmp_path / f"{len(sheets)}.png"
        assert complete(folder, name, out, "--count", "3", "--seed", seed, "--scale", "1") == 0
        sheets.append(read_picture(out, channels=3)[0])
    channels = 1 if name == "grey" else 3
    given = read_picture(folder / f"{name}.png", channels=3)[0]
    assert sheets[0].shape == (3, 2 * 5 + 1, 2 * 4 + 1)  # two rows of two
    for top, left in ((1, 1), (1, 5), (6, 1), (6, 5)):
        shown = sheets[0][:, top : top + 2, left : left + 3].int()
        assert (shown - given).abs().max() <= 8  # the nearest of 17 levels
    assert (sheets[0][:, 3:5, 1:4] == 160).all()
    assert torch.equal(sheets[0], sheets[1])
    assert not torch.equal(sheets[0], sheets[2])
    shown = capsys.readouterr().out
    assert f"{6 * channels} of {12 * channels} values drawn, 3 times" in shown
    assert re.search(r"take 4\.08\d to 4\.08\d bits" if name == "grey" else r"take (7\.9|8\.0)", shown)


def test_a_page_shows_each_of_them(folder: Path, tmp_path: Path) -> None:
    assert complete(folder, "grey", tmp_path / "x.html", "--count", "2") == 0
    page = (tmp_path / "x.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "bits a dimension" in page
    assert "Content-Security-Policy" in page


def test_holes_and_rows(tmp_path: Path) -> None:
    image = Image.new("LA", (3, 3), (255, 255))
    image.putpixel((1, 0), (255, 0))
    image.save(tmp_path / "x.png")
    levels = levels_of_file(tmp_path / "x.png", GREY)
    assert levels.tolist() == [[[16, -1, 16], [16] * 3, [16] * 3, [-1] * 3]]
    assert levels_of_file(tmp_path / "x.png", GREY, rows=1)[0, 1:].unique().tolist() == [-1]
    assert levels_of_file(tmp_path / "x.png", COLOUR)[:, 0].tolist() == [[255, -1, 255]] * 3
    assert pixels_of(torch.tensor([[[0, 8, 16, -1]]]), GREY).tolist() == [[[0, 128, 255, 160]]]
    for size in ((4, 4), (3, 5)):
        Image.new("L", size).save(tmp_path / "y.png")
        with pytest.raises(DataError, match=r"y\.png' has . rows of . pixels, the model's images 4 of 3; scale it"):
            levels_of_file(tmp_path / "y.png", GREY)
    for changes, what in (({"num_frames": 2}, "videos"), ({"in_channels": 2}, "images of 2 channels")):
        config = dataclasses.replace(COLOUR, **changes)
        with pytest.raises(ValueError, match=f"the model is of {what}"):
            levels_of_file(tmp_path / "x.png", config)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"options": ("--count", "0")}, "--count must be at least 1, got 0"),
        ({"options": ("--temperature", "nan")}, "--temperature must be at least 0, got nan"),
        ({"out": "x.gif"}, "--out must end in .png or .html, got"),
        ({"out": "nowhere/x.png"}, "there is no folder"),
        ({"name": "absent", "image": "grey.png"}, "absent holds no model: there is no config.json"),
        ({"image": "absent.png"}, "absent.png"),
        ({"name": "colour", "image": "grey/config.json"}, "is not an image"),
        ({"options": ("--rows", "4"), "image": "whole.png"}, "nothing is missing; make pixels transparent"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_one_line(
    options: dict[str, Any], said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "whole.png").write_bytes(png(torch.zeros(1, 4, 3, dtype=torch.uint8)))
    out = tmp_path / options.get("out", "x.png")
    assert (
        complete(folder, options.get("name", "grey"), out, *options.get("options", ()), image=options.get("image")) == 2
    )
    shown, err = capsys.readouterr()
    assert shown == ""
    assert err.count("\n") == 1
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing_behind(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = AxialTransformer.sample

    def interrupted(self: AxialTransformer, count: int, *, on_row: Any, **options: Any) -> Any:
        def stop(done: int, total: int) -> None:
            on_row(done, total)
            if done == 3:
                raise KeyboardInterrupt

        return sample(self, count, on_row=stop, **options)

    monkeypatch.setattr(AxialTransformer, "sample", interrupted)
    assert complete(folder, "grey", tmp_path / "x.png") == 130
    assert "Interrupted after 3 of 4 rows; nothing was written." in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []
