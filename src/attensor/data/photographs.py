"""A folder of real photographs without a download: crops of the pictures that come with installed packages.

A class is a picture, and its crops look alike as those of a class do. Crops to test on come from the right part of a
picture, crops to train on from the left, and none reaches over the border between them.
"""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

from attensor.errors import DataError, require

__all__ = ["pictures", "write_photographs"]

# package -> folder inside it, names of photographs; those that are not there are left out
_PLACES = {
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
    "skimage": (
        "data",
        (
            *("astronaut.png", "brick.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png"),
            *("hubble_deep_field.jpg", "ihc.png", "moon.png", "retina.jpg", "rocket.jpg"),
        ),
    ),
}
_BORDER = 0.7  # share of a picture's width on the left, to train on


def pictures() -> list[Path]:
    """Photographs of scikit-learn and scikit-image, where these are installed; neither is imported."""
    found = []
    for package, (folder, names) in _PLACES.items():
        spec = importlib.util.find_spec(package)
        for home in (spec.submodule_search_locations or ()) if spec else ():
            found += [path for name in names if (path := Path(home, folder, name)).is_file()]
    return found


def write_photographs(folder: Path, *, train: int = 40, test: int = 10, size: int = 96, seed: int = 0) -> list[str]:
    """Write `train/PICTURE/*.jpg` and `val/PICTURE/*.jpg`.

    Args:
        folder: made when it is not there.
        train, test: crops of each picture.
        size: side of the crops in pixels, of a fifth to a half of the picture's height.
        seed: of the places.
    Returns:
        Names of the classes.
    Raises:
        DataError: fewer than two pictures are installed.
        MissingExtraError: Pillow is not installed.
    """
    pillow: Any = require("PIL.Image", purpose="writing photographs")
    found = pictures()
    if len(found) < 2:
        raise DataError("write_photographs: no pictures are installed; pip install scikit-learn scikit-image.")
    for path in found:
        chance = random.Random(f"{seed} {path.stem}")
        with pillow.open(path) as opened:
            picture = opened.convert("RGB")
        border = int(_BORDER * picture.width)
        for part, count, left, right in (("train", train, 0, border), ("val", test, border, picture.width)):
            place = folder / part / path.stem
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                side = min(chance.randint(picture.height // 5, picture.height // 2), right - left)
                x, y = chance.randint(left, right - side), chance.randint(0, picture.height - side)
                crop = picture.crop((x, y, x + side, y + side)).resize((size, size))
                crop.save(place / f"{number:03}.jpg", quality=90)
    return sorted(path.stem for path in found)
