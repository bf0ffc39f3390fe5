"""Which images a folder holds, of which class, and on which side its owner has put them."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from attensor.data.files import find_files, holds_runs, is_ignored, printable
from attensor.data.kinds import is_image_name
from attensor.data.left_out import LeftOut
from attensor.data.parts import TEST, TRAIN, VALIDATION, part_of, split_of
from attensor.data.splits import SELECTION_SIDE, TEST_SIDE, TRAIN_SIDE
from attensor.errors import DataError

__all__ = ["Listing", "holds_images", "list_images"]

_LAYOUT = "Images need a folder with a sub-folder for each class."
_NOT_AN_IMAGE = "not an image by its suffix"


@dataclass
class Listing:
    """Images of a folder, by class.

    Attributes:
        classes: their names.
        paths, labels: of each image its file and the index of its class.
        sides: of each image the side on which its owner has put it, see `splits`; None where nothing was set apart.
        left_out: what was not taken.
    """

    classes: list[str]
    paths: list[Path]
    labels: list[int]
    sides: list[int] | None
    left_out: LeftOut


def holds_images(folder: Path) -> bool:
    """Whether most files of a folder are images; a file that has the name of one describes it and does not count."""
    names = [PurePosixPath(name) for _, name in find_files(folder)]
    images = [name for name in names if is_image_name(name.name)]
    described = {name.stem for name in images} | {name.name for name in images}
    others = sum(name.stem not in described and not is_image_name(name.name) for name in names)
    return len(images) > others


def list_images(folder: Path) -> Listing:
    """The images of a folder with a sub-folder for each class, or of one with `train`, `val` and so on, with such each.

    Raises:
        DataError: there are not at least two classes, a class has fewer than three images, or folders are named like
            parts of a data set and cannot be taken as such; names the folder that could be given.
    """
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is not a folder. {_LAYOUT}")
    left_out = LeftOut()
    images, others = _by_folder(folder, left_out)
    parts = [name for name in images if part_of(name) is not None]
    if len(parts) == len(images) > 1 or {part_of(name) for name in parts} > {TRAIN}:
        return _list_split(folder, images, left_out)
    for name, found in images.items():
        inner = {part_of(PurePosixPath(inside).parts[0]) for inside in found if "/" in inside}
        if inner > {TRAIN} and None not in inner:
            raise DataError(
                f"{str(folder / name)!r} is divided into parts of a data set. Put the parts outside and the classes "
                f"inside, as in train/{name}."
            )
    for name in others:
        images.setdefault(name, [])
    if len(images) < 2:
        raise DataError(
            f"{str(folder)!r} has {len(images)} sub-folder(s), at least 2 classes are needed. "
            f"{_LAYOUT}{_instead(folder, images)}"
        )
    classes, paths, labels = _flatten(folder, images, others)
    return Listing(classes, paths, labels, None, left_out)


def _by_folder(folder: Path, left_out: LeftOut) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Names of images, and of other files, inside each sub-folder, by its name; a sub-folder may be in one only."""
    images: dict[str, list[str]] = defaultdict(list)
    others: dict[str, list[str]] = defaultdict(list)
    for _, name in find_files(folder, left_out=left_out):
        first, _, inside = name.partition("/")
        if not is_image_name(name):
            left_out.add(name, _NOT_AN_IMAGE)
            if inside:
                others[first].append(inside)
        elif inside:
            images[first].append(inside)
        else:
            left_out.add(name, "image in no sub-folder, so of no class")
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        is_folder = entry.is_dir(follow_symlinks=False) and not is_ignored(entry.name)
        if is_folder and entry.name not in images and entry.name not in others and not holds_runs(Path(entry)):
            others[entry.name] = []
    return dict(images), dict(others)


def _flatten(
    folder: Path, images: dict[str, list[str]], others: dict[str, list[str]]
) -> tuple[list[str], list[Path], list[int]]:
    names = sorted(images)
    for name in names:
        if len(images[name]) < 3:
            strange = f" and {len(others[name])} other file(s) such as {others[name][0]!r}" if others.get(name) else ""
            raise DataError(
                f"{str(folder / name)!r} has {len(images[name])} image(s){strange}, links and hidden files left out; "
                "a class needs at least 3, one of them to choose learning rates on and one to test on."
                f"{_instead(folder, images)}"
            )
    paths = [folder / name / inside for name in names for inside in images[name]]
    labels = [label for label, name in enumerate(names) for _ in images[name]]
    return [printable(folder / name) for name in names], paths, labels


def _list_split(folder: Path, images: dict[str, list[str]], left_out: LeftOut) -> Listing:
    parts = split_of(images)
    unknown = [name for name in images if part_of(name) is None]
    if parts is None or unknown:
        what = f"; what {unknown[0]!r} is, is not clear" if unknown else ""
        raise _no_split(
            folder, images, f"holds parts of a data set ({', '.join(map(repr, images))}) and no classes{what}"
        )
    # without a third part, what there is beside the training is the test
    side_of = {TRAIN: TRAIN_SIDE, VALIDATION: SELECTION_SIDE if TEST in parts else TEST_SIDE, TEST: TEST_SIDE}
    by_part = {part: _by_class(images[name]) for part, name in parts.items()}
    classes = sorted(by_part[TRAIN])
    if len(classes) < 2 or any(sorted(of_part) != classes for of_part in by_part.values()):
        found = " and ".join(f"{', '.join(by_part[part]) or 'none'} in {name!r}" for part, name in parts.items())
        raise _no_split(folder, images, f"needs the same classes in its parts, at least 2, and has {found}")
    listing = Listing(classes, [], [], [], left_out)
    sides: list[int] = []
    for part in sorted(parts, key=side_of.__getitem__):
        for label, name in enumerate(classes):
            listing.paths += [folder / parts[part] / inside for inside in by_part[part][name]]
            listing.labels += [label] * len(by_part[part][name])
            sides += [side_of[part]] * len(by_part[part][name])
    listing.sides = sides
    return listing


def _by_class(names: Sequence[str]) -> dict[str, list[str]]:
    classes: dict[str, list[str]] = defaultdict(list)
    for name in names:
        first, slash, _ = name.partition("/")
        if slash:
            classes[first].append(name)
    return dict(classes)


def _no_split(folder: Path, images: dict[str, list[str]], problem: str) -> DataError:
    given = next((name for name in images if part_of(name) == TRAIN), next(iter(images)))
    advice = f"To have one part divided anew, give it: {str(folder / given)!r}."
    return DataError(f"{str(folder)!r} {problem}. {advice if len(_by_class(images[given])) >= 2 else _LAYOUT}")


def _instead(folder: Path, images: dict[str, list[str]]) -> str:
    """The folder further inside that looks like one of classes, as advice."""
    classes: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for name, found in images.items():
        for inside in found:
            parts = (name, *PurePosixPath(inside).parts[:-1])
            for depth in range(1, len(parts)):
                classes[parts[:depth]][parts[depth]] += 1
    good = [parts for parts, counts in classes.items() if sum(count >= 2 for count in counts.values()) >= 2]
    best = min(good, key=lambda parts: (len(parts), part_of(parts[-1]) != TRAIN), default=None)
    return "" if best is None else f" Give {str(folder.joinpath(*best))!r}?"
