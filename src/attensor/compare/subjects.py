"""What is compared: mechanisms of the catalogue, stacks of several, and modules from the user's own files."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attensor import catalogue
from attensor.catalogue import Domain

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

    def folder(self, run: Path) -> Path:
        """Where its artefacts are in the folder of a run."""
        return run / self.name.replace("*", "x")

    def mixers(self, domain: Domain, hidden_size: int, num_heads: int, num_layers: int) -> Callable[[int], nn.Module]:
        """Layer index -> a new mixer, for the generic bodies.

        Raises:
            ValueError: the user's file cannot be imported, or has no such module class.
        """
        kinds: list[tuple[type[nn.Module], dict[str, Any]]]
        if self.path is not None:
            kinds = [(_user_class(Path(self.path), self.source.rpartition(":")[2]), {})]
        else:
            cards = [catalogue.mechanism(name) for name in self.layers]
            kinds = [(catalogue.load(card.layer), card.mixer_options(domain)) for card in cards]

        def build(index: int) -> nn.Module:
            layer, options = kinds[index % len(kinds)]
            return catalogue.build_mixer(
                layer, hidden_size, num_heads, layer_index=index, num_layers=num_layers, **options
            )

        return build


def resolve(wanted: str | None, domain: Domain) -> tuple[Subject, ...]:
    """The subjects that `--mechanisms` names, or all cards that fit `domain`.

    Raises:
        ValueError: unknown or unfit name, one that comes twice, or a user's file without such a class.
    """
    if wanted is None:
        return tuple(Subject.of(card.name) for card in catalogue.mechanisms().values() if _misfit(card, domain) is None)
    subjects: list[Subject] = []
    for text in (part.strip() for part in wanted.split(",") if part.strip()):
        subject = _from_file(text) if ".py" in text else _from_catalogue(text, domain)
        if subject in subjects:
            raise ValueError(f"--mechanisms: {text} is named twice.")
        taken = {s.name for s in subjects}
        if subject.name in taken:
            subject = replace(subject, name=f"{subject.name}-{len(subjects)}")
        subjects.append(subject)
    if not subjects:
        raise ValueError("--mechanisms is empty; leave it out to compare all, or name some of `attensor list`.")
    return tuple(subjects)


def _misfit(card: catalogue.Mechanism, domain: Domain) -> str | None:
    if not card.domain & domain:
        return "mixes the cells of a grid" if domain is Domain.SEQUENCE else "mixes tokens in a row"
    if domain is Domain.SEQUENCE and not card.is_causal:
        return "looks at later tokens"
    return None


def _from_catalogue(text: str, domain: Domain) -> Subject:
    layers = catalogue.parse_stack(text)
    for name in layers:
        misfit = _misfit(catalogue.mechanism(name), domain)
        if misfit is not None:
            kind = "text" if domain is Domain.SEQUENCE else "images"
            fitting = ", ".join(c.name for c in catalogue.mechanisms().values() if _misfit(c, domain) is None)
            raise ValueError(f"--mechanisms: {name} {misfit}, and the data is {kind}. For {kind} there are {fitting}.")
    return Subject.of(*layers)


def _from_file(text: str) -> Subject:
    file, _, name = text.rpartition(":")
    path = Path(file if file.endswith(".py") else text).expanduser()
    if not path.is_file():
        raise ValueError(f"--mechanisms {text}: there is no file {path}.")
    if not file.endswith(".py") or not name:
        raise ValueError(f"--mechanisms {text}: say which class of the file: {path}:ClassName.")
    _user_class(path.resolve(), name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Subject(name, name, (), f"{path.name}:{name}", str(path.resolve()), digest)


def _user_class(path: Path, name: str) -> type[nn.Module]:
    from torch import nn

    module = _import_file(path)
    found = getattr(module, name, None)
    if isinstance(found, type) and issubclass(found, nn.Module):
        return found
    classes = [n for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, nn.Module)]
    near = difflib.get_close_matches(name, classes, n=1) or classes
    hint = f" Did you mean {near[0]}?" if near else " It must be a subclass of torch.nn.Module."
    raise ValueError(f"{path.name}:{name}: the file has no nn.Module class of that name.{hint}")


def _import_file(path: Path) -> Any:
    # named by its path: two files called mixer.py are two modules, and pickling finds the class again
    name = f"attensor_user_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.append(str(path.parent))  # so that the file can import its neighbours
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path.name}: cannot be imported: {type(error).__name__}: {error}") from error
    return module
