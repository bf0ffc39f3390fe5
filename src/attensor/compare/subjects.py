"""What is compared: mechanisms of the catalogue, stacks of several, and modules from the user's own files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attensor import catalogue
from attensor.catalogue import Domain
from attensor.compare.sweep import SWEEP, expanded
from attensor.compare.user_files import file_and_class, undisturbed, user_class

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Subject", "resolve"]


@dataclass(frozen=True)
class Subject:
    """One row of the comparison.

    Attributes:
        name: of the row.
        title: for people.
        layers: the cards of its layers, which take turns: layer i has the i-th, from the first again after the last;
            none for a user's class.
        source: `"catalogue"`, or `"my_file.py:MyMixer"` as the user wrote it.
        path: the user's file, absolute; None for the catalogue.
        digest: SHA-256 of that file, so that a resumed run notices a change.
    """

    name: str
    title: str
    layers: tuple[str, ...] = ()
    source: str = "catalogue"
    path: str | None = None
    digest: str | None = None

    @classmethod
    def of(cls, *layers: str) -> Subject:
        """The row of a card, or of several that take turns."""
        runs = [(name, len(list(group))) for name, group in groupby(layers if len(set(layers)) > 1 else layers[:1])]
        titles = dict.fromkeys(catalogue.mechanism(name).title for name in layers)
        name = "+".join(name if count == 1 else f"{count}*{name}" for name, count in runs)
        return cls(name, " + ".join(titles), layers if len(runs) > 1 else layers[:1])

    @property
    def period(self) -> int:
        """Layers after which the cards begin again."""
        return max(len(self.layers), 1)

    @property
    def class_name(self) -> str:
        """Of the user's class."""
        return self.source.rpartition(":")[2]

    @property
    def has_folder(self) -> bool:
        """Whether the name, as a plan gives it, is that of one folder."""
        return os.path.basename(self.name) == self.name not in ("", ".", "..")

    def folder(self, run: Path) -> Path:
        """Where its artefacts are in the folder of a run."""
        return run / self.name.replace("*", "x")

    def checkpoint(self, run: Path, seed: int) -> Path:
        """Where its model of one seed is, once it is trained."""
        return self.folder(run) / f"seed-{seed}.safetensors"

    def mixers(self, domain: Domain, hidden_size: int, num_heads: int, num_layers: int) -> Callable[[int], nn.Module]:
        """Layer index -> a new mixer, for the generic bodies.

        Raises:
            ValueError: the user's file cannot be imported, or has no such module class.
        """
        kinds: list[tuple[type[nn.Module], dict[str, Any]]]
        if self.path is not None:
            kinds = [(user_class(Path(self.path), self.class_name), {})]
        else:
            cards = [catalogue.mechanism(name) for name in self.layers]
            kinds = [(catalogue.load(card.layer), card.mixer_options(domain)) for card in cards]

        def build(index: int) -> nn.Module:
            layer, options = kinds[index % len(kinds)]
            with nullcontext() if self.path is None else undisturbed():
                return catalogue.build_mixer(
                    layer, hidden_size, num_heads, layer_index=index, num_layers=num_layers, **options
                )

        return build


def resolve(wanted: str | None, domain: Domain) -> tuple[Subject, ...]:
    """The subjects that `--mechanisms` names, or the cards that fit `domain`: those of a usual comparison, or `"all"`.

    Raises:
        ValueError: unknown or unfit name, one that comes twice, or a user's file that is not there.
    """
    if wanted is None or wanted.strip() == "all":
        fitting = [card for card in catalogue.mechanisms().values() if _misfit(card, domain) is None]
        return tuple(Subject.of(card.name) for card in fitting if card.is_compared or wanted is not None)
    subjects: list[Subject] = []
    for text, is_swept in _texts(wanted):
        subject = _from_file(text) if ".py" in text else _from_catalogue(text, domain)
        if is_swept and subject in subjects:
            continue
        if subject in subjects:
            raise ValueError(f"--mechanisms: {text} is named twice.")
        taken = {s.name for s in subjects}
        if subject.name in taken:
            subject = replace(subject, name=f"{subject.name}-{len(subjects)}")
        subjects.append(subject)
    if not subjects:
        raise ValueError("--mechanisms is empty; leave it out for the usual ones, or name some of `attensor list`.")
    return tuple(subjects)


def _texts(wanted: str) -> Iterator[tuple[str, bool]]:
    """The single names, and whether a sweep brought them: those last, so that what is named too comes once."""
    parts = [part.strip() for part in wanted.split(",") if part.strip()]
    yield from ((part, False) for part in parts if not part.startswith(SWEEP))
    yield from ((name, True) for part in parts if part.startswith(SWEEP) for name in expanded(part))


def _misfit(card: catalogue.Mechanism, domain: Domain) -> str | None:
    if not card.domain & domain:
        return "mixes the cells of a grid" if domain is Domain.SEQUENCE else "mixes tokens in a row"
    if domain is Domain.SEQUENCE and not card.is_causal:
        return "looks at later tokens"
    return None


def _from_catalogue(text: str, domain: Domain) -> Subject:
    try:
        layers = catalogue.parse_stack(text)
    except ValueError as error:
        raise ValueError(f"--mechanisms: {error}") from None
    for name in layers:
        misfit = _misfit(catalogue.mechanism(name), domain)
        if misfit is not None:
            kind = "text" if domain is Domain.SEQUENCE else "images"
            fitting = ", ".join(c.name for c in catalogue.mechanisms().values() if _misfit(c, domain) is None)
            raise ValueError(f"--mechanisms: {name} {misfit}, and the data is {kind}. For {kind} there are {fitting}.")
    return Subject.of(*layers)


def _from_file(text: str) -> Subject:
    path, name = file_and_class(text)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Subject(name, name, (), f"{path.name}:{name}", str(path), digest)
